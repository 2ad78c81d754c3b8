"""The grammar of ISO boxes and what a moov says of its tracks: set-up, clock, edit list, and the samples of a file that is not fragmented."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.media import codecs
from roomtape.media.sample import SAMPLE, Samples, Stream, Warnings

MAX_ROWS = 1 << 20  # samples that one file may describe ahead of their bytes: 9 hours of 30 pictures a second
_FREE_ROWS = 1 << 13


def rows_of(size: int) -> int:
    """How many samples `size` bytes of fragments may describe: a run may claim any number of equal ones, and each costs a microsecond here."""
    return min(MAX_ROWS, _FREE_ROWS + size)


FAR = 1 << 60
_MAX_TRACKS = 64
_PICTURE = {b"avc1": ("h264", b"avcC"), b"avc3": ("h264", b"avcC"), b"vp09": ("vp9", b"vpcC"), b"vp08": ("vp8", b"vpcC"), b"av01": ("av1", b"av1C")}
Numbers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Track:
    """A stream with its clock. `shift_us` is what its edit list adds to each time; the defaults are trex's (duration, size, flags)."""

    stream: Stream
    scale: int
    shift_us: int = 0
    defaults: tuple[int, int, int] = (0, 0, 0)
    entries: int = 1
    clock: int = 0  # decode time of the next fragment, if it does not say; -1: not known since a hole


def boxes(buf: Any, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte of the body, end) of each box that lies whole in at ≤ p < end; stops at the first that does not."""
    while at + 8 <= end:
        size, body = int.from_bytes(buf[at : at + 4], "big"), at + 8
        if size == 1 and at + 16 <= end:
            size, body = int.from_bytes(buf[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else at + size
        if stop < body or stop > end:
            return
        yield bytes(buf[at + 4 : at + 8]), body, stop
        at = stop


def header(buf: Any, p: int, n: int) -> tuple[bytes, int, int] | None:
    """(type, first byte of the body, size with its header; FAR: to the end of the file) of the box at `p`; None: more bytes are needed."""
    if p + 8 > n:
        return None
    size, kind = u32(buf, p), bytes(buf[p + 4 : p + 8])
    if size != 1:
        return kind, p + 8, size or FAR
    return (kind, p + 16, int.from_bytes(buf[p + 8 : p + 16], "big")) if p + 16 <= n else None


def tfhd(traf: bytes) -> tuple[int, dict[int, int]] | None:
    """(track id, what it states by flag: 1 base, 2 entry, 8 duration, 16 size, 32 flags, 0x20000 base is moof); None: it is missing or short."""
    span = child(traf, (0, len(traf)), b"tfhd")
    if span is None or span[1] - span[0] < 8:
        return None
    flags, at = u32(traf, span[0]) & 0xFFFFFF, span[0] + 8
    said = {0x20000: 1} if flags & 0x20000 else {}
    for flag, size in ((1, 8), (2, 4), (8, 4), (16, 4), (32, 4)):
        if flags & flag:
            said[flag], at = int.from_bytes(traf[at : at + size], "big"), at + size
    return (u32(traf, span[0] + 4), said) if at <= span[1] else None


def child(buf: Any, span: tuple[int, int] | None, *path: bytes) -> tuple[int, int] | None:
    """The body of the first box down `path`."""
    for name in path:
        if span is None:
            return None
        span = next(((start, stop) for kind, start, stop in boxes(buf, *span) if kind == name), None)
    return span


def u32(buf: Any, at: int) -> int:
    return int.from_bytes(buf[at : at + 4], "big")


def micro(ticks: Numbers, scale: int) -> Numbers:
    """Ticks of 1/scale s as microseconds, rounded; without the overflow that ticks * 1,000,000 would have."""
    whole = ticks // scale
    found: Numbers = whole * 1_000_000 + ((ticks - whole * scale) * 1_000_000 + scale // 2) // scale
    return found


def rows(track: Track, dts: Numbers, cts: Numbers, durations: Numbers, offsets: Numbers, sizes: Numbers, keys: npt.NDArray[np.bool_]) -> Samples:
    """SAMPLE rows, with offsets in the file, out of columns in ticks of the track; what lies outside of any file is left out."""
    found = np.zeros(len(dts), SAMPLE)
    found["stream"] = track.stream.number
    found["key"] = keys | (track.stream.kind == Kind.AUDIO)
    start = micro(dts, track.scale)
    found["time_us"] = start + track.shift_us
    if cts.any():
        found["cts_us"] = np.clip(micro(dts + cts, track.scale) - start, -(1 << 31), (1 << 31) - 1)
    found["duration_us"] = np.clip(micro(dts + durations, track.scale) - start, 0, 0xFFFFFFFF)
    found["offset"], found["size"] = offsets, sizes
    good = (sizes > 0) & (offsets >= 0) & (offsets < FAR) & (dts // track.scale < 1 << 40)
    return found if good.all() else found[good]


def moov(buf: Any, at: int, end: int, left: int, warnings: Warnings) -> tuple[dict[int, Track], set[int], list[Samples]]:
    """The body of moov: ({track id: track}, ids that carry neither sound nor pictures, rows of the samples it describes itself, `left` at most)."""
    tracks: dict[int, Track] = {}
    ignored: set[int] = set()
    tables: list[Samples] = []
    mvhd = child(buf, (at, end), b"mvhd")
    movie_scale = u32(buf, mvhd[0] + (20 if buf[mvhd[0]] else 12)) if mvhd and mvhd[1] - mvhd[0] >= 24 else 0
    for kind, start, stop in boxes(buf, at, end):
        if kind != b"trak":
            continue
        ident, track = _trak(buf, start, stop, movie_scale, {t.stream.number for t in tracks.values()}, warnings)
        if track is None or ident in tracks or len(tracks) >= _MAX_TRACKS:
            ignored.add(ident)
            continue
        tracks[ident] = track
        stbl = child(buf, (start, stop), b"mdia", b"minf", b"stbl")
        if stbl:
            tables.append(_table(buf, stbl, track, left, warnings))
            left -= len(tables[-1])
    for start, stop in (box[1:] for box in boxes(buf, *(child(buf, (at, end), b"mvex") or (0, 0))) if box[0] == b"trex"):
        known = tracks.get(u32(buf, start + 4)) if stop - start >= 24 else None
        if known:
            known.defaults = u32(buf, start + 12), u32(buf, start + 16), u32(buf, start + 20)
    return tracks, ignored, tables


def _trak(buf: Any, at: int, end: int, movie_scale: int, taken: set[int], warnings: Warnings) -> tuple[int, Track | None]:
    tkhd, mdhd = child(buf, (at, end), b"tkhd"), child(buf, (at, end), b"mdia", b"mdhd")
    hdlr, stsd = child(buf, (at, end), b"mdia", b"hdlr"), child(buf, (at, end), b"mdia", b"minf", b"stbl", b"stsd")
    if not tkhd or tkhd[1] - tkhd[0] < 84:
        return 0, None
    ident = u32(buf, tkhd[0] + (20 if buf[tkhd[0]] else 12))
    kind = {b"vide": Kind.VIDEO, b"soun": Kind.AUDIO}.get(bytes(buf[hdlr[0] + 8 : hdlr[0] + 12])) if hdlr else None
    scale = u32(buf, mdhd[0] + (20 if buf[mdhd[0]] else 12)) if mdhd and mdhd[1] - mdhd[0] >= 24 else 0
    if kind is None or not scale or not stsd or not ident:
        if kind is not None:
            warnings.add("trak", at)
        return ident, None
    small = ident if ident < 256 and ident not in taken else min(set(range(1, 256)) - taken)
    stream = _entry(buf, stsd, kind, small)
    if stream is None:
        warnings.add("stsd", at)
        return ident, None
    if kind == Kind.VIDEO and not stream.width:
        stream = Stream(small, kind, stream.codec, stream.setup, u32(buf, tkhd[1] - 8) >> 16, u32(buf, tkhd[1] - 4) >> 16)
    shift = _edits(buf, child(buf, (at, end), b"edts", b"elst"), movie_scale, scale, warnings)
    return ident, Track(stream, scale, shift, entries=u32(buf, stsd[0] + 4))


def _edits(buf: Any, elst: tuple[int, int] | None, movie_scale: int, scale: int, warnings: Warnings) -> int:
    """Microseconds that the edit list adds: empty edits before the first real one, less where that one begins in the media."""
    if not elst or elst[1] - elst[0] < 8:
        return 0
    shift, wide, real = 0, 20 if buf[elst[0]] else 12, 0
    for at in range(elst[0] + 8, min(elst[1], elst[0] + 8 + wide * min(u32(buf, elst[0] + 4), 64)) - wide + 1, wide):
        length, start = struct.unpack_from(">Qq" if wide == 20 else ">Ii", bytes(buf[at : at + 16]))
        if start < 0 and not real:
            shift += length * 1_000_000 // movie_scale if movie_scale else 0
        elif start >= 0 and not real:
            shift, real = shift - (start * 1_000_000 + scale // 2) // scale, 1
        else:
            warnings.add("edits", elst[0])
    return shift if abs(shift) < FAR else 0


def _entry(buf: Any, stsd: tuple[int, int], kind: Kind, small: int) -> Stream | None:
    """The stream that the first entry of stsd describes; None: there is none."""
    first = next(boxes(buf, min(stsd[0] + 8, stsd[1]), stsd[1]), None)
    if first is None:
        return None
    name, at, end = first
    if kind == Kind.VIDEO:
        if end - at < 78:
            return None
        width, height = int.from_bytes(buf[at + 24 : at + 26], "big"), int.from_bytes(buf[at + 26 : at + 28], "big")
        codec, box = _PICTURE.get(name, (name.decode("latin-1"), b""))
        found = child(buf, (at + 78, end), box) if box else None
        setup = bytes(buf[found[0] : found[1]]) if found and codec != "vp8" else b""
        if codec == "h264" and (len(setup) < 7 or setup[0] != 1):
            setup = b""
        return Stream(small, kind, codec, setup, width, height)
    if end - at < 28:
        return None
    version = int.from_bytes(buf[at + 8 : at + 10], "big")
    channels, rate = int.from_bytes(buf[at + 16 : at + 18], "big"), u32(buf, at + 24) >> 16
    plain = Stream(small, kind, name.decode("latin-1"), channels=min(channels, 255), rate=rate)
    return _sound(buf, (at + 28 + {1: 16, 2: 36}.get(version, 0), end), name, plain)


def _sound(buf: Any, inside: tuple[int, int], name: bytes, plain: Stream) -> Stream:
    """`plain` with what the boxes inside its sample entry add."""
    codec, setup, channels, rate = plain.codec, b"", plain.channels, plain.rate
    if name == b"Opus":
        found = child(buf, inside, b"dOps")
        setup = codecs.opus_head(bytes(buf[found[0] : found[1]]) if found else b"", channels)
        codec, channels, rate = "opus", setup[9], 48_000
    elif name == b"mp4a":
        found = child(buf, inside, b"esds") or child(buf, inside, b"wave", b"esds")
        kind, setup = _esds(bytes(buf[found[0] + 4 : found[1]])) if found else (0, b"")
        codec = "aac" if kind in (0x40, 0x66, 0x67, 0x68) else f"mp4a.{kind:02X}"
    elif name == b"fLaC":
        found = child(buf, inside, b"dfLa")
        setup = bytes(buf[found[0] : found[1]]) if found else b""
    return Stream(plain.number, plain.kind, codec, setup, channels=channels, rate=rate)


def _esds(body: bytes) -> tuple[int, bytes]:
    """(object type, AudioSpecificConfig) of an ES descriptor (ISO 14496-1, 7.2.6.5)."""
    at, kind = 0, 0
    while at < len(body):
        tag, at, size = body[at], at + 1, 0
        for _ in range(4):
            byte = body[at] if at < len(body) else 0
            size, at = size << 7 | byte & 127, at + 1
            if not byte & 128:
                break
        if tag == 3:  # ES_Descriptor: id, flags, and what the flags announce
            flags = body[at + 2] if at + 2 < len(body) else 0
            at += 3 + (2 if flags & 0x80 else 0) + (2 if flags & 0x20 else 0)
            if flags & 0x40 and at < len(body):
                at += 1 + body[at]
        elif tag == 4:  # DecoderConfigDescriptor
            kind, at = body[at] if at < len(body) else 0, at + 13
        elif tag == 5:
            return kind, body[at : at + size]
        else:
            at += size
    return kind, b""


def _column(buf: Any, span: tuple[int, int] | None, skip: int, dtype: str, fields: int, most: int) -> Numbers:
    """The table of a full box whose count stands 4 bytes before its rows, at `skip`: as many rows as there are bytes for, shape (rows, fields)."""
    if not span or span[1] - span[0] < skip:
        return np.zeros((0, fields), np.int64)
    wide = np.dtype(dtype).itemsize * fields
    count = min(u32(buf, span[0] + skip - 4), (span[1] - span[0] - skip) // wide, most)
    raw = bytes(buf[span[0] + skip : span[0] + skip + count * wide])
    return np.frombuffer(raw, dtype).reshape(count, fields).astype(np.int64)


def spread(counts: Numbers, values: Numbers, most: int) -> Numbers:
    """Each value as often as its count says, `most` in all: counts come from the file and may claim anything."""
    until = np.minimum(np.cumsum(np.minimum(counts, most)), most)
    return np.repeat(values, np.diff(until, prepend=0))


def _table(buf: Any, stbl: tuple[int, int], track: Track, most: int, warnings: Warnings) -> Samples:
    """The rows of a track whose samples stand in moov itself."""
    spans = {kind: (start, stop) for kind, start, stop in boxes(buf, *stbl)}
    sizes = _sizes(buf, spans, most)
    if not len(sizes):
        return np.zeros(0, SAMPLE)
    stts = _column(buf, spans.get(b"stts"), 8, ">u4", 2, most)
    stsc = _column(buf, spans.get(b"stsc"), 8, ">u4", 3, most)
    chunks = _column(buf, spans.get(b"stco"), 8, ">u4", 1, most)[:, 0] if b"stco" in spans else _column(buf, spans.get(b"co64"), 8, ">u8", 1, most)[:, 0]
    durations = spread(stts[:, 0], stts[:, 1], len(sizes))
    runs = np.clip(np.append(stsc[1:, 0], len(chunks) + 1) - stsc[:, 0], 0, len(chunks)) if len(stsc) else stsc[:, 0]
    held = spread(runs, stsc[:, 1], len(chunks))
    chunk = spread(held, np.arange(len(held)), len(sizes))
    count = min(len(sizes), len(durations), len(chunk))
    if count < len(sizes) or (len(sizes) == most and most):
        warnings.add("table", stbl[0])
    if len(stsc) and (stsc[:, 2] != 1).any():
        warnings.add("entry_change", stbl[0])
    sizes, durations, chunk = sizes[:count], durations[:count], chunk[:count]
    before = np.cumsum(sizes) - sizes
    first = np.searchsorted(chunk, chunk)  # of each sample: the first sample of its chunk
    ctts = _column(buf, spans.get(b"ctts"), 8, ">u4", 2, most)
    cts = spread(ctts[:, 0], (ctts[:, 1] + (1 << 31)) % (1 << 32) - (1 << 31), count)  # signed: version 0 files with negative offsets exist
    keys = np.full(count, b"stss" not in spans)
    marked = _column(buf, spans.get(b"stss"), 8, ">u4", 1, most)[:, 0]
    keys[marked[(marked > 0) & (marked <= count)] - 1] = True
    dts = np.cumsum(durations) - durations
    cts = np.append(cts, np.zeros(count - len(cts), np.int64))
    return rows(track, dts, cts, durations, chunks[chunk] + before - before[first] if count else before, sizes, keys)


def _sizes(buf: Any, spans: dict[bytes, tuple[int, int]], most: int) -> Numbers:
    span = spans.get(b"stsz") or spans.get(b"stz2")
    if not span or span[1] - span[0] < 12:
        return np.zeros(0, np.int64)
    if b"stsz" in spans:
        same, count = u32(buf, span[0] + 4), u32(buf, span[0] + 8)
        return np.full(min(count, most), same, np.int64) if same else _column(buf, span, 12, ">u4", 1, most)[:, 0]
    field = buf[span[0] + 7]
    if field == 4:
        halves = _column(buf, (span[0], span[1]), 12, "u1", 1, most)[:, 0]  # as many bytes as the count says: twice too many, cut below
        return np.stack((halves >> 4, halves & 15), 1).reshape(-1)[: min(u32(buf, span[0] + 8), most)]
    return _column(buf, span, 12, ">u2" if field == 16 else "u1", 1, most)[:, 0]
