"""What is lost or broken on the way costs only itself: each recording ends, its gaps are told exactly, everything good is there and in step."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import pytest

from roomtape.testing import known, synthetic

from .studio import DATA, Part, Studio, Take, recorded, until

T0_MS = 1_795_247_000_000.0
PITCH_S = 2.0
COUNT = 8
NEAR_S = 0.1
SKEW_S = 0.04


def part(number: int, **more: Any) -> Part:
    """Segment `number` (from 1) of a meeting of restarted recorders, two seconds each."""
    at = (number - 1) * PITCH_S
    return Part(synthetic.segment(at, PITCH_S, **more), T0_MS + at * 1000)


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return [part(number) for number in range(1, COUNT + 1)]


def seen(path: Path) -> list[known.Seen]:
    return [one for one in known.read_frame_numbers(path) if one[1] != known.UNREADABLE]


def frames(numbers: Sequence[int]) -> set[int]:
    """The frames of these segments."""
    size = round(PITCH_S * known.FPS)
    return {frame for number in numbers for frame in range((number - 1) * size, number * size)}


def judge(path: Path, good: Sequence[int], *, slack: int = 0) -> None:
    """All of the good segments is there, each frame and beep at its time, and they keep together."""
    pictures = seen(path)
    assert len(frames(good) - {number for _, number in pictures}) <= slack
    assert {number for _, number in pictures} <= frames(range(1, COUNT + 1))
    lag = [at - number / known.FPS for at, number in pictures]
    assert max(map(abs, lag)) <= NEAR_S
    beeps = {second: at for at, second in known.read_beeps(path) if second != known.UNREADABLE}
    for second in (int((number - 1) * PITCH_S) + n for number in good for n in range(int(PITCH_S))):
        assert abs(beeps[second] - second) <= NEAR_S
        shown = min(pictures, key=lambda one: abs(one[1] - second * known.FPS))
        assert abs((beeps[second] - second) - (shown[0] - shown[1] / known.FPS)) <= SKEW_S


def judge_gaps(take: Take, lost: Sequence[int], reason: str = "segment_missing") -> None:
    gaps = [gap for gap in take.gaps() if gap.get("segment_index") is not None]
    assert [(gap["segment_index"], gap["reason"]) for gap in gaps] == [(index, reason) for index in lost]
    for gap in gaps:
        at = (gap["segment_index"] - 1) * PITCH_S
        assert abs(gap["start_s"] - at) <= NEAR_S
        assert abs(gap["end_s"] - at - PITCH_S) <= NEAR_S


@pytest.mark.parametrize("lost", [[1], [4], [8], [3, 4, 5]], ids=["the first", "one in the middle", "the last", "three in a row"])
def test_lost_segments_are_told_and_cost_only_themselves(lost: list[int], parts: list[Part], studio: Studio, folder: Path) -> None:
    take = studio.start()
    good = [number for number in range(1, COUNT + 1) if number not in lost]
    for number in good:
        take.upload(number, parts[number - 1])
    take.stop()
    refused = take.client.post("/api/v1/meetings/complete-recording", json={"meetingId": take.meeting, "recordingId": take.id, "lastSegmentIndex": COUNT})
    assert refused.status_code == 409
    assert refused.json()["missing"] == [{"trackId": "1", "from": lost[0], "to": lost[-1]}]
    take.complete(last=COUNT, allowGaps=True)
    assert take.view()["status"] == "completed"
    judge_gaps(take, lost)
    judge(take.download(folder), good)


def test_a_segment_without_a_byte_is_refused_and_can_be_sent_again(parts: list[Part], studio: Studio) -> None:
    take = studio.start()
    take.upload(1, parts[0])
    assert take.upload(2, Part(b"", parts[1].start_ms), expect=422)["code"] == "empty_segment"
    take.upload(2, parts[1])
    assert take.finish(last=2).gaps() == []


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_segment_gives_what_it_has(kept: float, parts: list[Part], studio: Studio, folder: Path) -> None:
    body = parts[3].body[: round(len(parts[3].body) * kept)]
    take = studio.record([*parts[:3], Part(body, parts[3].start_ms), *parts[4:]])
    assert take.view()["status"] == "completed"
    path = take.download(folder)
    judge(path, [1, 2, 3, 5, 6, 7, 8])
    there = {number for _, number in seen(path)} & frames([4])
    assert len(there) >= {0.1: 1, 0.5: 15, 0.99: 57}[kept]
    gaps = take.gaps()
    if kept < 0.99:
        assert len(gaps) == 1
        assert gaps[0]["reason"] == "no_media"
        assert 6.0 < gaps[0]["start_s"] < 7.95
        assert abs(gaps[0]["end_s"] - 8.0) <= NEAR_S
    else:
        assert gaps == []


@pytest.mark.parametrize("junk", [b"\x00" * 5000, b"not media at all " * 300], ids=["zeros", "words"])
def test_what_is_no_media_stays_downloadable_and_plays_nothing(junk: bytes, parts: list[Part], studio: Studio, folder: Path) -> None:
    take = studio.start()
    for number in range(1, COUNT + 1):
        one = Part(junk, parts[3].start_ms) if number == 4 else parts[number - 1]
        said = take.upload(number, one)
        assert bool(said.get("warnings")) == (number == 4)
    take.finish(last=COUNT)
    assert take.view()["status"] == "completed"
    judge_gaps(take, [4], "not_indexed")
    judge(take.download(folder), [1, 2, 3, 5, 6, 7, 8])
    assert take.get(f"/api/v1/recordings/{take.id}/segments/4").content == junk


def test_a_segment_of_an_unknown_codec_costs_only_itself_and_a_recording_of_none_else_ends_with_a_sentence(studio: Studio, folder: Path) -> None:
    cuts = recorded("B-vp9")
    odd = Part(cuts[2].body.replace(b"A_OPUS", b"A_OPUT").replace(b"V_VP9", b"V_VP7"), cuts[2].start_ms)
    assert odd.body != cuts[2].body
    take = studio.record([*cuts[:2], odd, *cuts[3:]])
    assert (take.view()["status"], [(gap["segment_index"], gap["reason"]) for gap in take.gaps()]) == ("completed", [(3, "other_codec")])
    with av.open(str(take.download(folder))) as media:
        assert len([packet for packet in media.demux(video=0) if packet.size]) >= 590
    alone = studio.start()
    alone.upload(1, odd)
    alone.finish(last=1)
    view = alone.view()
    assert (view["status"], view["error"]["code"]) == ("failed", "unreadable")
    assert alone.get(f"/api/v1/recordings/{alone.id}/segments/1").content == odd.body


def test_a_recorder_whose_header_is_lost_plays_nothing_and_says_so(studio: Studio) -> None:
    take = studio.start()
    for number, one in enumerate(recorded("A-vp9")[1:4]):
        take.upload(number + 2, Part(one.body, None))
    take.finish(last=4, allowGaps=True)
    view = take.view()
    assert (view["status"], view["error"]["code"]) == ("failed", "unreadable")
    assert take.get(f"/api/v1/recordings/{take.id}/segments/3").content == (DATA / "A-vp9" / "0002.webm").read_bytes()


@pytest.mark.parametrize("lost", [3, 6])
@pytest.mark.parametrize("name", ["A-vp9", "A-mp4-avc1", "A-webm-h264", "A-vp8"])
def test_a_byte_cut_that_is_lost_costs_no_more_than_up_to_the_next_key_frame(name: str, lost: int, studio: Studio, folder: Path) -> None:
    take = studio.start()
    cuts = recorded(name)
    for number, one in enumerate(cuts):
        if number + 1 != lost:
            take.upload(number + 1, one)
    take.finish(last=len(cuts), allowGaps=True)
    view = take.view()
    assert view["status"] == "completed"
    gaps = take.gaps()
    assert [gap["segment_index"] for gap in gaps if gap["reason"] == "segment_missing"] == [lost]
    assert all(0 <= gap["start_s"] < gap["end_s"] <= 24.1 for gap in gaps)
    assert sum(gap["end_s"] - gap["start_s"] for gap in gaps) <= 2.1 + 2 * 3.4 + 0.2
    assert abs(view["duration_s"] - 24.0) <= NEAR_S
    path = take.download(folder)
    with av.open(str(path)) as media:
        shown = sum(1 for _ in media.decode(video=0))
    assert shown >= 720 - (2.1 + 2 * 3.4) * 30


def test_another_codec_in_the_middle_is_played_with_its_own_set_up(parts: list[Part], studio: Studio, folder: Path) -> None:
    mixed = [*parts[:3], *(part(number, codec="vp9") for number in (4, 5)), *parts[5:]]
    take = studio.record(mixed)
    assert take.view()["status"] == "completed"
    assert take.gaps() == []
    numbers = set[int]()
    for _, path in take.stream_folder(folder):
        numbers |= {number for _, number in seen(path)}
    assert numbers >= frames(range(1, COUNT + 1))


@pytest.mark.parametrize("size", [(160, 90), (640, 360)])
def test_another_resolution_in_the_middle_is_shown(size: tuple[int, int], studio: Studio, folder: Path) -> None:
    vp9 = [part(number, codec="vp9", size=size if number in (4, 5) else (320, 180)) for number in range(1, COUNT + 1)]
    take = studio.record(vp9)
    assert (take.view()["status"], take.gaps()) == ("completed", [])
    judge(take.download(folder), range(1, COUNT + 1))
    judge(take.hls_file(folder), range(1, COUNT + 1))


def test_a_camera_that_is_switched_off_and_on_leaves_the_sound_whole(parts: list[Part], studio: Studio, folder: Path) -> None:
    blind = {4, 5, 6}
    take = studio.record([part(number, codec=None) if number in blind else parts[number - 1] for number in range(1, COUNT + 1)])
    assert (take.view()["status"], take.gaps()) == ("completed", [])
    path = take.download(folder)
    beeps = {second: at for at, second in known.read_beeps(path)}
    assert set(beeps) == set(range(int(COUNT * PITCH_S)))
    assert all(abs(at - second) <= NEAR_S for second, at in beeps.items())
    pictures = {number: at for at, number in seen(path)}
    assert set(pictures) == frames([number for number in range(1, COUNT + 1) if number not in blind])
    assert all(abs(at - number / known.FPS) <= NEAR_S for number, at in pictures.items())


def test_a_pause_is_a_gap_and_what_follows_it_stands_where_it_was_said(studio: Studio, folder: Path) -> None:
    take = studio.start()
    began = time.time()
    first = synthetic.segment(0.0, 2.0)
    take.upload(1, Part(first, began * 1000))
    until(lambda: True if time.time() > began + 2.0 else None, "two seconds")
    take.post("pause")
    paused = time.time() - began
    until(lambda: True if time.time() > began + paused + 1.5 else None, "the pause")
    take.post("resume")
    resumed = time.time() - began
    # the recorder ran from 2.0 s on, was paused, and went on: its file has no trace of it
    cut = synthetic.webm(
        [*synthetic.opus(synthetic.sampled(synthetic.beeps(), 2.0, 0.96)), *synthetic.opus(synthetic.sampled(synthetic.beeps(), 6.0, 2.04))],
        synthetic.pictures(frame for at, count in ((60, 29), (180, 61)) for frame in synthetic.numbered(at, count)),
    )
    # stated so that the pause falls 0.96 s into it
    take.upload(2, Part(cut, (began + paused - 0.96) * 1000))
    take.finish(last=2)
    assert take.view()["status"] == "completed"
    gaps = [gap for gap in take.gaps() if gap["reason"] == "paused"]
    assert len(gaps) == 1
    assert abs(gaps[0]["start_s"] - paused) <= NEAR_S
    assert abs(gaps[0]["end_s"] - resumed) <= NEAR_S
    path = take.download(folder)
    pictures = {number: at for at, number in seen(path)}
    assert abs(pictures[180] - resumed) <= NEAR_S
    beeps = {second: at for at, second in known.read_beeps(path)}
    assert abs(beeps[7] - pictures[210]) <= SKEW_S


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_by_an_hour_while_recording_moves_nothing(off_s: float, parts: list[Part], studio: Studio, folder: Path) -> None:
    now_ms = time.time() * 1000 - (parts[0].start_ms or 0)  # a start ahead of its arrival is what tells a clock set forward from an hour without media
    moved = [Part(one.body, (one.start_ms or 0) + now_ms + (off_s * 1000 if number >= 4 else 0)) for number, one in enumerate(parts)]
    take = studio.record(moved)
    assert take.view()["status"] == "completed"
    assert take.gaps() == []
    judge(take.download(folder), range(1, COUNT + 1))
    assert [warning["code"] for warning in take.view()["warnings"]] == ["clock_set"]


def test_the_live_edge_waits_for_a_missing_segment_and_then_goes_on(studio: Studio, folder: Path) -> None:
    take = studio.start()
    live = [part(number, codec="vp9", key_every=30) for number in range(1, 11)]
    for number in (1, 2, 3, 5, 6, 7):
        take.upload(number, live[number - 1])
    before = take.playlist()
    assert not any(entry.gap for entry in before.entries)
    assert sum(entry.length_s for entry in before.entries) <= 6.1

    def given_up() -> Any:
        playlist = take.playlist()
        assert playlist.text.startswith(before.text)
        return playlist if any(entry.gap for entry in playlist.entries) else None

    gone_on = until(given_up, "EXT-X-GAP")
    lengths = [(entry.gap, entry.length_s) for entry in gone_on.entries]
    assert sum(length for gap, length in lengths if gap) == pytest.approx(2.0, abs=NEAR_S)
    heard = take.stream()
    take.upload(4, live[3])  # late
    more = take.stream(heard["next"])["tracks"][0]["ranges"]
    assert any(5.9 <= entry["start_us"] / 1e6 <= 6.1 for entry in more), "at once in stream.json"
    assert take.playlist().text.startswith(gone_on.text), "not in the live playlist"
    for number in (8, 9, 10):
        take.upload(number, live[number - 1])
    take.finish(last=10)
    assert take.gaps() == []
    assert not any(entry.gap for entry in take.playlist().entries)
    numbers = {number for _, number in seen(take.hls_file(folder))}
    assert numbers == set(range(600))
