"""Segmented upload over HTTP: joining, sending, refusing, completing, as the contract has them."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from .house import MAX_SEGMENT_BYTES, House, Json, Taken, begin, complete, completed, fill, name, segments, until, upload
from .test_contract_meetings import problem

STARTED = {"meetingId", "recordingId", "trackId", "prefix", "state"}
SENT = {"trackId", "segmentIndex", "sha256", "sizeBytes", "state"}
UPLOAD = "/api/v1/meetings/upload-segment"


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def start(client: httpx2.Client, **said: Any) -> httpx2.Response:
    return client.post("/api/v1/meetings/start-recording", json=said)


def test_a_second_browser_joins_with_a_fresh_track_and_a_reload_keeps_its_own(admin: httpx2.Client) -> None:
    user, room = name(), name("room")
    first = start(admin, userId=user, meetingId=room, title="T", mimeType="video/webm")
    assert first.status_code == 201, first.text
    body = first.json()
    assert set(body) == STARTED
    assert (body["trackId"], body["state"], body["prefix"]) == ("1", "pending", f"{user}/{body['meetingId']}/")
    for meeting in (room, body["meetingId"]):
        joined = start(admin, user_id=user, meeting_id=meeting)
        assert joined.status_code == 200
        assert {**joined.json(), "trackId": ""} == {**body, "trackId": ""}
    assert joined.json()["trackId"] == "3"
    reloaded = start(admin, userId=user, meetingId=room, trackId="2")
    assert (reloaded.status_code, reloaded.json()["trackId"]) == (200, "2")
    assert start(admin, userId=user, meetingId=room).json()["trackId"] == "4"
    meeting = admin.get(f"/api/v1/meetings/{room}").json()
    assert (meeting["host_id"], meeting["title"], meeting["recording_id"]) == (user, "T", body["recordingId"])


def test_browsers_that_come_first_at_once_share_one_recording(admin: httpx2.Client) -> None:
    user, room = name(), name("room")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: start(admin, userId=user, meetingId=room), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201], [answer.text for answer in answers]
    assert len({answer.json()["recordingId"] for answer in answers}) == 1
    assert len({answer.json()["trackId"] for answer in answers}) == 8


def test_an_open_recording_of_another_source_is_not_joined(house: House, admin: httpx2.Client, running: Taken) -> None:
    house.sql("UPDATE recordings SET source = 'livekit' WHERE id = %s", running.id)
    answer = start(admin, userId=running.host, meetingId=running.meeting_id)
    assert problem(answer, 409, "already_recording")["recording_id"] == running.id
    assert admin.get(f"/api/v1/recordings/{running.id}").json()["status"] == "recording"


@pytest.mark.parametrize("way", ["camel query", "snake query", "camel form", "snake form", "form with the file first"])
def test_a_segment_is_taken_in_every_spelling(admin: httpx2.Client, way: str) -> None:
    taken, body = begin(admin, name()), segments()[0]
    camel = {
        "meetingId": taken.meeting_id, "recordingId": taken.id, "trackId": "1", "segmentIndex": "1", "startedAt": str(round(time.time() * 1000)),
        "durationMs": "2000.5", "clockOffsetUs": "-12", "sha256": digest(body).upper(), "mimeType": "audio/webm", "kind": "audio", "source": "microphone",
        "participantId": taken.host,
    }  # fmt: skip
    snake = {"".join(f"_{char.lower()}" if char.isupper() else char for char in key): value for key, value in camel.items()}
    fields = snake if "snake" in way else camel
    if "query" in way:
        sent = [lambda: admin.post(UPLOAD, params=fields, content=body)]
    elif way == "form with the file first":
        parts: dict[str, Any] = {"file": ("x.webm", body, "audio/webm")} | {key: (None, value) for key, value in fields.items()}
        sent = [lambda: admin.post(UPLOAD, files=parts)]
    else:
        sent = [lambda: admin.post(UPLOAD, data=fields, files={"file": ("../../etc/passwd", body, "audio/webm")})]
    first, again = sent[0](), sent[0]()
    assert first.status_code == 201, first.text
    assert set(first.json()) == SENT
    assert first.json() == {"trackId": "1", "segmentIndex": 1, "sha256": digest(body), "sizeBytes": len(body), "state": "done"}
    assert (again.status_code, again.json()) == (200, first.json())
    [track] = admin.get(f"/api/v1/recordings/{taken.id}/tracks").json()["tracks"]
    assert (track["participant_id"], track["kind"], track["source"], track["clock"]) == (taken.host, "audio", "microphone", "measured")
    assert admin.get(f"/api/v1/recordings/{taken.id}/segments/1").content == body


@pytest.mark.parametrize(("started_at", "clock"), [(None, "none"), ("now-ms", "client"), ("now-rfc", "client"), ("2001-02-03T04:05:06Z", "client")])
def test_a_track_says_how_its_clock_is_known(admin: httpx2.Client, started_at: str | None, clock: str) -> None:
    taken = begin(admin, name())
    now = {"now-ms": f"{time.time() * 1000:.3f}", "now-rfc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())}
    assert upload(admin, taken, 1, segments()[0], startedAt=now.get(started_at or "", started_at)).status_code == 201
    view = admin.get(f"/api/v1/recordings/{taken.id}").json()
    assert view["tracks"][0]["clock"] == clock
    assert [one["code"] for one in view["warnings"]] == (["clock_untrusted"] if started_at and started_at.startswith("2001") else [])


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"segmentIndex": 0}, "invalid"),
        ({"segmentIndex": -1}, "invalid"),
        ({"segmentIndex": 2**31}, "invalid"),
        ({"segmentIndex": "1.5"}, "invalid"),
        ({"segmentIndex": None}, "invalid"),
        ({"meetingId": None}, "invalid"),
        ({"sha256": "0" * 64}, "digest_differs"),
        ({"sha256": "short"}, "invalid"),
        ({"surprise": "1"}, "invalid"),
        ({"trackId": "a/b"}, "invalid"),
        ({"trackId": ".."}, "invalid"),
        ({"trackId": "x" * 65}, "invalid"),
        ({"trackId": ""}, "invalid"),
        ({"kind": "smell"}, "invalid"),
        ({"source": "tape"}, "invalid"),
        ({"startedAt": "yesterday"}, "invalid"),
        ({"startedAt": "2031-01-02T03:04:05"}, "invalid"),
        ({"startedAt": "inf"}, "invalid"),
        ({"startedAt": "nan"}, "invalid"),
        ({"startedAt": "-5"}, "invalid"),
        ({"durationMs": "nan"}, "invalid"),
        ({"clockOffsetUs": str(10**18)}, "invalid"),
        ({"participantId": "x\x00"}, "invalid"),
    ],
)
def test_a_segment_that_lies_is_422_and_nothing_is_kept(admin: httpx2.Client, running: Taken, said: Json, code: str) -> None:
    problem(upload(admin, running, 9, segments()[9], **said), 422, code)
    assert len(admin.get(f"/api/v1/recordings/{running.id}/segments").json()["segments"]) == 3


def test_an_empty_segment_is_422_and_the_last_index_of_all_is_taken(admin: httpx2.Client) -> None:
    taken = begin(admin, name())
    problem(upload(admin, taken, 1, b""), 422, "empty_segment")
    assert upload(admin, taken, 2**31 - 1, segments()[0]).status_code == 201
    done = complete(admin, taken, lastSegmentIndex=2**31 - 1)
    assert problem(done, 409, "segments_missing")["missing"] == [{"trackId": "1", "from": 1, "to": 2**31 - 2}]
    assert complete(admin, taken, allowGaps=True).status_code == 202
    until(lambda: admin.get(f"/api/v1/recordings/{taken.id}/status").json()["status"] in {"completed", "failed"}, "the end")
    assert admin.get(f"/api/v1/recordings/{taken.id}").json()["gaps"]


@pytest.mark.parametrize(("stated", "began"), [(0.001, "stated"), (-3600, "created"), (1e9, "arrived"), (2.5e11, "arrived")])
def test_a_recording_begins_with_its_first_sample_not_before_it_was_made_and_not_in_the_future(admin: httpx2.Client, stated: float, began: str) -> None:
    taken = begin(admin, name())
    path = f"/api/v1/recordings/{taken.id}"
    created = datetime.fromisoformat(admin.get(path).json()["created_at"]).timestamp()
    sent = min(created + stated, 253_402_300_000)  # the end of the year 9999
    assert upload(admin, taken, 1, segments()[0], startedAt=repr(sent * 1000), clockOffsetUs=0).status_code == 201
    started = datetime.fromisoformat(admin.get(path).json()["started_at"]).timestamp()
    if began == "arrived":
        assert created < started <= time.time()
    else:
        assert started == pytest.approx(created if began == "created" else sent, abs=0.0005)


def test_other_bytes_under_the_same_index_are_refused_and_the_first_stay(admin: httpx2.Client, running: Taken) -> None:
    one, other = segments()[0], segments()[1]
    assert problem(upload(admin, running, 1, other), 409, "segment_differs")["sha256"] == digest(one)
    assert admin.get(f"/api/v1/recordings/{running.id}/segments/1").content == one
    with ThreadPoolExecutor(6) as pool:
        bodies = [b"body %d" % number for number in range(6)]
        answers = list(pool.map(lambda body: upload(admin, running, 50, body), bodies))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
    winner = bodies[[answer.status_code for answer in answers].index(201)]
    assert admin.get(f"/api/v1/recordings/{running.id}/segments/50").content == winner


def test_bytes_that_cannot_be_indexed_are_taken_with_a_warning_and_stay_downloadable(admin: httpx2.Client) -> None:
    taken, junk = begin(admin, name()), b"these are no media " * 100
    answer = upload(admin, taken, 1, junk)
    assert answer.status_code == 201
    assert [warning["code"] for warning in answer.json()["warnings"]] == ["not_indexed"]
    [segment] = admin.get(f"/api/v1/recordings/{taken.id}/segments").json()["segments"]
    assert [warning["code"] for warning in segment["warnings"]] == ["not_indexed"]
    assert segment["state"] == "done"
    assert admin.get(f"/api/v1/recordings/{taken.id}/stream.json").json()["tracks"] == []
    assert admin.get(f"/api/v1/recordings/{taken.id}/segments/1").content == junk


def chunked(size: int) -> Iterator[bytes]:
    for at in range(0, size, 10_000):
        yield b"z" * min(10_000, size - at)


@pytest.mark.parametrize("way", ["length", "chunked", "form", "chunked form"])
def test_a_body_over_the_limit_is_413_and_one_at_the_limit_is_taken(house: House, admin: httpx2.Client, way: str) -> None:
    taken = begin(admin, name())

    def send(index: int, size: int) -> httpx2.Response:
        if way == "length":
            return upload(admin, taken, index, b"z" * size)
        if way == "chunked":
            return admin.post(UPLOAD, params={"meetingId": taken.meeting_id, "segmentIndex": index}, content=chunked(size))
        fields = {"meetingId": taken.meeting_id, "segmentIndex": str(index)}
        whole = httpx2.Request("POST", house.url, data=fields, files={"file": ("x", b"z" * size)})
        body, kind = whole.read(), {"content-type": whole.headers["content-type"]}
        return admin.post(UPLOAD, content=body if way == "form" else iter([body[at : at + 9999] for at in range(0, len(body), 9999)]), headers=kind)

    assert send(1, MAX_SEGMENT_BYTES).status_code == 201
    for index, size in ((2, MAX_SEGMENT_BYTES + 1), (3, 3 * MAX_SEGMENT_BYTES)):
        assert problem(send(index, size), 413, "too_large")["limit_bytes"] == MAX_SEGMENT_BYTES
    assert [one["index"] for one in admin.get(f"/api/v1/recordings/{taken.id}/segments").json()["segments"]] == [1]


def raw(house: House, head: str, body: Iterator[bytes]) -> bytes:
    """Sends a request by hand until the server has said something; returns what it said."""
    port = int(house.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        sock.setblocking(False)
        for piece in body:
            try:
                return sock.recv(65536)
            except BlockingIOError:
                pass
            sock.setblocking(True)
            sock.sendall(piece)
            sock.setblocking(False)
        sock.setblocking(True)
        return sock.recv(65536)


def test_a_body_without_end_is_refused_while_it_still_comes_and_lies_nowhere(house: House, running: Taken) -> None:
    """Neither a chunked body, nor a form's file, field, part header, preamble or number of parts fills memory or a disk."""
    query = f"meetingId={running.meeting_id}&segmentIndex=77"
    head = f"POST {UPLOAD}?{query} HTTP/1.1\nHost: x\nAuthorization: Bearer {house.key('admin')}\nTransfer-Encoding: chunked\nContent-Type: "
    form = head + 'multipart/form-data; boundary="b"'

    def endless(first: bytes, piece: bytes) -> Iterator[bytes]:
        yield b"%x\r\n%s\r\n" % (len(first), first)
        for _ in range(20_000):
            yield b"%x\r\n%s\r\n" % (len(piece), piece)

    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    shapes = {
        "raw": (head + "video/webm", endless(b"x", b"z" * 8000)),
        "file": (form, endless(part % b"file", b"z" * 8000)),
        "field": (form, endless(part % b"note", b"z" * 8000)),
        "header": (form, endless(b"--b\r\nX: ", b"z" * 8000)),
        "preamble": (form, endless(b"p", b"z" * 8000)),
        "parts": (form, endless(part % b"a", b"\r\n" + part % b"a")),
    }
    for shape, (start_line, body) in shapes.items():
        said = raw(house, start_line, body)
        assert said.startswith((b"HTTP/1.1 413", b"HTTP/1.1 422")), (shape, said[:200])
        assert b"application/problem+json" in said
    left = [path for path in house.log.parent.rglob("*") if path.is_file() and path.stat().st_size > MAX_SEGMENT_BYTES and "log" not in path.name]
    assert [path for path in left if "store" not in path.parts] == []
    assert list((house.log.parent / "tmp").iterdir()) == [], "nothing is spooled in a temporary folder"


def test_nobody_signed_in_is_refused_before_a_byte_is_kept(house: House, running: Taken) -> None:
    head = f"POST {UPLOAD} HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nContent-Type: multipart/form-data; boundary=b"
    said = raw(house, head, iter(()))
    assert said.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("body", [b"", b"no form at all", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off', b"--b--\r\n"])
def test_a_form_that_is_none_is_422(admin: httpx2.Client, running: Taken, body: bytes) -> None:
    query = {"meetingId": running.meeting_id, "segmentIndex": "78"}
    answer = admin.post(UPLOAD, params=query, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in {"bad_form", "file_wanted"}
    answer = admin.post(UPLOAD, params=query, content=body, headers={"content-type": "multipart/form-data"})
    problem(answer, 422, "bad_form")


def test_an_upload_without_a_recording_id_goes_to_the_newest_that_is_not_closed(admin: httpx2.Client) -> None:
    user = name()
    meeting = admin.post("/api/v1/meetings", json={"host_id": user}).json()["id"]
    query = {"meetingId": meeting, "segmentIndex": 1}
    problem(admin.post(UPLOAD, params=query, content=segments()[0]), 409, "no_open_recording")
    problem(admin.post("/api/v1/meetings/complete-recording", json={"meetingId": meeting}), 409, "no_open_recording")
    first = begin(admin, user, meetingId=meeting)
    assert admin.post(UPLOAD, params=query, content=segments()[0]).status_code == 201
    admin.post(f"/api/v1/recordings/{first.id}/stop")
    assert admin.post(UPLOAD, params={**query, "segmentIndex": 2}, content=segments()[1]).status_code == 201, "what was captured before the stop"
    second = begin(admin, user, meetingId=meeting)
    assert admin.post(UPLOAD, params=query, content=segments()[1]).status_code == 201
    count = [len(admin.get(f"/api/v1/recordings/{one.id}/segments").json()["segments"]) for one in (first, second)]
    assert count == [2, 1]
    assert complete(admin, second).status_code == 202
    assert admin.post(UPLOAD, params={**query, "segmentIndex": 3}, content=segments()[2]).status_code == 201
    other = begin(admin, user)
    problem(upload(admin, Taken(meeting, other.id, "1", user), 1, b"x"), 404, "not_found")


def test_completing_names_the_holes_and_repeats_its_job(admin: httpx2.Client, running: Taken) -> None:
    for index in (5, 6, 9):
        assert upload(admin, running, index, segments()[index - 1]).status_code == 201
    missing = [{"trackId": "1", "from": 4, "to": 4}, {"trackId": "1", "from": 7, "to": 8}]
    assert problem(complete(admin, running), 409, "segments_missing")["missing"] == missing
    refused = problem(complete(admin, running, lastSegmentIndex=11), 409, "segments_missing")["missing"]
    assert refused == [*missing, {"trackId": "1", "from": 10, "to": 11}]
    assert problem(complete(admin, running, last_segment_indexes={"1": 10}), 409, "segments_missing")["missing"][-1]["to"] == 10
    problem(complete(admin, running, lastSegmentIndexes={"7": 1}), 422, "unknown_track")
    problem(complete(admin, running, trackId="7"), 422, "unknown_track")
    assert upload(admin, running, 4, segments()[3]).status_code == 201, "a refusal closes nothing"
    done = complete(admin, running, allowGaps=True)
    assert done.status_code == 202
    assert set(done.json()) == {"jobId", "state"}
    assert complete(admin, running).json()["jobId"] == done.json()["jobId"]
    until(lambda: admin.get(f"/api/v1/recordings/{running.id}/status").json()["status"] == "completed", "the end")
    again = complete(admin, running)
    assert (again.status_code, again.json()) == (202, {"jobId": done.json()["jobId"], "state": "completed"})
    assert {gap["segment_index"] for gap in admin.get(f"/api/v1/recordings/{running.id}").json()["gaps"] if "segment_index" in gap} >= {7}
    problem(upload(admin, running, 7, segments()[6]), 409, "recording_completed")
    assert upload(admin, running, 1, segments()[0]).status_code == 200, "an answer that was lost"
    problem(upload(admin, running, 1, segments()[1]), 409, "segment_differs")


def test_two_that_complete_at_once_get_one_job(admin: httpx2.Client, running: Taken) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: complete(admin, running), range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["jobId"] for answer in answers}) == 1


def test_each_closes_its_own_track_and_the_last_one_the_recording(house: House, admin: httpx2.Client) -> None:
    host, guest = name("host"), name("guest")
    one = begin(admin, host)
    admin.put(f"/api/v1/meetings/{one.meeting_id}/participants/{guest}", json={"full_name": "G", "role": "PARTICIPANT"})
    with house.client(house.key("user", guest)) as guests, house.client(house.key("user", host)) as hosts:
        two = begin(guests, guest, meetingId=one.meeting_id)
        fill(hosts, one, segments()[:2])
        fill(guests, two, segments()[:2])
        left = complete(guests, two, trackId=two.track_id)
        assert (left.status_code, left.json()["state"]) == (202, "recording"), "who leaves early stops nobody else"
        problem(complete(guests, two), 403, "forbidden")
        assert upload(hosts, one, 3, segments()[2]).status_code == 201
        closed = complete(hosts, one, trackId=one.track_id, lastSegmentIndex=3)
        assert (closed.status_code, closed.json()["state"]) == (202, "processing")
        until(lambda: hosts.get(f"/api/v1/recordings/{one.id}/status").json()["status"] == "completed", "the end")


def test_a_last_index_that_could_be_of_either_track_is_asked_back_and_closes_nothing(admin: httpx2.Client) -> None:
    one = begin(admin, name())
    two = begin(admin, one.host, meetingId=one.meeting_id)
    fill(admin, one, segments()[:2])
    fill(admin, two, segments()[:1])
    problem(complete(admin, one, lastSegmentIndex=5), 422, "track_wanted")
    assert complete(admin, two, trackId=two.track_id, lastSegmentIndex=1).status_code == 202
    problem(complete(admin, two, lastSegmentIndex=1), 422, "track_wanted")
    assert problem(complete(admin, one, lastSegmentIndexes={"1": 3}), 409, "segments_missing")["missing"] == [{"trackId": "1", "from": 3, "to": 3}]
    assert upload(admin, one, 3, segments()[2]).status_code == 201
    assert complete(admin, one, lastSegmentIndexes={"1": 3}).status_code == 202


def test_a_track_never_closed_leaves_the_recording_stopped_and_listed_as_idle(admin: httpx2.Client) -> None:
    one = begin(admin, name())
    begin(admin, one.host, meetingId=one.meeting_id)
    fill(admin, one, segments()[:2])
    assert complete(admin, one, trackId="1").json()["state"] == "stopped", "a host stops a running recording by completing"
    idle = admin.get("/api/v1/recordings", params={"status": "recording|stopped", "room_id": one.meeting_id}).json()["recordings"]
    assert [(found["id"], found["status"]) for found in idle] == [(one.id, "stopped")]
    assert idle[0]["last_byte_at"]


def test_a_participant_sends_only_tracks_of_its_own(house: House, admin: httpx2.Client) -> None:
    host, guest, viewer = name("host"), name("guest"), name("viewer")
    one = begin(admin, host)
    seats = f"/api/v1/meetings/{one.meeting_id}/participants"
    admin.put(f"{seats}/{guest}", json={"full_name": "G", "role": "PARTICIPANT"})
    admin.put(f"{seats}/{viewer}", json={"full_name": "V", "role": "VIEWER"})
    with house.client(house.key("user", guest)) as guests, house.client(house.key("user", viewer)) as viewers, house.client(house.key("user", host)) as hosts:
        problem(start(viewers, userId=viewer, meetingId=one.meeting_id), 403, "forbidden")
        problem(start(guests, userId=host, meetingId=one.meeting_id), 403, "other_user")
        problem(start(guests, userId=guest, meetingId=one.meeting_id, participantId=host), 403, "other_participant")
        problem(start(guests, userId=guest, meetingId=one.meeting_id, trackId=one.track_id), 403, "other_participant")
        two = begin(guests, guest, meetingId=one.meeting_id)
        assert upload(guests, two, 1, segments()[0]).status_code == 201
        problem(upload(guests, one, 1, segments()[0]), 403, "other_participant")
        problem(upload(guests, two, 2, segments()[1], participantId=host), 403, "other_participant")
        problem(upload(guests, two, 2, segments()[1], trackId="new", participantId=host), 403, "other_participant")
        problem(upload(viewers, two, 2, segments()[1]), 403, "forbidden")
        problem(complete(guests, one, trackId=one.track_id), 403, "other_participant")
        problem(upload(hosts, two, 2, segments()[1], participantId=host), 409, "track_taken")
        assert upload(hosts, two, 2, segments()[1]).status_code == 201, "a host may send any"
        tracks = admin.get(f"/api/v1/recordings/{one.id}/tracks").json()["tracks"]
        assert [(track["id"], track["participant_id"]) for track in tracks] == [("1", host), ("2", guest)]


NASTY = [
    "a/../b",
    "../../up",
    "..\\up",
    "/etc/passwd",
    "-rf",
    "a\nb",
    "a\r\nb",
    "%2e%2e%2f",
    "．．／",
    "x" * 200,
    ".",
    "..",
    "~",
    "$(id)",
    "c:\\x",
    "日本語",
    " ",
]


@pytest.mark.parametrize("where", ["userId", "meetingId", "trackId"])
def test_no_name_leaves_the_store(house: House, admin: httpx2.Client, where: str) -> None:
    before = {path for path in house.log.parent.rglob("*") if house.store not in path.parents}
    for nasty in NASTY:
        said = {"userId": name(), where: nasty if where != "meetingId" else nasty[:180] + name()}
        answer = start(admin, **said)
        if answer.status_code == 422:
            continue
        assert answer.status_code == 201, answer.text
        taken = Taken(answer.json()["meetingId"], answer.json()["recordingId"], answer.json()["trackId"], "")
        assert upload(admin, taken, 1, segments()[0]).status_code == 201
        assert all(set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for part in answer.json()["prefix"].split("/"))
    after = {path for path in house.log.parent.rglob("*") if house.store not in path.parents}
    assert {path for path in after - before if "data" not in path.parts} == set()
    assert not Path("/tmp/up").exists()


def test_a_hundred_uploads_of_one_segment_are_one(admin: httpx2.Client) -> None:
    taken = begin(admin, name())
    gate = threading.Barrier(10)

    def send(_: int) -> int:
        gate.wait(30)
        return upload(admin, taken, 1, segments()[0]).status_code

    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(send, range(10))) == [200] * 9 + [201]
    assert completed(admin, taken)["status"] == "completed"
