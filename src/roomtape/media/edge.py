"""The windows of a track, and how far they are settled: what a live player has been told is never told otherwise."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from roomtape.core import timeline
from roomtape.core.timeline import MAX_OVERLAP_US, SNAP_US, WINDOW_US, Spot
from roomtape.media.laid import TrackFacts, Unlike, Window
from roomtape.media.rows import Ints, Mask, Rows, Track
from roomtape.media.sample import Stream

Map = tuple[Stream | None, Stream | None]
_FAR = 1 << 60


@dataclass(frozen=True, slots=True)
class Placed:
    """All samples on the recording's clock, which of them are kept, and which segments came after they were given up."""

    picture: Rows
    sound: Rows
    keep_picture: Mask
    keep_sound: Mask
    spots: Sequence[Spot | None]
    late: Mask


@dataclass(frozen=True, slots=True)
class Cut:
    """The windows, those of late bytes inside gap windows, up to where all is settled, and the set-ups that windows name.

    Of each listed segment: `settled` and `seqs`, what was settled by it and the newest commit so far. `ends`: [kind, segment], how far media reached by then.
    """

    windows: tuple[Window, ...]
    late: tuple[Window, ...]
    settled_us: int
    maps: tuple[Map, ...]
    settled: Ints
    seqs: Ints
    ends: Ints


@dataclass(slots=True)
class _Marks:
    """Where windows may begin, in order of time: of which file and segment."""

    time: Ints
    file: Ints
    segment: Ints

    def take(self, which: Mask | Ints) -> "_Marks":
        return _Marks(self.time[which], self.file[which], self.segment[which])


@dataclass(frozen=True, slots=True)
class _Hole:
    """Segments given up: no media from start to stop; `after` is the place of the segment that follows, `late` the places of those that came after all."""

    start_us: int
    stop_us: int
    after: int
    late: tuple[int, ...]


def cut(facts: TrackFacts, track: Track, placed: Placed, end_us: int) -> Cut:
    """The windows of a track that ends at end_us; those before track.before are not cut again."""
    before = track.before
    timely = np.flatnonzero(~placed.late)
    listed = _prefix(facts, track, timely)
    nothing = np.zeros(0, np.int64)
    if not len(listed):
        if before:
            raise Unlike
        return Cut((), (), 0, (), nothing, nothing, nothing)
    last = int(listed[-1])
    settled, reached = _settled(track, placed, listed)
    setup_of, maps = _setups(track, placed)
    marks = _marks(facts, track, placed, last)
    ours = ~placed.late[marks.segment] & (marks.segment <= last)
    if before:
        ours &= marks.time >= before.time_us
        if not ours.any() or marks.time[ours.argmax()] != before.time_us:
            raise Unlike
    holes = [] if facts.closed else _given_up(facts, track, placed, timely[timely <= last], marks.take(ours))
    times, musts, files, segments = _edges(marks.take(ours), holes, setup_of, placed, leads=not before)
    stop = end_us if facts.closed else _FAR
    edge = end_us if facts.closed else int(settled[-1])
    seqs = np.maximum.accumulate(np.array([track.segments[at][0].commit_seq for at in listed], np.int64))
    seqs = np.maximum(seqs, before.seq) if before else seqs
    gaps = {hole.start_us: hole for hole in holes}
    windows: list[Window] = []
    belated = marks.take(~ours)
    head = _Hole(-_FAR, times[0], 0, tuple(range(int(listed[0])))) if times and not before else None
    late = _belated(track, belated, head, setup_of, 0) if head else []
    for a, b in timeline.cut_windows(times, musts, stop):
        if b > edge:
            break
        at = max(bisect_right(times, a) - 1, 0)
        to = bisect_left(times, b)
        by = max(int(np.searchsorted(settled, b)), int(np.searchsorted(listed, segments[to])) if to < len(times) else 0)
        seq = int(seqs[by]) if by < len(seqs) else max(int(seqs[-1]), facts.close_seq)
        windows.append(Window(a, b, setup_of[files[at]], a in gaps, seq))
        if a in gaps:
            late += _belated(track, belated, gaps[a], setup_of, seq)
    return Cut(tuple(windows), tuple(late), edge, maps, settled, seqs, reached)


def _prefix(facts: TrackFacts, track: Track, timely: Ints) -> Ints:
    """The places of the segments in front of which none is awaited."""
    if facts.closed:
        return timely
    before, listed = track.before.segment[0].index if track.before else facts.first_index - 1, 0
    for place in timely.tolist():
        index = track.segments[place][0].index
        if index - before - 1 > len(facts.skips) or any(lost not in facts.skips for lost in range(before + 1, index)):
            break
        before, listed = index, listed + 1
    return timely[:listed]


def _settled(track: Track, placed: Placed, listed: Ints) -> tuple[Ints, Ints]:
    """For each listed segment: nothing before this time will change by what comes after it; and how far its lanes reached.

    A later file may begin anywhere after the newest one, and may overlap what is there by MAX_OVERLAP_US. In the newest file the sound has to be there too.
    """
    lanes = (placed.picture, placed.sound)
    count, begun = len(track.segments), []
    zero = np.full(track.files, _FAR)
    ends = np.full((2, count), -_FAR)
    if track.before:
        ends[:] = np.array(track.before.ends_us)[:, None]
    for kind, lane in enumerate(lanes):
        timely = ~placed.late[lane.segment]
        reached = np.maximum.accumulate(np.where(timely, lane.end, -_FAR)) if len(lane) else lane.end
        last = np.searchsorted(lane.segment, np.arange(count), side="right") - 1
        if len(lane):
            ends[kind] = np.where(last >= 0, np.maximum(reached[np.maximum(last, 0)], ends[kind]), ends[kind])
        first, stop = lane.edges(track.files)
        begun.append([int(lane.segment[a]) if a < b else count for a, b in zip(first, stop, strict=True)])
        zero[first < stop] = np.minimum(zero[first < stop], lane.time[first[first < stop]])
        run, spot = track.opened.runs[kind] if track.opened else None, placed.spots[0]
        if run and spot:
            begun[kind][0], zero[0] = 0, min(int(zero[0]), spot.zero_us + run.first_us)
    settled, reached_us = [], track.before.settled_us if track.before else -_FAR
    known = np.maximum(ends[0], ends[1])
    for place in listed.tolist():
        file = int(track.file_of[place])
        spot, streams = placed.spots[file], track.streams[file]
        if spot and all(stream is None or begun[kind][file] <= place for kind, stream in enumerate(streams)) and any(streams):
            tail = int(known[place]) - MAX_OVERLAP_US
            reached_us = max(reached_us, int(zero[file]), min(tail, int(ends[1][place])) if streams[1] else tail)
        settled.append(reached_us)
    return np.array(settled, np.int64), ends


def _setups(track: Track, placed: Placed) -> tuple[list[int], tuple[Map, ...]]:
    """For each file the number of its set-up, and the set-ups."""
    late = placed.late[np.array(track.heads, np.int64)]
    # what came late must not change the numbers of what is listed
    of, numbers, _ = numbered(track, placed, [*np.flatnonzero(~late).tolist(), *np.flatnonzero(late).tolist()])
    return of, tuple((track.setups[0][a] if a >= 0 else None, track.setups[1][b] if b >= 0 else None) for a, b in numbers)


def numbered(track: Track, placed: Placed, files: Iterable[int]) -> tuple[list[int], tuple[tuple[int, int], ...], int]:
    """For each file the number of its set-up, the (picture, sound) set-ups, and the sound heard last: it goes on as silence, and stays in the set-up."""
    seen = np.zeros(track.files, np.bool_)
    seen[placed.picture.file[placed.keep_picture]] = True
    if track.opened:
        seen[0] |= track.opened.seen
    numbers = {pair: number for number, pair in enumerate(track.before.numbers)} if track.before else {}
    of, sound = [0] * track.files, track.before.sound_setup if track.before else -1
    for file in files:
        streams = track.streams[file]
        if streams[1]:
            sound = int(track.setup_of[1, file])
        picture = int(track.setup_of[0, file]) if streams[0] and seen[file] else -1
        of[file] = numbers.setdefault((picture, sound), len(numbers))
    return of, tuple(numbers), sound


def _marks(facts: TrackFacts, track: Track, placed: Placed, last: int) -> _Marks:
    """Key frames; in a file without any picture the packets of its sound, once it is sure that none will come."""
    picture, sound = placed.picture, placed.sound
    keys = picture.take(placed.keep_picture & picture.key)
    blind = np.ones(track.files, np.bool_)
    blind[keys.file] = False
    if track.opened and track.opened.keyed:
        blind[0] = False
    newest = int(track.file_of[last])
    if not facts.closed and track.streams[newest][0]:
        blind[newest:] = False
    packets = sound.take(placed.keep_sound & blind[sound.file])
    time = np.concatenate([keys.time, packets.time])
    order = np.argsort(time, kind="stable")
    return _Marks(time[order], np.concatenate([keys.file, packets.file])[order], np.concatenate([keys.segment, packets.segment])[order])


def _given_up(facts: TrackFacts, track: Track, placed: Placed, places: Ints, marks: _Marks) -> list[_Hole]:
    """The holes that the live edge has stepped over."""
    lanes = [lane.take(~placed.late[lane.segment]) for lane in (placed.picture, placed.sound)]
    holes = []
    for before, after in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
        first, stop = track.segments[before][0].index + 1, track.segments[after][0].index
        if first == stop:
            continue
        later = np.flatnonzero(marks.segment >= after)
        if not len(later):
            continue
        ends = [int(lane.end[: np.searchsorted(lane.segment, before, side="right")].max(initial=-_FAR)) for lane in lanes]
        a, b = max(ends), int(marks.time[later[0]])
        if a < b:
            holes.append(_Hole(a, b, after, tuple(place for place in range(before + 1, after) if track.segments[place][0].index in facts.skips)))
    return holes


def _edges(
    marks: _Marks, holes: Sequence[_Hole], setup_of: Sequence[int], placed: Placed, *, leads: bool,
) -> tuple[list[int], list[int], list[int], list[int]]:  # fmt: skip
    """Times at which windows may begin, those at which they must, and of each of the first its file and segment. `leads`: the track begins here."""
    times, files, segments = marks.time.tolist(), marks.file.tolist(), marks.segment.tolist()
    musts = [time for time, file, before in zip(times[1:], files[1:], files, strict=False) if setup_of[file] != setup_of[before]]
    for hole in holes:
        a, b = bisect_left(times, hole.start_us), bisect_left(times, hole.stop_us)
        times[a:b], files[a:b], segments[a:b] = [hole.start_us], [files[max(a - 1, 0)]], [hole.after]
        musts = [must for must in musts if not hole.start_us < must < hole.stop_us] + [hole.start_us, hole.stop_us]
    before = placed.sound.time[placed.keep_sound & ~placed.late[placed.sound.segment] & (placed.sound.time < times[0])].tolist() if times and leads else []
    if before:  # sound before the first key frame
        start_us, lead = before[0], before[1:] if times[0] - before[0] > WINDOW_US else []
        musts += times[:1] if lead else []
        files[:0], segments[:0] = [files[0]] * (len(lead) + 1), [segments[0]] * (len(lead) + 1)
        times[:0] = [start_us, *lead]
        if not lead:
            del times[1], files[1], segments[1]
    return times, sorted(set(musts)), files, segments


def _belated(track: Track, marks: _Marks, hole: _Hole, setup_of: Sequence[int], seq: int) -> list[Window]:
    """Windows over bytes that came when the edge had gone on."""
    near = hole.start_us - SNAP_US  # a file that touches what stands may begin that much before its end
    inside = marks.take((marks.time >= near) & (marks.time < hole.stop_us) & np.isin(marks.segment, hole.late))
    times = inside.time.tolist()
    newest = max([seq, *(track.segments[place][0].commit_seq for place in hole.late)])
    files = {time: int(file) for time, file in zip(times, inside.file, strict=True)}
    return [Window(a, b, setup_of[files[a]], gap=False, seq=newest) for a, b in timeline.cut_windows(times, [], hole.stop_us)]
