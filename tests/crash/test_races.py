"""Duplicates, disorder and races on one running Roomtape: whatever comes at once or twice, there is one of everything, and nobody gets a 500."""

import asyncio
import hashlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from .house import Up, up

pytestmark = pytest.mark.anyio

API = "/api/v1"
STARTED_MS = 1_795_247_205_380
DONE = {"completed", "failed"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`trash_days` 0: what is deleted may go at the next sweep."""
    with up(tmp_path_factory.mktemp("races"), env={"ROOMTAPE_TRASH_DAYS": "0"}) as running:
        yield running


@pytest.fixture
async def client(house: Up) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
    async with house.async_client(timeout=120, limits=limits) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Session:
    """One started segmented recording."""

    client: httpx2.AsyncClient
    meeting: str
    recording: str

    async def upload(self, index: int, body: bytes, **more: Any) -> httpx2.Response:
        asked = {"meetingId": self.meeting, "recordingId": self.recording, "segmentIndex": index, **more}
        return await self.client.post(f"{API}/meetings/upload-segment", params=asked, content=body)

    async def complete(self, last: int | None = None, **more: Any) -> httpx2.Response:
        asked = {"meetingId": self.meeting, "recordingId": self.recording, **more} | ({"lastSegmentIndex": last} if last else {})
        return await self.client.post(f"{API}/meetings/complete-recording", json=asked)

    async def get(self, what: str = "") -> Any:
        answer = await self.client.get(f"{API}/recordings/{self.recording}{what}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def end(self) -> dict[str, Any]:
        """The recording, once the pipeline is done with it."""
        async with asyncio.timeout(120):
            while (await self.get("/status"))["status"] not in DONE:
                await asyncio.sleep(0.1)
        seen: dict[str, Any] = await self.get()
        return seen

    async def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("/timeline"))["events"]
        return found


async def start(client: httpx2.AsyncClient) -> Session:
    answer = await client.post(f"{API}/meetings/start-recording", json={"userId": "u1"})
    assert answer.status_code == 201, answer.text
    return Session(client, answer.json()["meetingId"], answer.json()["recordingId"])


def cuts(folder: Path, count: int) -> list[bytes]:
    """One browser's file in so many arbitrary byte cuts."""
    whole = b"".join(path.read_bytes() for path in sorted(folder.glob("0*.webm")))
    edges = [len(whole) * at // count for at in range(count + 1)]
    return [whole[begin:end] for begin, end in pairwise(edges)]


def files(folder: Path) -> list[tuple[bytes, int]]:
    """Whole files of a restarted recorder, with their starts in Unix milliseconds."""
    starts = {line["i"]: line["wall_start"] for line in map(json.loads, (folder / "meta.jsonl").read_text().splitlines())}
    return [(path.read_bytes(), starts[at]) for at, path in enumerate(sorted(folder.glob("0*.webm")))]


def objects(house: Up, recording: str) -> list[Path]:
    return [path for path in (house.data / "store").rglob("*") if recording in str(path) and path.is_file()]


def rows(house: Up, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(house.database_url()) as connection:
        return connection.execute(query.encode(), values).fetchall()


def codes(answers: Sequence[httpx2.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


async def together(*calls: Awaitable[httpx2.Response]) -> list[httpx2.Response]:
    return list(await asyncio.gather(*calls))


async def test_each_segment_sent_three_times_at_once_is_one_segment(house: Up, client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    bodies = cuts(chromium / "A-opus", 12)
    answers = await together(*(session.upload(index, body) for index, body in enumerate(bodies, 1) for _ in range(3)))
    assert set(codes(answers)) <= {200, 201}, codes(answers)
    assert codes(answers)[201] == len(bodies), "exactly one of three is new"
    assert len({answer.json()["sha256"] for answer in answers}) == len(bodies)
    assert len(objects(house, session.recording)) == len(bodies)
    (await session.complete(len(bodies))).raise_for_status()
    assert (await session.end())["status"] == "completed"
    kinds = Counter(event["type"] for event in await session.events())
    assert kinds["segment.committed"] == len(bodies)
    assert kinds["recording.completed"] == 1


async def test_a_thousand_equal_uploads_at_once_are_one_object_and_one_row(house: Up, client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    body = cuts(chromium / "A-opus", 12)[0]
    async with house.async_client(timeout=240, limits=httpx2.Limits(max_connections=1000)) as many:
        crowd = Session(many, session.meeting, session.recording)
        answers = await together(*(_taken(crowd, body) for _ in range(1000)))
    assert codes(answers) == {201: 1, 200: 999}
    assert len(objects(house, session.recording)) == 1
    assert rows(house, "SELECT count(*) FROM chunks WHERE recording_id = %s", session.recording) == [(1,)]


async def _taken(session: Session, body: bytes) -> httpx2.Response:
    """The answer of a client that comes back when it is sent away: on a machine with other things to do that may happen in such a crowd."""
    while (answer := await session.upload(1, body)).status_code == 503:
        await asyncio.sleep(int(answer.headers["retry-after"]))
    return answer


@pytest.mark.parametrize("when", ["while it is recorded", "after complete"])
async def test_other_bytes_for_a_taken_index_are_refused_and_the_first_stay(house: Up, client: httpx2.AsyncClient, chromium: Path, when: str) -> None:
    session = await start(client)
    bodies = cuts(chromium / "A-opus", 3)
    for index, body in enumerate(bodies, 1):
        assert (await session.upload(index, body)).status_code == 201
    if when == "after complete":
        (await session.complete(3)).raise_for_status()
        assert (await session.end())["status"] == "completed"
    answers = await together(*(session.upload(2, bodies[1] + bytes([number])) for number in range(20)))
    assert codes(answers) == {409: 20}
    assert {answer.json()["code"] for answer in answers} == {"segment_differs"}
    again = await session.upload(2, bodies[1])
    assert again.status_code == 200, "the same bytes again are the same answer, at any time"
    there = await client.get(f"{API}/recordings/{session.recording}/segments/2")
    assert there.content == bodies[1]
    assert len(objects(house, session.recording)) == 3


async def test_of_different_bytes_for_one_index_at_once_exactly_one_wins(house: Up, client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    body = cuts(chromium / "A-opus", 12)[0]
    answers = await together(*(session.upload(1, body + bytes([number])) for number in range(30)))
    assert codes(answers) == {201: 1, 409: 29}
    won = next(answer for answer in answers if answer.status_code == 201).json()["sha256"]
    kept = await client.get(f"{API}/recordings/{session.recording}/segments/1")
    assert hashlib.sha256(kept.content).hexdigest() == won


async def _in_order(client: httpx2.AsyncClient, pieces: Sequence[tuple[int, bytes, dict[str, Any]]]) -> dict[str, Any]:
    """Uploads in the given order, completes, and returns what became of it with the digest of the file as it is downloaded."""
    session = await start(client)
    for index, body, more in pieces:
        answer = await session.upload(index, body, **more)
        assert answer.status_code == 201, answer.text
    (await session.complete(len(pieces))).raise_for_status()
    made = await session.end()
    assert made["status"] == "completed", made["error"]
    file = await client.get(made["download_url"], follow_redirects=True)
    assert file.status_code == 200
    track = made["tracks"][0]
    return {
        "sha256": made["sha256"],
        "file": hashlib.sha256(file.content).hexdigest(),
        "clock": track["clock"],
        "times": (track["start_s"], track["end_s"], made["duration_s"]),
        "gaps": made["gaps"],
        "warnings": made["warnings"],
    }


def _pieces_of(chromium: Path, kind: str) -> list[tuple[int, bytes, dict[str, Any]]]:
    """50 byte cuts of which only the one with the header says when it was, or the whole files of a restarted recorder."""
    if kind == "byte cuts":
        first = {"startedAt": STARTED_MS, "clockOffsetUs": 0}
        return [(index, body, first if index == 1 else {}) for index, body in enumerate(cuts(chromium / "A-vp8", 50), 1)]
    return [(index, body, {"startedAt": at, "clockOffsetUs": 0}) for index, (body, at) in enumerate(files(chromium / "C-vp8-overlap"), 1)]


async def _permutations(client: httpx2.AsyncClient, chromium: Path, kind: str, seeds: Sequence[int]) -> None:
    pieces = _pieces_of(chromium, kind)
    wanted = await _in_order(client, pieces)
    assert wanted["sha256"] == wanted["file"], "what is stated is what is given"
    for seed in seeds:
        shuffled = random.Random(seed).sample(pieces, len(pieces))
        assert await _in_order(client, shuffled) == wanted, f"seed {seed}"


@pytest.mark.parametrize("kind", ["byte cuts", "whole files"])
async def test_segments_in_any_order_make_the_same_file(client: httpx2.AsyncClient, chromium: Path, kind: str) -> None:
    await _permutations(client, chromium, kind, range(4))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["byte cuts", "whole files"])
async def test_segments_in_twenty_orders_make_the_same_file(client: httpx2.AsyncClient, chromium: Path, kind: str) -> None:
    await _permutations(client, chromium, kind, range(100, 120))


async def test_complete_before_the_last_arrives_names_exactly_what_is_missing(client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    bodies = cuts(chromium / "A-opus", 50)
    late = {7, 8, 20, 49, 50}
    for index, body in enumerate(bodies, 1):
        if index not in late:
            assert (await session.upload(index, body)).status_code == 201
    refused = await session.complete(50)
    assert refused.status_code == 409
    assert refused.json()["code"] == "segments_missing"
    assert refused.json()["missing"] == [{"trackId": "1", "from": first, "to": last} for first, last in ((7, 8), (20, 20), (49, 50))]
    for index in sorted(late):
        assert (await session.upload(index, bodies[index - 1])).status_code == 201, "a refused complete closes nothing"
    assert (await session.complete(50)).status_code == 202
    made = await session.end()
    assert made["status"] == "completed"
    assert made["gaps"] == []


async def test_a_complete_that_allows_gaps_reports_them_and_late_segments_are_refused(client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    pieces = files(chromium / "B-opus")
    for index, (body, at) in enumerate(pieces, 1):
        if index != 3:
            assert (await session.upload(index, body, startedAt=at, clockOffsetUs=0)).status_code == 201
    assert (await session.complete(len(pieces))).status_code == 409
    assert (await session.complete(len(pieces), allowGaps=True)).status_code == 202
    late = await session.upload(3, pieces[2][0], startedAt=pieces[2][1], clockOffsetUs=0)
    assert late.status_code == 409
    assert late.json()["code"] == "recording_completed"
    made = await session.end()
    assert made["status"] == "completed"
    assert [gap["segment_index"] for gap in made["gaps"] if gap["end_s"] - gap["start_s"] > 1] == [3]
    late = await session.upload(3, pieces[2][0], startedAt=pieces[2][1], clockOffsetUs=0)
    assert (late.status_code, late.json()["code"]) == (409, "recording_completed")


async def test_a_hundred_completes_and_stops_at_once_are_one_job(house: Up, client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    for index, body in enumerate(cuts(chromium / "A-opus", 6), 1):
        assert (await session.upload(index, body)).status_code == 201
    stops = [client.post(f"{API}/recordings/{session.recording}/stop") for _ in range(100)]
    completes = [session.complete(6) for _ in range(100)]
    answers = await together(*(call for pair in zip(stops, completes, strict=True) for call in pair))
    assert codes(answers) == {202: 200}
    assert len({answer.json()["jobId"] for answer in answers[1::2]} - {None}) == 1
    assert (await session.end())["status"] == "completed"
    kinds = Counter(event["type"] for event in await session.events())
    assert [kinds[f"recording.{name}"] for name in ("stopped", "processing", "completed")] == [1, 1, 1]
    made = rows(house, "SELECT kind FROM artifacts WHERE recording_id = %s", session.recording)
    assert Counter(made)[("original",)] == 1


async def test_of_a_hundred_starts_in_one_room_one_records(client: httpx2.AsyncClient) -> None:
    made = await client.post(f"{API}/meetings", json={"room_code": "crowded", "host_id": "h"})
    meeting = made.json()["id"]
    answers = await together(*(client.post(f"{API}/meetings/{meeting}/recording/start", json={}) for _ in range(100)))
    assert codes(answers) == {201: 1, 409: 99}
    one = next(answer for answer in answers if answer.status_code == 201).json()["recording_id"]
    assert {answer.json()["recording_id"] for answer in answers if answer.status_code == 409} == {one}
    joined = await together(*(client.post(f"{API}/meetings/start-recording", json={"userId": "u1", "meetingId": meeting}) for _ in range(20)))
    assert codes(joined) == {200: 20}
    assert {answer.json()["recordingId"] for answer in joined} == {one}
    assert len({answer.json()["trackId"] for answer in joined}) == 20, "each browser has a track of its own"


async def test_a_hundred_first_browsers_of_a_new_room_share_one_recording(client: httpx2.AsyncClient) -> None:
    asked = {"userId": "u1", "meetingId": "brand-new"}
    answers = await together(*(client.post(f"{API}/meetings/start-recording", json=asked) for _ in range(100)))
    assert set(codes(answers)) <= {200, 201}, Counter(answer.text for answer in answers if answer.status_code > 201)
    assert codes(answers)[201] == 1
    assert len({answer.json()["recordingId"] for answer in answers}) == 1
    assert len({answer.json()["trackId"] for answer in answers}) == 100


async def test_start_while_stop_runs_never_makes_two_open_recordings(house: Up, client: httpx2.AsyncClient) -> None:
    made = await client.post(f"{API}/meetings", json={"room_code": "revolving", "host_id": "h"})
    meeting = made.json()["id"]
    (await client.post(f"{API}/meetings/{meeting}/recording/start", json={})).raise_for_status()
    for _ in range(5):
        doors = [client.post(f"{API}/meetings/{meeting}/recording/{verb}", json={} if verb == "start" else None) for verb in ["stop", "start"] * 10]
        answers = await together(*doors)
        assert set(codes(answers)) <= {200, 201, 409}, codes(answers)
    open_now = rows(house, "SELECT count(*) FROM recordings WHERE meeting_id = %s AND status IN ('pending', 'recording', 'paused')", meeting)
    assert open_now[0][0] <= 1
    history = rows(
        house,
        "SELECT r.id, count(*) FROM recordings r JOIN events e ON e.recording_id = r.id WHERE r.meeting_id = %s AND e.type = 'recording.stopped' GROUP BY 1",
        meeting,
    )
    assert all(stops == 1 for _, stops in history)


async def test_delete_while_it_is_processed_uploaded_and_downloaded_leaves_nothing(house: Up, client: httpx2.AsyncClient, chromium: Path) -> None:
    session = await start(client)
    bodies = cuts(chromium / "A-vp8", 12)
    for index, body in enumerate(bodies, 1):
        assert (await session.upload(index, body)).status_code == 201
    (await session.complete(12)).raise_for_status()
    url = f"{API}/recordings/{session.recording}"
    calls = [client.delete(url) for _ in range(10)]
    calls += [session.upload(index, body) for index, body in enumerate(bodies, 1)]
    calls += [session.complete(12) for _ in range(10)]
    calls += [client.get(f"{url}/download") for _ in range(10)]
    calls += [client.post(f"{url}/playback", json={}) for _ in range(10)]
    answers = await together(*calls)
    assert {code for code in codes(answers) if code >= 500} == set(), codes(answers)
    assert codes(answers[:10]) == {200: 10}
    assert (await client.get(url)).status_code == 404
    await _purged(house, session.recording)
    assert objects(house, session.recording) == []


async def _purged(house: Up, recording: str) -> None:
    """A worker sweeps when it starts: one that is killed and restarted sweeps now."""
    os.kill(house.parts()["work"], signal.SIGTERM)
    async with asyncio.timeout(60):
        while rows(house, "SELECT 1 FROM recordings WHERE id = %s", recording):
            await asyncio.sleep(0.1)


async def test_nobody_was_answered_with_a_fault_of_ours(house: Up) -> None:
    """Last: the log of all of the above."""
    assert house.running.events("request.crashed") == []
    assert {event["code"] for event in house.running.events("request.failed")} <= {"unavailable"}
