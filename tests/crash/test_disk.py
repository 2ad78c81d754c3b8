"""Disks that fail and disks that are full: never a 2xx for bytes that are not on the disk, and all goes on when the disk is well again."""

import os
import random
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from roomtape.db.embedded import binaries
from roomtape.testing.servers import require

from .client import Client, Ledger, script
from .judge import Place, j1, j4, j7, judge_meeting
from .stage import Stage, staged
from .strike import Trace, attached, named, strace, survey

MIB = 1 << 20
FULL_BYTES, ROOM_BYTES = 64 * MIB, 400 * MIB
CLIENTS, SEGMENTS = 20, 10  # of 1 MiB each
AGAIN_S = 10.0
FAULTS = (("fsync", "EIO"), ("fsync", "ENOSPC"), ("write", "ENOSPC"), ("write", "EIO"), ("rename", "ENOSPC"), ("rename", "EIO"))
CI_ROUNDS, LONG_ROUNDS = 2, 12


def place(stage: Stage) -> Place:
    return Place(stage.url, stage.store, stage.work, frozenset(stage.pids))


@pytest.fixture(scope="module")
def program() -> str:
    return strace()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged(("serve", "work")) as running:
        yield running


@pytest.fixture(scope="module")
def client(stage: Stage) -> Iterator[Client]:
    with Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as opened:
        yield opened


@pytest.mark.parametrize(("calls", "error", "status"), [("fsync", "EIO", 503), ("fsync", "ENOSPC", 507), ("write", "ENOSPC", 507), ("rename", "EIO", 503)])
def test_while_the_disk_fails_nothing_is_acknowledged(stage: Stage, client: Client, program: str, chromium: Path, calls: str, error: str, status: int) -> None:
    what = script(chromium / "B-opus", 1)
    meeting, recording = stage.during(lambda: client.start(f"{calls} {error}"))
    heard = len(client.answers)
    with attached(program, stage.victims("serve"), stage.folder / "strace.log", "-e", f"trace={named(calls)}", "-e", f"inject={named(calls)}:error={error}"):
        names = {"meetingId": meeting, "recordingId": recording, "segmentIndex": 1, "trackId": "1"}
        said = [client.once("POST", "/api/v1/meetings/upload-segment", params=names, content=what.files[0].read_bytes()) for _ in range(3)]
    assert [answer.status_code for answer in said if answer is not None] == [status] * 3
    assert client.ask("GET", f"/api/v1/recordings/{recording}/segments", 200).json() == {"segments": []}
    assert j7(client.answers[heard:], client.limit_s) == []
    stage.during(lambda: client.upload(meeting, recording, 1, what.files[0].read_bytes()))
    assert j1(client, client.ledger.of(recording)) == []
    assert stage.falls == {}, "the process went on"


def _only_once(trace: Trace) -> None:
    """strace counts for each process: left alone it would fail the Nth call of every new one too, and a database that starts again would never come up."""
    if "(INJECTED)" in trace.text():
        trace.stop()


def failing_rounds(stage: Stage, client: Client, program: str, chromium: Path, rounds: int) -> None:
    """Meetings in each of which one call of a kind fails, the Nth of a thread; of the API and of PostgreSQL in turn."""
    seed = int(os.environ.get("ROOMTAPE_SEED") or secrets.randbits(32))
    print(f"ROOMTAPE_SEED={seed}")
    chance, log, what, wrong, hit = random.Random(seed), stage.folder / "strace.log", script(chromium / "B-opus", 4), [], 0
    reach: dict[str, dict[str, int]] = {}
    for victim in ("serve", "postgres"):
        with attached(program, stage.victims(victim), log, "-e", "trace=" + ",".join(named(calls) for calls in ("fsync", "write", "rename"))) as trace:
            stage.during(lambda victim=victim: client.play(what, f"survey {victim} {seed}"))  # type: ignore[misc]
        reach[victim] = survey(trace)
    for turn in range(rounds):
        for calls, error in FAULTS:
            victim = "postgres" if turn % 2 and reach["postgres"][calls] else "serve"
            nth = chance.randint(1, max(1, reach[victim][calls]))
            heard = len(client.answers)
            with attached(program, stage.victims(victim), log, "-e", f"trace={named(calls)}", "-e", f"inject={named(calls)}:error={error}:when={nth}") as trace:
                name, once = f"{seed} {turn} {calls} {error} {nth}", partial(_only_once, trace)
                played = stage.during(lambda name=name: client.play(what, name), once)  # type: ignore[misc]
            hit += "(INJECTED)" in trace.text()
            stage.ready()
            found = judge_meeting(client, played) + j4(place(stage)) + j7(client.answers[heard:], client.limit_s)
            wrong += [f"{victim} {calls} {nth} {error}: {fault}" for fault in found]
    print(f"{hit} of {rounds * len(FAULTS)} meetings with a failed call; {len(client.ledger.acks())} acknowledged segments; restarts {stage.falls}")
    assert not wrong, f"ROOMTAPE_SEED={seed}\n" + "\n".join(wrong)
    assert hit >= rounds * len(FAULTS) // 2
    assert stage.during(lambda: j1(client, client.ledger.acks())) == []


@pytest.mark.timeout(600)
def test_a_call_that_fails_once_costs_no_segment(stage: Stage, client: Client, program: str, chromium: Path) -> None:
    failing_rounds(stage, client, program, chromium, CI_ROUNDS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_calls_that_fail_once_cost_no_segment(stage: Stage, client: Client, program: str, chromium: Path) -> None:
    failing_rounds(stage, client, program, chromium, LONG_ROUNDS)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MB in memory on `folder`, gone at the end."""
    folder.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES},mode=0711", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    require(folder if made.returncode == 0 else None, f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def give_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={ROOM_BYTES}", str(folder)], check=True)


def undamaged(stage: Stage) -> None:
    """Every page of the stopped database has its checksum, after all of it could be read."""
    bin_folder = binaries()
    read = subprocess.run([bin_folder / "pg_dump", "--dbname", stage.url], capture_output=True, check=False)
    assert read.returncode == 0, read.stderr[-500:]
    stage.end()
    account = stage.postgres._account
    user = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    checked = subprocess.run(
        [bin_folder / "pg_checksums", "--check", "-D", stage.folder / "database" / "data"], capture_output=True, cwd="/", check=False, **user
    )  # type: ignore[call-overload]
    assert checked.returncode == 0, checked.stderr[-500:] + checked.stdout[-500:]


class Crowd:
    """Twenty clients that upload 200 MB in all, one ledger for all of them."""

    def __init__(self, stage: Stage, ledger: Ledger) -> None:
        key = stage.key()
        self.clients = [Client(stage.base, key, ledger, patience_s=180) for _ in range(CLIENTS)]
        self.acked_at = [time.monotonic()]
        self._lock = threading.Lock()

    def upload(self) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(self._one, number, client) for number, client in enumerate(self.clients)]:
                done.result()

    def _one(self, number: int, client: Client) -> None:
        with client:
            meeting, recording = client.start(f"crowd-{number}")
            for index in range(1, SEGMENTS + 1):
                client.upload(meeting, recording, index, random.Random(number * 1000 + index).randbytes(MIB))
                with self._lock:
                    self.acked_at.append(time.monotonic())

    def refused(self) -> int:
        return sum(answer.status in {503, 507} for client in self.clients for answer in client.answers)


def through_a_full_disk(stage: Stage, disk: Path, chromium: Path) -> None:
    """Fills the disk, waits until nobody gets an ack, gives it room, and sees that all goes on from there."""
    ledger = Ledger(stage.folder / "ledger")
    crowd, given = Crowd(stage, ledger), [0.0]
    with Client(stage.base, stage.key(), ledger, patience_s=180) as client:
        before = stage.during(lambda: client.play(script(chromium / "B-opus", 3), "before"))

        def watch() -> None:
            if not given[0] and crowd.refused() >= CLIENTS and time.monotonic() - crowd.acked_at[-1] > 2:
                given[0] = time.monotonic()
                give_room(disk)

        stage.during(crowd.upload, watch)
        assert given[0], "the disk was never full"
        again_s = min(at for at in crowd.acked_at if at > given[0]) - given[0]
        full = sum(at <= given[0] for at in crowd.acked_at) - 1
        print(
            f"{full} of {CLIENTS * SEGMENTS} segments before the disk was full, {crowd.refused()} refusals, again after {again_s:.1f} s; restarts {stage.falls}"
        )
        assert again_s <= AGAIN_S
        after = stage.during(lambda: client.play(script(chromium / "B-opus", 3), "after"))
        for played in (before, after):
            assert judge_meeting(client, played) == []
        assert len(ledger.acks()) == CLIENTS * SEGMENTS + 6
        assert stage.during(lambda: j1(client, ledger.acks())) == []
    assert j4(place(stage)) == []
    assert j7([answer for one in crowd.clients for answer in one.answers], client.limit_s) == []
    undamaged(stage)


@pytest.mark.timeout(600)
def test_a_full_store_takes_no_more_says_so_and_goes_on_when_there_is_room(tmp_path: Path, chromium: Path) -> None:
    with staged(("serve", "work"), disk=small_disk) as stage:
        through_a_full_disk(stage, stage.store, chromium)
