"""Segments laid out on the clock: hand-made arrays for each rule; real recordings of Chromium are in test_layout_chromium.py."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtape.core.model import ClockTrust, Kind
from roomtape.core.rope import Span
from roomtape.core.timeline import MAX_SPAN_US, Mend
from roomtape.media.layout import Layout, Taken, TrackFacts, Window, joins_wanted, lay_out, server_start_us
from roomtape.media.sample import SAMPLE, Container, Index, Part, Stream

S = 1_000_000
FRAME = 33_333
PACKET = 60_000
NOW = 1_795_247_000 * S
VIDEO = Stream(1, Kind.VIDEO, "vp8", b"", 640, 360)
OPUS = Stream(2, Kind.AUDIO, "opus", b"OpusHead", channels=2, rate=48000)
FACTS = TrackFacts("1", origin_us=NOW, closed=True)


def index_of(
    frames: Sequence[tuple[int, bool]] = (), packets: Sequence[int] = (), *, part: Part = Part.HEAD, streams: tuple[Stream, ...] = (VIDEO, OPUS), warning: str = "",
) -> Index:  # fmt: skip
    """An index of frames (time, key) and of Opus packets of 60 ms at these times; each sample is 100 bytes."""
    rows = sorted([(at, 1, int(key), 0) for at, key in frames] + [(at, 2, 1, PACKET) for at in packets])
    samples = np.zeros(len(rows), SAMPLE)
    for number, (at, stream, key, duration) in enumerate(rows):
        samples[number] = (stream, key, at, 0, duration, 10 + 100 * number, 100)
    return Index(Container.WEBM, part, streams, samples, warning=warning)


def frames_of(first: int, count: int, *, every: int = 100) -> list[tuple[int, bool]]:
    return [(n * FRAME // 1000 * 1000, n % every == 0) for n in range(first, first + count)]


def packets_of(first: int, count: int, *, lag_us: int = 0) -> list[int]:
    return [lag_us + n * PACKET for n in range(first, first + count)]


def taken(index: int, indexed: Index | None, stated_us: int | None = None, *, commit: int | None = None) -> Taken:
    return Taken(index, f"k{index}", 100_000, None if stated_us is None else NOW + stated_us, indexed, index if commit is None else commit)


def whole(index: int, stated_us: int | None, *, frames: int = 120, packets: int = 66, lag_us: int = 0, every: int = 100) -> Taken:
    streams = tuple(stream for stream, there in ((VIDEO, frames), (OPUS, packets)) if there)
    return taken(index, index_of(frames_of(0, frames, every=every), packets_of(0, packets, lag_us=lag_us), streams=streams), stated_us)


def restarts(count: int, *, pitch_us: int = 4 * S, packets: int = 66) -> list[Taken]:
    return [whole(n + 1, n * pitch_us, packets=packets) for n in range(count)]


def byte_cuts(count: int, *, every: int = 100) -> list[Taken]:
    """One file, cut each 2.04 s."""
    parts = [taken(1, index_of(frames_of(0, 60, every=every), packets_of(0, 34)), 0)]
    return parts + [taken(n + 1, index_of(frames_of(n * 60, 60, every=every), packets_of(n * 33 + 1, 33), part=Part.CUT)) for n in range(1, count)]


def lane(layout: Layout, kind: Kind) -> np.ndarray:
    return next(one.rows for one in layout.placement.lanes if one.kind is kind)


def sound(layout: Layout) -> np.ndarray:
    return lane(layout, Kind.AUDIO)


def picture(layout: Layout) -> np.ndarray:
    return lane(layout, Kind.VIDEO)


def real(rows: np.ndarray) -> np.ndarray:
    return rows[rows["literal"] < 0]


def assert_whole(layout: Layout) -> None:
    """No hole and no overlap in any lane: what the serialisers are promised."""
    for one in layout.placement.lanes:
        rows = one.rows
        assert np.all(rows["time_us"][1:] == rows["time_us"][:-1] + rows["duration_us"][:-1])
        assert np.all(rows["duration_us"] > 0)


def reasons(layout: Layout) -> list[tuple[str, int | None, int, int]]:
    return [(gap.reason, gap.segment_index, gap.start_us, gap.end_us) for gap in layout.gaps]


# --- the traps of players ---------------------------------------------------------------------------------------------------------------------------------


def test_holes_in_the_sound_between_restarts_are_filled_with_silent_packets() -> None:
    layout = lay_out(FACTS, restarts(6))
    rows = sound(layout)
    assert_whole(layout)
    silent = rows[rows["literal"] >= 0]
    assert abs(5 * 40_000 + 4 * S - 66 * PACKET - silent["duration_us"].sum()) <= 2_500  # 40 ms at each join and at the end
    assert set(silent["size"].tolist()) == {3}
    assert real(rows)["duration_us"].max() <= PACKET + 2_400  # nothing but less than 2.5 ms is stretched over


def test_samples_of_a_lane_are_in_order_of_time_with_silence_at_its_place() -> None:
    layout = lay_out(FACTS, [restarts(6)[n] for n in (3, 0, 5, 1, 2, 4)])
    for one in layout.placement.lanes:
        stored = real(one.rows)
        assert np.all(np.diff(one.rows["time_us"]) > 0)
        assert np.all(np.diff(stored["at"]) > 0)


def test_sound_that_starts_25_ms_after_the_picture_begins_with_silence() -> None:
    layout = lay_out(FACTS, [whole(1, 0, lag_us=25_000)])
    rows = sound(layout)
    assert rows["time_us"][0] == 0 == picture(layout)["time_us"][0]
    assert rows["duration_us"][:2].tolist() == [20_000, 5_000]
    assert np.all(rows["literal"][:2] >= 0)
    assert real(rows)["time_us"][0] == 25_000


def test_a_restart_that_loses_a_frame_leaves_no_hole_in_the_picture() -> None:
    layout = lay_out(FACTS, [whole(1, 0, frames=119), whole(2, 4 * S + 30_000)])
    assert_whole(layout)
    assert picture(layout)["duration_us"][118] == 4 * S + 30_000 - 118 * FRAME // 1000 * 1000
    assert layout.gaps == ()


def test_windows_of_a_new_setup_start_at_its_first_key_frame() -> None:
    other = replace(VIDEO, setup=b"another")
    segments = restarts(2)
    changed = taken(3, index_of(frames_of(0, 120), packets_of(0, 66), streams=(other, OPUS)), 8 * S)
    layout = lay_out(FACTS, [*segments, changed])
    assert next(window.start_us for window in layout.windows if window.setup == 1) == 8 * S
    assert [one[0].setup for one in layout.maps if one[0]] == [VIDEO.setup, b"another"]
    assert picture(layout)["setup"].tolist() == [0] * 240 + [1] * 120


@pytest.mark.parametrize("odd", [1, 3, 5])
def test_a_segment_of_a_codec_that_nobody_plays_costs_only_itself(odd: int) -> None:
    segments = [whole(number, (number - 1) * 4 * S) for number in range(1, 6)]
    streams = (replace(VIDEO, codec="A_VIDEO7"), replace(OPUS, codec="A_OPUT"))
    segments[odd - 1] = taken(odd, index_of(frames_of(0, 120), packets_of(0, 66), streams=streams), (odd - 1) * 4 * S)
    layout = lay_out(FACTS, segments)
    assert [(gap.segment_index, gap.reason) for gap in layout.gaps] == [(odd, "other_codec")]
    assert len(real(picture(layout))) == 480
    assert {one.codec for pair in layout.maps for one in pair if one} == {"vp8", "opus"}


def test_a_segment_whose_picture_alone_has_another_codec_is_told_too() -> None:
    half = taken(3, index_of(frames_of(0, 120), packets_of(0, 66), streams=(replace(VIDEO, codec="h264"), OPUS)), 8 * S)
    layout = lay_out(FACTS, [*restarts(2), half])
    assert [(gap.segment_index, gap.reason, gap.start_us) for gap in layout.gaps] == [(3, "other_codec", 8 * S)]
    assert len(real(picture(layout))) == 240
    assert int(sound(layout)["time_us"][-1]) > 11 * S


def test_a_recorder_that_changes_its_codec_is_left_out_from_there_and_told() -> None:
    changed = taken(3, index_of(frames_of(0, 120), packets_of(0, 66), streams=(replace(VIDEO, codec="h264"), replace(OPUS, codec="aac"))), 8 * S)
    layout = lay_out(FACTS, [*restarts(2), changed])
    assert [(gap.segment_index, gap.reason) for gap in layout.gaps] == [(3, "other_codec")]
    assert {one.codec for pair in layout.maps for one in pair if one} == {"vp8", "opus"}


# --- the clock --------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pitch_us", [4 * S, 10 * S])
def test_an_hour_of_jitter_and_drift_stays_within_40_ms(pitch_us: int) -> None:
    chance = random.Random(1)
    frames, packets = pitch_us * 30 // S, pitch_us * 10_001 // 10_000 // PACKET
    segments = [whole(n + 1, n * pitch_us + chance.randint(-10_000, 10_000), frames=frames, packets=packets) for n in range(3_600 * S // pitch_us)]
    segments[0] = whole(1, 0, frames=frames, packets=packets)
    layout = lay_out(FACTS, segments)
    rows = real(picture(layout))
    true = (rows["at"] // 100_000) * pitch_us
    starts = np.flatnonzero(np.diff(rows["at"] // 100_000, prepend=-1))
    assert len(starts) == len(segments)
    assert np.abs(rows["time_us"][starts] - true[starts]).max() <= 40_000
    assert abs(layout.duration_us - 3_600 * S) <= 40_000
    assert_whole(layout)


def test_an_hour_of_byte_cuts_follows_its_timestamps_though_packets_drift() -> None:
    stamps = [round(n * PACKET * 1.0001 / 1000) * 1000 for n in range(60_000)]
    parts = [taken(1, index_of(packets=stamps[:100], streams=(OPUS,)), 0)]
    parts += [taken(n + 1, index_of(packets=stamps[n * 100 : n * 100 + 100], part=Part.CUT, streams=(OPUS,))) for n in range(1, 600)]
    rows = real(sound(lay_out(FACTS, parts)))
    assert len(rows) == 60_000
    assert np.abs(rows["time_us"] - np.array(stamps)).max() <= 21_000


def test_packets_whose_time_is_taken_already_are_left_out() -> None:
    stamps = [round(n * PACKET * 0.999 / 1000) * 1000 for n in range(2_000)]
    layout = lay_out(FACTS, [taken(1, index_of(packets=stamps, streams=(OPUS,)), 0)])
    rows = sound(layout)
    assert_whole(layout)
    assert abs(rows["time_us"][-1] - stamps[-1]) <= 31_000


def test_milliseconds_of_webm_do_not_jitter_the_sound() -> None:
    chance = random.Random(2)
    stamps = [n * PACKET + chance.randint(-1_000, 1_000) for n in range(66)]
    stamps[0] = 0
    assert sound(lay_out(FACTS, [taken(1, index_of(packets=stamps, streams=(OPUS,)), 0)]))["time_us"].tolist() == packets_of(0, 66)


def test_without_stated_starts_a_track_begins_where_it_arrived_and_goes_on_by_ends() -> None:
    facts = replace(FACTS, trust=ClockTrust.NONE, begin_us=NOW + 7 * S)
    layout = lay_out(facts, [whole(n + 1, None) for n in range(3)])
    assert layout.start_us == 7 * S
    assert abs(layout.end_us - 19 * S) < 10_000
    assert len(picture(layout)) == 360


def test_a_clock_that_is_not_believed_is_shifted() -> None:
    facts = replace(FACTS, shift_us=90 * S)
    assert lay_out(facts, restarts(2)).start_us == 90 * S


def test_timestamps_that_lie_fill_no_memory() -> None:
    wild = index_of([(0, True), (1 << 62, True)], [0, PACKET, 1 << 61], streams=(VIDEO, OPUS))
    layout = lay_out(FACTS, [taken(1, wild, 0)])
    assert_whole(layout)
    assert layout.duration_us <= S


# --- overlaps ---------------------------------------------------------------------------------------------------------------------------------------------


def test_a_hundred_overlaps_on_the_grid_double_and_lose_no_packet() -> None:
    layout = lay_out(FACTS, [whole(n + 1, n * 66 * PACKET, packets=70, frames=126) for n in range(101)])
    rows = sound(layout)
    assert_whole(layout)
    assert np.all(rows["duration_us"][:-1] == PACKET)
    assert len(real(rows)) == 100 * 66 + 70
    assert joins_wanted(FACTS, [whole(n + 1, n * 66 * PACKET, packets=70, frames=126) for n in range(101)]) == ()
    first_of_second = real(rows)[real(rows)["at"] >= 100_000][0]
    assert first_of_second["time_us"] == 66 * PACKET + 180_000  # three packets into the overlap
    pictures = picture(layout)
    assert pictures[pictures["at"] >= 100_000][0]["time_us"] == 66 * PACKET  # at the first key frame
    assert len(pictures) == 100 * 119 + 126


def off_grid(count: int = 5) -> list[Taken]:
    return [whole(n + 1, n * 4 * S, packets=70, frames=126) for n in range(count)]


def test_overlaps_off_the_grid_leave_holes_shorter_than_a_packet_and_ask_for_mends() -> None:
    layout, joins = lay_out(FACTS, off_grid()), joins_wanted(FACTS, off_grid())
    assert_whole(layout)
    silent = sound(layout)[sound(layout)["literal"] >= 0]
    assert len(joins) == 4
    for join in joins:
        assert 0 < join.hole_us < PACKET
        assert join.hole_us % 2_500 == 0
        assert join.samples == join.hole_us * 48 // 1000
        inside = silent[(silent["time_us"] >= join.start_us) & (silent["time_us"] < join.start_us + join.hole_us)]
        assert inside["duration_us"].sum() == join.hole_us
        assert join.old[6].time_us == join.start_us  # six packets before, the first that goes
        assert join.old[-1].time_us + PACKET + join.offset_us == join.new[0].time_us
        assert len({piece.key for packet in join.new for piece in packet.pieces if isinstance(piece, Span)}) == 1
        assert join.new[-1].time_us + PACKET >= join.old[-1].time_us + PACKET


def test_mends_fill_the_holes_at_their_exact_place() -> None:
    joins = joins_wanted(FACTS, off_grid())
    packets = {join.file: (b"\xf8mended",) * (join.hole_us // 20_000) for join in joins}
    facts = replace(FACTS, mends=tuple(Mend(join.file, join.offset_us, packets[join.file]) for join in joins))
    assert all(join.hole_us % 20_000 == 0 for join in joins)
    layout = lay_out(facts, off_grid())
    assert_whole(layout)
    literals = next(one.literals for one in layout.placement.lanes if one.kind is Kind.AUDIO)
    rows = sound(layout)
    mended = [row for row in rows if row["literal"] >= 0 and literals[row["literal"]] == b"\xf8mended"]
    assert len(mended) == sum(map(len, packets.values()))
    assert [join.start_us for join in joins] == sorted({int(row["time_us"]) for row in mended} & {join.start_us for join in joins})
    assert joins_wanted(facts, off_grid()) == ()
    moved = replace(facts, mends=(Mend(2, joins[0].offset_us - 3_000, ()),))
    assert lay_out(moved, off_grid()).windows != lay_out(FACTS, off_grid()).windows
    assert lay_out(replace(moved, closed=False), off_grid()).windows == lay_out(replace(FACTS, closed=False), off_grid()).windows


# --- holes ------------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [{2}, {4}, {2, 3, 4}, {3, 5}])
def test_missing_segments_are_gaps_with_their_index(missing: set[int]) -> None:
    layout = lay_out(FACTS, [one for one in restarts(8) if one.index not in missing])
    assert [gap.segment_index for gap in layout.gaps] == sorted(missing)
    for gap in layout.gaps:
        assert gap.reason == "segment_missing"
        assert abs(gap.start_us - ((gap.segment_index or 0) - 1) * 4 * S) <= 100_000
        assert abs(gap.end_us - (gap.segment_index or 0) * 4 * S) <= 100_000
    assert_whole(layout)
    assert picture(layout)["time_us"][-1] == 28 * S + 119 * FRAME // 1000 * 1000


def test_a_missing_first_segment_keeps_its_place_at_the_beginning() -> None:
    segments = restarts(4)[1:]
    facts = replace(FACTS, origin_us=server_start_us(FACTS, segments) or 0)
    layout = lay_out(facts, segments)
    assert facts.origin_us == NOW
    assert reasons(layout) == [("segment_missing", 1, 0, 4 * S)]
    assert layout.start_us == 4 * S


def test_a_missing_last_segment_is_known_by_what_the_client_said() -> None:
    layout = lay_out(replace(FACTS, last_index=5), restarts(3))
    assert [(gap.segment_index, gap.reason) for gap in layout.gaps] == [(4, "segment_missing"), (5, "segment_missing")]
    assert layout.gaps[1].end_us - layout.gaps[0].start_us == 8 * S
    assert abs(layout.end_us - 12 * S) < 10_000


def test_one_stray_index_is_not_a_gap_of_years() -> None:
    layout = lay_out(replace(FACTS, last_index=2**31), restarts(3))
    assert max(gap.end_us for gap in layout.gaps) <= layout.end_us + MAX_SPAN_US
    assert layout.end_us < 60_000_000


def test_two_thousand_million_missing_segments_are_one_gap() -> None:
    gaps = lay_out(FACTS, [whole(1, 0), replace(whole(2, 8 * S), index=2_147_483_647)]).gaps
    assert [(gap.segment_index, gap.end_us) for gap in gaps] == [(2, 8 * S)]


def test_a_missing_byte_cut_leaves_pictures_out_up_to_the_next_key_frame() -> None:
    parts = byte_cuts(6)
    layout = lay_out(FACTS, parts[:2] + parts[3:])
    gap, blind = layout.gaps
    assert (gap.reason, gap.segment_index, blind.reason) == ("segment_missing", 3, "no_media")
    assert abs(gap.start_us - 4 * S) <= 100_000
    assert abs(gap.end_us - 6 * S) <= 100_000
    rows = picture(layout)
    key = 200 * FRAME // 1000 * 1000
    assert blind.end_us == key
    held = int(np.searchsorted(rows["time_us"], gap.start_us)) - 1
    assert rows["time_us"][held] + rows["duration_us"][held] == key
    assert rows["key"][held + 1] == 1
    heard = real(sound(layout))["time_us"]
    assert heard[heard > 5 * S][0] < 6_100_000  # sound is there again at once
    assert_whole(layout)


def test_bytes_that_could_not_be_indexed_are_a_gap_that_says_so() -> None:
    segments = restarts(4)
    segments[2] = taken(3, None, 8 * S)
    assert [(gap.reason, gap.segment_index) for gap in lay_out(FACTS, segments).gaps] == [("not_indexed", 3)]


def test_cuts_without_their_header_play_nothing_and_say_why() -> None:
    layout = lay_out(FACTS, [taken(n, None, None) for n in (2, 3)])
    assert [(gap.reason, gap.segment_index) for gap in layout.gaps] == [("segment_missing", 1), ("header_missing", 2), ("header_missing", 3)]
    assert not layout.playable


def test_lost_bytes_inside_a_segment_count_until_the_next_key_frame() -> None:
    parts = byte_cuts(6)
    broken = parts[1].indexed
    assert broken
    parts[1] = replace(parts[1], indexed=replace(broken, warning="overrun@77"))
    rows = picture(lay_out(FACTS, parts))
    assert rows["time_us"][119] == 119 * FRAME // 1000 * 1000
    assert rows["time_us"][120] == 200 * FRAME // 1000 * 1000


def test_paused_time_is_put_back_and_told() -> None:
    facts = replace(FACTS, pauses=((NOW + 2 * S, NOW + 12 * S),))
    layout = lay_out(facts, [whole(1, 0), whole(2, 14 * S)])
    assert reasons(layout) == [("paused", None, 2 * S, 12 * S)]
    assert_whole(layout)
    rows = picture(layout)["time_us"]
    assert not np.any((rows >= 2 * S) & (rows < 12 * S))
    assert len(rows) == 240
    assert real(sound(layout))["time_us"][65] + PACKET == 10 * S + 66 * PACKET


def test_a_hole_without_a_missing_index_is_told_when_it_is_long() -> None:
    assert lay_out(FACTS, [whole(1, 0), whole(2, 4 * S + 150_000)]).gaps == ()
    gaps = lay_out(FACTS, [whole(1, 0), whole(2, 5 * S)]).gaps
    assert [(gap.reason, gap.segment_index, round(gap.start_us / S, 1), gap.end_us) for gap in gaps] == [("no_media", None, 4.0, 5 * S)]


def test_a_tab_that_slept_inside_a_file_is_told() -> None:
    asleep = index_of(frames_of(0, 30) + frames_of(300, 30), packets_of(0, 17) + packets_of(167, 17))
    gaps = lay_out(FACTS, [taken(1, asleep, 0)]).gaps
    assert [(gap.reason, gap.start_us > S, gap.end_us) for gap in gaps] == [("no_media", True, 300 * FRAME // 1000 * 1000)]


def test_a_screen_that_stands_still_is_no_hole() -> None:
    still = taken(1, index_of([(0, True), (9 * S, False), (30 * S, True)], streams=(VIDEO,)), 0)
    assert lay_out(FACTS, [still]).gaps == ()


def test_a_camera_that_is_off_for_a_while_is_held_and_the_sound_goes_on() -> None:
    frames = frames_of(0, 30) + [(at, n == 300) for n, (at, _) in enumerate(frames_of(300, 60), 300)]
    layout = lay_out(FACTS, [taken(1, index_of(frames, packets_of(0, 200)), 0)])
    assert layout.gaps == ()
    assert_whole(layout)
    assert picture(layout)["duration_us"][29] > 8 * S


def test_a_camera_switched_on_by_a_restart_begins_there() -> None:
    layout = lay_out(FACTS, [whole(1, 0, frames=0), whole(2, 4 * S), whole(3, 8 * S, frames=0)])
    assert picture(layout)["time_us"][0] == 4 * S
    assert next(window.start_us for window in layout.windows if window.setup == 1) == 4 * S
    assert any(window.stop_us == 4 * S for window in layout.windows)
    assert any(window.start_us == 8 * S for window in layout.windows)
    assert [(one[0] is None, one[1] is None) for one in layout.maps] == [(True, False), (False, False)]


def test_sound_that_goes_away_goes_on_as_silence() -> None:
    layout = lay_out(FACTS, [whole(1, 0), whole(2, 4 * S, packets=0), whole(3, 8 * S)])
    assert_whole(layout)
    assert layout.gaps == ()
    assert sound(layout)["time_us"][0] == 0


def test_another_size_is_no_other_setup_and_is_told() -> None:
    wide = taken(2, index_of(frames_of(0, 120), packets_of(0, 66), streams=(replace(VIDEO, width=1280, height=720), OPUS)), 4 * S)
    layout = lay_out(FACTS, [whole(1, 0), wide])
    assert len(layout.placement.lanes[0].setups) == 1
    assert [(one.codec, one.width, one.height) for one in layout.newest] == [("vp8", 1280, 720), ("opus", 0, 0)]
    assert [(one.index, one.start_us) for one in layout.spans] == [(1, 0), (2, 4 * S)]


# --- windows and the live edge ------------------------------------------------------------------------------------------------------------------------------


def live(segments: Sequence[Taken], skips: frozenset[int] = frozenset()) -> Layout:
    return lay_out(replace(FACTS, closed=False, skips=skips), segments)


def test_windows_begin_at_key_frames_and_last_two_seconds_at_least() -> None:
    layout = lay_out(FACTS, restarts(5))
    keys = set(picture(layout)["time_us"][picture(layout)["key"] == 1].tolist())
    assert {window.start_us for window in layout.windows} <= keys
    assert all(window.stop_us - window.start_us >= 2 * S for window in layout.windows[:-1])
    assert layout.windows[0].start_us == 0
    assert layout.windows[-1].stop_us == layout.end_us
    assert lay_out(FACTS, [whole(1, 0, frames=0)]).windows[0].stop_us == 34 * PACKET


def test_the_live_edge_waits_for_a_missing_index_until_it_is_given_up() -> None:
    segments = [one for one in restarts(6) if one.index != 3]
    before, after = live(segments), live(segments, frozenset({3}))
    assert before.windows == after.windows[: len(before.windows)]
    assert max(window.stop_us for window in before.windows) <= 8 * S
    gap = next(window for window in after.windows if window.gap)
    assert (round(gap.start_us / S, 1), gap.stop_us) == (8.0, 12 * S)
    assert after.windows[-1].stop_us > 16 * S


def test_what_comes_late_changes_no_listed_window_and_has_windows_of_its_own() -> None:
    segments = restarts(6)
    early = [one for one in segments if one.index != 3]
    skipped, came = live(early, frozenset({3})), live([*early, replace(segments[2], commit_seq=99)], frozenset({3}))
    assert came.windows == skipped.windows
    assert skipped.late == ()
    assert [window.seq for window in came.late] == [99, 99]
    assert (came.late[0].start_us, came.late[-1].stop_us) == (8 * S, 12 * S)
    assert not any(window.gap for window in lay_out(replace(FACTS, skips=frozenset({3})), segments).windows)


def test_the_tail_of_the_newest_file_is_not_listed_until_the_next_one_is_there() -> None:
    one, two = live(restarts(1, packets=70)), live([whole(1, 0, packets=70, every=30), whole(2, 3_900_000, packets=70)])
    assert one.windows == ()
    assert two.windows[0].seq == 2
    assert two.settled_us == max(3_900_000, two.end_us - 2 * S)


def test_a_window_carries_the_commit_that_settled_it() -> None:
    commits = {1: 4, 2: 1, 3: 3, 4: 2}
    layout = live([replace(one, commit_seq=commits[one.index]) for one in restarts(4)])
    assert [window.seq for window in layout.windows] == [4] * len(layout.windows)
    assert [window.seq for window in live(restarts(4)).windows] == sorted(window.seq for window in live(restarts(4)).windows)
    closed = lay_out(replace(FACTS, close_seq=50), restarts(2))
    assert closed.windows[-1].seq == 50


mixtures = st.lists(
    st.tuples(st.sampled_from([30, 60, 120]), st.integers(0, 70), st.integers(-250_000, 400_000), st.sampled_from([20, 45, 100])), min_size=1, max_size=9
)


def a_mixture(plan: list[tuple[int, int, int, int]]) -> list[Taken]:
    segments, at = [], 0
    for number, (frames, packets, apart_us, every) in enumerate(plan, 1):
        at = max(0, at + apart_us)
        segments.append(whole(number, at, frames=frames, packets=packets, every=every))
        at += frames * FRAME
    return segments


@settings(max_examples=60, deadline=None)
@given(plan=mixtures, cuts=st.booleans(), every=st.sampled_from([10, 45, 100]))
def test_in_order_nothing_listed_is_ever_changed(plan: list[tuple[int, int, int, int]], cuts: bool, every: int) -> None:
    segments = byte_cuts(9, every=every) if cuts else a_mixture(plan)
    final = lay_out(FACTS, segments)
    listed: tuple[Window, ...] = ()
    for count in range(1, len(segments) + 1):
        now = live(segments[:count])
        assert now.windows[: len(listed)] == listed
        listed = now.windows
    assert [(one.start_us, one.stop_us) for one in final.windows[: len(listed)]] == [(one.start_us, one.stop_us) for one in listed]
    assert_whole(final)


@settings(max_examples=60, deadline=None)
@given(plan=mixtures, order=st.randoms(use_true_random=False), cuts=st.booleans())
def test_out_of_order_the_live_list_only_grows(plan: list[tuple[int, int, int, int]], order: random.Random, cuts: bool) -> None:
    segments = byte_cuts(9) if cuts else a_mixture(plan)
    arrivals = segments[:1] + order.sample(segments[1:], len(segments) - 1) if cuts else order.sample(segments, len(segments))
    here: list[Taken] = []
    skips: frozenset[int] = frozenset()
    listed: tuple[Window, ...] = ()
    for commit, one in enumerate(arrivals, 1):
        here.append(replace(one, commit_seq=commit))
        if order.random() < 0.3:
            skips |= frozenset(range(1, max(one.index for one in here))) - {one.index for one in here}
        now = live(here, skips)
        assert now.windows[: len(listed)] == listed
        listed = now.windows


@settings(max_examples=40, deadline=None)
@given(plan=mixtures, order=st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_layout(plan: list[tuple[int, int, int, int]], order: random.Random) -> None:
    segments = a_mixture(plan)
    one, two = lay_out(FACTS, segments), lay_out(FACTS, order.sample(segments, len(segments)))
    assert (one.gaps, one.windows, one.end_us) == (two.gaps, two.windows, two.end_us)
    for a, b in zip(one.placement.lanes, two.placement.lanes, strict=True):
        assert np.array_equal(a.rows, b.rows)


def test_an_hour_is_laid_out_in_a_blink() -> None:
    segments = restarts(900)
    layout, best = lay_out(FACTS, segments), 1.0
    for _ in range(5):
        begin = time.perf_counter()
        lay_out(FACTS, segments)
        best = min(best, time.perf_counter() - begin)
    assert sum(len(one.rows) for one in layout.placement.lanes) > 165_000
    assert best < 0.2  # 0.03 s on a quiet machine: a loop over samples would take seconds
