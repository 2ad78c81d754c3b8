"""Finds up to where a track stays as it is while segments come in order, so that the next layout begins there."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from roomtape.core.timeline import CLOSING, Run
from roomtape.media import edge, gaps, rows
from roomtape.media.laid import Before, LaneBefore, Layout, OpenFile, Taken, TrackFacts
from roomtape.media.placed import PLACED, Chunks, joined
from roomtape.media.sample import Stream
from roomtape.media.standing import Standing

_FAR = 1 << 60
_BEHIND = 17  # samples of a file that a tail needs before the boundary: what a last frame's length is reckoned from, and one more
_BLOCK = 16_384  # rows of a block: small enough to be copied for a window, large enough to be few in eight hours
_Array = npt.NDArray[np.void]


def under(facts: TrackFacts) -> TrackFacts:
    """What must not change if a tail is to follow."""
    return replace(facts, closed=False, close_seq=0, last_index=None)


def settle(facts: TrackFacts, ordered: Sequence[Taken], standing: Standing, cut: edge.Cut, layout: Layout) -> Before | None:
    """What stands before the next tail: the old one where nothing new is settled, None where it is not that simple."""
    track, old = standing.track, standing.track.before
    if facts.closed or facts.skips or facts.mends:
        return None
    time_us = cut.windows[-1].stop_us if cut.windows else -_FAR
    first = _first(standing, time_us) if cut.windows else 0
    gone = not old and track.segments and track.segments[0][0].index != facts.first_index
    if not 0 < first < len(cut.settled) or int(cut.settled[first - 1]) >= time_us or gone:
        return old
    file = int(track.file_of[first])
    lanes = tuple(_lane(standing, layout, kind, first, time_us) for kind in (0, 1))
    if standing.spots[file] is None or any(lane is not None and not len(lane.last) for lane in lanes):
        return old
    index = track.segments[first][0].index
    parts = [span for span in layout.spans[len(old.spans) if old else 0 :] if span.index < index]
    seen = edge.Placed(standing.picture, standing.sound, standing.keep_picture, standing.keep_sound, standing.spots, standing.late)
    _, numbers, sound_setup = edge.numbered(track, seen, range(file))
    taken = next(place for place, one in enumerate(ordered) if one.index == index)
    return Before(
        facts=under(facts),
        taken=(*(old.taken if old else ()), *ordered[:taken]),
        first=ordered[taken],
        segment=track.segments[first - 1],
        newest=ordered[-1].index,
        time_us=time_us,
        start_us=layout.start_us,
        base_us=old.base_us if old else next(spot.zero_us for spot in standing.spots if spot),
        chain=standing.chains[file],
        file=_opened(standing, file, first),
        lanes=(lanes[0], lanes[1]),
        chunks=_chunks(standing, layout.placement.chunks, first),
        container=layout.placement.container,
        gaps=tuple(gap for gap in layout.gaps if gap.reason != "paused" and gap.end_us <= time_us and (gap.segment_index or 0) < index),
        windows=layout.windows,
        spans=(*(old.spans if old else ()), *parts),
        span_end_us=max([old.span_end_us if old else -_FAR, *(span.end_us for span in parts)]),
        settled_us=int(cut.settled[first - 1]),
        seq=int(cut.seqs[first - 1]),
        ends_us=(int(cut.ends[0][first - 1]), int(cut.ends[1][first - 1])),
        numbers=numbers,
        sound_setup=sound_setup,
        setups=(track.setups[0][: _known(standing, 0, file)], track.setups[1][: _known(standing, 1, file)]),
        streams=(_newest(standing, 0, file), _newest(standing, 1, file)),
        off_grid=any(spot.off_grid for spot in standing.spots[:file] if spot) or bool(old and old.off_grid),
        clock_set=any(spot.clock_set for spot in standing.spots[:file] if spot) or bool(old and old.clock_set),
    )


def _first(standing: Standing, time_us: int) -> int:
    """The segment that a tail from time_us on has to begin with; 0: there is none."""
    track = standing.track
    first = len(track.segments)
    for lane, keep in standing.lanes:
        first = min(first, int(lane.segment[keep & (lane.time >= time_us)].min(initial=first)))
    if first == len(track.segments) or any(at >= first for at in standing.broken):
        return 0
    file = int(track.file_of[first])
    for lane, _ in standing.lanes:
        a, b = (int(edge) for edge in np.searchsorted(lane.file, (file, file + 1)))
        reached = a + int(np.searchsorted(lane.time[a:b], time_us))
        first = min(first, int(lane.segment[max(a, reached - _BEHIND) : reached].min(initial=first)))
    a, b = (int(edge) for edge in np.searchsorted(standing.picture.file, (file, file + 1)))
    at = a + int(np.sum(standing.picture.segment[a:b] < first))
    if any(place >= first for place in standing.broken) or (at > a and not standing.usable[at - 1 : min(at + 1, b)].all()):
        return 0
    return first


def _opened(standing: Standing, file: int, first: int) -> OpenFile | None:
    """The file that goes on in the segment `first`."""
    track = standing.track
    old = track.opened if not file else None
    if first == track.heads[file] and not old:
        return None
    runs: list[Run | None] = []
    lasts, kept = [], []
    spot = standing.spots[file]
    for kind, (lane, keep) in enumerate(standing.lanes):
        here = np.flatnonzero((lane.file == file) & (lane.segment < first))
        run, begun = standing.runs[file][kind], old.runs[kind] if old else None
        if run and spot and len(here):
            seen = here[standing.usable[here]] if not kind else here[:0]
            closing = (*(begun.closing if begun else ()), *(lane.time[seen] - spot.zero_us).tolist())[-CLOSING:]
            runs.append(replace(run, end_us=int(lane.end[here[-1]]) - spot.zero_us, closing=closing))
        else:
            runs.append(begun)
        lasts.append(int(track.samples["time_us"][lane.row[here[-1]]]) if len(here) else old.last_us[kind] if old else -_FAR)
        kept.append(here[keep[here]])
    return OpenFile(
        track.begun[file],
        track.streams[file],
        (runs[0], runs[1]),
        (min(lasts[0], rows.SANE_US), min(lasts[1], rows.SANE_US)),
        seen=bool(len(kept[0])) or bool(old and old.seen),
        keyed=bool(standing.picture.key[kept[0]].any()) or bool(old and old.keyed),
        loud=bool(len(kept[1])) or bool(old and old.loud),
    )


def _lane(standing: Standing, layout: Layout, kind: int, first: int, time_us: int) -> LaneBefore | None:
    """What of a lane is settled; an empty `last` where that cannot be told."""
    old = standing.track.before.lanes[kind] if standing.track.before else None
    name = ("video", "audio")[kind]
    lane = next((lane for lane in layout.placement.lanes if lane.kind == name), None)
    tail = lane.blocks[-1] if lane else np.zeros(0, PLACED)
    count = int(np.searchsorted(tail["time_us"], time_us))
    if lane is None or not count:
        return old
    all_rows, keep = standing.lanes[kind]
    kept = np.flatnonzero(keep & (all_rows.segment < first))
    last = old.last if old else tail[:0]
    if len(kept):
        last = rows.placed(standing.track, all_rows.take(kept[[int(all_rows.time[kept].argmax())]]), kind)
    until_us = int(gaps.there(standing, first)[kind][1].max(initial=-_FAR))
    settled, after = tail[: count - 1], tail[count - 1]
    literals = max(len(old.literals) if old else 0, int(settled["literal"].max(initial=-1)) + 1)
    blocks = _blocks(old.blocks if old else (), settled)
    return LaneBefore(blocks, (int(after["time_us"]), int(after["size"])), last, until_us, lane.literals[:literals])


def _blocks(held: tuple[_Array, ...], new: _Array) -> tuple[_Array, ...]:
    """Blocks that double: each row is copied some times while it is young, never later."""
    blocks = [*held, new] if len(new) else [*held]
    while len(blocks) > 1 and len(blocks[-2]) < 2 * len(blocks[-1]) and len(blocks[-2]) + len(blocks[-1]) <= _BLOCK:
        blocks[-2:] = [joined(blocks[-2:], PLACED)]
    return tuple(blocks)


def _chunks(standing: Standing, chunks: Chunks, first: int) -> Chunks:
    old = standing.track.before.chunks if standing.track.before else None
    count = (len(old.keys) if old else 0) + first
    patches = (len(old.patches) if old else 0) + sum(len(index.patches) for _, index in standing.track.segments[:first])
    return Chunks(chunks.keys[:count], chunks.starts[: count + 1], chunks.patches[:patches])


def _known(standing: Standing, kind: int, file: int) -> int:
    """How many set-ups the files before this one have."""
    track = standing.track
    old = len(track.before.setups[kind]) if track.before else 0
    return max([old, *(int(track.setup_of[kind, at]) + 1 for at in range(file) if track.streams[at][kind])])


def _newest(standing: Standing, kind: int, file: int) -> Stream | None:
    track = standing.track
    old = track.before.streams[kind] if track.before else None
    return next((pair[kind] for pair in reversed(track.streams[:file]) if pair[kind]), old)
