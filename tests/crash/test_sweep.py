"""Killed at the Nth system call, everywhere: nothing acknowledged is lost, and every meeting ends as one whole recording."""

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from .client import Client, Ledger, Played, Script, UnexpectedAnswerError, script
from .judge import Place, j1, j4, j7, judge_meeting, settled
from .stage import Stage, staged
from .strike import Point, attached, named, strace, survey, watch

CI_POINTS = {"serve": 10, "work": 8, "postgres": 22}
LONG_POINTS = {"postgres": 140, "serve": 40, "work": 24}
RECOVERY_S = 60.0
_SETS_OF = {
    "serve": ("fsync", "rename", "write", "send", "unlink"),
    "work": ("write", "send", "unlink"),
    "postgres": ("fsync", "rename", "write", "send", "unlink"),
}


@dataclass(slots=True)
class Sweep:
    """One stage under many blows. `struck`: where each kill hit; `faults`: what was wrong after which."""

    stage: Stage
    client: Client
    program: str
    scripts: tuple[Script, ...]
    chance: random.Random
    struck: dict[Point, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    reach: dict[tuple[str, str, str], int] = field(default_factory=dict)  # by victim, script and set of calls
    slowest_s: float = 0.0
    played: int = 0

    @property
    def log(self) -> Path:
        return self.stage.folder / "strace.log"

    @property
    def next_script(self) -> Script:
        return self.scripts[self.played % len(self.scripts)]

    def meeting(self, victim: str, watch_it: Callable[[], None] = lambda: None) -> Played:
        """A meeting from start to end, while the stage is tended. For PostgreSQL with checkpoints, which rename and unlink."""
        what, code = self.next_script, f"sweep-{self.played}"
        self.played += 1
        between = self._checkpoint if victim == "postgres" else lambda _: None
        return self.stage.during(lambda: self.client.play(what, code, between), watch_it)

    def _checkpoint(self, index: int) -> None:
        if index % 2 == 0:
            with suppress(psycopg.OperationalError), psycopg.connect(self.stage.url, autocommit=True, connect_timeout=5) as connection:
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CHECKPOINT")

    def settle(self) -> None:
        """All parts are up again: a blow has to meet a running process, not one that is starting."""
        self.stage.tend()
        self.stage.ready()
        self.stage.worker_ready()

    def look(self, victim: str) -> None:
        """Counts the victim's calls in one undisturbed meeting of each script."""
        for _ in self.scripts:
            name = self.next_script.name
            every = ",".join(named(calls) for calls in _SETS_OF[victim])
            with attached(self.program, self.stage.victims(victim), self.log, "-e", f"trace={every}") as trace:
                self.judge(self.meeting(victim), f"{victim} undisturbed", 0)
            self.reach |= {(victim, name, calls): most for calls, most in survey(trace).items()}

    def strike(self, point: Point) -> None:
        """One meeting with one kill, if it comes to that, and the judge."""
        self.settle()
        heard, begun, place = len(self.client.answers), time.monotonic(), (point.victim, self.next_script.name, point.calls)
        inject = f"inject={named(point.calls)}:signal=SIGKILL:when={point.nth}"
        with attached(self.program, self.stage.victims(point.victim), self.log, "-e", f"trace={named(point.calls)}", "-e", inject) as trace:
            try:
                played = self.meeting(point.victim, lambda: watch(self.stage, point, trace))
            except UnexpectedAnswerError as wrong:
                self.faults.append(f"{point} at {trace.killed_at(point.calls, point.nth)}: {wrong}")
                return
            watch(self.stage, point, trace)
        where = trace.killed_at(point.calls, point.nth)
        took_s = time.monotonic() - begun
        if where is None:
            self.reach[place] = min(self.reach[place], survey(trace)[point.calls])  # the next one shall hit
        else:
            self.struck[point] = where
            self.slowest_s = max(self.slowest_s, took_s)
            print(f"{len(self.struck)}. {point}: {where[:80]}", flush=True)
        self.settle()
        self.judge(played, f"{point} at {where}", heard)
        if took_s > RECOVERY_S:
            self.faults.append(f"{point} at {where}: the meeting took {took_s:.0f} s")

    def judge(self, played: Played, after: str, heard: int) -> None:
        """All rules, with the name of the blow before each sentence."""
        self.stage.during(lambda: settled(self.stage.url))  # the blow may have struck when the meeting was over: the dead are started again meanwhile
        place = Place(self.stage.url, self.stage.store, self.stage.work, frozenset(self.stage.pids))
        found = judge_meeting(self.client, played) + j4(place) + j7(self.client.answers[heard:], self.client.limit_s)
        self.faults += [f"{after}: {fault}" for fault in found]
        for fault in found:
            print(f"{after}: {fault}", flush=True)

    def points(self, victim: str) -> Iterator[Point]:
        """Endless: sets in turn, the number by chance; of PostgreSQL every other blow takes the whole server."""
        turn = 0
        while True:
            for calls in _SETS_OF[victim]:
                turn += 1
                most = self.reach[victim, self.next_script.name, calls]
                if most:
                    yield Point(victim, calls, self.chance.randint(1, most), whole=victim == "postgres" and turn % 2 == 0)

    def run(self, wanted: dict[str, int]) -> None:
        """So many distinct kills of each victim; ends early at the tenth fault."""
        for victim, count in wanted.items():
            self.settle()
            self.look(victim)
            tried: set[Point] = set()
            points = self.points(victim)
            for _ in range(count * 20):
                if sum(point.victim == victim for point in self.struck) >= count or len(self.faults) >= 10:
                    break
                point = next(points)
                if point not in tried:
                    tried.add(point)
                    self.strike(point)

    def told(self) -> str:
        """The counts, for people."""
        lines = [f"{len(self.struck)} distinct kill points, {len(self.client.ledger.acks())} acknowledged segments, {self.played} meetings"]
        lines += [f"slowest meeting with a kill {self.slowest_s:.1f} s; restarts {self.stage.falls}"]
        for victim in CI_POINTS:
            mine = [where for point, where in self.struck.items() if point.victim == victim]
            lines.append(f"{victim}: {len(mine)} points at {len(set(mine))} different places")
            lines += [f"  {times} x {where}" for where, times in Counter(_place(where) for where in mine).most_common(12)]
        return "\n".join(lines)


def _place(where: str) -> str:
    """The call and what it was for: the file's or folder's name, without the folders above."""
    name, _, rest = where.partition("(")
    return f"{name} {rest.split('>')[0].split('<')[-1].rsplit('/', 2)[-1] if '<' in rest else ''}"


def swept(wanted: dict[str, int], chromium: Path) -> None:
    program, seed = strace(), int(os.environ.get("ROOMTAPE_SEED") or secrets.randbits(32))
    print(f"ROOMTAPE_SEED={seed}")
    scripts = (script(chromium / "A-opus"), script(chromium / "B-opus", 4), script(chromium / "B-vp9", 2))
    with staged() as stage, Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as client:
        sweep = Sweep(stage, client, program, scripts, random.Random(seed))
        sweep.run(wanted)
        lost = stage.during(lambda: j1(client, client.ledger.acks()))
        print(sweep.told())
        assert not sweep.faults, f"ROOMTAPE_SEED={seed}\n" + "\n".join(sweep.faults)
        assert not lost, f"ROOMTAPE_SEED={seed}\n" + "\n".join(lost)
        hit = Counter(point.victim for point in sweep.struck)
        assert hit == Counter(wanted), f"not all blows struck: {hit}"


@pytest.mark.timeout(900)
def test_a_sample_of_kills_at_the_nth_system_call_loses_nothing(chromium: Path) -> None:
    swept(CI_POINTS, chromium)


@pytest.mark.long
@pytest.mark.timeout(7000)
def test_two_hundred_kills_at_the_nth_system_call_lose_nothing(chromium: Path) -> None:
    swept(LONG_POINTS, chromium)
