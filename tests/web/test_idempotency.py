"""Idempotency-Key on every POST: one effect, one answer, for whoever sent it."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx2
import psycopg
import pytest

from .house import House, Json, Taken, begin, name, segments, until
from .test_contract_meetings import problem

ME = "/api/v1/meetings"


def test_a_repetition_gets_the_first_answer_and_does_nothing(house: House, host: httpx2.Client) -> None:
    key = {"idempotency-key": name()}
    first, again = host.post(ME, json={"title": "once"}, headers=key), host.post(ME, json={"title": "once"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    made = UUID(first.json()["id"])
    assert made.version == 7
    assert abs((made.int >> 80) / 1000 - time.time()) < 60
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert again.headers["content-type"] == first.headers["content-type"]
    assert host.get(ME).json()["total"] == 1
    with house.client(house.key("user", name())) as other:
        assert other.post(ME, json={"title": "once"}, headers=key).json()["id"] != first.json()["id"], "a key belongs to who sent it"


def test_two_programs_know_nothing_of_each_others_keys(house: House) -> None:
    key = {"idempotency-key": name()}
    made = []
    for _ in range(2):
        with house.client(house.fresh_key("service", None)["key"], user="ann") as program:
            made.append(program.post(ME, json={"title": "mine"}, headers=key).json()["id"])
    assert made[0] != made[1]


def test_a_key_that_comes_with_another_request_is_422(host: httpx2.Client) -> None:
    key = {"idempotency-key": name()}
    made = host.post(ME, json={"title": "a"}, headers=key).json()
    problem(host.post(ME, json={"title": "b"}, headers=key), 422, "idempotency_key_reused")
    problem(host.post(f"{ME}/{made['id']}/recording/start", json={"title": "a"}, headers=key), 422, "idempotency_key_reused")
    problem(host.post(ME, json={"title": "a"}, headers={"idempotency-key": "x" * 256}), 422, "bad_idempotency_key")
    assert host.get(ME).json()["total"] == 1


def test_a_refusal_by_the_state_of_things_is_not_kept_and_one_of_the_request_is(admin: httpx2.Client, running: Taken) -> None:
    key, other = {"idempotency-key": name()}, {"idempotency-key": name()}
    path = f"{ME}/{running.meeting_id}/recording/start"
    problem(admin.post(path, headers=key), 409, "already_recording")
    assert admin.post(f"/api/v1/recordings/{running.id}/stop").status_code == 202
    made = admin.post(path, headers=key)
    assert (made.status_code, "idempotency-replayed" in made.headers) == (201, False), "what stood in the way is gone"
    wrong, again = (admin.post(ME, json={"no_such_field": 1}, headers=other) for _ in range(2))
    assert problem(wrong, 422, "invalid") == problem(again, 422, "invalid")
    assert again.headers["idempotency-replayed"] == "true"


def test_no_secret_is_kept(house: House, admin: httpx2.Client, finished: Taken) -> None:
    key = name()
    answers = [admin.post(f"/api/v1/recordings/{finished.id}/playback", headers={"idempotency-key": key}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert house.sql("SELECT count(*) FROM idempotency WHERE key = %s", key) == [(0,)]
    for answer in answers:
        token = answer.json()["token"].encode()
        assert house.sql("SELECT count(*) FROM idempotency WHERE position(%s IN body) > 0", token) == [(0,)]


def test_of_many_at_once_one_works_and_all_hear_it(host: httpx2.Client) -> None:
    key = {"idempotency-key": name()}

    def ask() -> httpx2.Response:
        def answer() -> httpx2.Response | None:
            found = host.post(ME, json={"title": "race"}, headers=key)
            if found.status_code != 409:
                return found
            problem(found, 409, "still_at_work")
            assert int(found.headers["retry-after"]) > 0
            return None

        found: httpx2.Response = until(answer, "the answer of the first one")
        return found

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(), range(12)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert host.get(ME).json()["total"] == 1


DIED = "UPDATE idempotency SET status = NULL, body = NULL, at = now() - make_interval(secs => %s) WHERE key = %s"


@pytest.mark.parametrize("way", ["meeting", "recording", "room", "segmented", "joined meeting"])
def test_a_repetition_of_one_that_died_after_its_work_finds_that_work(house: House, host: httpx2.Client, way: str) -> None:
    """Killed between the commit of the work and that of the answer: the claim stands without an answer."""
    room = host.post(ME, json={}).json()["id"]
    where, said = {
        "meeting": (ME, {"title": "once"}),
        "recording": (f"{ME}/{room}/recording/start", {}),
        "room": ("/api/v1/recordings/start", {"roomId": name("room"), "userId": host.headers["x-test-user"]}),
        "segmented": (f"{ME}/start-recording", {"userId": host.headers["x-test-user"]}),
        "joined meeting": (f"{ME}/start-recording", {"meetingId": room, "userId": host.headers["x-test-user"]}),
    }[way]
    key = name()
    first = host.post(where, json=said, headers={"idempotency-key": key})
    assert first.status_code == 201, first.text
    there = house.sql("SELECT (SELECT count(*) FROM meetings), (SELECT count(*) FROM recordings), (SELECT count(*) FROM tracks)")
    house.sql(DIED, 1, key)
    early = host.post(where, json=said, headers={"idempotency-key": key})
    problem(early, 409, "still_at_work")
    assert int(early.headers["retry-after"]) > 0
    house.sql(DIED, 61, key)
    again = host.post(where, json=said, headers={"idempotency-key": key})
    assert (again.status_code, again.json()) == (201, first.json())
    assert "idempotency-replayed" not in again.headers
    assert house.sql("SELECT (SELECT count(*) FROM meetings), (SELECT count(*) FROM recordings), (SELECT count(*) FROM tracks)") == there
    assert host.post(where, json=said, headers={"idempotency-key": key}).headers["idempotency-replayed"] == "true"


def test_many_keys_at_once_do_not_stand_in_each_others_way(host: httpx2.Client) -> None:
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda number: host.post(ME, json={}, headers={"idempotency-key": name(f"{number}")}), range(40)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers if answer.status_code != 201]
    assert host.get(ME, params={"limit": 1}).json()["total"] == 40


def test_a_failure_of_ours_is_not_kept(house: House, host: httpx2.Client) -> None:
    key = {"idempotency-key": name()}
    meeting = host.post(ME, json={}).json()["id"]
    path = f"{ME}/{meeting}/recording/start"
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO recordings%%'"
    with psycopg.connect(house.database_url) as blocker, ThreadPoolExecutor(1) as pool:
        blocker.execute("LOCK TABLE recordings IN EXCLUSIVE MODE")
        asked = pool.submit(lambda: host.post(path, json={}, headers=key))
        [(pid,)] = until(lambda: house.sql(waiting), "the request that waits")
        house.sql("SELECT pg_terminate_backend(%s)", pid)  # as when the database goes away
        failed = asked.result()
        assert failed.status_code == 503, failed.text
        assert int(failed.headers["retry-after"]) > 0
        assert failed.headers["content-type"] == "application/problem+json"
        blocker.rollback()
    again = host.post(path, json={}, headers=key)
    assert (again.status_code, "idempotency-replayed" in again.headers) == (201, False), again.text


def test_a_key_on_a_segment_or_a_get_changes_nothing(admin: httpx2.Client) -> None:
    taken, key = begin(admin, name()), {"idempotency-key": name()}
    query: Json = {"meetingId": taken.meeting_id, "segmentIndex": 1}
    sent = [admin.post(f"{ME}/upload-segment", params=query, content=segments()[0], headers=key).status_code for _ in range(2)]
    assert sent == [201, 200]
    assert [admin.get(ME, headers=key).status_code for _ in range(2)] == [200, 200]


def test_a_body_beyond_the_limit_is_413_with_a_key_and_without(admin: httpx2.Client) -> None:
    for headers in ({}, {"idempotency-key": name()}):
        huge = b'{"metadata": {"a": "' + b"x" * (4 << 20) + b'"}}'
        for content in (huge, iter([huge[:100_000]] * 60)):
            problem(admin.post(ME, content=content, headers={"content-type": "application/json", **headers}), 413, "too_large")


def test_a_key_does_not_open_what_was_lost(house: House, admin: httpx2.Client, running: Taken) -> None:
    key = house.fresh_key("user", running.host)
    with house.client(key["key"]) as client:
        again = {"idempotency-key": name()}
        path = f"/api/v1/recordings/{running.id}/stop"
        assert client.post(path, headers=again).status_code == 202
        house.revoke(key["id"])
        problem(client.post(path, headers=again), 401, "bad_key")
