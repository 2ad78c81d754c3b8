"""The index of a segment: where each frame and packet lies in bytes that are never touched again. The index is the product."""

import json
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

from roomtape.core.model import Kind
from roomtape.media import codecs, mp4, webm
from roomtape.media.carry import pack_carry, stream_list, stream_of, unpack_carry
from roomtape.media.sample import PATCH, SAMPLE, Container, Index, Part, Patches, Samples, Stream

__all__ = [
    "PATCH", "SAMPLE", "Container", "Index", "Part", "Patches", "Samples", "Stream",
    "codec_string", "index_cut", "index_head", "mime_type", "pack", "resync", "sniff", "unpack",
]  # fmt: skip

Bytes = Any  # bytes, bytearray, memoryview, mmap
_EBML = b"\x1a\x45\xdf\xa3"
_VERSION = 1
_HEAD = struct.Struct("<BBBBIIII")  # version, container, part, zlib or not, samples, patches, bytes of the streams, bytes of the warning
_COLUMN = struct.Struct("<BH")  # which of _FORMS, or _SAME: the one value of the whole column in 8 bytes; the unit
_SAME = 255
_FORMS = tuple(np.dtype(name) for name in ("<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8"))  # of a column, narrowest first
_MOST = 1 << 24  # rows that a packed index may claim
_WORTH = 1024  # bytes of columns from which compressing them is worth its time


def sniff(first: bytes) -> Container | None:
    """The container that a file beginning with `first` (8 bytes or more) is; None: neither, or a later cut."""
    if first[:4] == _EBML:
        return Container.WEBM
    return Container.MP4 if first[4:8] == b"ftyp" else None


def index_head(data: Bytes) -> tuple[Index, bytes]:
    """The index of a segment that begins with a header, and the carry: all that the next byte cut needs."""
    first = bytes(data[:8])
    container = sniff(first)
    if container is None and _EBML.startswith(first):  # too short to tell: the next cut is the head
        return _nothing(Part.HEAD, "" if first else "empty@0"), pack_carry(None, {}, first)
    if container is None and len(first) < 8 and first[:1] == b"\0" and b"ftyp".startswith(first[4:]):
        return _nothing(Part.HEAD, "", Container.MP4), pack_carry(None, {}, first)
    if container is None:
        return _nothing(Part.HEAD, "header@0"), pack_carry(Container.WEBM, {"tracks": []}, b"")
    return webm.head(data) if container == Container.WEBM else mp4.head(data)


def index_cut(data: Bytes, carry: bytes) -> tuple[Index, bytes]:
    """The index of the byte cut that follows the one that left `carry`; it may begin anywhere, even inside an id or a size."""
    state = unpack_carry(carry)
    if state is None:
        return _nothing(Part.CUT, "carry@0"), carry
    container, fields, parts = state
    if container is None:
        return _late_head(data, parts[0])
    if "state" not in fields:
        return _nothing(Part.CUT, "header@0"), carry
    return webm.cut(data, fields, parts) if container == Container.WEBM else mp4.cut(data, fields, parts)


def _late_head(data: Bytes, begun: bytes) -> tuple[Index, bytes]:
    """A head whose first cut was shorter than its magic: places are moved to the cut at hand."""
    index, carry = index_head(begun + bytes(data))
    index.samples["offset"] -= len(begun)
    index.patches["offset"] -= len(begun)
    return Index(index.container, Part.CUT, index.streams, index.samples, index.patches, index.warning), carry


def resync(data: Bytes, carry: bytes) -> tuple[Index, bytes] | None:
    """After a hole: takes up at the next Cluster or moof in `data`; of `carry` (any earlier one of the file) only the set-up is used. None: nothing found."""
    state = unpack_carry(carry)
    if state is None or "state" not in state[1]:
        return None
    container, fields, _ = state
    return webm.resync(data, fields) if container == Container.WEBM else mp4.resync(data, fields)


def _nothing(part: Part, warning: str, container: Container = Container.WEBM) -> Index:
    return Index(container, part, (), np.zeros(0, SAMPLE), np.zeros(0, PATCH), warning)


def codec_string(stream: Stream) -> str:
    """RFC 6381: vp8, vp09.00.31.08, avc1.42E01E, av01.0.04M.08, opus, mp4a.40.2, or the container's own name."""
    return codecs.rfc6381(stream.codec, stream.setup, stream.width, stream.height)


def mime_type(index: Index) -> str:
    """What the bytes are, as they are: 'video/webm;codecs="vp8,opus"'."""
    kind = "video" if any(stream.kind == Kind.VIDEO for stream in index.streams) else "audio"
    free = all(stream.codec in ("vp8", "vp9", "av1", "opus", "A_VORBIS") for stream in index.streams)
    base = "mp4" if index.container == Container.MP4 else "webm" if free else "x-matroska"
    named = ",".join(codec_string(stream) for stream in index.streams)
    return f'{kind}/{base};codecs="{named}"' if named else f"{kind}/{base}"


def pack(index: Index) -> bytes:
    """The index as compact bytes for a database column: differences in the narrowest columns that hold them, about 1.5 kB for 4 s of meeting."""
    samples, patches = index.samples, index.patches
    numbers = [stream.number for stream in index.streams]
    which = np.zeros(256, np.int64)
    which[numbers] = np.arange(len(numbers))
    ends = samples["offset"] + samples["size"]
    patch_ends = patches["offset"] + 4 + patches["value"]
    columns = [
        which[samples["stream"]] * 2 + samples["key"], _steps(samples["time_us"]), samples["cts_us"], samples["duration_us"],
        samples["offset"] - _before(ends), samples["size"], patches["offset"] - _before(patch_ends), patches["value"],
    ]  # fmt: skip
    body = b"".join(_narrow(column.astype(np.int64)) for column in columns)
    streams, warning = _streams_json(index.streams), index.warning.encode()
    squeezed = zlib.compress(body, 1) if len(body) >= _WORTH else body
    small = len(squeezed) < len(body)
    head = _HEAD.pack(
        _VERSION, index.container == Container.MP4, index.part == Part.CUT, small, len(samples), len(patches), len(streams), len(warning),
    )  # fmt: skip
    return head + streams + warning + (squeezed if small else body)


def unpack(blob: bytes) -> Index:
    """What `pack` packed. Raises ValueError for bytes of another version or that were damaged."""
    try:
        return _unpack(bytes(blob))
    except (struct.error, zlib.error, IndexError, KeyError, TypeError, ValueError, OverflowError) as damage:
        raise ValueError("These bytes are not a packed index.") from damage


def _unpack(blob: bytes) -> Index:
    version, container, part, small, count, patched, streams_size, warning_size = _HEAD.unpack_from(blob)
    if version != _VERSION:
        raise ValueError(version)
    at = _HEAD.size + streams_size
    streams, numbers = _streams_of(blob[_HEAD.size : at])
    warning = blob[at : at + warning_size].decode()
    body = zlib.decompress(blob[at + warning_size :]) if small else blob[at + warning_size :]
    if max(count, patched) > _MOST:
        raise ValueError(count)
    samples, patches, at = np.zeros(count, SAMPLE), np.zeros(patched, PATCH), 0
    which, at = _wide(body, at, count)
    samples["stream"] = numbers[which >> 1]
    samples["key"] = which & 1
    column, at = _wide(body, at, count)
    samples["time_us"] = np.cumsum(column, dtype=np.int64)
    samples["cts_us"], at = _wide(body, at, count)
    samples["duration_us"], at = _wide(body, at, count)
    gaps, at = _wide(body, at, count)
    sizes, at = _wide(body, at, count)
    samples["size"] = sizes
    samples["offset"] = np.cumsum(gaps + sizes, dtype=np.int64) - sizes
    if patched:
        gaps, at = _wide(body, at, patched)
        values, at = _wide(body, at, patched)
        patches["value"] = values
        patches["offset"] = np.cumsum(gaps + values + 4, dtype=np.int64) - values - 4
    return Index(Container.MP4 if container else Container.WEBM, Part.CUT if part else Part.HEAD, streams, samples, patches, warning)


def _steps(column: Any) -> Any:
    return np.diff(column, prepend=0) if len(column) else column


def _before(ends: Any) -> Any:
    """The end of the row before each row; 0 before the first."""
    return np.concatenate(([0], ends[:-1]))[: len(ends)]


def _narrow(column: Any) -> bytes:
    """A column of int64 in the narrowest form; in units of a thousand where all are whole milliseconds."""
    if not len(column):
        return b""
    low, high = int(column.min()), int(column.max())
    if low == high:
        return _COLUMN.pack(_SAME, 1) + struct.pack("<q", low)
    unit = 1000 if not (column % 1000).any() else 1
    if unit > 1:
        column, low, high = column // unit, low // unit, high // unit
    form = next(number for number, dtype in enumerate(_FORMS) if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)
    return _COLUMN.pack(form, unit) + bytes(column.astype(_FORMS[form]).tobytes())


def _wide(body: bytes, at: int, count: int) -> tuple[Any, int]:
    """The column at `at` as int64, and where the next begins."""
    if not count:
        return np.zeros(0, np.int64), at
    form, unit = _COLUMN.unpack_from(body, at)
    at += _COLUMN.size
    if form == _SAME:
        return np.full(count, struct.unpack_from("<q", body, at)[0]), at + 8
    column = np.frombuffer(body, _FORMS[form], count, at).astype(np.int64)
    return column * unit if unit != 1 else column, at + _FORMS[form].itemsize * count


def _streams_json(streams: tuple[Stream, ...]) -> bytes:
    return json.dumps([stream_list(stream) for stream in streams], separators=(",", ":")).encode()


@lru_cache(maxsize=512)
def _streams_of(text: bytes) -> tuple[tuple[Stream, ...], Any]:
    """The streams and their numbers as an array; kept, because hundreds of segments of one file say the same."""
    streams = tuple(stream_of(row) for row in json.loads(text))
    return streams, np.array([stream.number for stream in streams] or [0], np.uint8)
