"""Real recordings of Chromium, laid out: every frame stands where the filmed source had it, every word where it was said."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roomtape.core.model import Kind
from roomtape.media.index import index_cut, index_head
from roomtape.media.layout import Layout, Taken, TrackFacts, joins_wanted, lay_out, server_start_us

DATA = Path(__file__).parents[1] / "data" / "chromium"
TRUTH: dict[str, dict[str, dict[str, Any]]] = json.loads((DATA / "truth.json").read_text())
RESTARTED = sorted(path.name for path in DATA.iterdir() if path.name[:1] in "BC")
CUT = sorted(path.name for path in DATA.iterdir() if path.name.startswith("A-"))
FRAME_US = 1_000_000 / 30
PACKET_US = 60_000
PAGE_US = 1_795_247_000_000_000  # what the page's clock counts from


def taken(name: str) -> list[Taken]:
    """The set as a ledger has it: restarted files state their start, of byte cuts only the first one does."""
    meta = sorted(map(json.loads, (DATA / name / "meta.jsonl").read_text().splitlines()), key=lambda row: int(row["i"]))
    segments: list[Taken] = []
    carry = b""
    for number, (row, path) in enumerate(zip(meta, sorted((DATA / name).glob("0*")), strict=True)):
        data = path.read_bytes()
        head = number == 0 or name in RESTARTED
        index, carry = index_head(data) if head else index_cut(data, carry)
        stated = PAGE_US + round(row.get("start_call", 0) * 1000) if head else None
        segments.append(Taken(number + 1, path.name, len(data), stated, index, number + 1))
    return segments


def laid_out(name: str) -> tuple[Layout, list[Taken]]:
    segments = taken(name)
    facts = TrackFacts("1", closed=True)
    return lay_out(replace(facts, origin_us=server_start_us(facts, segments) or 0), segments), segments


def rows_by_file(layout: Layout, kind: Kind) -> list[np.ndarray[Any, np.dtype[np.void]]]:
    """The stored samples of a lane, apart by the object they lie in."""
    rows = next((lane.rows for lane in layout.placement.lanes if lane.kind is kind), np.zeros(0, [("literal", "i4"), ("at", "i8"), ("time_us", "i8")]))
    rows = rows[rows["literal"] < 0]
    starts = layout.placement.chunks.starts
    return [rows[(rows["at"] >= a) & (rows["at"] < b)] for a, b in pairwise(starts)]


@pytest.mark.parametrize("name", [name for name in RESTARTED if name != "B-opus"])
def test_each_frame_of_restarted_recorders_stands_where_the_source_had_it(name: str) -> None:
    layout, segments = laid_out(name)
    truth = [TRUTH[name][one.key] for one in segments]
    judged = 0
    for fact, rows, segment in zip(truth, rows_by_file(layout, Kind.VIDEO), segments, strict=True):
        assert segment.indexed
        if fact["frames"] != fact["last_frame"] - fact["first_frame"] + 1:
            continue  # the encoder left a frame out inside: which one is not told
        number = fact["first_frame"] - truth[0]["first_frame"] + np.arange(len(rows))
        assert np.abs(rows["time_us"] - number * FRAME_US).max() <= FRAME_US
        judged += len(rows)
    assert judged >= 600


@pytest.mark.parametrize("name", RESTARTED)
def test_the_sound_of_restarted_recorders_stands_within_a_packet_and_by_its_picture(name: str) -> None:
    layout, segments = laid_out(name)
    truth = [TRUTH[name][one.key] for one in segments]
    sounds, pictures = rows_by_file(layout, Kind.AUDIO), rows_by_file(layout, Kind.VIDEO)
    first = int(sounds[0]["time_us"][0])
    for fact, segment, sound, picture in zip(truth, segments, sounds, pictures, strict=True):
        assert segment.indexed
        packets = segment.indexed.samples[segment.indexed.samples["stream"] == segment.indexed.streams[-1].number]
        skipped = int(np.searchsorted(packets["offset"], sound["at"][0] - layout.placement.chunks.starts[segment.index - 1]))
        begins = int(sound["time_us"][0]) - skipped * PACKET_US - first
        error = begins - (fact["audio_source_offset_s"] - truth[0]["audio_source_offset_s"]) * 1_000_000
        assert abs(error) <= PACKET_US
        if len(picture) and fact["frames"] == len(picture):
            seen = float(np.mean(picture["time_us"] - (fact["first_frame"] - truth[0]["first_frame"] + np.arange(len(picture))) * FRAME_US))
            assert abs(error - seen) <= 40_000


@pytest.mark.parametrize("name", CUT)
def test_a_file_in_byte_cuts_keeps_every_sample_at_its_time(name: str) -> None:
    layout, _ = laid_out(name)
    pictures = np.concatenate(rows_by_file(layout, Kind.VIDEO))
    sounds = np.concatenate(rows_by_file(layout, Kind.AUDIO))
    if name != "A-opus":
        assert len(pictures) == TRUTH[name]["joined"]["frames"] == 720
        assert np.abs(pictures["time_us"] - np.arange(720) * FRAME_US).max() <= FRAME_US
    assert len(sounds) in (399, 400)
    assert np.all(np.diff(sounds["time_us"]) == PACKET_US)
    assert layout.gaps == ()


@pytest.mark.parametrize("name", [*RESTARTED, *CUT])
def test_no_lane_has_a_hole_and_live_windows_are_those_of_the_end(name: str) -> None:
    layout, segments = laid_out(name)
    for lane in layout.placement.lanes:
        assert np.all(lane.rows["time_us"][1:] == lane.rows["time_us"][:-1] + lane.rows["duration_us"][:-1])
    assert layout.gaps == ()
    facts = TrackFacts("1")
    facts = replace(facts, origin_us=server_start_us(facts, segments) or 0)
    listed: tuple[object, ...] = ()
    for count in range(1, len(segments) + 1):
        windows = lay_out(facts, segments[:count]).windows
        assert windows[: len(listed)] == listed
        listed = windows
    assert len(listed) >= 4
    assert layout.windows[: len(listed)] == listed


def test_overlapped_recorders_lose_no_frame_and_ask_for_their_mends() -> None:
    layout, segments = laid_out("C-vp8-overlap")
    rows = next(lane.rows for lane in layout.placement.lanes if lane.kind is Kind.VIDEO)
    assert rows["duration_us"][:-1].max() <= 2.5 * FRAME_US  # one frame is missing in the recording itself
    facts = TrackFacts("1", closed=True, origin_us=server_start_us(TrackFacts("1"), segments) or 0)
    joins = joins_wanted(facts, segments)
    assert 3 <= len(joins) <= 5
    assert all(0 < join.hole_us < PACKET_US and 170_000 <= -join.offset_us <= 230_000 for join in joins)


@pytest.mark.parametrize("at", [3, 195, 217, 300, 1_000, 10_000])
@pytest.mark.parametrize("name", ["A-webm-h264", "A-vp9", "A-mp4-avc1"])
def test_a_first_cut_of_any_size_leaves_its_set_up_to_later_ones(name: str, at: int) -> None:
    whole = b"".join(path.read_bytes() for path in sorted((DATA / name).glob("0*")))
    segments, carry = [], b""
    for number, data in enumerate((whole[:at], whole[at:400_000], whole[400_000:]), 1):
        index, carry = index_cut(data, carry) if carry else index_head(data)
        segments.append(Taken(number, f"k{number}", len(data), PAGE_US if number == 1 else None, index, number))
    layout = lay_out(TrackFacts("1", closed=True, origin_us=PAGE_US), segments)
    lane = next(lane for lane in layout.placement.lanes if lane.kind is Kind.VIDEO)
    assert len(lane) == 720
    assert all(one.setup or one.codec == "vp9" for one in lane.setups)
    assert layout.gaps == ()
