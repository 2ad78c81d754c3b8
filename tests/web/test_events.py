"""Server-sent events: in order, without holes, from where one left off, and only what one may view."""

import threading
from itertools import pairwise
from uuid import UUID, uuid4

import httpx2

from .ear import Ear, listening
from .house import LIMIT_S, House, Taken, begin, completed, fill, name, segments, token, until
from .test_contract_meetings import is_time, problem

EVENTS = "/api/v1/events"


def test_events_come_in_order_without_holes_as_cloud_events(house: House, admin: httpx2.Client) -> None:
    with listening(house, house.key("admin")) as ear:
        one, two = begin(admin, name(), title="One"), begin(admin, name())
        for taken in (one, two):
            fill(admin, taken, segments()[:3])
        admin.put(f"/api/v1/meetings/{one.meeting_id}/participants/zoe", json={"full_name": "Zoë", "role": "VIEWER"})
        admin.delete(f"/api/v1/meetings/{one.meeting_id}/participants/zoe")
        for taken in (one, two):
            assert completed(admin, taken)["status"] == "completed"
        until(lambda: all(ear.of(taken.id) and ear.of(taken.id)[-1]["type"] == "recording.completed" for taken in (one, two)), "both ends")
        assert ear.headers["content-type"].startswith("text/event-stream")
        assert ear.headers["cache-control"] == "no-store"
        for taken in (one, two):
            heard = ear.of(taken.id)
            assert [event["data"]["seq"] for event in heard] == list(range(1, len(heard) + 1))
            for event in heard:
                assert set(event) - {"_id"} == {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "data"}
                assert (event["specversion"], event["subject"], event["id"]) == ("1.0", f"recordings/{taken.id}", event["_id"])
                assert UUID(event["id"]).version == 7
                assert is_time(event["time"])
                assert event["data"]["meeting_id"] == taken.meeting_id
            told = admin.get(f"/api/v1/recordings/{taken.id}/timeline").json()["events"]
            assert [{key: value for key, value in event.items() if key != "_id"} for event in heard] == told
        types = [event["type"] for event in ear.of(one.id)]
        assert [kind for kind in types if kind.startswith("participant")] == ["participant.joined", "participant.left"]
        assert types[0] == "recording.started"


def test_one_goes_on_where_one_left_off(house: House, admin: httpx2.Client, running: Taken) -> None:
    told = admin.get(f"/api/v1/recordings/{running.id}/timeline").json()["events"]
    for at in (0, 1, len(told) - 2):
        with listening(house, house.key("admin"), told[at]["id"]) as ear:
            ear.wait_for(running.id, len(told) - at - 1)
            assert [event["id"] for event in ear.of(running.id)][: len(told) - at - 1] == [event["id"] for event in told[at + 1 :]]
    for unknown in (str(uuid4()), "no id"):
        with listening(house, house.key("admin"), unknown) as ear:
            admin.post(f"/api/v1/meetings/{running.meeting_id}/recording/pause")
            admin.post(f"/api/v1/meetings/{running.meeting_id}/recording/resume")
            ear.wait_for(running.id, 2)
            assert ear.of(running.id)[0]["type"] == "recording.paused"


def test_one_hears_only_what_one_may_view(house: House, admin: httpx2.Client) -> None:
    owner, stranger, viewer = name("owner"), name("stranger"), name("viewer")
    meeting = admin.post("/api/v1/meetings", json={"host_id": owner}).json()["id"]
    admin.put(f"/api/v1/meetings/{meeting}/participants/{viewer}", json={"full_name": "V", "role": "VIEWER"})
    ears = {
        "owner": house.key("user", owner),
        "stranger": house.key("user", stranger),
        "viewer": house.key("user", viewer),
        "token": token(name(), meetings={meeting: "HOST"}),
        "foreign": token("boss", tenant="other", roles=["admin"]),
    }
    with listening(house, ears["owner"]) as hears, listening(house, ears["stranger"]) as deaf, listening(house, ears["viewer"]) as viewing:
        with listening(house, ears["token"]) as named, listening(house, ears["foreign"]) as foreign:
            taken = begin(admin, owner, meetingId=meeting)
            fill(admin, taken, segments()[:2])
            admin.post(f"/api/v1/recordings/{taken.id}/stop")
            for ear in (hears, named):
                ear.wait_for(taken.id, 5)
                assert ear.of(taken.id)[-1]["type"] == "recording.playable"
            assert [deaf.of(taken.id), viewing.of(taken.id), foreign.heard] == [[], [], []]
        admin.patch(f"/api/v1/recordings/{taken.id}", json={"visibility": "tenant"})
        admin.delete(f"/api/v1/recordings/{taken.id}")
        until(lambda: [event["type"] for event in deaf.of(taken.id)] == ["recording.deleted"], "what it may view now")
        admin.patch(f"/api/v1/recordings/{taken.id}", json={})


def test_nobody_hears_nothing(house: House) -> None:
    with house.client() as nobody:
        problem(nobody.get(EVENTS), 401, "not_signed_in")


def test_a_quiet_stream_says_that_it_lives_and_ends_with_its_key(quiet: tuple[Ear, Ear]) -> None:
    quiet_one, revoked = quiet
    until(lambda: ": still here" in quiet_one.comments, "a comment that keeps proxies from closing")
    until(revoked.ended.is_set, "the end of a stream whose key is revoked")
    assert not quiet_one.ended.is_set()


def test_seq_has_no_holes_when_many_write_at_once(house: House, admin: httpx2.Client) -> None:
    user = name()
    first = begin(admin, user)
    tracks = [begin(admin, user, meetingId=first.meeting_id) for _ in range(3)]
    threads = [threading.Thread(target=fill, args=(admin, taken, segments()[:5])) for taken in (first, *tracks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    told = admin.get(f"/api/v1/recordings/{first.id}/timeline").json()["events"]
    numbers = [event["data"]["seq"] for event in told]
    assert all(after == before + 1 for before, after in pairwise(numbers))
    assert len([event for event in told if event["type"] == "segment.committed"]) == 20
