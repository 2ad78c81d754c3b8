"""A progressive MP4 as a rope: a generated head in front of the stored bytes, so that an hour is playable without a byte of media being moved."""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.rope import Lazy, Literal, Part, Rope
from roomtape.media.boxes import MOVIE_SCALE, box, full, movie_header, runs, table, timescale, track, wrap
from roomtape.media.placed import Chunks, Lane, Placement

Ints = npt.NDArray[np.int64]
_EPOCH = datetime(1904, 1, 1, tzinfo=UTC)
_MDAT_HEAD = _PLACES_HEAD = 16


def progressive(placement: Placement, *, created: datetime | None = None) -> Rope:
    """The ftyp, moov and mdat: stored objects as they are (bytes that no sample uses may stay in them), silence and mended packets between the objects.

    Objects that no sample uses are left out. ValueError where a codec has no place in an MP4, see boxes.playable_as_mp4.
    """
    stamp = max(0, int((created - _EPOCH).total_seconds())) if created else 0
    lanes = [lane for lane in placement.lanes if len(lane)]
    columns = [_Columns.of(lane, placement.chunks.size) for lane in lanes]
    payload = _lay_out(columns, placement.chunks)
    size = payload.size
    drafts = [_Track.of(column, offsets) for column, offsets in zip(columns, payload.offsets, strict=True)]

    def head(tables: list[list[bytes]]) -> list[bytes]:
        movie = movie_header(max((draft.duration for draft in drafts), default=0), len(drafts) + 1, stamp)
        tracks = [part for number, (draft, table) in enumerate(zip(drafts, tables, strict=True), 1) for part in draft.box(number, table, stamp)]
        return [box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso6mp41"), *wrap(b"moov", movie, *tracks)]

    fixed = sum(map(len, head([[*draft.tables, bytes(_PLACES_HEAD)] for draft in drafts]))) + _MDAT_HEAD
    count = sum(len(draft.chunk_offsets) for draft in drafts)
    word = ">u8" if fixed + 8 * count + size >= 1 << 32 else ">u4"
    base = fixed + np.dtype(word).itemsize * count
    parts = head([[*draft.tables, *draft.places(base, word)] for draft in drafts])
    return Rope.of([Literal(b"".join([*parts, struct.pack(">I4sQ", 1, b"mdat", size + _MDAT_HEAD)])), *payload.parts])


@dataclass(frozen=True, slots=True)
class _Columns:
    """A lane's rows by column: a pass over one column of whole rows reads them all. `time` has the end behind it; `at` of generated samples is that of the
    stored one that follows them, or where the bytes end.
    """

    lane: Lane
    time: Ints
    size: Ints
    at: Ints
    generated: Ints
    literal: Ints  # of the generated ones

    @classmethod
    def of(cls, lane: Lane, end: int) -> "_Columns":
        rows = lane.rows
        at, generated = np.ascontiguousarray(rows["at"]), np.flatnonzero(rows["literal"] >= 0)
        if len(generated):
            lasts = generated[np.append(generated[1:] != generated[:-1] + 1, True)] + 1
            after = lasts[np.searchsorted(lasts, generated, side="right")]
            at[generated] = np.append(at, end)[after]
        time = np.append(rows["time_us"], rows["time_us"][-1] + rows["duration_us"][-1])
        return cls(lane, time, rows["size"].astype(np.int64), at, generated, rows["literal"][generated].astype(np.int64))


@dataclass(frozen=True, slots=True)
class _Payload:
    """The inside of mdat: its parts, their size, and per lane where each sample lies in it."""

    parts: list[Part]
    size: int
    offsets: list[Ints]


def _lay_out(lanes: list[_Columns], chunks: Chunks) -> _Payload:
    """Stored objects in order; a lane's literals stand before the object of the sample that follows them, or in a hole inside an object before that sample
    itself, so that who cannot jump reads it too.

    Equal literals of one lane in one place are there once: an hour of silence is three bytes.
    """
    starts = np.union1d(chunks.starts, np.concatenate([_cuts(lane, chunks.starts) for lane in lanes])) if lanes else chunks.starts
    objects = len(starts) - 1
    used, joined = np.zeros(objects + 1, bool), np.zeros(objects + 1, bool)
    firsts = []
    for lane in lanes:
        first, over = _objects_of(lane, starts)
        used[first] = True
        for start, stop in zip(first[over].tolist(), (lane.at[over] + lane.size[over]).tolist(), strict=True):
            last = int(np.searchsorted(starts, stop)) - 1
            used[start : last + 1] = joined[start + 1 : last + 1] = True
        firsts.append(first)
    home = np.maximum.accumulate(np.where(joined, 0, np.arange(objects + 1)))
    groups = [_literal_groups(lane, first, home) for lane, first in zip(lanes, firsts, strict=True)]
    before = sum((np.bincount(group.home, group.size, objects + 1).astype(np.int64) for group in groups), np.zeros(objects + 1, np.int64))
    kept = np.append(np.where(used[:-1], np.diff(starts), 0), 0)
    place = np.cumsum(before + kept) - (before + kept)
    shift = place + before - np.append(starts[:-1], 0)
    bodies: dict[int, list[bytes]] = {}
    offsets = []
    for lane, first, group in zip(lanes, firsts, groups, strict=True):
        position = np.zeros(len(group.home), np.int64)
        for number, (where, literal) in enumerate(zip(group.home.tolist(), group.literal.tolist(), strict=True)):
            held = bodies.setdefault(where, [])
            position[number] = place[where] + sum(map(len, held))
            held.append(lane.lane.literals[literal])
        offset = lane.at + shift[first]
        offset[lane.generated] = position[group.member]
        offsets.append(offset)
    parts: list[Part] = []
    for number in range(objects + 1):
        parts += map(Literal, bodies.get(number, ()))
        if number < objects and used[number]:
            parts += _object(chunks, int(starts[number]), int(starts[number + 1]))
    return _Payload(parts, int((before + kept).sum()), offsets)


def _cuts(lane: _Columns, starts: Ints) -> Ints:
    """Where a hole inside an object ends: the samples of the lane before and behind the generated ones lie in the same object."""
    breaks = np.diff(lane.generated) != 1
    before, after = lane.generated[np.append(True, breaks)[: len(lane.generated)]] - 1, lane.generated[np.append(breaks, True)[: len(lane.generated)]] + 1
    between = (before >= 0) & (after < len(lane.at))
    a, b = lane.at[before[between]], lane.at[after[between]]
    inside: Ints = b[(a < b) & (np.searchsorted(starts, a, side="right") == np.searchsorted(starts, b, side="right"))]
    return inside


def _objects_of(lane: _Columns, starts: Ints) -> tuple[Ints, Ints]:
    """The object in which each sample begins, and which samples go on in the next one: nothing may come between there.

    Samples mostly lie in the order of their bytes; then only the last one of each object can go on.
    """
    at, objects = lane.at, len(starts) - 1
    if (at[1:] >= at[:-1]).all():
        bounds = np.append(np.searchsorted(at, starts), len(at))
        count = np.diff(bounds)
        lasts = bounds[1:-1][count[:-1] > 0] - 1  # never a generated one: it stands before a stored one
        return np.repeat(np.arange(objects + 1), count), lasts[at[lasts] + lane.size[lasts] > starts[1:][count[:-1] > 0]]
    first = np.searchsorted(starts, at, side="right") - 1
    over = at + lane.size > np.append(starts, 1 << 62)[first + 1]
    over[lane.generated] = False
    return first, np.flatnonzero(over)


def _object(chunks: Chunks, start: int, stop: int) -> list[Part]:
    if len(chunks.patches):  # one literal a frame: only made for the bytes that are asked for
        return [Lazy(stop - start, lambda: chunks.pieces(start, stop))]
    return list(chunks.pieces(start, stop))


@dataclass(frozen=True, slots=True)
class _Group:
    """The distinct (home, literal) pairs of a lane, and to which of them each literal row belongs."""

    home: Ints
    literal: Ints
    size: Ints
    member: Ints


def _literal_groups(lane: _Columns, first: Ints, home: Ints) -> _Group:
    literals = lane.lane.literals
    pairs, member = np.unique(home[first[lane.generated]] * (len(literals) + 1) + lane.literal, return_inverse=True)
    literal = pairs % (len(literals) + 1)
    sizes = np.array([len(body) for body in literals], np.int64)
    return _Group(pairs // (len(literals) + 1), literal, sizes[literal] if len(literal) else literal, member)


@dataclass(frozen=True, slots=True)
class _Track:
    """A lane's sample tables, all but the base of its chunk offsets."""

    lane: Lane
    tables: list[bytes]
    chunk_offsets: Ints
    edits: bytes
    media_duration: int
    duration: int

    @classmethod
    def of(cls, columns: _Columns, offsets: Ints) -> "_Track":
        lane, time, size = columns.lane, columns.time[:-1], columns.size
        rows, scale = lane.rows, timescale(lane.setups[0])
        start_us, stop_us = int(columns.time[0]), int(columns.time[-1])
        ticks = _ticks(columns.time, scale)
        lasts = np.diff(ticks)
        first, count = runs(lasts)
        tables = [full(b"stts", 0, 0, struct.pack(">I", len(first)), table(count, lasts[first]))]
        lead_us, lag_us = 0, 0
        if rows["cts_us"].any():
            lead_us = int((time + rows["cts_us"]).min()) - start_us  # of the first picture shown, against the first one decoded
            lag_us = max(0, -lead_us)  # composition never stands before decoding begins
            late = _ticks(time + rows["cts_us"] + lag_us, scale) - ticks[:-1]
            first, count = runs(late)
            tables.append(full(b"ctts", 1, 0, struct.pack(">I", len(first)), table(count, late[first])))
        if lane.kind is Kind.VIDEO and not rows["key"].all():
            keys = np.flatnonzero(rows["key"]) + 1
            tables.append(full(b"stss", 0, 0, struct.pack(">I", len(keys)), keys.astype(">u4").tobytes()))
        heads = offsets[1:] != offsets[:-1] + size[:-1]
        if len(lane.setups) > 1:
            heads |= rows["setup"][1:] != rows["setup"][:-1]
        chunk = np.append(0, np.flatnonzero(heads) + 1)
        held = np.diff(chunk, append=len(rows))
        setup = rows["setup"][chunk].astype(np.int64) + 1 if len(lane.setups) > 1 else np.ones(len(chunk), np.int64)
        first, _ = runs(held << 16 | setup)
        tables.append(full(b"stsc", 0, 0, struct.pack(">I", len(first)), table(first + 1, held[first], setup[first])))
        tables.append(full(b"stsz", 0, 0, struct.pack(">II", 0, len(size)), size.astype(">u4").tobytes()))
        edits, duration = _edits(start_us, stop_us, lead_us, lag_us, scale)
        return cls(lane, tables, offsets[chunk], edits, int(ticks[-1] - ticks[0]), duration)

    def places(self, base: int, word: str) -> list[bytes]:
        """Where the chunks lie, in words of 32 bits as long as the file allows it."""
        name = b"stco" if word == ">u4" else b"co64"
        offsets = (self.chunk_offsets + base).astype(word).tobytes()
        return wrap(name, struct.pack(">II", 0, len(self.chunk_offsets)), offsets)

    def box(self, number: int, tables: list[bytes], created: int) -> list[bytes]:
        durations = {"media_duration": self.media_duration, "duration": self.duration}
        return track(number, self.lane.setups, tables, edits=self.edits, created=created, **durations)


def _ticks(time_us: Ints, scale: int) -> Ints:
    return (time_us * scale + 500_000) // 1_000_000


def _edits(start_us: int, stop_us: int, lead_us: int, lag_us: int, scale: int) -> tuple[bytes, int]:
    """The edit list that puts a track at its place on the clock, and the track's length in MOVIE_SCALE.

    Composition times begin at lead + lag; the first picture shown belongs at start + lead. What would be shown before 0 is cut off.
    """
    empty_us, skip_us = start_us + lead_us, lead_us + lag_us
    if empty_us < 0:
        empty_us, skip_us = 0, skip_us - empty_us
    empty, length = round(empty_us * MOVIE_SCALE / 1_000_000), -(-(stop_us - start_us) * MOVIE_SCALE // 1_000_000)
    if not empty and not skip_us:
        return b"", length
    edits = [(length, round(skip_us * scale / 1_000_000))]
    if empty:
        edits.insert(0, (empty, -1))
    entries = b"".join(struct.pack(">QqI", duration, media, 0x10000) for duration, media in edits)
    return box(b"edts", full(b"elst", 1, 0, struct.pack(">I", len(edits)), entries)), empty + length
