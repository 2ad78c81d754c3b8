"""Where WebM and Matroska keep each frame: a walk over EBML that may stop and go on at any byte."""

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from roomtape.core.model import Kind
from roomtape.media import codecs
from roomtape.media.carry import KEEP_BYTES, Walker, pack_carry, stream_list, stream_of
from roomtape.media.ebml import LENGTH, MASK, SHORT, SIZED, children, clusters, first_child, header, laces, number, tracks
from roomtape.media.sample import PATCH, SAMPLE, Container, Index, Part, Stream, Warnings

EBML, SEGMENT, CLUSTER, INFO, TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
BLOCK_GROUP, SIMPLE_BLOCK, TIMESTAMP, BLOCK, BLOCK_DURATION, REFERENCE = 0xA0, 0xA3, 0xE7, 0xA1, 0x9B, 0xFB
# Void CRC-32 Position PrevSize SilentTracks EncryptedBlock SeekHead Cues Tags Chapters Attachments, and what signs a segment
SKIPPED = frozenset((0xEC, 0xBF, 0xA7, 0xAB, 0x5854, 0xAF, 0x114D9B74, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469, 0x1B538667))
HELD = frozenset((EBML, INFO, TRACKS, BLOCK_GROUP, SIMPLE_BLOCK, TIMESTAMP))  # taken only when whole
_UNKNOWN = frozenset((127, 16383, 2097151))
_ROW = struct.Struct("<BBqiIqI").pack  # SAMPLE
NEVER = 1 << 62
JUDGED = {"vp8": 1, "vp9": 2, "av1": 3, "h264": 4, "opus": 6}  # 5: h264 as Annex B; 7: other sound; 0: the container's word


MOST = 1 << 20  # elements and frames in one segment: three hours of picture and sound; a hostile one holds a thread for seconds, not for an hour


@dataclass(slots=True)
class _Track:
    """A stream, how its frames are judged, how long a frame lasts where nothing else says so, and what its timestamps are late by."""

    stream: Stream
    how: int
    frame_us: int
    delay_us: int

    @classmethod
    def of(cls, stream: Stream, frame_us: int, delay_us: int) -> "_Track":
        how = 5 if stream.annexb else JUDGED.get(stream.codec, 7 if stream.kind == Kind.AUDIO else 0)
        return cls(stream, how, frame_us, delay_us)


@dataclass(slots=True)
class _File:
    """The state between two cuts."""

    tracks: dict[int, _Track] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()
    scale_ns: int = 1_000_000
    cluster: int = -1  # its timestamp in scale_ns; -1: none yet
    cluster_end: int = NEVER  # in bytes of the file
    at: int = 0  # the file's byte at which the pending bytes begin
    skip: int = 0  # bytes still to pass by
    mode: str = "head"  # head: nothing but an EBML header may come; walk; lost: look for a Cluster; done: another file begins
    short: bool = False  # three-byte start codes were met

    def carry(self, pending: bytes) -> bytes:
        rows = [[n, t.frame_us, t.delay_us, *stream_list(t.stream)] for n, t in self.tracks.items()]
        fields = {
            "tracks": rows,
            "ignored": sorted(self.ignored),
            "state": [self.scale_ns, self.cluster, self.cluster_end, self.at, self.skip, self.mode, self.short],
        }
        return pack_carry(Container.WEBM, fields, pending)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "_File":
        rows = {row[0]: _Track.of(stream_of(row[3:]), row[1], row[2]) for row in fields["tracks"]}
        return cls(rows, frozenset(fields["ignored"]), *fields["state"])


def head(data: Any) -> tuple[Index, bytes]:
    return _walk(_File(), b"", data, Part.HEAD)


def cut(data: Any, fields: dict[str, Any], parts: list[bytes]) -> tuple[Index, bytes]:
    return _walk(_File.of(fields), parts[0], data, Part.CUT)


def resync(data: Any, fields: dict[str, Any]) -> tuple[Index, bytes] | None:
    """Goes on at the next Cluster in `data` with the set-up of any earlier carry; None: no Cluster, or no set-up."""
    found = next(clusters(data, 0), -1)
    if found < 0 or not fields["tracks"]:
        return None
    past = _File.of(fields)
    file = _File(past.tracks, past.ignored, past.scale_ns, at=found, mode="walk", short=past.short)
    return _walk(file, b"", data, Part.CUT, found)


def _walk(file: _File, pending: bytes, data: Any, part: Part, start: int = 0) -> tuple[Index, bytes]:
    walker = _Walker(file, file.at + len(pending) - start)
    if pending and len(data):
        pending, start = walker.bridge(pending, data)
    if not pending:
        start = walker.run(data, start, 0)
        pending = bytes(data[start:]) if start < len(data) else b""
    file.at = walker.origin + len(data) - len(pending)
    return walker.index(part), file.carry(pending)


class _Walker(Walker):
    """One pass over one cut: `origin` is the file's byte at which the cut begins, `base` what makes places in a buffer places in the cut."""

    def __init__(self, file: _File, origin: int) -> None:
        self.file, self.origin = file, origin
        self.rows: list[tuple[int, int, int, int, int, int, int]] = []
        self.patches: list[tuple[int, int]] = []
        self.warnings = Warnings()
        self.steps = 0

    def run(self, buf: Any, p: int, base: int) -> int:
        file, n = self.file, len(buf)
        while p < n:
            self.steps += 1
            if self.steps + len(self.rows) > MOST and file.mode == "walk":
                self.warnings.add("elements", p + base)
                file.mode = "done"
            if file.skip or file.mode in {"lost", "done"}:
                p = self._pass(buf, p)
                if file.mode == "lost":
                    return p
                continue
            if buf[p] == SIMPLE_BLOCK:
                p = self._plain(buf, p, base)
                if p >= n:
                    return p
            ident, at, size = header(buf, p, n)
            if ident == SHORT:
                self.need = 12
                return p
            end = at + size
            if end > n and ident in HELD and (ident == EBML or file.mode == "walk"):
                if end - p > KEEP_BYTES:
                    self.warnings.add("block_large", p + base)
                    file.skip = end - p
                    continue
                self.need = end - p
                return p
            p = self._element(buf, ident, p, at, size, base)
        return p

    def _pass(self, buf: Any, p: int) -> int:
        """Goes by what is not to be walked; stays "lost" where no Cluster comes up."""
        file, n = self.file, len(buf)
        if file.skip:
            step = min(file.skip, n - p)
            file.skip -= step
            return p + step
        if file.mode == "done":
            return n
        found = next(clusters(buf, p), -1)
        if found >= 0:
            file.mode = "walk"
            return found
        self.need = n - p + 16
        return max(p, n - 3)  # an id may be cut in two

    def _plain(self, buf: Any, p: int, base: int) -> int:
        """The tight loop over whole, unlaced SimpleBlocks of the usual codecs; stops at anything else, which the walk then takes."""
        file, rows = self.file, self.rows
        known_size = {n: t for n, t in file.tracks.items() if n < 127 and (t.how == 6 or (t.how in {1, 2} and t.stream.width))}
        usual = {n | 0x80: (t.stream.number, t.how, t.delay_us) for n, t in known_size.items()}
        stop, ahead = min(len(buf), file.cluster_end - self.origin - base), len(buf) - 12
        cluster, scale_ns, opus = file.cluster, file.scale_ns, codecs.OPUS_US
        while cluster >= 0 and p < ahead and buf[p] == SIMPLE_BLOCK and len(rows) < MOST:
            first = buf[p + 1]
            if first & 0x40 and first < 0x80:
                at, size = p + 3, (first & 0x3F) << 8 | buf[p + 2]
            elif first & 0x80:
                at, size = p + 2, first & 0x7F
            elif first & 0x20:
                at, size = p + 4, (first & 0x1F) << 16 | buf[p + 2] << 8 | buf[p + 3]
            else:
                break
            end, known = at + size, usual.get(buf[at])
            if known is None or end > stop or size < 6 or size in _UNKNOWN or buf[at + 3] & 6:
                break
            number, how, delay_us = known
            ticks, lasts = buf[at + 1] << 8 | buf[at + 2], 0
            time_us = (cluster + (ticks if ticks < 0x8000 else ticks - 0x10000)) * scale_ns // 1000 - delay_us
            toc = buf[at + 4]
            if how == 6:
                key, lasts = 1, opus[toc] or codecs.opus_us(toc, buf[at + 5])
            elif how == 1:
                key = ~toc & 1
            else:
                key = codecs.vp9_key(buf, at + 4)
            rows.append((number, key, time_us, 0, lasts, at + 4 + base, size - 4))
            p = end
        return p

    def _element(self, buf: Any, ident: int, p: int, at: int, size: int, base: int) -> int:
        """Takes one element whose header is whole, and its body too if it is HELD; gives where the walk goes on."""
        file, end = self.file, at + size
        if file.mode == "head" and ident != EBML:
            self.warnings.add("header", p + base)
            return self._stop(len(buf))
        if ident == SEGMENT:
            return at
        if ident == CLUSTER:
            file.cluster, file.cluster_end = -1, NEVER if size < 0 else self.origin + base + end
            return at
        if ident == EBML and file.mode != "head":
            self.warnings.add("second_header", p + base)
            return self._stop(len(buf))
        if size < 0 or (ident in SIZED and (size >> 32 or self.origin + base + end > file.cluster_end)):
            return self._damage("overrun", p, base)
        if ident in SKIPPED:
            file.skip = size
            return at
        wrong = "element" if ident not in HELD else self._content(buf, ident, at, end, base)
        return self._damage(wrong, p, base) if wrong else end

    def _content(self, buf: Any, ident: int, at: int, end: int, base: int) -> str:
        """Takes the body of an element that is HELD; "" or the code of its damage."""
        file = self.file
        if ident == SIMPLE_BLOCK:
            self._block(buf, at, end, base, -1, None)
        elif ident == BLOCK_GROUP:
            self._group(buf, at, end, base)
        elif ident == TIMESTAMP:
            file.cluster = number(buf, at, end)
            if end - at > 8 or file.cluster * file.scale_ns > NEVER // 4:
                file.cluster = -1
                return "time"
        elif ident == EBML:
            file.mode = "walk"
        elif ident == INFO:
            scale = first_child(buf, at, end, 0x2AD7B1)
            file.scale_ns = scale if scale is not None and 0 < scale <= 1_000_000_000 else 1_000_000
        else:
            self._tracks(buf, at, end, base + at)
        return ""

    def _tracks(self, buf: Any, at: int, end: int, place: int) -> None:
        if self.file.tracks:
            self.warnings.add("second_tracks", place)
            return
        found, ignored = tracks(buf, at, end)
        self.file.tracks = {n: _Track.of(*one) for n, one in found.items()}
        self.file.ignored = frozenset(ignored)
        if any(stream.codec.endswith("+encoded") for stream, *_ in found.values()):
            self.warnings.add("content_encoding", place)

    def _group(self, buf: Any, at: int, end: int, base: int) -> None:
        block, length, key = None, -1, True
        for ident, start, stop in children(buf, at, end):
            if ident == BLOCK:
                block = (start, stop)
            elif ident == BLOCK_DURATION:
                length = min(number(buf, start, stop), 1 << 40)
            elif ident == REFERENCE:
                key = False
        if block:
            self._block(buf, *block, base, length, key)

    def _block(self, buf: Any, at: int, end: int, base: int, length: int, key: bool | None) -> None:
        """One (Simple)Block: `length` its BlockDuration or -1; `key` by its references, None: as its flag says."""
        file = self.file
        if end - at < 4:
            self.warnings.add("block", at + base)
            return
        first = buf[at]
        if first & 0x80:
            track, p = first & 0x7F, at + 1
        else:
            wide = LENGTH[first]
            track, p = int.from_bytes(buf[at : at + wide], "big") & MASK[wide] if wide <= 8 else 0, at + wide
        known = file.tracks.get(track)
        if known is None or p + 3 >= end or file.cluster < 0:
            if track not in file.ignored:
                self.warnings.add("track" if known is None else "no_time" if file.cluster < 0 else "empty", at + base)
            return
        ticks, flags = buf[p] << 8 | buf[p + 1], buf[p + 2]
        if ticks & 0x8000:
            ticks -= 0x10000
        time_us = (file.cluster + ticks) * file.scale_ns // 1000 - known.delay_us
        if key is None:
            key = flags & 0x80 != 0
        if flags & 6:
            self._laced(buf, p + 3, end, base, known, time_us, length, flags & 6, key)
            return
        lasts = 0 if length < 0 else length * file.scale_ns // 1000
        self._frame(buf, p + 3, end, base, known, time_us, lasts, key)

    def _laced(self, buf: Any, at: int, end: int, base: int, known: _Track, time_us: int, length: int, lacing: int, key: bool) -> None:
        sizes = laces(buf, at, end, lacing)
        if sizes is None:
            self.warnings.add("lacing", at + base)
            return
        step = 0 if length < 0 else length * self.file.scale_ns // 1000 // len(sizes)
        at = end - sum(sizes)
        for size in sizes:
            time_us += self._frame(buf, at, at + size, base, known, time_us, step, key) if size else known.frame_us
            at += size

    def _frame(self, buf: Any, at: int, end: int, base: int, known: _Track, time_us: int, lasts: int, key: bool) -> int:
        """One frame; gives how long it lasts, 0 where that is not known yet. The frame's own word counts more than the container's."""
        how = known.how
        if how == 6:
            toc = buf[at]
            lasts = codecs.OPUS_US[toc] or (codecs.opus_us(toc, buf[at + 1]) if end - at > 1 else 0)
            key = True
        elif how == 1:
            key = not buf[at] & 1
        elif how == 2:
            key = codecs.vp9_key(buf, at)
        elif how == 7:
            key, lasts = True, lasts or known.frame_us
        elif how == 5:
            key = self._annexb(bytes(buf[at:end]), at + base, known)
        elif how:
            said = codecs.av1_key(buf, at, end) if how == 3 else codecs.nal_key(buf, at, end, (known.stream.setup[4] & 3) + 1)
            key = key if said is None else said
        if key and not known.stream.width and known.stream.kind == Kind.VIDEO:
            width, height = codecs.frame_size(known.stream.codec, bytes(buf[at : min(end, at + codecs.LOOK)]))
            known.stream = replace(known.stream, width=width, height=height)
        self.rows.append((known.stream.number, key, time_us, 0, min(lasts, 0xFFFFFFFF), at + base, end - at))
        return lasts or known.frame_us

    def _annexb(self, frame: bytes, place: int, known: _Track) -> bool:
        """Notes where lengths go and, at the first key frame, the set-up; gives whether the frame is IDR."""
        nals = codecs.annexb_nals(frame)
        if nals is None:
            self.file.short = True
            split = codecs.annexb_split(frame)
        else:
            self.patches += [(place + at, size) for at, size in nals]
            split = [frame[at + 4 : at + 4 + min(size, 1 << 16)] for at, size in nals]
        key = any(nal[0] & 31 == 5 for nal in split)
        if key and not known.stream.setup:
            known.stream = codecs_setup(known.stream, split)
        return key

    def _damage(self, code: str, p: int, base: int) -> int:
        self.warnings.add(code, p + base)
        if self.file.mode == "head":
            return self._stop(p + 1)
        self.file.mode = "lost"
        return p + 1

    def _stop(self, place: int) -> int:
        self.file.mode = "done"
        return place

    def index(self, part: Part) -> Index:
        samples = np.frombuffer(bytearray().join([_ROW(*row) for row in self.rows]), SAMPLE)  # half the time of np.array(rows)
        for track in self.file.tracks.values():
            if track.stream.kind == Kind.AUDIO and track.how == 6:
                continue
            _fill(samples, track.stream.number, self.warnings)
        if self.file.short and any(track.stream.annexb for track in self.file.tracks.values()):
            self.warnings.add("annexb_short", 0)
            self.patches = []
        if self.file.mode == "lost" and not len(samples):
            self.warnings.add("lost", 0)
        streams = tuple(track.stream for track in self.file.tracks.values())
        return Index(Container.WEBM, part, streams, samples, np.array(self.patches, PATCH), str(self.warnings))


def _fill(samples: Any, stream: int, warnings: Warnings) -> None:
    """Durations that nobody stated are the way to the next frame; the last one stays 0."""
    own = np.flatnonzero(samples["stream"] == stream)
    if len(own) < 2:
        return
    steps = np.diff(samples["time_us"][own])
    if steps.min() < 0:
        warnings.add("time_back", int(samples["offset"][own[1:][steps < 0][0]]))
    lengths = samples["duration_us"][own[:-1]]
    samples["duration_us"][own[:-1]] = np.where(lengths, lengths, np.clip(steps, 0, 0xFFFFFFFF))


def codecs_setup(stream: Stream, nals: list[bytes]) -> Stream:
    """An Annex B stream with the set-up and size that a key frame's parameter sets give."""
    setup = codecs.avcc(nals)
    width, height = codecs.sps_size(codecs.avcc_sps(setup)) if setup else (0, 0)
    return replace(stream, setup=setup, width=width or stream.width, height=height or stream.height)
