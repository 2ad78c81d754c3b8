"""What one byte cut leaves to the next, as bytes that can stand in a database column (a checked JSON head and raw parts), and the walk that goes on from there."""

import json
import zlib
from abc import ABC, abstractmethod
from typing import Any

from roomtape.core.model import Kind
from roomtape.media.sample import Container, Stream

VERSION = 1
KEEP_BYTES = 16 << 20  # the most raw bytes of an unfinished element that are kept for the next cut


def pack_carry(container: Container | None, fields: dict[str, Any], *parts: bytes) -> bytes:
    head = json.dumps([container, [len(part) for part in parts], fields], sort_keys=True, separators=(",", ":")).encode()
    body = bytes((VERSION,)) + len(head).to_bytes(4, "big") + head + b"".join(parts)
    return zlib.crc32(body).to_bytes(4, "big") + body


def unpack_carry(carry: bytes) -> tuple[Container | None, dict[str, Any], list[bytes]] | None:
    """None: not a carry of ours, or one that was damaged."""
    if len(carry) < 9 or carry[4] != VERSION or zlib.crc32(carry[4:]) != int.from_bytes(carry[:4], "big"):
        return None
    at = 9 + int.from_bytes(carry[5:9], "big")
    container, sizes, fields = json.loads(carry[9:at])
    parts = []
    for size in sizes:
        parts.append(carry[at : at + size])
        at += size
    return Container(container) if container else None, fields, parts


def stream_list(stream: Stream) -> list[Any]:
    """A stream as JSON takes it."""
    return [stream.number, stream.kind, stream.codec, stream.setup.hex(), stream.width, stream.height, stream.channels, stream.rate, int(stream.annexb)]


def stream_of(row: list[Any]) -> Stream:
    number, kind, codec, setup, width, height, channels, rate, annexb = row
    return Stream(number, Kind(kind), codec, bytes.fromhex(setup), width, height, channels, rate, bool(annexb))


class Walker(ABC):
    """One pass over the elements of a cut; `need`: how many bytes from where it stopped would let it go on."""

    need = 0

    @abstractmethod
    def run(self, buf: Any, p: int, base: int) -> int:
        """Walks from `p` until the bytes end, or an element that is needed whole and is not: there it stops. `base` makes places in `buf` places in the cut."""

    def bridge(self, pending: bytes, data: Any) -> tuple[bytes, int]:
        """Walks the element that began in an earlier cut: (what still waits, where in `data` the walk goes on)."""
        taken = 16
        while True:
            window = pending + bytes(data[:taken])
            stop = self.run(window, 0, -len(pending))
            if stop >= len(pending):
                return b"", stop - len(pending)
            if len(window) - len(pending) >= len(data):
                return window[stop:], len(data)
            pending = pending[stop:]
            taken = max(self.need - len(pending), 16)
