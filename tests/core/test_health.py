"""Health: each bad state is seen within 15 s of its cause, a healthy reading recovers at once, and what only looks bad is left alone."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from roomtape.core.health import Facts, Picture, Sound, TrackFacts, alike, judge
from roomtape.core.lifecycle import Health

S = 1_000_000
LIVELY = bytes(range(256)) * 2 + bytes(64)


def moving(n: int) -> Picture:
    return Picture(n * 2 * S, 120, 60, bytes((value + 40 * n) % 256 for value in LIVELY))


def still(n: int) -> Picture:
    return Picture(n * 2 * S, 120, 60, LIVELY)


def dark(n: int) -> Picture:
    return Picture(n * 2 * S, 16, 0.4, bytes([16]) * 576)


def talk(n: int) -> Sound:
    return Sound(n * S, (n + 1) * S, -20.0)


def hush(n: int) -> Sound:
    return Sound(n * S, (n + 1) * S, -71.0)


def track(pictures: Iterable[Picture] = (), sounds: Iterable[Sound] = (), *, screen: bool = False) -> TrackFacts:
    seen, heard = tuple(pictures), tuple(sounds)
    until = max([picture.at_us + 2 * S for picture in seen] + [sound.end_us for sound in heard], default=0)
    return TrackFacts(seen, heard, until, screen)


def verdict(*tracks: TrackFacts) -> Health:
    until = max(one.until_us for one in tracks)
    return judge(until + S, Facts(tracks, last_byte_us=until))


def test_before_the_first_reading_it_is_starting() -> None:
    assert judge(3 * S, Facts(last_byte_us=2 * S)) is Health.STARTING
    assert judge(3 * S, Facts()) is Health.STARTING


def test_moving_pictures_and_speech_are_live() -> None:
    assert verdict(track(map(moving, range(6)), map(talk, range(12)))) is Health.LIVE


@pytest.mark.parametrize(("quiet_s", "health"), [(9, Health.LIVE), (10, Health.LIVE), (11, Health.STALLED)])
def test_more_than_ten_seconds_without_bytes_is_stalled(quiet_s: int, health: Health) -> None:
    lively = track(map(moving, range(6)), map(talk, range(12)))
    assert judge(12 * S + quiet_s * S, Facts((lively,), last_byte_us=12 * S)) is health


def test_a_recording_that_never_began_is_stalled_too() -> None:
    assert judge(11 * S, Facts()) is Health.STALLED


def test_a_pause_keeps_the_verdict_and_the_time_after_it_counts_from_the_resume() -> None:
    paused = Facts(last_byte_us=S, paused=True, before=Health.LIVE)
    assert judge(500 * S, paused) is Health.LIVE
    resumed = replace(paused, paused=False, resumed_us=500 * S, tracks=(track(map(moving, range(6))),))
    assert judge(505 * S, resumed) is Health.LIVE
    assert judge(511 * S, resumed) is Health.STALLED


def test_dark_flat_pictures_for_eight_seconds_are_black_and_one_bright_one_recovers() -> None:
    assert verdict(track([moving(0), *map(dark, range(1, 4))])) is Health.LIVE
    assert verdict(track([moving(0), *map(dark, range(1, 5))])) is Health.BLACK
    assert verdict(track([*map(dark, range(6)), moving(6)])) is Health.LIVE


def test_a_dark_room_with_somebody_in_it_is_not_black() -> None:
    assert verdict(track(Picture(n * 2 * S, 18, 9, bytes((value + 9 * n) % 40 for value in LIVELY)) for n in range(8))) is Health.LIVE


def test_one_picture_for_eight_seconds_is_frozen_and_movement_recovers() -> None:
    assert verdict(track([moving(1), *map(still, range(2, 5))])) is Health.LIVE
    assert verdict(track([moving(1), *map(still, range(2, 6))])) is Health.FROZEN
    assert verdict(track([*map(still, range(2, 9)), moving(9)])) is Health.LIVE


def test_slides_that_stand_still_are_not_frozen() -> None:
    assert verdict(track(map(still, range(10)), screen=True)) is Health.LIVE
    assert verdict(track(map(still, range(10)), screen=True), track(map(still, range(10)))) is Health.LIVE


@pytest.mark.parametrize(("seconds", "health"), [(9, Health.LIVE), (10, Health.SILENT)])
def test_nothing_above_minus_sixty_for_ten_seconds_is_silent(seconds: int, health: Health) -> None:
    assert verdict(track((), [talk(0), *map(hush, range(1, 1 + seconds))])) is health


def test_digital_silence_is_silent_at_once_and_a_word_recovers() -> None:
    muted = [talk(0), Sound(S, 2 * S, None)]
    assert verdict(track((), muted)) is Health.SILENT
    assert verdict(track((), [*muted, talk(2)])) is Health.LIVE


def test_silence_before_a_hole_does_not_count() -> None:
    assert verdict(track((), [*map(hush, range(8)), *map(hush, range(12, 16))])) is Health.LIVE


def test_one_muted_microphone_of_two_and_one_covered_camera_of_two_are_live() -> None:
    good = track(map(moving, range(8)), map(talk, range(16)))
    assert verdict(good, track(map(dark, range(8)), map(hush, range(16)))) is Health.LIVE


def test_the_worst_is_said_first() -> None:
    bad = track(map(dark, range(8)), map(hush, range(16)))
    assert verdict(bad) is Health.BLACK
    assert judge(60 * S, Facts((bad,), last_byte_us=16 * S)) is Health.STALLED
    assert verdict(track(map(still, range(8)), map(hush, range(16)))) is Health.FROZEN


def test_an_encoders_noise_is_alike_and_a_moving_mouth_is_not() -> None:
    noisy = bytes(min(255, value + (n % 3 == 0)) for n, value in enumerate(LIVELY))
    talking = LIVELY[:100] + bytes([LIVELY[100] + 9]) + LIVELY[101:]
    assert alike(LIVELY, noisy)
    assert not alike(LIVELY, talking)
    assert not alike(LIVELY, LIVELY[:-1])
    assert not alike(b"", b"")
