"""Lays the segments of a track out on the recording's clock: the law is core.timeline's, here it meets 170,000 samples an hour."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from roomtape.core import timeline
from roomtape.core.model import Gap, Kind
from roomtape.core.timeline import MANY_MISSING, MAX_SPAN_US, QUIET_HOLE_US, TOUCH_US, FileFacts, Spot
from roomtape.media import edge, rows
from roomtape.media.codecs import opus_us
from roomtape.media.laid import Join, Layout, Packet, Span, Taken, TrackFacts, Window
from roomtape.media.placed import PLACED_PATCH, Chunks, Lane, Placement
from roomtape.media.rows import Ints, Mask, Rows, Track
from roomtape.media.sample import Container, Index, Part

__all__ = ["Join", "Layout", "Packet", "Span", "Taken", "TrackFacts", "Window", "joins_wanted", "lay_out", "server_start_us"]

_FAR = 1 << 60
_LOSSES = frozenset(("element", "overrun", "time", "block", "block_large", "box", "box_large", "trun", "adrift"))  # warnings of the parsers
_SAME_US = 20_000  # an old picture nearer than this to the new first one, and than half its own length, is the same picture
_PREROLL = 4  # Opus needs 80 ms before what is to be heard (RFC 7845, 4.6): four packets of 20 ms or more


@dataclass(slots=True)
class _Standing:
    """The samples on the recording's clock, before anything is left out, and what is kept of them."""

    track: Track
    picture: Rows
    sound: Rows
    spots: list[Spot | None]
    keep_picture: Mask
    keep_sound: Mask
    broken: list[int]
    late: Mask  # by segment


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
    lost = _pitch(facts, rows.gather(ordered)) * ahead if 0 < ahead <= MANY_MISSING else 0
    return stated + facts.origin_us - lost


def lay_out(facts: TrackFacts, taken: Sequence[Taken]) -> Layout:
    """The whole track anew. Segments may be given in any order; those that nobody has are gaps."""
    ordered = sorted(taken, key=lambda one: one.index)
    track = rows.gather(ordered)
    standing = _stand(facts, track)
    shown = rows.stretch(rows.placed(track, standing.picture.take(standing.keep_picture), 0))
    heard = rows.placed(track, standing.sound.take(standing.keep_sound), 1)
    if not len(shown) and not len(heard):
        begin = _begin(facts)
        return Layout(Placement((), _chunks(track), _container(track)), tuple(_missing(facts, ordered, standing, begin, begin)), begin, begin, settled_us=begin)
    ends = [int(lane["time_us"][-1] + lane["duration_us"][-1]) for lane in (shown, heard) if len(lane)]
    start, end = min(int(lane["time_us"][0]) for lane in (shown, heard) if len(lane)), max(ends)
    literals: list[bytes] = []
    gaps = _gaps(facts, ordered, standing, start, end)
    filled = _filled(facts, standing, heard, literals, end)
    lanes = [Lane(Kind.VIDEO, (shown,), track.setups[0])] if len(shown) else []
    if len(filled):
        lanes.append(Lane(Kind.AUDIO, (filled,), track.setups[1], tuple(literals)))
        start = min(start, int(filled["time_us"][0]))
    seen = edge.Placed(standing.picture, standing.sound, standing.keep_picture, standing.keep_sound, standing.spots, standing.late)
    cut = edge.cut(facts, track, seen, end)
    return Layout(
        Placement(tuple(lanes), _chunks(track), _container(track)),
        tuple(gaps),
        start,
        end,
        cut.windows,
        cut.late,
        cut.settled_us,
        cut.maps,
        tuple(Span(*span) for span in _spans(standing)),
        tuple(stream for stream in (next((pair[kind] for pair in reversed(track.streams) if pair[kind]), None) for kind in (0, 1)) if stream),
    )


def joins_wanted(facts: TrackFacts, taken: Sequence[Taken]) -> tuple[Join, ...]:
    """The joins off the packet grid for which there is no mend yet, with all that a child needs to do so. A mend that does not fit is not asked for again."""
    track = rows.gather(sorted(taken, key=lambda one: one.index))
    return tuple(_joins(_stand(replace(facts, closed=True), track), _chunks(track), frozenset(mend.file for mend in facts.mends)))


def _begin(facts: TrackFacts) -> int:
    return 0 if facts.begin_us is None else facts.begin_us - facts.origin_us


def _stand(facts: TrackFacts, track: Track) -> _Standing:
    count = track.files
    picture, sound = rows.lane(track, 0), rows.lane(track, 1)
    stated = [facts.stated(track.segments[head][0]) for head in track.heads]
    if facts.pauses:
        told = [_begin(facts), *stated[1:]] if stated and stated[0] is None else stated
        rows.shift_pauses(track, (picture, sound), told, [(a - facts.origin_us, b - facts.origin_us) for a, b in facts.pauses])
    broken = [
        at
        for at, (segment, index) in enumerate(track.segments)
        if index.part is Part.CUT and (track.segments[at - 1][0].index + 1 != segment.index or _lost(track.segments[at - 1][1]))
    ]
    rows.last_frames(picture, broken)
    opus = np.array([bool(pair[1] and pair[1].codec == "opus") for pair in track.streams], np.bool_)
    sound = rows.count_packets(sound, opus, count)
    usable = rows.decodable(picture, count, broken)
    late = np.array([not facts.closed and segment.index in facts.skips for segment, _ in track.segments], np.bool_)
    spots = _spots(facts, track, (picture, sound), stated=stated, usable=usable, late=late, opus=opus)
    zero = np.array([spot.zero_us if spot else 0 for spot in spots], np.int64)
    from_picture = np.array([spot.picture_from_us if spot else _FAR for spot in spots], np.int64)
    from_sound = np.array([spot.sound_from_us if spot else _FAR for spot in spots], np.int64)
    picture.time += zero[picture.file]
    sound.time += zero[sound.file]
    base = next((spot.zero_us for spot in spots if spot), 0)
    keep_picture = usable & (picture.time >= from_picture[picture.file]) & (picture.time < base + MAX_SPAN_US)
    keep_sound = (sound.time >= from_sound[sound.file] - TOUCH_US) & (sound.time < base + MAX_SPAN_US)
    if count:
        keep_picture &= picture.time + np.minimum(picture.duration // 2, _SAME_US) < rows.until_next(from_picture)[picture.file]
        keep_sound &= sound.end <= rows.until_next(from_sound)[sound.file] + TOUCH_US
    return _Standing(track, picture, sound, spots, keep_picture, keep_sound, broken, late)


def _lost(index: Index) -> bool:
    """Whether the parser passed over bytes that may have been frames."""
    return any(word.split("@")[0] in _LOSSES for word in index.warning.split())


def _spots(
    facts: TrackFacts, track: Track, lanes: tuple[Rows, Rows], *, stated: Sequence[int | None], usable: Mask, late: Mask, opus: Mask,
) -> list[Spot | None]:  # fmt: skip
    """The law applied: a spot for each file that has anything to show or to be heard."""
    count = track.files
    masks = (usable, np.ones(len(lanes[1]), np.bool_))
    packets = (np.zeros(count, np.bool_), opus)
    whole = [rows.runs(lane, mask, count, packet) for lane, mask, packet in zip(lanes, masks, packets, strict=True)]
    timely, belated = whole, [False] * count
    if late.any():  # what came late has a place, but moves nothing
        timely = []
        for lane, mask, packet in zip(lanes, masks, packets, strict=True):
            there = ~late[lane.segment]
            timely.append(rows.runs(lane.take(there), mask[there], count, packet))
        belated = [timely[0][n] is None and timely[1][n] is None for n in range(count)]
    files, numbers = [], []
    for number in range(count):
        picture, sound = (runs[number] for runs in (whole if belated[number] else timely))
        if picture or sound:
            numbers.append(number)
            files.append(FileFacts(track.segments[track.heads[number]][0].index, stated[number], picture, sound, belated[number]))
    mends = {mend.file: mend for mend in facts.mends} if facts.closed else {}
    spots: list[Spot | None] = [None] * count
    for number, spot in zip(numbers, timeline.place(files, mends, begin_us=_begin(facts)), strict=True):
        spots[number] = spot
    return spots


def _filled(facts: TrackFacts, standing: _Standing, heard: npt.NDArray[np.void], literals: list[bytes], end_us: int) -> npt.NDArray[np.void]:
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


def _pitch(facts: TrackFacts, track: Track) -> int:
    """How long a segment of this track is: by the first two starts that are stated, else by the first file's samples."""
    heads = [track.segments[head][0] for head in track.heads[:2]]
    stated = [one for one in (facts.stated(head) for head in heads) if one is not None]
    if len(stated) == 2 and stated[1] > stated[0]:
        return (stated[1] - stated[0]) // (heads[1].index - heads[0].index)
    first = track.samples[track.file_of[track.segment_of] == 0]
    return int(np.ptp(np.clip(first["time_us"], -rows.SANE_US, rows.SANE_US))) // max(1, int(np.sum(track.file_of == 0))) if len(first) else 0


def _spans(standing: _Standing) -> list[tuple[int, int, int]]:
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


def _missing(facts: TrackFacts, ordered: Sequence[Taken], standing: _Standing, start_us: int, end_us: int) -> list[Gap]:
    """The gaps of segments that never came, or cannot be played, each with its index."""
    track = standing.track
    there = {segment.index for segment, _ in track.segments}
    first_head = track.segments[0][0].index if track.segments else _FAR
    reasons = {one.index: "header_missing" if one.index < first_head else "not_indexed" for one in ordered if one.index not in there}
    last = max([facts.last_index or 0, *(one.index for one in ordered)])
    spans = _spans(standing)
    pitch = _pitch(facts, track)
    gaps: list[Gap] = []
    known = sorted(there)
    for before, after in zip([facts.first_index - 1, *known], [*known, last + 1], strict=True):
        if after - before <= 1:
            continue
        lost = [(index, reasons.get(index, "segment_missing")) for index in range(before + 1, min(after, before + 1 + MANY_MISSING))]
        a = max((span[2] for span in spans if span[0] <= before), default=start_us)
        b = min((span[1] for span in spans if span[0] >= after), default=end_us)
        if before < facts.first_index:  # by the length of the others
            a = max(0, min(a, b - pitch * (after - before - 1)))
        elif after > last:
            b = a + pitch * (after - before - 1)
        gaps += timeline.split_gap(facts.id, a, b, lost if after - before - 1 <= MANY_MISSING else lost[:1])
    return gaps


def _gaps(facts: TrackFacts, ordered: Sequence[Taken], standing: _Standing, start_us: int, end_us: int) -> list[Gap]:
    gaps = _missing(facts, ordered, standing, start_us, end_us)
    paused = [(max(a - facts.origin_us, start_us), min(b - facts.origin_us, end_us)) for a, b in facts.pauses]
    gaps += [Gap(facts.id, a, b, "paused") for a, b in paused if a < b]
    quiet = [hole for a, b in _holes(standing) for hole in timeline.uncovered(a, b, gaps)]
    gaps += [Gap(facts.id, a, b, "no_media") for a, b in quiet]
    blind = [hole for a, b in _undecodable(standing) for hole in timeline.uncovered(a, b, gaps)]
    gaps += [Gap(facts.id, a, b, "no_media") for a, b in blind]
    return sorted(gaps, key=lambda gap: (gap.start_us, gap.end_us, gap.segment_index or 0))


def _holes(standing: _Standing) -> list[tuple[int, int]]:
    """Where a track has neither sound nor picture for more than 200 ms. A picture that stands still is none, while there is no sound to tell."""
    picture, sound = standing.picture.take(standing.keep_picture), standing.sound.take(standing.keep_sound)
    loud = np.zeros(standing.track.files, np.bool_)
    loud[sound.file] = True
    seen_for = np.where(loud[picture.file], np.minimum(picture.duration, QUIET_HOLE_US), picture.duration)
    if not len(sound):
        return _apart(picture.time, picture.time + seen_for)
    holes: list[tuple[int, int]] = []
    for a, b in [*_apart(sound.time, sound.end), *_outside(sound, picture)]:
        lo, hi = np.searchsorted(picture.time, (a, b))
        lo = max(int(lo) - 1, 0)
        begins, ends = picture.time[lo:hi], (picture.time + seen_for)[lo:hi]
        holes += _apart(np.concatenate([[a], begins, [b]]), np.concatenate([[a], ends, [b]]))
    return holes


def _outside(sound: Rows, picture: Rows) -> list[tuple[int, int]]:
    """The parts of the track before and after its sound."""
    if not len(picture):
        return []
    first, last = int(picture.time[0]), int(picture.end[-1])
    return [(a, b) for a, b in ((first, int(sound.time[0])), (int(sound.end[-1]), last)) if a < b]


def _apart(begins: Ints, ends: Ints) -> list[tuple[int, int]]:
    reached = np.maximum.accumulate(ends)
    where = np.flatnonzero(begins[1:] - reached[:-1] > QUIET_HOLE_US)
    return list(zip(reached[where].tolist(), begins[where + 1].tolist(), strict=True))


def _undecodable(standing: _Standing) -> list[tuple[int, int]]:
    """Where pictures came after lost bytes, but no key frame yet."""
    picture, keep = standing.picture, standing.keep_picture
    found = []
    for segment in standing.broken:
        at = int(np.searchsorted(picture.segment, segment))
        if at < len(picture) and not keep[at]:
            after = np.flatnonzero(keep[at:])
            found.append((int(picture.time[at]), int(picture.time[at + int(after[0])]) if len(after) else int(picture.end[-1])))
    return found


def _joins(standing: _Standing, chunks: Chunks, mended: frozenset[int]) -> list[Join]:
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
