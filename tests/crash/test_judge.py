"""The judge sees what it is there for: each rule is shown a breach and says so."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .client import CUT, OVERLONG, Ack, Answer, Client, Ledger, Played, script
from .judge import Place, compared, j1, j2, j3, j4, j7, judge_meeting, originals, orphaned, packets
from .stage import Stage, kill, staged, until


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as running:
        yield running


@pytest.fixture(scope="module")
def client(stage: Stage) -> Iterator[Client]:
    with Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as opened:
        yield opened


@pytest.fixture
def played(stage: Stage, client: Client, request: pytest.FixtureRequest) -> Played:
    data = Path(__file__).parents[1] / "data" / "chromium"
    return stage.during(lambda: client.play(script(data / "B-opus", 3), request.node.name))


def place(stage: Stage) -> Place:
    return Place(stage.url, stage.store, stage.work, frozenset(stage.pids))


def key_of(stage: Stage, ack: Ack) -> str:
    with psycopg.connect(stage.url) as connection:
        row = connection.execute("SELECT key FROM chunks WHERE recording_id = %s AND index = %s", [ack.recording, ack.index]).fetchone()
    assert row is not None
    return str(row[0])


def event(seq: int, status: str | None = None) -> dict[str, Any]:
    return {"type": "recording.x", "data": {"seq": seq} | ({"status": status} if status else {})}


def test_nothing_is_wrong_with_an_undisturbed_meeting(stage: Stage, client: Client, played: Played) -> None:
    assert judge_meeting(client, played) == []
    assert j4(place(stage)) == []
    assert j7(client.answers, client.limit_s) == []
    assert len(client.ledger.of(played.recording)) == 3


def test_a_lost_and_a_changed_segment_are_seen(stage: Stage, client: Client, played: Played) -> None:
    acks = client.ledger.of(played.recording)
    first, second = (stage.store / key_of(stage, ack) for ack in acks[:2])
    before = second.read_bytes()
    second.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert j1(client, acks) == [f"J1: segment 2 of {played.recording} has other bytes than were acknowledged"]
    assert any("packets" in fault or "sha256" in fault for fault in j2(client, played, acks))
    second.write_bytes(before)
    with psycopg.connect(stage.url) as connection:
        connection.execute("DELETE FROM chunks WHERE recording_id = %s AND index = 1", [played.recording])
    assert j1(client, acks) == [f"J1: segment 1 of {played.recording} was acknowledged and is gone"]
    assert any("1 are missing" in fault for fault in j2(client, played, acks))
    assert [fault for fault in j4(place(stage)) if "no row" in fault] == [], "the cleaning takes the orphan"
    assert not first.exists()


def test_an_ack_that_the_client_has_not_got_is_seen(client: Client, played: Played) -> None:
    longer = replace(played, script=replace(played.script, files=played.script.files * 2))
    assert "J1: the client has not got all its acks" in judge_meeting(client, longer)


def test_a_recording_that_failed_is_seen(stage: Stage, client: Client) -> None:
    def empty() -> Played:
        meeting, recording = client.start("nothing came")
        return Played(meeting, recording, client.finish(meeting, recording, 0), script(Path(__file__).parents[1] / "data" / "chromium" / "B-opus", 1))

    ended = stage.during(empty)
    assert ended.status == "failed"
    assert any("ended as failed" in fault for fault in judge_meeting(client, ended))


def test_missing_doubled_and_swapped_packets_and_originals_are_seen(chromium: Path) -> None:
    bodies = [path.read_bytes() for path in sorted((chromium / "B-opus").glob("*.webm"))[:2]]
    whole = packets(bodies)["audio"]
    assert len(whole) > 100
    assert compared("packets", whole, whole) == []
    assert "1 are missing" in compared("packets", whole, whole[1:])[0]
    assert "1 are doubled" in compared("packets", whole, [*whole, whole[-1]])[0]
    assert "1 are others'" in compared("packets", whole, [*whole, hashlib.sha256().hexdigest()])[0]
    assert "the order of" in compared("packets", whole, whole[::-1])[0]
    one = {"kind": "original", "state": "ready"}
    assert (originals([one]), originals([]), originals([one, one])) == ([], ["J2: 0 originals instead of 1"], ["J2: 2 originals instead of 1"])


def test_an_illegal_step_a_hole_and_a_second_end_in_the_history_are_seen() -> None:
    good = ["recording", "stopped", "stopped", "processing", "completed"]
    assert j3([event(at + 1, status) for at, status in enumerate(good)]) == []
    assert j3([event(1, "recording"), event(2), event(3, "processing")]) == ["J3: recording became processing"]
    assert j3([event(1), event(3)]) == ["J3: the numbers of events have holes or doubles: [1, 3]"]
    assert j3([event(1), event(1)]) != []
    assert j3([event(at + 1, status) for at, status in enumerate([*good, "recording"])]) == ["J3: completed became recording"]
    assert j3([event(at + 1, status) for at, status in enumerate([*good, "completed"])]) == ["J3: it was completed 2 times"]


def test_a_row_without_its_object_is_seen_and_an_object_without_its_row_goes(stage: Stage, client: Client, played: Played) -> None:
    ack = client.ledger.of(played.recording)[0]
    path = stage.store / key_of(stage, ack)
    body = path.read_bytes()
    orphan = path.with_name(f"{1:010d}-{0:032x}")
    orphan.write_bytes(body)
    path.unlink()
    assert j4(place(stage)) == [f"J4: the row of {path.relative_to(stage.store)} has no object"]
    assert not orphan.exists()
    path.write_bytes(body[:-1])
    assert [fault for fault in j4(place(stage)) if "its row says" in fault]
    path.write_bytes(body)
    assert j4(place(stage)) == []


def test_a_temporary_file_whose_owner_lives_and_a_lease_without_end_are_seen(stage: Stage, played: Played) -> None:
    temporary = stage.store / ".tmp" / "1-planted"
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert j4(place(stage)) == ["J4: 1 temporary files are left: ['1-planted']"]
        holder.kill()
    assert j4(place(stage)) == [], "its owner is dead now"
    with psycopg.connect(stage.url, autocommit=True) as connection:
        row = [played.recording]
        connection.execute("DELETE FROM leases WHERE recording_id = %s", row)
        connection.execute("INSERT INTO leases (recording_id, holder, fence, until) VALUES (%s, 'ghost', 0, 'infinity')", row)
        assert j4(place(stage)) == ["J4: 1 leases stand for ever"]
        connection.execute("DELETE FROM leases WHERE recording_id = %s", row)


def test_a_job_folder_of_a_living_owner_is_seen(stage: Stage) -> None:
    folder = stage.work / "job-planted"
    folder.mkdir()
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert j4(place(stage)) == ["J4: 1 temporary files are left: ['job-planted']"]
        holder.kill()
    assert j4(place(stage)) == []


def test_a_child_that_outlives_its_parent_is_seen() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "pass"])
    parent.wait()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # roomtape.media.child", str(parent.pid)])
    try:
        until(lambda: b"roomtape.media" in Path(f"/proc/{child.pid}/cmdline").read_bytes(), "the child has not started")
        assert orphaned(frozenset({parent.pid})) == [child.pid]
        assert orphaned(frozenset({os.getpid()})) == []
    finally:
        kill([child.pid])
        child.wait()


def test_a_late_answer_a_500_and_a_refusal_without_a_time_are_seen() -> None:
    good = [Answer("GET", "/", 200, 0.1), Answer("GET", "/", 503, 0.1, "2"), Answer("GET", "/", CUT, 0.1), Answer("GET", "/", 404, 0.1)]
    assert j7(good, 30) == []
    for bad in (
        Answer("GET", "/", OVERLONG, 30.0),
        Answer("GET", "/", 200, 31.0),
        Answer("GET", "/", 500, 0.1),
        Answer("GET", "/", 502, 0.1),
        Answer("GET", "/", 503, 0.1),
        Answer("GET", "/", 507, 0.1, "soon"),
    ):
        assert len(j7([*good, bad], 30)) == 1, bad


def test_the_ledger_survives_its_owner(tmp_path: Path) -> None:
    ack = Ack("m", "r", "1", 1, "0" * 64, 5, 201, time.time_ns() // 1000)
    Ledger(tmp_path / "ledger").note(ack)
    assert Ledger(tmp_path / "ledger").acks() == [ack]
