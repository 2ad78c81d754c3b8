"""CMAF fragments as ropes: a generated moof over the stored bytes of a window, so that a recording plays by HLS while it is still made.

Four things break players, and are kept here: times are the recording's clock (tfdt), never those of the file; a window has no hole (the layout's
promise); each track's bytes stand in the order of its time, silence where it is heard; set-ups are ours, with a real level.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.rope import Literal, Piece, Rope
from roomtape.media.boxes import box, full, movie_header, timescale, track
from roomtape.media.placed import Lane, Placement
from roomtape.media.sample import Stream

Ints = npt.NDArray[np.int64]
_EMPTY_TABLES = full(b"stts", 0, 0, bytes(4)) + full(b"stsc", 0, 0, bytes(4)) + full(b"stsz", 0, 0, bytes(8)) + full(b"stco", 0, 0, bytes(4))
_JUNK = 64  # a block header of WebM between two samples costs less than a piece of its own
# by kind, so that a fragment fits its init whether or not the other kind has come yet
_NUMBER = {Kind.VIDEO: 1, Kind.AUDIO: 2}
_SYNC, _NOT_SYNC = 0x02000000, 0x01010000
_AFTER_ALL = 1 << 62


def setups(placement: Placement, start_us: int) -> tuple[Stream, ...]:
    """The set-up of each lane in a window that begins at `start_us`: windows with equal ones share an init; a new one is a discontinuity."""
    return tuple(lane.setups[_setup_at(lane, start_us)] for lane in placement.lanes if len(lane))


def _setup_at(lane: Lane, start_us: int) -> int:
    row = min(lane.before(start_us), len(lane) - 1)
    return int(lane.cut(row, row + 1)["setup"][0])


def init(streams: Sequence[Stream]) -> bytes:
    """The ftyp and moov, without samples: one track for each stream, at most one of a kind. ValueError where a codec has no place in an MP4."""
    traks = [b"".join(track(_NUMBER[stream.kind], (stream,), [_EMPTY_TABLES])) for stream in streams]
    extends = [full(b"trex", 0, 0, struct.pack(">IIIII", _NUMBER[stream.kind], 1, 0, 0, 0)) for stream in streams]
    brands = box(b"ftyp", b"iso6", struct.pack(">I", 1), b"iso6cmfcmp41")
    return brands + box(b"moov", movie_header(0, len(_NUMBER) + 1), *traks, box(b"mvex", *extends))


def fragment(placement: Placement, start_us: int, stop_us: int, sequence: int, streams: Sequence[Stream] = ()) -> Rope:
    """A moof and mdat of the samples with start ≤ decode time < stop; a lane without any is absent, a window without any is an empty rope.

    `streams`: what `init` was given, by default `setups(placement, start_us)`. Cut windows where the picture's set-up changes: it is a key frame.
    """
    scales = {stream.kind: timescale(stream) for stream in streams or setups(placement, start_us)}
    parts = []
    for lane in placement.lanes:
        rows = lane.between(start_us, stop_us)
        if len(rows) and lane.kind in scales:
            parts.append(_Part(_NUMBER[lane.kind], scales[lane.kind], lane, rows))
    if not parts:
        return Rope.of(())
    places, pieces = _lay_out(placement, parts)
    trafs = [part.runs(place) for part, place in zip(parts, places, strict=True)]
    size = len(_moof(sequence, trafs, 0))
    payload = sum(piece.size for piece in pieces)
    return Rope.of([Literal(_moof(sequence, trafs, size + 8) + struct.pack(">I4s", payload + 8, b"mdat")), *pieces])


@dataclass(frozen=True, slots=True)
class _Run:
    """Samples that touch in the payload: the rows of a trun, and where in the payload they begin."""

    flags: int
    count: int
    at: int
    rows: bytes


@dataclass(frozen=True, slots=True)
class _Traf:
    number: int
    start: int
    runs: list[_Run]


@dataclass(frozen=True, slots=True)
class _Part:
    """One lane's share of a window."""

    number: int
    scale: int
    lane: Lane
    rows: npt.NDArray[np.void]

    def runs(self, place: Ints) -> _Traf:
        rows, size = self.rows, self.rows["size"].astype(np.int64)
        edges = np.append(rows["time_us"], rows["time_us"][-1] + rows["duration_us"][-1])
        ticks = _ticks(edges, self.scale)
        columns = [np.diff(ticks), size, np.where(rows["key"], _SYNC, _NOT_SYNC)]
        flags = 0x701  # data offset; duration, size and flags of each sample
        if rows["cts_us"].any():
            flags |= 0x800
            columns.append(_ticks(rows["time_us"] + rows["cts_us"], self.scale) - ticks[:-1])
        words = np.stack(columns, axis=1).astype(">u4")
        firsts = np.append(0, np.flatnonzero(place[1:] != place[:-1] + size[:-1]) + 1)
        bounds = zip(firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True)
        return _Traf(self.number, int(ticks[0]), [_Run(flags, last - first, int(place[first]), words[first:last].tobytes()) for first, last in bounds])

    def order(self) -> Ints:
        """Rising keys that put literals before the stored sample that follows them, whatever the order the samples are stored in."""
        stored = self.rows["literal"] < 0
        if not stored.any():
            return np.full(len(stored), _AFTER_ALL, np.int64)
        ats = self.rows["at"][stored]
        follower = np.minimum(np.cumsum(stored) - stored, len(ats) - 1)  # literals: the next stored sample; stored ones: themselves
        return np.maximum.accumulate(ats[follower])


def _ticks(time_us: Ints, scale: int) -> Ints:
    return (time_us * scale + 500_000) // 1_000_000


def _lay_out(placement: Placement, parts: list[_Part]) -> tuple[list[Ints], list[Piece]]:
    """Where each sample of each part lies in the payload, and the payload's pieces."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(np.concatenate([part.order() for part in parts]), kind="stable")  # stable: within a lane time order stays
    at, literal, size = rows["at"][order], rows["literal"][order], rows["size"][order].astype(np.int64)
    stored = literal < 0
    gap = at[1:] - (at[:-1] + size[:-1])
    glued = np.append(False, stored[1:] & stored[:-1] & (gap >= 0) & (gap <= _JUNK))
    step = size[:-1] + np.where(glued[1:], gap, 0)
    place = np.empty(len(rows), np.int64)
    place[order] = np.append(0, np.cumsum(step))
    owner = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])[order]
    firsts = np.flatnonzero(~glued)
    pieces: list[Piece] = []
    for first, last in zip(firsts.tolist(), [*(firsts[1:] - 1).tolist(), len(rows) - 1], strict=True):
        if stored[first]:
            pieces += placement.chunks.pieces(int(at[first]), int(at[last] + size[last]))
        else:
            pieces.append(Literal(parts[owner[first]].lane.literals[literal[first]]))
    return np.split(place, np.cumsum([len(part.rows) for part in parts])[:-1]), pieces


def _moof(sequence: int, trafs: list[_Traf], base: int) -> bytes:
    """`base`: where the payload begins, counted from the moof's first byte."""
    boxes = []
    for traf in trafs:
        truns = [full(b"trun", 0, run.flags, struct.pack(">Ii", run.count, base + run.at), run.rows) for run in traf.runs]
        header = full(b"tfhd", 0, 0x020000, struct.pack(">I", traf.number))  # offsets count from the moof
        boxes.append(box(b"traf", header, full(b"tfdt", 1, 0, struct.pack(">Q", traf.start)), *truns))
    return box(b"moof", full(b"mfhd", 0, 0, struct.pack(">I", sequence)), *boxes)
