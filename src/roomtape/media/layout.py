"""Lays the segments of a track out on the recording's clock: the law is core.timeline's, here it meets 170,000 samples an hour."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from roomtape.core import timeline
from roomtape.core.model import Kind
from roomtape.core.timeline import MANY_MISSING, TOUCH_US
from roomtape.media import edge, gaps, rows
from roomtape.media.codecs import opus_us
from roomtape.media.laid import Join, Layout, Packet, Span, Taken, TrackFacts, Window
from roomtape.media.placed import PLACED_PATCH, Chunks, Lane, Placement
from roomtape.media.rows import Rows, Track
from roomtape.media.sample import Container, Part
from roomtape.media.standing import Standing, begin_us, stand

__all__ = ["Join", "Layout", "Packet", "Span", "Taken", "TrackFacts", "Window", "joins_wanted", "lay_out", "server_start_us"]

_FAR = 1 << 60
_PREROLL = 4  # Opus needs 80 ms before what is to be heard (RFC 7845, 4.6): four packets of 20 ms or more


def server_start_us(facts: TrackFacts, taken: Sequence[Taken]) -> int | None:
    """The track's first sample on the server's clock, for timeline.origin_us: leading segments that are missing count by the length of those that came."""
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
    ordered = sorted(taken, key=lambda one: one.index)
    track = rows.gather(ordered)
    standing = stand(facts, track)
    shown = rows.stretch(rows.placed(track, standing.picture.take(standing.keep_picture), 0))
    heard = rows.placed(track, standing.sound.take(standing.keep_sound), 1)
    if not len(shown) and not len(heard):
        begin = begin_us(facts)
        return Layout(Placement((), _chunks(track), _container(track)), tuple(gaps.missing(facts, ordered, standing, begin, begin)), begin, begin, settled_us=begin)
    ends = [int(lane["time_us"][-1] + lane["duration_us"][-1]) for lane in (shown, heard) if len(lane)]
    start, end = min(int(lane["time_us"][0]) for lane in (shown, heard) if len(lane)), max(ends)
    literals: list[bytes] = []
    found = gaps.find(facts, ordered, standing, start, end)
    filled = _filled(facts, standing, heard, literals, end)
    lanes = [Lane(Kind.VIDEO, (shown,), track.setups[0])] if len(shown) else []
    if len(filled):
        lanes.append(Lane(Kind.AUDIO, (filled,), track.setups[1], tuple(literals)))
        start = min(start, int(filled["time_us"][0]))
    seen = edge.Placed(standing.picture, standing.sound, standing.keep_picture, standing.keep_sound, standing.spots, standing.late)
    cut = edge.cut(facts, track, seen, end)
    return Layout(
        Placement(tuple(lanes), _chunks(track), _container(track)),
        tuple(found),
        start,
        end,
        cut.windows,
        cut.late,
        cut.settled_us,
        cut.maps,
        tuple(Span(*span) for span in gaps.spans(standing)),
        tuple(stream for stream in (next((pair[kind] for pair in reversed(track.streams) if pair[kind]), None) for kind in (0, 1)) if stream),
    )


def joins_wanted(facts: TrackFacts, taken: Sequence[Taken]) -> tuple[Join, ...]:
    """The joins off the packet grid for which there is no mend yet, with all that a child needs to do so. A mend that does not fit is not asked for again."""
    track = rows.gather(sorted(taken, key=lambda one: one.index))
    return tuple(_joins(stand(replace(facts, closed=True), track), _chunks(track), frozenset(mend.file for mend in facts.mends)))


def _filled(facts: TrackFacts, standing: Standing, heard: npt.NDArray[np.void], literals: list[bytes], end_us: int) -> npt.NDArray[np.void]:
    """The sound from the file on in which it is first heard, mended at the joins, silence in the holes."""
    if not len(heard):
        return heard
    first = standing.spots[int(standing.sound.file[standing.keep_sound][0])]
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
    return rows.fill(rows.merged(pieces), standing.track.setups[1], literals, begin, end_us)


def _chunks(track: Track) -> Chunks:
    parts = []
    for start, (_, index) in zip(track.starts.tolist(), track.segments, strict=False):
        if len(index.patches):
            part = np.zeros(len(index.patches), PLACED_PATCH)
            part["at"], part["value"] = index.patches["offset"] + start, index.patches["value"]
            parts.append(part)
    patches = np.concatenate(parts) if parts else np.zeros(0, PLACED_PATCH)
    return Chunks(tuple(segment.key for segment, _ in track.segments), track.starts, patches[np.argsort(patches["at"], kind="stable")])


def _container(track: Track) -> Container:
    return track.segments[0][1].container if track.segments else Container.WEBM


def _joins(standing: Standing, chunks: Chunks, mended: frozenset[int]) -> list[Join]:
    track, sound = standing.track, standing.sound
    first, stop = sound.edges(track.files)
    found = []
    for number, spot in enumerate(standing.spots):
        if not spot or not spot.off_grid or track.segments[track.heads[number]][0].index in mended:
            continue
        before = next(n for n in range(number - 1, -1, -1) if stop[n] > first[n])
        new, old = slice(int(first[number]), int(stop[number])), slice(int(first[before]), int(stop[before]))
        begins, end, packet = int(sound.time[new.start]), int(sound.end[old.stop - 1]), int(sound.duration[new.start])
        kept = old.start + int(np.searchsorted(sound.end[old], spot.sound_from_us + TOUCH_US, side="right"))
        _, hole = timeline.cut_sound(end - begins, packet)
        until = new.start + int(np.searchsorted(sound.time[new], end)) + 1
        found.append(
            Join(
                track.segments[track.heads[number]][0].index,
                begins - end,
                packet,
                _packets(track, sound, chunks, range(max(old.start, kept - _PREROLL), old.stop)),
                _packets(track, sound, chunks, range(new.start, min(until, new.stop))),
                int(sound.end[kept - 1]) if kept > old.start else spot.sound_from_us - hole,
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
