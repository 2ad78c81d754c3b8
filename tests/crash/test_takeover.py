"""Workers that are frozen or killed in the middle of a job: another one does it, exactly once, and one that wakes from the dead changes nothing."""

import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .client import Client, Ledger, Played, Script, script
from .house import Program, program, until
from .judge import j3, judge_meeting
from .stage import Stage, staged

DONE = {"completed", "failed"}


@dataclass(slots=True)
class Crew:
    """A stage without workers, a client, and the workers a test puts beside."""

    stage: Stage
    client: Client
    stack: ExitStack
    workers: list[Program] = field(default_factory=list)

    def worker(self, **more: str) -> Program:
        """One more worker."""
        name = f"worker-{len(list(self.stage.folder.glob('worker-*.log')))}"
        one = self.stack.enter_context(program(self.stage.folder, name, "work", env={**self.stage.environment(), **more}))
        self.workers.append(one)
        return one

    def play(self, what: Script, code: str, *, without: int | None = None) -> Played:
        """Records up to complete; the pipeline is not waited for."""
        meeting, recording = self.client.start(code)
        for at, path in enumerate(what.files):
            if at + 1 != without:
                self.client.upload(meeting, recording, at + 1, path.read_bytes(), started_ms=what.started_ms[at])
        body = {"meetingId": meeting, "recordingId": recording, "lastSegmentIndex": len(what.files), "allowGaps": without is not None}
        self.client.ask("POST", "/api/v1/meetings/complete-recording", 202, json=body)
        return Played(meeting, recording, "processing", what)

    def view(self, played: Played) -> dict[str, Any]:
        seen: dict[str, Any] = self.client.ask("GET", f"/api/v1/recordings/{played.recording}", 200).json()
        return seen

    def ended(self, played: Played, *, within_s: float = 60) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            seen = self.view(played)
            return seen if seen["status"] in DONE else None

        return until(f"{played.meeting} ends", look, within_s=within_s)

    def events(self, played: Played) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.ask("GET", f"/api/v1/recordings/{played.recording}/timeline", 200).json()["events"]
        return found

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stage.url) as connection:
            return connection.execute(query.encode(), values).fetchall()


def begun(worker: Program, played: Played, step: str) -> bool:
    """Whether the worker's log says that it has begun the step."""
    return any(said["recording"] == played.recording and said["step"] == step for said in worker.events("step.started"))


@pytest.fixture(scope="module")
def house() -> Iterator[Stage]:
    with staged(("serve",)) as stage:
        yield stage


@pytest.fixture
def crew(house: Stage, tmp_path: Path) -> Iterator[Crew]:
    with ExitStack() as stack:
        client = stack.enter_context(Client(house.base, house.key(), Ledger(tmp_path / "ledger"), patience_s=120))
        yield Crew(house, client, stack)


def test_a_worker_frozen_in_a_step_changes_nothing_when_it_wakes(crew: Crew, chromium: Path) -> None:
    first, second = crew.worker(), crew.worker()
    frozen = played = None
    for attempt in range(10):  # the step may be over before we stop the worker
        played = crew.play(script(chromium / "A-vp8"), f"frozen-{attempt}")
        frozen = until("a worker is at the original", lambda: next((one for one in (first, second) if begun(one, played, "original")), None), pause_s=0.002)  # noqa: B023
        frozen.tell(signal.SIGSTOP)
        if crew.view(played)["status"] == "processing":
            break
        frozen.tell(signal.SIGCONT)
    assert played is not None
    assert frozen is not None
    heir = second if frozen is first else first
    assert crew.ended(played)["status"] == "completed"
    assert begun(heir, played, "complete")
    before = crew.view(played), crew.events(played), crew.rows("SELECT * FROM artifacts WHERE recording_id = %s ORDER BY id", played.recording)
    frozen.tell(signal.SIGCONT)
    heir.tell(signal.SIGTERM)
    assert heir.wait() == 0
    later = crew.play(script(chromium / "A-opus"), "after-the-thaw")
    assert crew.ended(later)["status"] == "completed", "who was dead works again"
    until(
        "its old job has ended",
        lambda: not list(crew.stage.work.glob("job-*")) and crew.rows("SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'") == [(0,)],
    )
    assert not begun(frozen, played, "complete")
    after = crew.view(played), crew.events(played), crew.rows("SELECT * FROM artifacts WHERE recording_id = %s ORDER BY id", played.recording)
    assert after == before
    assert judge_meeting(crew.client, played) == []


@pytest.mark.parametrize("step", ["take_up", "original", "complete"])
def test_work_of_a_worker_killed_in_a_step_is_done_by_another(crew: Crew, chromium: Path, step: str) -> None:
    doomed = crew.worker()
    played = crew.play(script(chromium / "A-vp8"), f"killed-{step}", without=5 if step == "take_up" else None)
    until(f"the worker is at {step}", lambda: begun(doomed, played, step), pause_s=0.002)
    doomed.tell(signal.SIGKILL)
    doomed.wait()
    crew.worker()
    made = crew.ended(played)
    assert made["status"] == "completed", made["error"]
    assert j3(crew.events(played)) == []
    assert Counter(event["type"] for event in crew.events(played))["recording.completed"] == 1
    assert [one["kind"] for one in made["artifacts"]].count("original") == 1
    if step != "take_up":
        assert judge_meeting(crew.client, played) == []
    else:
        assert made["gaps"], "the hole is told"


@pytest.mark.long
def test_dead_work_goes_on_within_a_minute_as_it_comes_out_of_the_box(crew: Crew, chromium: Path) -> None:
    doomed = crew.worker(ROOMTAPE_HEARTBEAT_S="10")
    played = crew.play(script(chromium / "A-vp8"), "killed-by-default")
    until("the worker is at the original", lambda: begun(doomed, played, "original"), pause_s=0.002)
    doomed.tell(signal.SIGKILL)
    doomed.wait()
    crew.worker(ROOMTAPE_HEARTBEAT_S="10")
    assert crew.ended(played, within_s=60)["status"] == "completed"


def test_a_recording_that_kills_its_workers_is_left_alone_and_the_others_go_on(crew: Crew, chromium: Path) -> None:
    worker = crew.worker()
    poison = crew.play(script(chromium / "A-vp8"), "poison")
    for _ in range(3):
        until("the poison is taken", lambda: begun(worker, poison, "original"), pause_s=0.002)  # noqa: B023
        worker.tell(signal.SIGKILL)
        worker.wait()
        worker = crew.worker()
    error = until("its error is told", lambda: crew.view(poison)["error"])
    assert error["code"] == "workers_lost"
    assert error["retry_at"] > crew.view(poison)["created_at"]
    assert crew.view(poison)["status"] == "processing", "it is our fault, not the media's"
    good = crew.play(script(chromium / "A-opus"), "good")
    assert crew.ended(good)["status"] == "completed"
    fresh = crew.worker()  # a worker looks for forgotten work as soon as it starts
    until("it is at work", lambda: crew.rows("SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '3 seconds'")[0][0] >= 2)
    until("it has looked", lambda: fresh.said("round") or crew.ended(crew.play(script(chromium / "A-opus", 1), "probe"))["status"] == "completed")
    assert not begun(worker, poison, "original")
    assert not begun(fresh, poison, "original")
    crew.rows("UPDATE recordings SET error = jsonb_set(error, '{retry_at}', '\"2020-01-01T00:00:00Z\"') WHERE id = %s RETURNING 1", poison.recording)
    crew.worker()
    assert crew.ended(poison)["status"] == "completed", "it is tried again when its hour is over"
    assert crew.view(poison)["error"] is None


def test_a_worker_that_is_told_to_end_ends_and_its_work_goes_on_elsewhere(crew: Crew, chromium: Path) -> None:
    leaving = crew.worker()
    played = crew.play(script(chromium / "A-vp8"), "leaving")
    until("the worker is at the original", lambda: begun(leaving, played, "original"), pause_s=0.002)
    leaving.tell(signal.SIGTERM)
    assert leaving.wait(30) == 0
    assert not re.search(r"Traceback", leaving.log.read_text())
    crew.worker()
    assert crew.ended(played)["status"] == "completed"
    assert judge_meeting(crew.client, played) == []
