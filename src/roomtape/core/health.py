"""Health is judged from what the media shows and sounds like, never from states: a green badge over a black picture is the failure people remember.

Severity, worst first: stalled, black, frozen, silent; then live. `starting` is said until the first reading. Each verdict needs its evidence to reach
without a break up to the newest reading, so one healthy reading recovers at once. Of several tracks of a kind all must be bad: one muted microphone
or one covered camera is its owner's business.

With readings no more than 4 s apart every verdict comes within 15 s of its cause (stalled: 10 s without bytes; silent: 10 s; black and frozen: 8 s of media).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from roomtape.core.lifecycle import Health

STALL_US = 10_000_000
BLACK_US = FROZEN_US = 8_000_000
SILENT_US = 10_000_000
HOLE_US = 1_000_000  # readings of sound further apart than this do not belong together
BLACK_LUMA, BLACK_SPREAD = 20.0, 3.0  # of 255; limited-range black decodes to 16 or 0, and a dark room still has a spread
SAME_MEAN, SAME_POINT = 0.5, 4  # two encodings of one picture differ less, in the mean and at any point; a mouth moves one point by more
SILENT_DBFS = -60.0


@dataclass(frozen=True, slots=True)
class Picture:
    """A key frame, shrunk: mean and standard deviation of its brightness (0 to 255) and the points themselves, all pictures of a track in one size."""

    at_us: int
    luma: float
    spread: float
    points: bytes


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of sound; `peak_dbfs` is None for digital silence."""

    start_us: int
    end_us: int
    peak_dbfs: float | None


@dataclass(frozen=True, slots=True)
class TrackFacts:
    """The newest readings of a track, oldest first. `until_us`: how far its media reaches; frames after the last key frame count. `screen`: slides stand still."""

    pictures: tuple[Picture, ...] = ()
    sounds: tuple[Sound, ...] = ()
    until_us: int = 0
    screen: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a recording; times on its clock. `last_byte_us`: None before the first. `before`: the last verdict, which a pause keeps."""

    tracks: tuple[TrackFacts, ...] = ()
    last_byte_us: int | None = None
    resumed_us: int = 0
    paused: bool = False
    before: Health = Health.STARTING


def judge(now_us: int, facts: Facts) -> Health:
    """The health of a recording at `now_us`."""
    if facts.paused:
        return facts.before
    if now_us - max(facts.last_byte_us or 0, facts.resumed_us) > STALL_US:
        return Health.STALLED
    seen = [track for track in facts.tracks if track.pictures]
    heard = [track for track in facts.tracks if track.sounds]
    if not seen and not heard:
        return Health.STARTING
    if seen and all(black(track) for track in seen):
        return Health.BLACK
    cameras = [track for track in seen if not track.screen]
    if cameras and len(cameras) == len(seen) and all(frozen(track) or black(track) for track in cameras):
        return Health.FROZEN
    if heard and all(silent(track.sounds) for track in heard):
        return Health.SILENT
    return Health.LIVE


def black(track: TrackFacts) -> bool:
    """All pictures of the last 8 s or more are dark and flat."""
    first = _since(track.pictures, [picture.luma <= BLACK_LUMA and picture.spread <= BLACK_SPREAD for picture in track.pictures])
    return first is not None and max(track.until_us, track.pictures[-1].at_us) - first.at_us >= BLACK_US


def frozen(track: TrackFacts) -> bool:
    """The same picture for 8 s or more, seen at least twice, while frames arrive."""
    if track.screen or len(track.pictures) < 2:
        return False
    same = [alike(before.points, after.points) for before, after in pairwise(track.pictures)]
    first = _since(track.pictures[:-1], same)
    return first is not None and max(track.until_us, track.pictures[-1].at_us) - first.at_us >= FROZEN_US


def silent(sounds: Sequence[Sound]) -> bool:
    """Nothing above -60 dBFS for 10 s, or the newest reading is digital silence, which no open microphone gives."""
    if sounds[-1].peak_dbfs is None:
        return True
    start_us = end_us = sounds[-1].end_us
    for sound in reversed(sounds):
        if (sound.peak_dbfs is not None and sound.peak_dbfs >= SILENT_DBFS) or start_us - sound.end_us > HOLE_US:
            break
        start_us = sound.start_us
    return end_us - start_us >= SILENT_US


def alike(one: bytes, other: bytes) -> bool:
    """Two shrunk pictures that differ by no more than an encoder's noise."""
    if len(one) != len(other) or not one:
        return False
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(differences) <= SAME_POINT and sum(differences) <= SAME_MEAN * len(differences)


def _since(pictures: Sequence[Picture], holds: Sequence[bool]) -> Picture | None:
    """The picture from which on it holds up to the last; None if it does not hold for the last."""
    first = None
    for picture, good in zip(reversed(pictures), reversed(holds), strict=True):
        if not good:
            break
        first = picture
    return first
