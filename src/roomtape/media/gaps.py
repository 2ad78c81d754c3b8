"""Where a track has nothing: segments that nobody has, pauses, holes without media. They are told, never closed up."""

from collections.abc import Iterator, Sequence

import numpy as np

from roomtape.core import timeline
from roomtape.core.model import Gap, Kind
from roomtape.core.timeline import MANY_MISSING, MAX_SPAN_US, QUIET_HOLE_US
from roomtape.media import rows
from roomtape.media.laid import Taken, TrackFacts
from roomtape.media.rows import Ints, Track
from roomtape.media.standing import Standing

_FAR = 1 << 60


def pitch(facts: TrackFacts, track: Track) -> int:
    """How long a segment of this track is: by the first two starts that are stated, else by the first file's samples."""
    heads = [track.segments[head][0] for head in track.heads[:2]]
    stated = [one for one in (facts.stated(head) for head in heads) if one is not None]
    if len(stated) == 2 and stated[1] > stated[0]:
        return (stated[1] - stated[0]) // (heads[1].index - heads[0].index)
    first = track.samples[track.file_of[track.segment_of] == 0]
    return int(np.ptp(np.clip(first["time_us"], -rows.SANE_US, rows.SANE_US))) // max(1, int(np.sum(track.file_of == 0))) if len(first) else 0


def spans(standing: Standing) -> list[tuple[int, int, int]]:
    """(index, first sample, last end) of each segment that holds samples."""
    count = len(standing.track.segments)
    first, last = np.full(count, _FAR), np.full(count, -_FAR)
    for lane in (standing.picture, standing.sound):
        if len(lane):
            begins = np.flatnonzero(np.diff(lane.segment, prepend=-1))
            np.minimum.at(first, lane.segment[begins], np.minimum.reduceat(lane.time, begins))
            np.maximum.at(last, lane.segment[begins], np.maximum.reduceat(lane.end, begins))
    indices = [segment.index for segment, _ in standing.track.segments]
    return [(index, a, b) for index, a, b in zip(indices, first.tolist(), last.tolist(), strict=True) if a < _FAR]


def missing(facts: TrackFacts, ordered: Sequence[Taken], standing: Standing, start_us: int, end_us: int) -> list[Gap]:
    """The gaps of segments that never came, or cannot be played, each with its index."""
    track = standing.track
    blank = {index for index, named, taken in _kinds(track) if named and not taken}
    there = {segment.index for segment, index in track.segments if len(index.samples) or not index.warning} - blank
    first_head = -1 if track.before else track.segments[0][0].index if track.segments else _FAR
    reasons = {one.index: "header_missing" if one.index < first_head else "not_indexed" for one in ordered if one.index not in there}
    reasons |= dict.fromkeys(blank, "other_codec")
    last = max([facts.last_index or 0, *(one.index for one in ordered)])
    there_us = spans(standing)
    if track.before:
        there_us.append((track.before.segment[0].index, -_FAR, track.before.span_end_us))
    each_us = pitch(facts, track)
    gaps: list[Gap] = []
    known = sorted(there)
    begun = track.before.segment[0].index if track.before else facts.first_index - 1
    for before, after in zip([begun, *known], [*known, last + 1], strict=True):
        if after - before <= 1:
            continue
        lost = [(index, reasons.get(index, "segment_missing")) for index in range(before + 1, min(after, before + 1 + MANY_MISSING))]
        a = max((span[2] for span in there_us if span[0] <= before), default=start_us)
        b = min((span[1] for span in there_us if span[0] >= after), default=end_us)
        if before < facts.first_index:  # by the length of the others
            a = max(0, min(a, b - each_us * (after - before - 1)))
        elif after > last:
            b = a + min(each_us * (after - before - 1), MAX_SPAN_US)  # one stray index is not a gap of years
        gaps += timeline.split_gap(facts.id, a, b, lost if after - before - 1 <= MANY_MISSING else lost[:1])
    return gaps


def find(facts: TrackFacts, ordered: Sequence[Taken], standing: Standing, start_us: int, end_us: int) -> list[Gap]:
    """All of them, in order of time, for a track from start_us to end_us. Of those before a tail only the pauses are told again."""
    gaps = missing(facts, ordered, standing, start_us, end_us)
    if half := set(_half(standing.track)):
        gaps += [Gap(facts.id, a, b, "other_codec", index) for index, a, b in spans(standing) if index in half]
    paused = [(max(a - facts.origin_us, start_us), min(b - facts.origin_us, end_us)) for a, b in facts.pauses]
    gaps += [Gap(facts.id, a, b, "paused") for a, b in paused if a < b]
    quiet = [hole for a, b in _holes(standing) for hole in timeline.uncovered(a, b, gaps)]
    gaps += [Gap(facts.id, a, b, "no_media") for a, b in quiet]
    blind = [hole for a, b in _undecodable(standing) for hole in timeline.uncovered(a, b, gaps)]
    gaps += [Gap(facts.id, a, b, "no_media") for a, b in blind]
    if standing.track.before:
        from_us = standing.track.before.time_us
        gaps = [gap for gap in gaps if gap.reason != "no_media" or gap.end_us > from_us] + list(standing.track.before.gaps)
    return sorted(gaps, key=lambda gap: (gap.start_us, gap.end_us, gap.segment_index or 0))


def _kinds(track: Track) -> Iterator[tuple[int, set[Kind], set[Kind]]]:
    """Of each segment the index, the kinds of media it names, and those of its file that fit the track."""
    for (segment, index), file in zip(track.segments, track.file_of.tolist(), strict=True):
        yield segment.index, {one.kind for one in index.streams}, {one.kind for one in track.streams[file] if one}


def _half(track: Track) -> list[int]:
    """The segments that lack the track's picture, or its sound, because theirs has another codec."""
    kinds = {kind for number, kind in enumerate((Kind.VIDEO, Kind.AUDIO)) if track.setups[number]}
    return [index for index, named, taken in _kinds(track) if taken and named & kinds - taken]


def _holes(standing: Standing) -> list[tuple[int, int]]:
    """Where a track has neither sound nor picture for more than 200 ms. A picture that stands still is none, while there is no sound to tell."""
    (seen, seen_until), (heard, heard_until) = there(standing)
    if not len(heard):
        return _apart(seen, seen_until)
    holes: list[tuple[int, int]] = []
    last = int(standing.picture.end[standing.keep_picture.nonzero()[0][-1]]) if standing.keep_picture.any() else -_FAR
    for a, b in [*_apart(heard, heard_until), *_outside(heard, heard_until, seen, last)]:
        lo, hi = np.searchsorted(seen, (a, b))
        lo = max(int(lo) - 1, 0)
        begins, ends = seen[lo:hi], seen_until[lo:hi]
        holes += _apart(np.concatenate([[a], begins, [b]]), np.concatenate([[a], ends, [b]]))
    return holes


def there(standing: Standing, until: int = 1 << 30) -> list[tuple[Ints, Ints]]:
    """From when until when each picture is seen, each packet heard, of those that are kept; a picture is held for 200 ms where there is sound to tell.

    In front stands the last one before a tail. `until`: only the segments before this one.
    """
    track, found = standing.track, []
    picture, sound = standing.picture.take(standing.keep_picture), standing.sound.take(standing.keep_sound)
    loud = np.zeros(track.files, np.bool_)
    loud[sound.file] = True
    if track.opened:
        loud[0] |= track.opened.loud
    seen_for = np.where(loud[picture.file], np.minimum(picture.duration, QUIET_HOLE_US), picture.duration)
    for kind, (lane, lasts) in enumerate(((picture, seen_for), (sound, sound.duration))):
        begins, ends = lane.time[lane.segment < until], (lane.time + lasts)[lane.segment < until]
        if track.before and (held := track.before.lanes[kind]):
            begins, ends = np.append(held.last["time_us"], begins), np.append(held.until_us, ends)
        found.append((begins, ends))
    return found


def _outside(heard: Ints, heard_until: Ints, seen: Ints, last_us: int) -> list[tuple[int, int]]:
    """The parts of the track before and after its sound; `last_us`: the end of the last picture."""
    if not len(seen):
        return []
    return [(a, b) for a, b in ((int(seen[0]), int(heard[0])), (int(heard_until[-1]), last_us)) if a < b]


def _apart(begins: Ints, ends: Ints) -> list[tuple[int, int]]:
    reached = np.maximum.accumulate(ends)
    where = np.flatnonzero(begins[1:] - reached[:-1] > QUIET_HOLE_US)
    return list(zip(reached[where].tolist(), begins[where + 1].tolist(), strict=True))


def _undecodable(standing: Standing) -> list[tuple[int, int]]:
    """Where pictures came after lost bytes, but no key frame yet."""
    picture, keep = standing.picture, standing.keep_picture
    found = []
    for segment in standing.broken:
        at = int(np.searchsorted(picture.segment, segment))
        if at < len(picture) and not keep[at]:
            after = np.flatnonzero(keep[at:])
            found.append((int(picture.time[at]), int(picture.time[at + int(after[0])]) if len(after) else int(picture.end[-1])))
    return found
