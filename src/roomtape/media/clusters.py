"""WebM as a rope: generated clusters and block headers around the stored frames, for the codecs and players that MP4 does not serve.

VP8 plays untouched this way: as a file to keep, and window by window through Media Source. Every block header is generated, so lost bytes, cut overlaps,
other containers and other track numbers are all the same case; the pieces of a cluster are made when somebody reads it.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.rope import Lazy, Literal, Piece, Rope
from roomtape.media.boxes import opus_setup
from roomtape.media.placed import Chunks, Lane, Placement
from roomtape.media.sample import Stream

Ints = npt.NDArray[np.int64]
_CODECS = {"vp8": "V_VP8", "vp9": "V_VP9", "av1": "V_AV1", "h264": "V_MPEG4/ISO/AVC", "opus": "A_OPUS", "aac": "A_AAC"}
_OF_WEBM = frozenset({"vp8", "vp9", "av1", "opus"})  # the others make it a Matroska file
_CLUSTER_US = 5_000_000  # block times are 16 bit milliseconds from their cluster's
_SEEK_PRE_ROLL_NS = 80_000_000
_SEGMENT, _CLUSTER, _UNKNOWN_SIZE = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x01" + b"\xff" * 7
# sizes of headers: a SimpleBlock, what a BlockGroup with duration has more, what its ReferenceBlock adds, a cluster up to its first block
_SIMPLE, _GROUP, _REFERENCE, _CLUSTER_HEAD = 9, 11, 6, 22
_CUE = struct.Struct(">BQBQQBQBQQBQQ")
_EIGHT = 1 << 56  # a size of 8 bytes, as all here: what holds an element then has a size that does not depend on values


def playable_as_webm(streams: Sequence[Stream]) -> bool:
    """Whether there is a codec id for all streams."""
    return all(stream.codec in _CODECS for stream in streams)


def webm(placement: Placement, start_us: int = 0, stop_us: int | None = None, *, live: bool) -> Rope:
    """The samples with start ≤ decode time < stop as WebM (Matroska for H.264 and AAC), times on the recording's clock in milliseconds.

    `live`: no length and no index; each window can be appended to Media Source on its own. Otherwise a file to keep, with Duration and Cues.
    A window without samples is an empty rope. ValueError for a codec without a place in Matroska.
    """
    lanes = [_near(lane, start_us, stop_us) for lane in placement.lanes if len(lane)]
    clusters = _cut(lanes, start_us, stop_us)
    if not clusters:
        return Rope.of(())
    streams = [lane.setups[int(lane.rows["setup"][min(row, len(lane.rows) - 1)])] for lane, row in zip(lanes, clusters[0].starts, strict=True)]
    bodies = [Lazy(cluster.size, lambda cluster=cluster: cluster.pieces(placement.chunks, lanes)) for cluster in clusters]  # type: ignore[misc]
    head, tracks = _ebml(streams), _tracks(streams)
    if live:
        return Rope.of([Literal(head + _SEGMENT + _UNKNOWN_SIZE + _info(None) + tracks), *bodies])
    ends = (lane.rows[row - 1] for lane, row in zip(lanes, clusters[-1].stops, strict=True) if row)
    inside = _with_index(clusters, _info(max(_ms(int(end["time_us"] + end["cts_us"] + end["duration_us"])) for end in ends)), tracks)
    return Rope.of([Literal(head + _SEGMENT + _size8(len(inside) + sum(cluster.size for cluster in clusters)) + inside), *bodies])


def _near(lane: Lane, start_us: int, stop_us: int | None) -> Lane:
    """A window needs the rows in it, and of those around it the nearest."""
    if stop_us is None:
        return lane
    return replace(lane, blocks=(lane.cut(max(0, lane.before(start_us) - 1), lane.before(stop_us) + 1),))


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The rows starts[n] ≤ row < stops[n] of each lane n; `cue`: the track that a seek to its beginning is for, 0: none."""

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    time_ms: int
    size: int
    cue: int

    def pieces(self, chunks: Chunks, lanes: list[Lane]) -> Iterator[Piece]:
        yield Literal(_CLUSTER + _size8(self.size - 12) + b"\xe7\x88" + self.time_ms.to_bytes(8, "big"))
        blocks = [block for number in range(len(lanes)) for block in self._blocks(number, lanes[number])]
        for _, header, literal, at, size in sorted(blocks, key=itemgetter(0)):  # stable: at equal times the picture first
            yield Literal(header + literal)
            if not literal:
                yield from chunks.pieces(at, at + size)

    def _blocks(self, number: int, lane: Lane) -> Iterator[tuple[int, bytes, bytes, int, int]]:
        """(decode time, header, generated payload or b"", place and size of the stored payload) of a lane's blocks."""
        rows = lane.rows[self.starts[number] : self.stops[number]].tolist()
        last, before = len(rows) - 1, rows[0][0] + rows[0][2] + 1000 if rows else 0
        for index, (time, duration, cts, key, _, literal, at, size) in enumerate(rows):
            place = (0x80 | number + 1, _ms(time + cts) - self.time_ms)
            if index < last:  # its duration is the way to the next one
                header = struct.pack(">BIBhB", 0xA3, 1 << 28 | size + 4, *place, 0x80 if key or lane.kind is Kind.AUDIO else 0)
            else:  # the last one says its own: Media Source else guesses, and takes a hole for lost pictures
                inside = b"\x9b\x84" + struct.pack(">I", max(0, _ms(time + cts + duration) - _ms(time + cts)))
                if lane.kind is Kind.VIDEO and not key:
                    inside += b"\xfb\x84" + struct.pack(">i", min(-1, _ms(before) - _ms(time + cts)))
                inside += struct.pack(">BIBhB", 0xA1, 1 << 28 | size + 4, *place, 0)
                header = struct.pack(">BI", 0xA0, 1 << 28 | len(inside) + size) + inside
            yield time, header, lane.literals[literal] if literal >= 0 else b"", at, size
            before = time + cts


def _cut(lanes: list[Lane], start_us: int, stop_us: int | None) -> list[_Cluster]:
    """Clusters begin at key frames of the picture, and where five seconds are over."""
    times = [np.ascontiguousarray(lane.rows["time_us"]) for lane in lanes]
    stop = max((int(time[-1]) for time in times), default=0) + 1 if stop_us is None else stop_us
    start = max(start_us, min((int(time[0]) for time in times), default=0))
    keys = [time[lane.rows["key"] != 0] for lane, time in zip(lanes, times, strict=True) if lane.kind is Kind.VIDEO]
    grid = np.arange(start // _CLUSTER_US + 1, max(start, stop) // _CLUSTER_US + 1) * _CLUSTER_US
    edges = np.unique(np.concatenate([[start], grid, *keys]))
    edges = np.append(edges[(edges >= start) & (edges < stop)], stop)
    bounds = [np.searchsorted(time, edges) for time in times]
    sizes, first_us = np.zeros(len(edges) - 1, np.int64), np.full(len(edges) - 1, 1 << 62)
    cues = np.zeros(len(edges) - 1, np.int64)
    for number, (lane, time, bound) in enumerate(zip(lanes, times, bounds, strict=True), 1):
        total = np.append(0, np.cumsum(lane.rows["size"], dtype=np.int64))
        count, held = np.diff(bound), bound[1:] > bound[:-1]
        sizes += np.diff(total[bound]) + count * _SIMPLE + held * _GROUP
        if lane.kind is Kind.VIDEO:
            sizes += _REFERENCE * (held & (lane.rows["key"][bound[1:] - 1] == 0))
            cues[held & (lane.rows["key"][np.minimum(bound[:-1], len(time) - 1)] != 0)] = number
        elif not keys:
            cues[held] = number
        first_us = np.minimum(first_us, np.where(held, time[np.minimum(bound[:-1], len(time) - 1)], 1 << 62))
    starts = list(zip(*(bound.tolist() for bound in bounds), strict=True))
    columns = zip(starts, starts[1:], first_us.tolist(), sizes.tolist(), cues.tolist(), strict=False)
    return [_Cluster(begin, end, _ms(first), size + _CLUSTER_HEAD, cue) for begin, end, first, size, cue in columns if size]


def _with_index(clusters: list[_Cluster], info: bytes, tracks: bytes) -> bytes:
    """SeekHead, Info, Tracks and Cues: what stands in a segment before its clusters."""
    seek, cued = len(_seek_head(0, 0, 0)), [cluster for cluster in clusters if cluster.cue]
    before = seek + len(info) + len(tracks)
    place = before + 12 + _CUE.size * len(cued)
    points = []
    for cluster in clusters:
        if cluster.cue:
            points.append(_cue(cluster.time_ms, cluster.cue, place))
        place += cluster.size
    return _seek_head(seek, seek + len(info), before) + info + tracks + _element(0x1C53BB6B, b"".join(points))


def _cue(time_ms: int, track: int, place: int) -> bytes:
    """CuePoint(CueTime, CueTrackPositions(CueTrack, CueClusterPosition))."""
    inner = 2 * (1 + 8 + 8)
    return _CUE.pack(0xBB, _EIGHT | inner // 2 + 9 + inner, 0xB3, _EIGHT | 8, time_ms, 0xB7, _EIGHT | inner, 0xF7, _EIGHT | 8, track, 0xF1, _EIGHT | 8, place)


def _ms(time_us: int) -> int:
    return (time_us + 500) // 1000


def _size8(size: int) -> bytes:
    return (_EIGHT | size).to_bytes(8, "big")


def _element(number: int, body: bytes) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big") + _size8(len(body)) + body


def _number(number: int, value: int) -> bytes:
    return _element(number, value.to_bytes(8, "big"))


def _text(number: int, value: str) -> bytes:
    return _element(number, value.encode())


def _ebml(streams: Sequence[Stream]) -> bytes:
    doctype = "webm" if all(stream.codec in _OF_WEBM for stream in streams) else "matroska"
    limits = _number(0x4286, 1) + _number(0x42F7, 1) + _number(0x42F2, 4) + _number(0x42F3, 8)
    return _element(0x1A45DFA3, limits + _text(0x4282, doctype) + _number(0x4287, 4) + _number(0x4285, 2))


def _info(duration_ms: int | None) -> bytes:
    length = b"" if duration_ms is None else _element(0x4489, struct.pack(">d", duration_ms))
    return _element(0x1549A966, _number(0x2AD7B1, 1_000_000) + length + _text(0x4D80, "Roomtape") + _text(0x5741, "Roomtape"))


def _tracks(streams: Sequence[Stream]) -> bytes:
    entries = []
    for number, stream in enumerate(streams, 1):
        if stream.codec not in _CODECS:
            raise ValueError(f"{stream.codec} has no place in a WebM")
        entry = _number(0xD7, number) + _number(0x73C5, number) + _number(0x9C, 0) + _text(0x86, _CODECS[stream.codec])
        if stream.kind is Kind.VIDEO:
            entry += _number(0x83, 1) + _element(0xE0, _number(0xB0, stream.width) + _number(0xBA, stream.height))
            private = stream.setup if stream.codec in {"h264", "av1"} else b""
        else:
            rate = float(stream.rate or 48_000)
            entry += _number(0x83, 2) + _element(0xE1, _element(0xB5, struct.pack(">d", rate)) + _number(0x9F, stream.channels or 2))
            private = opus_setup(stream) if stream.codec == "opus" else stream.setup
            entry += _number(0x56BB, _SEEK_PRE_ROLL_NS) if stream.codec == "opus" else b""
        entries.append(_element(0xAE, entry + (_element(0x63A2, private) if private else b"")))
    return _element(0x1654AE6B, b"".join(entries))


def _seek_head(info: int, tracks: int, cues: int) -> bytes:
    targets = ((b"\x15\x49\xa9\x66", info), (b"\x16\x54\xae\x6b", tracks), (b"\x1c\x53\xbb\x6b", cues))
    return _element(0x114D9B74, b"".join(_element(0x4DBB, _element(0x53AB, name) + _number(0x53AC, place)) for name, place in targets))
