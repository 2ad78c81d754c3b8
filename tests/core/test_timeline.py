"""The law of placement over bare numbers: jitter, drift, grids, clocks that were set, gaps and windows."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.model import Gap
from roomtape.core.timeline import (
    CLOSING,
    MANY_MISSING,
    MAX_OVERLAP_US,
    OPENING,
    SLEW_US,
    FileFacts,
    Mend,
    Run,
    Spot,
    cut_sound,
    cut_windows,
    place,
    slew,
    split_gap,
    uncovered,
)

PACKET = 60_000
S = 1_000_000
HOUR = 3_600 * S


def a_file(index: int, stated_us: int | None, *, sound_us: int = 66 * PACKET, picture_us: int = 4 * S, lag_us: int = 0, late: bool = False) -> FileFacts:
    """A file whose picture begins at its zero and whose sound begins `lag_us` later; a length of 0 leaves the stream out."""
    picture = Run(0, picture_us, 0) if picture_us else None
    sound = Run(lag_us, lag_us + sound_us, lag_us, PACKET) if sound_us else None
    return FileFacts(index, stated_us, picture, sound, late)


def zeros(files: list[FileFacts], **more: Mend) -> list[int]:
    return [spot.zero_us for spot in place(files, {mend.file: mend for mend in more.values()}, begin_us=0)]


@pytest.mark.parametrize("pitch_us", [4 * S, 10 * S])
@pytest.mark.parametrize("lost_us", [0, 15_000, 40_000])
@pytest.mark.parametrize("ppm", [-100, 0, 100])
def test_an_hour_of_restarts_stays_within_40_ms_of_the_clock(pitch_us: int, lost_us: int, ppm: int) -> None:
    chance = random.Random(pitch_us + lost_us + ppm)
    count = HOUR // pitch_us
    length = (pitch_us - lost_us) * (1_000_000 + ppm) // 1_000_000  # as the device counts
    files = [a_file(n + 1, n * pitch_us + chance.randint(-10_000, 10_000), sound_us=length, picture_us=length) for n in range(count)]
    errors = [zero - n * pitch_us for n, zero in enumerate(zeros(files))]
    assert max(map(abs, errors)) <= 40_000
    assert abs(sum(errors[-100:]) / 100) <= 15_000  # nothing piles up


def test_without_the_slew_the_drift_would_pile_up() -> None:
    ends = [n * (4 * S + 400) for n in range(900)]
    assert ends[-1] - 899 * 4 * S > 300_000  # what summed durations would give; the test above is not vacuous
    files = [a_file(n + 1, n * 4 * S, sound_us=4 * S + 400, picture_us=4 * S + 400) for n in range(900)]
    assert max(abs(zero - n * 4 * S) for n, zero in enumerate(zeros(files))) <= 20_000


def test_files_that_touch_stand_exactly_one_after_the_other() -> None:
    assert zeros([a_file(1, 0, sound_us=4 * S), a_file(2, 4 * S + 3_000, sound_us=4 * S)]) == [0, 4 * S]


@pytest.mark.parametrize("error_us", [-20_000, -6_000, 5_000, 20_000])
def test_sound_that_touches_is_not_moved_for_players_count_its_samples(error_us: int) -> None:
    assert zeros([a_file(1, 0, sound_us=4 * S), a_file(2, 4 * S + error_us, sound_us=4 * S)])[1] == 4 * S


def test_a_join_of_pictures_moves_two_milliseconds_at_most() -> None:
    assert zeros([a_file(1, 0, sound_us=0), a_file(2, 4 * S + 19_000, sound_us=0)])[1] == 4 * S + 2_000
    assert zeros([a_file(1, 0, sound_us=0), a_file(2, 4 * S - 19_000, sound_us=0)])[1] == 4 * S - 2_000
    assert slew(4_000) == 0
    assert slew(-6_000) == -1_500


def test_a_real_hole_is_kept_by_the_clock() -> None:
    assert zeros([a_file(1, 0), a_file(2, 4 * S + 7_000)])[1] == 4 * S + 7_000  # sound ends 40 ms before


def test_without_any_statement_a_file_follows_the_whole_of_the_one_before() -> None:
    spots = place([a_file(1, None, lag_us=25_000), a_file(2, None, lag_us=25_000), a_file(3, None)], {}, begin_us=7 * S)
    assert [spot.zero_us for spot in spots] == [7 * S, 11 * S, 15 * S]  # 25 ms + 66 packets end before the picture does


def test_overlaps_on_the_grid_are_exact_over_a_hundred_joins_in_spite_of_jitter() -> None:
    chance = random.Random(4)
    files = [a_file(n + 1, n * 66 * PACKET + chance.randint(-4_000, 4_000), sound_us=70 * PACKET, picture_us=70 * PACKET) for n in range(101)]
    files[0] = a_file(1, 0, sound_us=70 * PACKET, picture_us=70 * PACKET)
    spots = place(files, {}, begin_us=0)
    assert [spot.zero_us for spot in spots] == [n * 66 * PACKET for n in range(101)]
    assert not any(spot.off_grid for spot in spots)
    assert [spot.sound_from_us - spot.zero_us for spot in spots[1:]] == [180_000] * 100


def test_an_overlap_off_the_grid_stands_by_the_clock_until_it_is_mended() -> None:
    files = [a_file(1, 0, sound_us=70 * PACKET), a_file(2, 4 * S, sound_us=70 * PACKET)]  # 200 ms: 3 1/3 packets
    spot = place(files, {}, begin_us=0)[1]
    assert spot == Spot(4 * S, 4 * S + 180_000, 4 * S, off_grid=True, sound_until_us=spot.sound_until_us)
    assert spot.sound_from_us - spot.sound_until_us == 40_000
    mended = place(files, {2: Mend(2, -203_000, (b"x",))}, begin_us=0)[1]
    assert mended == Spot(4 * S - 3_000, 4 * S - 3_000 + 180_000, 4 * S - 3_000, mended=True, sound_until_us=mended.sound_until_us)
    assert mended.sound_from_us - mended.sound_until_us == 37_500


def filmed(index: int, stated_us: int, *, at_us: int, fps: float = 30.0) -> FileFacts:
    """A file of 70 packets whose true start is `at_us`, of a camera that both recorders see; browsers write whole milliseconds."""
    file, frame_us = a_file(index, stated_us, sound_us=70 * PACKET, picture_us=70 * PACKET), 1_000_000 / fps
    first = -(-at_us // frame_us)
    times = [round((first + n) * frame_us - at_us, -3) for n in range(int(70 * PACKET / frame_us))]
    assert file.picture
    return replace(file, picture=replace(file.picture, opening=tuple(map(int, times[:OPENING])), closing=tuple(map(int, times[-CLOSING:]))))


@pytest.mark.parametrize("error_us", [-45_000, -25_000, 25_000, 45_000])
def test_a_start_stated_late_is_put_right_by_the_pictures_that_both_recorders_saw(error_us: int) -> None:
    pair = [filmed(1, 0, at_us=0), filmed(2, 66 * PACKET + error_us, at_us=66 * PACKET)]
    spot = place(pair, {}, begin_us=0)[1]
    assert spot.on_grid
    assert abs(spot.zero_us - 66 * PACKET) <= SLEW_US
    blind = [a_file(one.index, one.stated_us, sound_us=70 * PACKET, picture_us=70 * PACKET) for one in pair]
    assert abs(place(blind, {}, begin_us=0)[1].zero_us - 66 * PACKET) > SLEW_US


def test_pictures_that_fit_everywhere_or_nowhere_bear_no_witness() -> None:
    for fps, at_us in ((50.0, 66 * PACKET), (30.0, 66 * PACKET + 12_000)):
        assert place([filmed(1, 0, at_us=0, fps=fps), filmed(2, 66 * PACKET + 25_000, at_us=at_us, fps=fps)], {}, begin_us=0)[1].off_grid


def test_a_mend_that_contradicts_the_clock_is_not_believed() -> None:
    files = [a_file(1, 0, sound_us=70 * PACKET), a_file(2, 4 * S, sound_us=70 * PACKET)]
    assert place(files, {2: Mend(2, -400_000, (b"x",))}, begin_us=0)[1].off_grid


@given(overlap=st.integers(0, 2_000_000), packet=st.sampled_from([2_500, 20_000, 60_000]))
def test_the_hole_at_a_join_is_as_short_as_can_be_mended_and_of_opus_steps(overlap: int, packet: int) -> None:
    skip, hole = cut_sound(overlap, packet)
    assert hole == 0 or 20_000 <= hole < packet + 20_000 or packet < 20_000
    assert hole % 2_500 == 0
    assert skip in (0, -(-180_000 // packet) * packet), "all of what an encoder needs to settle, or nothing"
    assert skip <= overlap + 2_400
    kept = -(-(overlap - skip) // packet) * packet  # whole old packets that go
    exact = kept - (overlap - skip)
    assert min(abs(hole - exact - n * packet) for n in (-1, 0, 1)) <= 1_250


@pytest.mark.parametrize("jump", [-HOUR, -10 * 365 * 24 * HOUR, 10 * 365 * 24 * HOUR])
def test_a_clock_that_was_set_moves_nothing_and_loses_nothing(jump: int) -> None:
    files = [a_file(n + 1, n * 4 * S + (jump if n >= 5 else 0), sound_us=4 * S) for n in range(10)]
    spots = place(files, {}, begin_us=0)
    assert [spot.zero_us for spot in spots] == [n * 4 * S for n in range(10)]


def test_an_hour_without_media_is_a_hole_of_an_hour() -> None:
    assert zeros([a_file(1, 0), a_file(2, HOUR)]) == [0, HOUR]


@pytest.mark.parametrize(("arrived", "zero"), [(HOUR + 4 * S, HOUR), (2 * HOUR, HOUR), (HOUR - 59 * S, HOUR), (8 * S, 4 * S), (None, HOUR)])
def test_a_hole_up_to_a_time_that_was_still_to_come_is_a_clock_set_forward(arrived: int | None, zero: int) -> None:
    second, third = a_file(2, HOUR, sound_us=4 * S), a_file(3, HOUR + 4 * S, sound_us=4 * S)
    files = [a_file(1, 0, sound_us=4 * S), replace(second, arrived_us=arrived), replace(third, arrived_us=arrived and arrived + 4 * S)]
    spots = place(files, {}, begin_us=0)
    assert [spot.zero_us for spot in spots] == [0, zero, zero + 4 * S]
    assert [spot.clock_set for spot in spots] == [False, zero != HOUR, False]


def test_a_clock_ahead_that_goes_back_is_read_with_its_shift_again() -> None:
    """Forward an hour for two files, then right again, as a browser that measures its offset once a minute does."""
    stated = [0, 4 * S, HOUR + 8 * S, HOUR + 12 * S, 16 * S, 20 * S]
    files = [replace(a_file(n + 1, at, sound_us=4 * S), arrived_us=n * 4 * S + 5 * S) for n, at in enumerate(stated)]
    assert zeros(files) == [n * 4 * S for n in range(6)]


def test_a_late_file_has_its_place_and_moves_nothing() -> None:
    first, third = a_file(1, 0, sound_us=4 * S), a_file(3, 8 * S + 5_000, sound_us=4 * S)
    without = zeros([first, third])
    late = a_file(2, 4 * S - 6_000, sound_us=4 * S, late=True)
    assert zeros([first, late, third]) == [0, 4 * S, without[1]]


def test_picture_alone_and_sound_alone_are_placed_by_what_they_have() -> None:
    assert zeros([a_file(1, 0, sound_us=0), a_file(2, 4 * S - 3_000, sound_us=0)]) == [0, 4 * S]
    spots = place([a_file(1, 0, picture_us=0, sound_us=4 * S), a_file(2, 4 * S + 1_000, sound_us=0)], {}, begin_us=0)
    assert [spot.zero_us for spot in spots] == [0, 4 * S]
    assert spots[0].picture_from_us > HOUR
    assert spots[1].sound_from_us > HOUR


def test_missing_indices_share_their_span_evenly() -> None:
    gaps = split_gap("1", 4 * S, 16 * S, [(2, "segment_missing"), (3, "not_indexed"), (4, "segment_missing")])
    assert gaps == [
        Gap("1", 4 * S, 8 * S, "segment_missing", 2),
        Gap("1", 8 * S, 12 * S, "not_indexed", 3),
        Gap("1", 12 * S, 16 * S, "segment_missing", 4),
    ]
    assert split_gap("1", 5, 3, [(2, "segment_missing")]) == [Gap("1", 5, 5, "segment_missing", 2)]
    assert MANY_MISSING < 2**31


def test_what_a_known_gap_explains_is_not_told_twice() -> None:
    known = [Gap("1", 1 * S, 2 * S, "paused"), Gap("1", 9 * S, 10 * S, "paused")]
    assert uncovered(S // 2, 4 * S, known) == [(S // 2, 1 * S), (2 * S, 4 * S)]
    assert uncovered(900_000, 2_100_000, known) == []


@given(st.lists(st.integers(0, 10**8), min_size=1, unique=True), st.lists(st.integers(0, 10**8), unique=True), st.integers(1, 2 * 10**8))
def test_windows_cover_all_time_once_and_break_where_they_must(marks: list[int], musts: list[int], stop: int) -> None:
    marks, musts = sorted(marks), sorted(musts)
    windows = cut_windows(marks, musts, stop)
    assert all(a < b for a, b in windows)
    assert all(one[1] == two[0] for one, two in pairwise(windows))
    if windows:
        assert windows[0][0] == marks[0]
        assert windows[-1][1] == stop
        assert {must for must in musts if marks[0] < must < stop} <= {b for _, b in windows}
        assert all(b - a >= 2 * S for a, b in windows if b not in musts and b != stop)


def test_an_overlap_longer_than_the_live_edge_waits_is_a_clock_set_back() -> None:
    first = a_file(1, 0, sound_us=0, picture_us=10 * S)
    assert zeros([first, a_file(2, 10 * S - MAX_OVERLAP_US, sound_us=0)])[1] == 10 * S - MAX_OVERLAP_US
    assert zeros([first, a_file(2, 10 * S - MAX_OVERLAP_US - 1, sound_us=0)])[1] == 10 * S
