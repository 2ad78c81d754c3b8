"""Meetings, their people and their recordings, over HTTP: names, types and answers as the contract has them."""

import re
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from .house import House, Json, Taken, begin, name, upload

MEETING = {"id", "room_code", "title", "host_id", "state", "source", "metadata", "analysis", "participants", "recording_id", "created_at"}
PERSON = {"user_id", "full_name", "role", "joined_at", "left_at"}


def is_time(value: Any) -> bool:
    return isinstance(value, str) and value.endswith("Z") and datetime.fromisoformat(value).tzinfo is not None


def problem(answer: httpx2.Response, status: int, code: str) -> Json:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: Json = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"].strip()
    return body


def test_a_meeting_has_exactly_the_fields_of_the_contract(admin: httpx2.Client) -> None:
    room, user = name("room"), name()
    asked = {"room_code": room, "title": "Planning", "host_id": user, "source": "segments", "metadata": {"team": ["a", 1, None]}}
    made = admin.post("/api/v1/meetings", json=asked)
    assert made.status_code == 201
    meeting = made.json()
    assert set(meeting) == MEETING
    assert {key: meeting[key] for key in asked} == asked
    assert UUID(meeting["id"]).version == 7
    assert (meeting["state"], meeting["analysis"], meeting["recording_id"]) == ("created", None, None)
    assert is_time(meeting["created_at"])
    [host] = meeting["participants"]
    assert set(host) == PERSON
    assert (host["user_id"], host["role"], host["left_at"]) == (user, "HOST", None)
    assert is_time(host["joined_at"])
    for way in (meeting["id"], room):
        assert admin.get(f"/api/v1/meetings/{way}").json() == meeting


@pytest.mark.parametrize("spelling", [{"room_code": "", "host_id": ""}, {"roomCode": "", "hostId": ""}, {"roomCode": "", "userId": ""}])
def test_both_spellings_are_taken(admin: httpx2.Client, spelling: dict[str, str]) -> None:
    room, user = name("room"), name()
    made = admin.post("/api/v1/meetings", json=dict(zip(spelling, (room, user), strict=True))).json()
    assert (made["room_code"], made["host_id"]) == (room, user)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/meetings", {"room_cod": "x"}),
        ("POST", "/api/v1/meetings", {"title": "a\x00b"}),
        ("POST", "/api/v1/meetings", {"metadata": {"deep": ["\x00"]}}),
        ("POST", "/api/v1/meetings", {"source": "zoom"}),
        ("POST", "/api/v1/meetings", {"room_code": ""}),
        ("PUT", "/api/v1/meetings/{id}/metadata", [1]),
        ("PUT", "/api/v1/meetings/{id}/metadata", {"a\x00": 1}),
        ("PUT", "/api/v1/meetings/{id}/participants/x", {"full_name": "X", "role": "BOSS"}),
        ("PUT", "/api/v1/meetings/{id}/participants/x", {"full_name": "X", "extra": 1}),
        ("POST", "/api/v1/meetings/{id}/recording/start", {"layout": "circle"}),
        ("POST", "/api/v1/meetings/{id}/recording/start", {"bitrate": 10**30}),
        ("POST", "/api/v1/meetings/{id}/recording/start", {"max_duration_s": 0}),
        ("POST", "/api/v1/meetings/{id}/recording/start", {"max_duration_s": 1e300}),
        ("POST", "/api/v1/meetings/start-recording", {"userId": "u", "who": 1}),
        ("POST", "/api/v1/recordings/start", {"title": "nowhere"}),
        ("POST", "/api/v1/meetings/complete-recording", {"meetingId": "{id}", "lastSegmentIndex": 2**31}),
    ],
)
def test_what_cannot_be_meant_is_422_and_names_the_field(admin: httpx2.Client, running: Taken, method: str, path: str, body: Any) -> None:
    answer = admin.request(method, path.format(id=running.meeting_id), json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in {"invalid", "room_wanted"}


@pytest.mark.parametrize("text", ['{"metadata": {"a": NaN}}', '{"metadata": {"a": 1e999}}', '{"title": "\\ud800"}', '{"title": 1', "[" * 100_000])
def test_json_that_is_none_is_refused(admin: httpx2.Client, text: str) -> None:
    answer = admin.post("/api/v1/meetings", content=text, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_query_takes_both_spellings_and_nothing_unknown(admin: httpx2.Client, running: Taken) -> None:
    for spelling in ("room_id", "roomId"):
        found = admin.get("/api/v1/recordings", params={spelling: running.meeting_id}).json()["recordings"]
        assert [one["id"] for one in found] == [running.id]
    problem(admin.get("/api/v1/recordings", params={"room": running.meeting_id}), 422, "unknown_key")
    problem(admin.get(f"/api/v1/meetings/{running.meeting_id}", params={"x": "1"}), 422, "unknown_key")


def test_ids_that_are_malformed_unknown_and_foreign_answer_alike(house: House, host: httpx2.Client, running: Taken) -> None:
    for before, after in (("meetings", ""), ("meetings", "/recordings"), ("meetings", "/recording"), ("recordings", ""), ("recordings", "/segments")):
        foreign = running.meeting_id if before == "meetings" else running.id
        answers = [host.get(f"/api/v1/{before}/{one}{after}") for one in (foreign, uuid4(), "no-id", "%00", "x" * 500)]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1, [answer.text for answer in answers]
    with house.client() as nobody:
        answers = [nobody.get(f"/api/v1/recordings/{one}") for one in (running.id, uuid4(), "no-id")]
        assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}


def test_metadata_is_replaced_whole(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/meetings/{running.meeting_id}/metadata"
    for value in ({"a": 1, "b": {"c": [True, None, 1.5, "é🎥"]}}, {"d": 2}, {}):
        answer = admin.put(path, json=value)
        assert answer.status_code == 200
        assert answer.json()["metadata"] == value
    assert admin.get(f"/api/v1/recordings/{running.id}").json()["metadata"] == {}


@pytest.mark.parametrize("user", ["plain", "a/b", "auth0|5f7c", "jo@example.com", "Zoë 🎥", "..", "%2e%2e"])
def test_people_join_change_and_leave_under_their_own_strings(admin: httpx2.Client, running: Taken, user: str) -> None:
    path = f"/api/v1/meetings/{running.meeting_id}/participants/" + "".join(f"%{byte:02X}" for byte in user.encode())
    joined = admin.put(path, json={"full_name": "Jo", "role": "VIEWER"})
    assert joined.status_code == 200, joined.text
    assert set(joined.json()) == PERSON
    assert (joined.json()["user_id"], joined.json()["role"], joined.json()["full_name"]) == (user, "VIEWER", "Jo")
    assert admin.put(path, json={"fullName": "Jo B", "role": "CO_HOST"}).json()["role"] == "CO_HOST"
    left = admin.delete(path).json()
    assert is_time(left["left_at"])
    assert admin.delete(path).json() == left
    people = admin.get(f"/api/v1/recordings/{running.id}/participants").json()["participants"]
    assert [person["user_id"] for person in people] == [running.host, user]
    assert admin.delete(path + "x").status_code == 404


def test_starting_by_meeting_gives_a_recording_and_a_second_start_names_the_first(admin: httpx2.Client) -> None:
    meeting = admin.post("/api/v1/meetings", json={"host_id": name(), "title": "Weekly"}).json()
    path = f"/api/v1/meetings/{meeting['id']}/recording"
    asked = {"title": "Take 1", "description": "d", "layout": "speaker", "audio_only": True, "format": "webm", "max_duration_s": 60, "strategy": "hybrid"}
    made = admin.post(f"{path}/start", json=asked)
    assert made.status_code == 201
    recording = made.json()
    assert (recording["status"], recording["title"], recording["layout"], recording["audio_only"]) == ("pending", "Take 1", "speaker", True)
    assert (recording["owner_id"], recording["source"], recording["meeting_id"]) == (meeting["host_id"], "segments", meeting["id"])
    assert problem(admin.post(f"{path}/start"), 409, "already_recording")["recording_id"] == recording["id"]
    assert admin.get(f"/api/v1/meetings/{meeting['id']}").json()["state"] == "recording"
    live = admin.get(path).json()
    assert set(live) == {"recording_id", "source", "status", "health", "started_at", "elapsed_s", "last_byte_at", "tracks", "bytes"}
    assert (live["recording_id"], live["status"], live["health"], live["bytes"]) == (recording["id"], "pending", "starting", 0)


def test_orders_repeated_give_the_same_answer(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/meetings/{running.meeting_id}/recording"
    for order, status in (("pause", "paused"), ("resume", "recording"), ("pause", "paused"), ("stop", "stopped")):
        first, again = admin.post(f"{path}/{order}"), admin.post(f"{path}/{order}")
        assert first.status_code == 200, first.text
        assert first.json()["status"] == status
        assert again.json() == first.json()
    by_id = admin.post(f"/api/v1/recordings/{running.id}/stop")
    assert by_id.status_code == 202
    assert by_id.json() == first.json()
    assert is_time(first.json()["stopped_at"])
    problem(admin.post(f"{path}/resume"), 409, "not_possible")
    problem(admin.get(path), 404, "not_found")


def test_discarding_twice_discards_one(admin: httpx2.Client, running: Taken) -> None:
    """The second time must not reach for the recording before."""
    path = f"/api/v1/meetings/{running.meeting_id}/recording"
    admin.post(f"{path}/stop")
    second = admin.post(f"{path}/start").json()
    first, again = admin.post(f"{path}/discard"), admin.post(f"{path}/discard")
    assert first.status_code == 200, first.text
    assert (first.json()["id"], again.json()) == (second["id"], first.json())
    assert first.json()["status"] == "stopped"
    assert is_time(first.json()["deleted_at"])
    assert admin.get(f"/api/v1/recordings/{running.id}").json()["deleted_at"] is None
    assert admin.get(f"/api/v1/recordings/{second['id']}").status_code == 404


@pytest.mark.parametrize("source", ["livekit", "agora", "rtp", "discord", "simulated"])
def test_a_source_that_this_version_does_not_know_is_said_so(admin: httpx2.Client, source: str) -> None:
    meeting = admin.post("/api/v1/meetings", json={"source": source, "host_id": name()}).json()
    answer = admin.post(f"/api/v1/meetings/{meeting['id']}/recording/start")
    assert f"does not record from {source} yet" in problem(answer, 409, "source_not_configured")["detail"]
    assert admin.get(f"/api/v1/meetings/{meeting['id']}").json()["recording_id"] is None, "nothing is ever recorded by a stub"
    assert admin.post(f"/api/v1/meetings/{meeting['id']}/recording/start", json={"source": "segments"}).status_code == 201


def test_starting_by_room_makes_the_room_once(admin: httpx2.Client) -> None:
    room, user = name("room"), name()
    made = admin.post("/api/v1/recordings/start", json={"room_code": room, "userId": user, "title": "By room"})
    assert made.status_code == 201, made.text
    assert (made.json()["room_code"], made.json()["owner_id"]) == (room, user)
    answer = admin.post("/api/v1/recordings/start", json={"roomId": made.json()["meeting_id"], "userId": user})
    assert problem(answer, 409, "already_recording")["recording_id"] == made.json()["id"]


def test_a_room_code_belongs_to_one_meeting_and_does_not_tell_strangers_which(admin: httpx2.Client, host: httpx2.Client) -> None:
    room = name("room")
    meeting = admin.post("/api/v1/meetings", json={"room_code": room, "host_id": name()}).json()
    assert problem(admin.post("/api/v1/meetings", json={"room_code": room}), 409, "room_code_taken")["meeting_id"] == meeting["id"]
    assert "meeting_id" not in problem(host.post("/api/v1/meetings", json={"room_code": room}), 409, "room_code_taken")


def test_lists_say_their_total_and_where_the_next_page_is(admin: httpx2.Client, host: httpx2.Client) -> None:
    user = host.headers["x-test-user"]
    made = [host.post("/api/v1/meetings", json={"title": str(number)}).json() for number in range(5)]
    page = host.get("/api/v1/meetings", params={"limit": 2})
    assert set(page.json()) == {"meetings", "total", "limit", "offset"}
    assert (page.json()["total"], page.json()["limit"], page.json()["offset"]) == (5, 2, 0)
    seen = []
    while True:
        seen += [one["id"] for one in page.json()["meetings"]]
        following = re.search(r'<([^>]+)>; rel="next"', page.headers.get("link", ""))
        if following is None:
            break
        page = host.get(following[1])
    assert seen == [one["id"] for one in reversed(made)]
    assert 'rel="prev"' in page.headers["link"]
    problem(host.get("/api/v1/meetings", params={"limit": 201}), 422, "invalid")
    assert host.get("/api/v1/meetings", params={"limit": 200}).status_code == 200
    path = f"/api/v1/meetings/{made[0]['id']}"
    ids = []
    for _ in range(3):
        ids.append(begin(admin, user, meetingId=made[0]["id"]).id)
        admin.post(f"{path}/recording/stop")
    listed = host.get(f"{path}/recordings", params={"limit": 2, "offset": 1, "status": "stopped|recording"})
    assert ([one["id"] for one in listed.json()["recordings"]], listed.json()["total"]) == ([ids[1], ids[0]], 3)
    assert host.get(f"{path}/recordings", params={"status": "failed"}).json() == {"recordings": [], "total": 0, "limit": 50, "offset": 0}
    problem(host.get(f"{path}/recordings", params={"status": "idle"}), 422, "unknown_status")


def test_a_meetings_state_follows_its_newest_recording(admin: httpx2.Client, running: Taken, finished: Taken) -> None:
    def state(taken: Taken) -> str:
        return str(admin.get(f"/api/v1/meetings/{taken.meeting_id}").json()["state"])

    assert state(running) == "recording"
    admin.post(f"/api/v1/recordings/{running.id}/stop")
    assert state(running) == "processing"
    assert state(finished) == "processed"


def test_the_clock_is_the_servers_in_microseconds(admin: httpx2.Client) -> None:
    first, then = (admin.get("/api/v1/clock").json() for _ in range(2))
    assert set(first) == {"now_us"}
    assert isinstance(first["now_us"], int)
    assert 0 < then["now_us"] - first["now_us"] < 60_000_000
    assert upload(admin, Taken("none", str(uuid4()), "1", ""), 1, b"x").status_code == 404
