"""The grammar of EBML and the header of a Matroska file: what stands still while the clusters go by."""

import struct
from collections.abc import Iterator
from typing import Any

from roomtape.core.model import Kind
from roomtape.media import codecs
from roomtape.media.sample import Stream

# length of an id or a size by its first byte; 9: none begins so
LENGTH = bytes(9 - byte.bit_length() for byte in range(256))
MASK = tuple((1 << 7 * wide) - 1 for wide in range(10))  # of a size: its value bits; all of them set says "unknown"
SIZED = frozenset((0xA0, 0xA3, 0xE7, 0xA7, 0xAB, 0x5854, 0xAF))  # live in a Cluster, must end in it
SHORT, BROKEN = -1, -2
CLUSTER_ID = b"\x1f\x43\xb6\x75"
_FIRST_IN_CLUSTER = (0xE7, 0xBF, 0xEC, 0xA7, 0xAB)
_MAX_TRACKS = 64
_CODECS = {"V_VP8": "vp8", "V_VP9": "vp9", "V_AV1": "av1", "V_MPEG4/ISO/AVC": "h264", "A_OPUS": "opus"}


def number(buf: Any, at: int, end: int) -> int:
    return int.from_bytes(buf[at : min(end, at + 9)], "big")


def header(buf: Any, p: int, n: int) -> tuple[int, int, int]:
    """(id, first byte of the body, size) of the element at `p`; id SHORT: more bytes are needed, BROKEN: no element begins so; size -1: unknown."""
    wide = LENGTH[buf[p]]
    at = p + wide
    if wide > 4:
        return BROKEN, p, 0
    if at >= n:
        return SHORT, p, 0
    long = LENGTH[buf[at]]
    if long > 8:
        return BROKEN, p, 0
    if at + long > n:
        return SHORT, p, 0
    size = int.from_bytes(buf[at : at + long], "big") & MASK[long]
    return int.from_bytes(buf[p:at], "big"), at + long, size if size != MASK[long] else -1


def children(buf: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(id, first byte, end) of each child that lies whole in at ≤ p < end; stops at the first that does not."""
    while at < end:
        wide = LENGTH[buf[at]]
        if wide > 4 or at + wide >= end:
            return
        ident, at = int.from_bytes(buf[at : at + wide], "big"), at + wide
        wide = LENGTH[buf[at]]
        if wide > 8 or at + wide > end:
            return
        start = at + wide
        at = start + (int.from_bytes(buf[at:start], "big") & MASK[wide])
        if at > end:
            return
        yield ident, start, at


def first_child(buf: Any, at: int, end: int, wanted: int) -> int | None:
    """The unsigned integer of the first child `wanted`."""
    return next((number(buf, start, stop) for ident, start, stop in children(buf, at, end) if ident == wanted), None)


def clusters(buf: Any, at: int) -> Iterator[int]:
    """Where Clusters seem to begin from `at` on: the id, then a size, then a first child that Clusters have, as far as the bytes go."""
    block = 256  # small at first: false finds may lie close together
    while at < len(buf):
        piece = bytes(buf[at : at + block + 3])
        found = piece.find(CLUSTER_ID)
        while found >= 0:
            if _is_cluster(buf, at + found + 4):
                yield at + found
            found = piece.find(CLUSTER_ID, found + 1)
        at, block = at + block, min(block * 4, 1 << 16)


def _is_cluster(buf: Any, at: int) -> bool:
    if at >= len(buf):
        return True
    wide = LENGTH[buf[at]]
    if wide > 8:
        return False
    at += wide
    return at >= len(buf) or buf[at] in _FIRST_IN_CLUSTER


def tracks(buf: Any, at: int, end: int) -> tuple[dict[int, tuple[Stream, int, int]], set[int]]:
    """The body of Tracks: ({track number: (stream, µs of a frame or 0, µs of CodecDelay)}, numbers of tracks that carry neither sound nor pictures)."""
    found: dict[int, tuple[Stream, int, int]] = {}
    ignored: set[int] = set()
    for ident, start, stop in children(buf, at, end):
        if ident != 0xAE:
            continue
        fields = {name: (a, b) for name, a, b in children(buf, start, stop)}
        track, kind = _uint(buf, fields, 0xD7), _uint(buf, fields, 0x83)
        if kind not in (1, 2) or not track or len(found) >= _MAX_TRACKS:
            ignored.add(track)
            continue
        taken = {stream.number for stream, *_ in found.values()}
        small = track if track < 256 and track not in taken else min(set(range(1, 256)) - taken)
        delay_us = _uint(buf, fields, 0x56AA) // 1000
        stream, frame_us = _video(buf, fields, small) if kind == 1 else _audio(buf, fields, small)
        found[track] = stream, frame_us, delay_us if delay_us < 1_000_000 else 0
    return found, ignored


def _uint(buf: Any, fields: dict[int, tuple[int, int]], name: int) -> int:
    return number(buf, *fields[name]) if name in fields else 0


def _bytes(buf: Any, fields: dict[int, tuple[int, int]], name: int) -> bytes:
    start, stop = fields.get(name, (0, 0))
    return bytes(buf[start:stop])


def _codec(buf: Any, fields: dict[int, tuple[int, int]]) -> str:
    name = _bytes(buf, fields, 0x86)[:64].decode("ascii", "replace").rstrip("\0")
    name = "aac" if name.startswith("A_AAC") else _CODECS.get(name, name)
    return name + "+encoded" if 0x6D80 in fields else name  # ContentEncodings: what lies in the block is not the frame


def _video(buf: Any, fields: dict[int, tuple[int, int]], small: int) -> tuple[Stream, int]:
    picture = {name: (a, b) for name, a, b in children(buf, *fields.get(0xE0, (0, 0)))}
    codec, private = _codec(buf, fields), _bytes(buf, fields, 0x63A2)
    width, height = (min(_uint(buf, picture, name), 0xFFFF) for name in (0xB0, 0xBA))
    annexb = codec == "h264" and (len(private) < 7 or private[0] != 1)
    if annexb:
        setup = codecs.avcc(codecs.annexb_split(private))
    elif codec == "vp9":
        setup = codecs.vpcc(private)
    else:
        setup = b"" if codec == "vp8" else private
    return Stream(small, Kind.VIDEO, codec, setup, width, height, annexb=annexb), 0


def _audio(buf: Any, fields: dict[int, tuple[int, int]], small: int) -> tuple[Stream, int]:
    sound = {name: (a, b) for name, a, b in children(buf, *fields.get(0xE1, (0, 0)))}
    codec, setup = _codec(buf, fields), _bytes(buf, fields, 0x63A2)
    channels, rate = min(_uint(buf, sound, 0x9F) or 1, 255), _rate(_bytes(buf, sound, 0xB5))
    frame_us = min(_uint(buf, fields, 0x23E383) // 1000, 1 << 30)
    if codec == "opus":
        rate = 48_000  # what it is decoded to; Chromium states the microphone's 44,100 here
        setup = setup if len(setup) >= 19 and setup.startswith(b"OpusHead") else codecs.opus_head(b"", channels)
    elif codec == "aac":
        frame_us = (1024 * 1_000_000 + rate // 2) // rate if rate else frame_us
    return Stream(small, Kind.AUDIO, codec, setup, channels=channels, rate=rate), frame_us


def _rate(raw: bytes) -> int:
    """A float of 4 or 8 bytes as whole Hertz; 0: nonsense, or more than a megahertz."""
    value = struct.unpack(">f" if len(raw) == 4 else ">d", raw)[0] if len(raw) in (4, 8) else 8000.0
    return round(value) if 0 < value <= 1_000_000 else 0


def laces(buf: Any, at: int, end: int, lacing: int) -> list[int] | None:
    """The sizes of the frames in a laced block whose lace begins at `at`; None: they do not fit."""
    if at >= end:
        return None
    count, at = buf[at] + 1, at + 1
    sizes: list[int] = []
    if lacing == 4:
        whole, rest = divmod(end - at, count)
        return [whole] * count if whole and not rest else None
    while len(sizes) < count - 1:
        if at >= end:
            return None
        if lacing == 2:
            size = 0
            while at < end and buf[at] == 255:
                size, at = size + 255, at + 1
            if at >= end:
                return None
            size, at = size + buf[at], at + 1
        else:
            wide = LENGTH[buf[at]]
            if wide > 8 or at + wide > end:
                return None
            value = int.from_bytes(buf[at : at + wide], "big") & MASK[wide]
            size = sizes[-1] + value - (MASK[wide] >> 1) if sizes else value  # after the first: the signed difference
            at += wide
        if not 0 <= size <= end - at:
            return None
        sizes.append(size)
    last = end - at - sum(sizes)
    return [*sizes, last] if last >= 0 else None
