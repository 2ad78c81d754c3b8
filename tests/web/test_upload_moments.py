"""What happens while a segment is still on its way: rights change, recordings end, tracks are taken, other segments wait."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from .house import House, begin, complete, completed, fill, name, segments, until, upload


class Slow:
    """A body that stops in the middle until it is let go."""

    def __init__(self, body: bytes) -> None:
        self.body, self.begun, self.go = body, threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self.body[:1000]
        self.begun.set()
        assert self.go.wait(20)
        yield self.body[1000:]


def test_who_loses_the_right_while_the_body_comes_is_refused(house: House, admin: httpx2.Client) -> None:
    taken, guest = begin(admin, name("host")), name("guest")
    admin.put(f"/api/v1/meetings/{taken.meeting_id}/participants/{guest}", json={"full_name": "G", "role": "PARTICIPANT"}).raise_for_status()
    slow = Slow(segments()[0])
    with house.client(house.key("user", guest)) as client, ThreadPoolExecutor(1) as pool:
        query: dict[str, str | int] = {"meetingId": taken.meeting_id, "recordingId": taken.id, "trackId": "g1", "segmentIndex": 1}
        sent = pool.submit(lambda: client.post("/api/v1/meetings/upload-segment", params=query, content=slow))
        assert slow.begun.wait(10)
        admin.put(f"/api/v1/meetings/{taken.meeting_id}/participants/{guest}", json={"full_name": "G", "role": "VIEWER"}).raise_for_status()
        slow.go.set()
        assert sent.result().status_code == 403


def test_a_recording_that_is_deleted_while_the_body_comes_takes_nothing(admin: httpx2.Client) -> None:
    taken = begin(admin, name("host"))
    slow = Slow(segments()[0])
    with ThreadPoolExecutor(1) as pool:
        query: dict[str, str | int] = {"meetingId": taken.meeting_id, "recordingId": taken.id, "trackId": taken.track_id, "segmentIndex": 1}
        sent = pool.submit(lambda: admin.post("/api/v1/meetings/upload-segment", params=query, content=slow))
        assert slow.begun.wait(10)
        admin.post(f"/api/v1/recordings/{taken.id}/stop").raise_for_status()
        admin.delete(f"/api/v1/recordings/{taken.id}").raise_for_status()
        slow.go.set()
        assert sent.result().status_code == 404


def test_a_track_that_somebody_takes_while_the_body_comes_stays_theirs(house: House, admin: httpx2.Client) -> None:
    taken, guest = begin(admin, name("host")), name("guest")
    admin.put(f"/api/v1/meetings/{taken.meeting_id}/participants/{guest}", json={"full_name": "G", "role": "PARTICIPANT"}).raise_for_status()
    first, *_ = segments()
    slow = Slow(first)
    with house.client(house.key("user", guest)) as client, ThreadPoolExecutor(1) as pool:
        query: dict[str, str | int] = {"meetingId": taken.meeting_id, "recordingId": taken.id, "trackId": "free", "segmentIndex": 1}
        sent = pool.submit(lambda: client.post("/api/v1/meetings/upload-segment", params=query, content=slow))
        assert slow.begun.wait(10)
        mine = admin.post("/api/v1/meetings/upload-segment", params={**query, "segmentIndex": 2, "participantId": taken.host}, content=first)
        assert mine.status_code == 201
        slow.go.set()
        assert sent.result().status_code == 403
        assert admin.get(f"/api/v1/recordings/{taken.id}/tracks").json()["tracks"][-1]["participant_id"] == taken.host


def test_many_tracks_that_upload_while_the_whole_is_completed_end_in_order(admin: httpx2.Client) -> None:
    first, *_ = segments()
    for _ in range(3):
        taken = begin(admin, name("host"))
        tracks = [f"t{number}" for number in range(10)]
        with ThreadPoolExecutor(11) as pool:
            sent = [pool.submit(upload, admin, taken, 1, first, trackId=track) for track in tracks]
            done = pool.submit(complete, admin, taken, allowGaps=True)
            assert {one.result().status_code for one in sent} <= {201, 409}
            assert done.result().status_code == 202


@pytest.mark.parametrize("cut", [1, 3, 4, 7, 20])
def test_a_first_piece_of_a_few_bytes_plays_with_the_rest(admin: httpx2.Client, cut: int) -> None:
    whole = segments("B-opus")[0]
    taken = begin(admin, name("host"))
    fill(admin, taken, [whole[:cut], whole[cut:]])
    done = completed(admin, taken)
    assert (done["status"], done["duration_s"]) == ("completed", pytest.approx(3.96, abs=0.01))


@pytest.mark.parametrize("size", [3_000, 8_000, 20_000])
def test_behind_a_hole_nothing_is_glued_to_what_came_before_it(admin: httpx2.Client, size: int) -> None:
    whole = segments("B-vp8")[0]
    cuts = [whole[at : at + size] for at in range(0, len(whole), size)]
    taken = begin(admin, name("host"))
    lost = 3
    for index, body in enumerate(cuts, 1):
        if index != lost:
            assert upload(admin, taken, index, body).status_code == 201
    assert complete(admin, taken, allowGaps=True, lastSegmentIndex=len(cuts)).status_code == 202
    until(lambda: admin.get(f"/api/v1/recordings/{taken.id}/status").json()["status"] in {"completed", "failed"}, "the end")
    view = admin.get(f"/api/v1/recordings/{taken.id}").json()
    assert view["status"] == "completed"
    assert view["warnings"] == []  # every packet reads back, and decodes
    assert {gap.get("segment_index") for gap in view["gaps"]} >= {lost}


def test_a_segment_that_is_hard_to_parse_holds_nobody_up(admin: httpx2.Client) -> None:
    head = segments("A-vp8")[0]
    hostile = head + b"\xec\x80" * 140_000  # empty Void elements, as many as go under the limit of the house
    taken = begin(admin, name("host"))
    worst = 0.0
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: upload(admin, taken, 1, hostile[:290_000]))
        while not sent.done():
            start = time.monotonic()
            admin.get("/api/v1/clock").raise_for_status()
            worst = max(worst, time.monotonic() - start)
        assert sent.result().status_code == 201
    assert worst < 2.0  # of the loop's time; the thread takes its own
