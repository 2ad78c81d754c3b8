"""Lays the segments of a track out on the recording's clock: the law is core.timeline's, here it meets 170,000 samples an hour."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from operator import is_

import numpy as np
import numpy.typing as npt

from roomtape.core import timeline
from roomtape.core.model import Kind
from roomtape.core.timeline import MANY_MISSING, TOUCH_US
from roomtape.media import edge, gaps, rows
from roomtape.media.codecs import opus_us
from roomtape.media.laid import Before, Join, LaneBefore, Layout, Packet, Span, Taken, TrackFacts, Unlike, Window
from roomtape.media.placed import PLACED_PATCH, Chunks, Lane, Placement, joined
from roomtape.media.rows import Rows, Track
from roomtape.media.sample import Container, Part
from roomtape.media.settle import settle, under
from roomtape.media.standing import Standing, begin_us, stand

__all__ = ["Join", "Layout", "Packet", "Span", "Taken", "TrackFacts", "Window", "grow", "joins_wanted", "lay_out", "server_start_us"]

_FAR = 1 << 60
_PREROLL = 6  # Opus needs 80 ms before what is to be heard (RFC 7845, 4.6): four packets of 20 ms, and the hole may lie a little before where clocks have it


def server_start_us(facts: TrackFacts, taken: Sequence[Taken]) -> int | None:
    """The track's first sample on the server's clock: leading segments that are missing count by the length of those that came."""
    ordered = sorted(taken, key=lambda one: one.index)
    heads = [one for one in ordered if one.indexed and one.indexed.part is Part.HEAD]
    if not heads:
        return None
    stated = facts.stated(heads[0])
    if stated is None:
        return facts.begin_us
    ahead = heads[0].index - facts.first_index
    lost = gaps.pitch(facts, rows.gather(ordered)) * ahead if 0 < ahead <= MANY_MISSING else 0
    return stated + facts.origin_us - lost


def lay_out(facts: TrackFacts, taken: Sequence[Taken]) -> Layout:
    """The whole track anew. Segments may be given in any order; those that nobody has are gaps."""
    return _lay_out(facts, sorted(taken, key=lambda one: one.index), None)


def grow(layout: Layout | None, facts: TrackFacts, taken: Sequence[Taken]) -> Layout:
    """As lay_out for segments in order of index, at the cost of what is new since `layout` where that simply follows; else of the whole."""
    before = layout.before if layout else None
    if before and _follows(before, facts, taken):
        with suppress(Unlike):
            return _lay_out(facts, taken[len(before.taken) :], before)
    return lay_out(facts, taken)


def _follows(before: Before, facts: TrackFacts, taken: Sequence[Taken]) -> bool:
    count = len(before.taken)
    if under(facts) != before.facts or facts.skips or facts.mends or len(taken) <= count or taken[count] is not before.first:
        return False
    return (facts.last_index or 0) <= taken[-1].index and all(map(is_, taken, before.taken))


def _lay_out(facts: TrackFacts, ordered: Sequence[Taken], before: Before | None) -> Layout:
    """The segments that follow on `before`; what is there is put in front of them."""
    track = rows.gather(ordered, before)
    standing = stand(facts, track)
    own = [rows.placed(track, lane.take(keep), kind) for kind, (lane, keep) in enumerate(standing.lanes)]
    held = before.lanes if before else (None, None)
    if before and any(times.min(initial=_FAR) < before.time_us for times in _of_new(standing, before)):
        raise Unlike
    shown, heard = (rows.merged([lane.last, own[kind]]) if lane else own[kind] for kind, lane in enumerate(held))
    if not len(shown) and not len(heard):
        begin = begin_us(facts)
        return Layout(
            Placement((), _chunks(track), _container(track)), tuple(gaps.missing(facts, ordered, standing, begin, begin)), begin, begin, settled_us=begin
        )
    start = before.start_us if before else min(int(lane["time_us"][0]) for lane in (shown, heard) if len(lane))
    end = max(int(lane["time_us"][-1] + lane["duration_us"][-1]) for lane in (shown, heard) if len(lane))
    found = gaps.find(facts, ordered, standing, start, end)
    filled, literals = _filled(facts, standing, heard, end)
    lanes = [Lane(Kind.VIDEO, _stitched(held[0], rows.stretch(shown), before), track.setups[0])] if len(shown) else []
    if len(filled):
        lanes.append(Lane(Kind.AUDIO, _stitched(held[1], filled, before), track.setups[1], literals))
        start = min(start, int(lanes[-1].blocks[0]["time_us"][0]))
    seen = edge.Placed(standing.picture, standing.sound, standing.keep_picture, standing.keep_sound, standing.spots, standing.late)
    cut = edge.cut(facts, track, seen, end)
    streams = (next((pair[kind] for pair in reversed(track.streams) if pair[kind]), before.streams[kind] if before else None) for kind in (0, 1))
    layout = Layout(
        Placement(tuple(lanes), _chunks(track), _container(track)),
        tuple(found),
        start,
        end,
        (*(before.windows if before else ()), *cut.windows),
        cut.late,
        cut.settled_us,
        cut.maps,
        (*(before.spans if before else ()), *(Span(*span) for span in gaps.spans(standing))),
        tuple(stream for stream in streams if stream),
        off_grid=any(spot.off_grid for spot in standing.spots if spot) or bool(before and before.off_grid),
        clock_set=any(spot.clock_set for spot in standing.spots if spot) or bool(before and before.clock_set),
    )
    return replace(layout, before=settle(facts, ordered, standing, cut, layout))


def _of_new(standing: Standing, before: Before) -> list[npt.NDArray[np.int64]]:
    """The times of samples that are kept of segments that were not known before."""
    new = np.array([segment.index > before.newest for segment, _ in standing.track.segments], np.bool_)
    return [lane.time[keep & new[lane.segment]] for lane, keep in standing.lanes]


def _stitched(held: LaneBefore | None, tail: npt.NDArray[np.void], before: Before | None) -> tuple[npt.NDArray[np.void], ...]:
    """The rows that stand, and the tail from the row on that is the last before the boundary. Unlike where that is another one than it was."""
    at = int(np.searchsorted(tail["time_us"], before.time_us)) if before else 0
    if not held:
        if at:
            raise Unlike
        return (tail,)
    if not at or (int(tail["time_us"][at - 1]), int(tail["size"][at - 1])) != held.edge:
        raise Unlike
    return (*held.blocks, tail[at - 1 :])


def joins_wanted(facts: TrackFacts, taken: Sequence[Taken]) -> tuple[Join, ...]:
    """The joins off the packet grid for which there is no mend yet, with all that a child needs to do so. A mend that does not fit is not asked for again."""
    track = rows.gather(sorted(taken, key=lambda one: one.index))
    return tuple(_joins(stand(replace(facts, closed=True), track), _chunks(track), frozenset(mend.file for mend in facts.mends)))


def _filled(facts: TrackFacts, standing: Standing, heard: npt.NDArray[np.void], end_us: int) -> tuple[npt.NDArray[np.void], tuple[bytes, ...]]:
    """The sound from the file on in which it is first heard, mended at the joins, silence in the holes; and the packets that were generated for it."""
    if not len(heard):
        return heard, ()
    before, literals = standing.track.before, list[bytes]()
    held = before.lanes[1] if before else None
    first = None if held else standing.spots[int(standing.sound.file[standing.keep_sound][0])]
    begin = min(int(heard["time_us"][0]), first.picture_from_us if first else _FAR)
    mends = {mend.file: mend for mend in facts.mends}
    pieces = [heard]
    for head, spot in zip(standing.track.heads, standing.spots, strict=True):
        at = int(np.searchsorted(heard["time_us"], spot.sound_from_us - TOUCH_US)) if spot and spot.mended else 0
        if not at:
            continue
        packets = mends[standing.track.segments[head][0].index].packets
        lengths = [opus_us(packet[0], packet[1] if len(packet) > 1 else 0) for packet in packets if packet]
        hole_at = int(heard["time_us"][at - 1] + heard["duration_us"][at - 1])
        numbered = [(len(literals) + n, len(packet), length) for n, (packet, length) in enumerate(zip(packets, lengths, strict=True))]
        literals.extend(packets)
        pieces.append(rows.literal_rows(numbered, int(heard["setup"][at - 1]), hole_at))
    filled = rows.fill(rows.merged(pieces), standing.track.setups[1], literals, begin, end_us)
    return filled, rows.number_literals(filled, literals, held.literals if held else ())


def _chunks(track: Track) -> Chunks:
    parts = []
    for start, (_, index) in zip(track.starts.tolist(), track.segments, strict=False):
        if len(index.patches):
            part = np.zeros(len(index.patches), PLACED_PATCH)
            part["at"], part["value"] = index.patches["offset"] + start, index.patches["value"]
            parts.append(part)
    patches = joined(parts, PLACED_PATCH)
    patches = patches[np.argsort(patches["at"], kind="stable")]
    keys, before = tuple(segment.key for segment, _ in track.segments), track.before.chunks if track.before else None
    if not before:
        return Chunks(keys, track.starts, patches)
    if len(patches) and len(before.patches) and patches["at"][0] < before.patches["at"][-1]:
        raise Unlike
    return Chunks((*before.keys, *keys), np.append(before.starts[:-1], track.starts), joined([before.patches, patches], PLACED_PATCH))


def _container(track: Track) -> Container:
    if track.before:
        return track.before.container
    return track.segments[0][1].container if track.segments else Container.WEBM


def _joins(standing: Standing, chunks: Chunks, mended: frozenset[int]) -> list[Join]:
    track, sound = standing.track, standing.sound
    first, stop = sound.edges(track.files)
    found = []
    astray = any(spot.off_grid or spot.mended for spot in standing.spots if spot)  # then the sound is asked at each overlap: jitter may hide 10 ms
    for number, spot in enumerate(standing.spots):
        if not spot or not (spot.off_grid or (spot.on_grid and astray)) or track.segments[track.heads[number]][0].index in mended:
            continue
        before = next(n for n in range(number - 1, -1, -1) if stop[n] > first[n])
        new, old = slice(int(first[number]), int(stop[number])), slice(int(first[before]), int(stop[before]))
        begins, end, packet = int(sound.time[new.start]), int(sound.end[old.stop - 1]), int(sound.duration[new.start])
        kept = old.start + int(np.searchsorted(sound.end[old], spot.sound_until_us + TOUCH_US, side="right"))
        _, hole = timeline.cut_sound(end - begins, packet)
        until = new.start + int(np.searchsorted(sound.time[new], end)) + 1
        found.append(
            Join(
                track.segments[track.heads[number]][0].index,
                begins - end,
                packet,
                _packets(track, sound, chunks, range(max(old.start, kept - _PREROLL), old.stop)),
                _packets(track, sound, chunks, range(new.start, min(until, new.stop))),
                int(sound.end[kept - 1]) if kept > old.start else spot.sound_until_us,
                hole,
            )
        )
    return found


def _packets(track: Track, sound: Rows, chunks: Chunks, which: range) -> tuple[Packet, ...]:
    found = []
    for number in which:
        sample = track.samples[sound.row[number]]
        at = int(track.starts[sound.segment[number]] + sample["offset"])
        found.append(Packet(tuple(chunks.pieces(at, at + int(sample["size"]))), int(sound.time[number]), int(sound.duration[number])))
    return tuple(found)
