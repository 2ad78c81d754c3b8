"""Puts the files of a track on the recording's clock by the law of core.timeline, and decides which of their samples are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from roomtape.core import timeline
from roomtape.core.timeline import CLOSING, MAX_SPAN_US, TOUCH_US, Chain, FileFacts, Run, Spot
from roomtape.media import rows
from roomtape.media.laid import TrackFacts, Unlike
from roomtape.media.rows import Mask, Rows, Track
from roomtape.media.sample import Index, Part

_FAR = 1 << 60
_LOSSES = frozenset(("element", "overrun", "time", "block", "block_large", "box", "box_large", "trun", "adrift"))  # warnings of the parsers
_SAME_US = 20_000  # an old picture nearer than this to the new first one, and than half its own length, is the same picture


@dataclass(slots=True)
class Standing:
    """The samples on the recording's clock, before anything is left out, and what is kept of them."""

    track: Track
    picture: Rows
    sound: Rows
    spots: list[Spot | None]
    keep_picture: Mask
    keep_sound: Mask
    broken: list[int]
    late: Mask  # by segment
    usable: Mask  # pictures that can be decoded
    chains: list[Chain | None]  # what stands before each file
    runs: list[tuple[Run | None, Run | None]]  # of each file: picture, sound

    @property
    def lanes(self) -> tuple[tuple[Rows, Mask], tuple[Rows, Mask]]:
        """Picture and sound, and which of them are kept."""
        return (self.picture, self.keep_picture), (self.sound, self.keep_sound)


def begin_us(facts: TrackFacts) -> int:
    return 0 if facts.begin_us is None else facts.begin_us - facts.origin_us


def stand(facts: TrackFacts, track: Track) -> Standing:
    count = track.files
    picture, sound = rows.lane(track, 0), rows.lane(track, 1)
    opened = track.opened
    stated = [facts.stated(segment) for segment in track.begun]
    if facts.pauses:
        told = [begin_us(facts), *stated[1:]] if stated and stated[0] is None and not (track.before and track.before.chain) else stated
        rows.shift_pauses(track, (picture, sound), told, [(a - facts.origin_us, b - facts.origin_us) for a, b in facts.pauses])
    broken = _broken(track)
    if broken and track.before:
        raise Unlike
    rows.last_frames(picture, broken)
    opus = np.array([bool(pair[1] and pair[1].codec == "opus") for pair in track.streams], np.bool_)
    sound = rows.count_packets(sound, opus, count, opened.runs[1] if opened else None)
    usable = rows.decodable(picture, count, broken, opened=bool(opened and opened.runs[0]))
    late = np.array([not facts.closed and segment.index in facts.skips for segment, _ in track.segments], np.bool_)
    spots, chains, runs = _spots(facts, track, (picture, sound), stated=stated, usable=usable, late=late, opus=opus)
    zero = np.array([spot.zero_us if spot else 0 for spot in spots], np.int64)
    from_picture = np.array([spot.picture_from_us if spot else _FAR for spot in spots], np.int64)
    from_sound = np.array([spot.sound_from_us if spot else _FAR for spot in spots], np.int64)
    picture.time += zero[picture.file]
    sound.time += zero[sound.file]
    base = track.before.base_us if track.before else next((spot.zero_us for spot in spots if spot), 0)
    keep_picture = usable & (picture.time >= from_picture[picture.file]) & (picture.time < base + MAX_SPAN_US)
    keep_sound = (sound.time >= from_sound[sound.file] - TOUCH_US) & (sound.time < base + MAX_SPAN_US)
    if count:
        goes_on = np.append(picture.file[1:] == picture.file[:-1], np.zeros(min(len(picture), 1), np.bool_))  # else nothing overlaps, and it is a picture more
        near = np.where(goes_on, np.minimum(picture.duration // 2, _SAME_US), 0)
        keep_picture &= picture.time + near < rows.until_next(from_picture)[picture.file]
        until = np.array([spot.sound_until_us if spot else _FAR for spot in spots], np.int64)
        keep_sound &= sound.end <= rows.until_next(until)[sound.file] + TOUCH_US
    return Standing(track, picture, sound, spots, keep_picture, keep_sound, broken, late, usable, chains, runs)


def _broken(track: Track) -> list[int]:
    """The segments before which bytes are lost that they go on from."""
    before = (track.before.segment if track.before else None, *track.segments[:-1])
    return [
        at
        for at, (last, (segment, index)) in enumerate(zip(before, track.segments, strict=False))
        if last and index.part is Part.CUT and (last[0].index + 1 != segment.index or _lost(last[1]))
    ]


def _lost(index: Index) -> bool:
    """Whether the parser passed over bytes that may have been frames."""
    return any(word.split("@")[0] in _LOSSES for word in index.warning.split())


def _spots(
    facts: TrackFacts, track: Track, lanes: tuple[Rows, Rows], *, stated: Sequence[int | None], usable: Mask, late: Mask, opus: Mask,
) -> tuple[list[Spot | None], list[Chain | None], list[tuple[Run | None, Run | None]]]:  # fmt: skip
    """The law applied: a spot for each file that has anything to show or to be heard, what stands before it, and its runs."""
    count = track.files
    masks = (usable, np.ones(len(lanes[1]), np.bool_))
    packets = (np.zeros(count, np.bool_), opus)
    whole = [rows.runs(lane, mask, count, packet) for lane, mask, packet in zip(lanes, masks, packets, strict=True)]
    whole[0] = rows.witnessed(whole[0], lanes[0], usable)
    if track.opened:
        for kind, run in enumerate(track.opened.runs):
            whole[kind][0] = _longer(run, whole[kind][0])
    timely, belated = whole, [False] * count
    if late.any():  # what came late has a place, but moves nothing
        timely = []
        for lane, mask, packet in zip(lanes, masks, packets, strict=True):
            there = ~late[lane.segment]
            timely.append(rows.runs(lane.take(there), mask[there], count, packet))
        there = ~late[lanes[0].segment]
        timely[0] = rows.witnessed(timely[0], lanes[0].take(there), usable[there])
        belated = [timely[0][n] is None and timely[1][n] is None for n in range(count)]
    files, numbers = [], []
    for number in range(count):
        picture, sound = (runs[number] for runs in (whole if belated[number] else timely))
        if picture or sound:
            numbers.append(number)
            begun = track.begun[number]
            files.append(FileFacts(begun.index, stated[number], picture, sound, belated[number], facts.arrived(begun)))
    mends = {mend.file: mend for mend in facts.mends} if facts.closed else {}
    spots: list[Spot | None] = [None] * count
    stands = track.before.chain if track.before else None
    chains = [stands] * count
    for number, (spot, chain) in zip(numbers, timeline.follow(files, mends, stands, begin_us=begin_us(facts)), strict=True):
        spots[number], chains[number] = spot, chain
    return spots, chains, list(zip(*timely, strict=True))


def _longer(begun: Run | None, more: Run | None) -> Run | None:
    """A run that goes on."""
    return replace(begun, end_us=more.end_us, closing=(*begun.closing, *more.closing)[-CLOSING:]) if begun and more else begun or more
