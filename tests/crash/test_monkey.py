"""Thirty meetings while somebody keeps killing the parts and the database: nothing that was acknowledged is lost, and every meeting ends as it should."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .client import Client, Ledger, Played, script
from .house import Up, up
from .judge import Place, j4, j7, judge_meeting

SETS = ("A-opus", "B-opus", "A-opus", "B-vp8", "B-opus")
MEETINGS = 30
LIMIT_S = 60.0  # an open door with nobody behind it just now makes callers wait
PARTS = ("serve", "serve", "work", "work", "record")


@dataclass(slots=True)
class Monkey:
    """Kills parts of a running `up`: one of PARTS each 1 to 5 s, the database each `pause_s`; everything by its seed."""

    house: Up
    seed: int
    pause_s: tuple[float, float]
    over: threading.Event = field(default_factory=threading.Event)
    killed: Counter[str] = field(default_factory=Counter)
    pids: set[int] = field(default_factory=set)

    def parts(self) -> None:
        luck = random.Random(self.seed)
        while not self.over.wait(luck.uniform(1, 5)):
            self._strike(luck.choice(PARTS), signal.SIGKILL)

    def database(self) -> None:
        """Now as the kernel ends what takes too much memory, now as `pg_ctl stop -m immediate` does."""
        luck = random.Random(self.seed + 1)
        while not self.over.wait(luck.uniform(*self.pause_s)):
            self._strike("postgres", luck.choice([signal.SIGKILL, signal.SIGQUIT]))

    def tire(self, seconds: float) -> None:
        self.over.wait(seconds)
        self.over.set()

    def _strike(self, name: str, how: signal.Signals) -> None:
        pid = self.house.parts().get(name)
        if pid is not None:  # else it is just being started again
            self.pids.add(pid)
            self.killed[name] += 1
            os.kill(pid, how)


def _pace(luck: random.Random) -> Callable[[int], None]:
    """Meetings are not in a hurry."""
    return lambda _: time.sleep(luck.uniform(0, 0.3))


def _meeting(house: Up, folder: Path, chromium: Path, seed: int, number: int, seconds: float) -> tuple[Client, Played]:
    what = script(chromium / SETS[number % len(SETS)])
    time.sleep(seconds * 0.8 * (number % MEETINGS) / MEETINGS)  # so that at every moment some begin, some run and some are processed
    with Client(house.base, house.key, Ledger(folder / f"ledger-{number}"), patience_s=240, limit_s=LIMIT_S) as client:
        played = client.play(what, f"meeting-{seed}-{number}", _pace(random.Random(seed * 1000 + number)))
    return client, played


def _monkey_business(folder: Path, chromium: Path, *, seed: int, seconds: float, rounds: int, pause_s: tuple[float, float]) -> None:
    print(f"seed {seed}")
    with up(folder, env={"ROOMTAPE_HEARTBEAT_S": "1", "ROOMTAPE_RESERVE_BYTES": "0"}) as house:
        monkey = Monkey(house, seed, pause_s)
        begun = time.monotonic()
        with ThreadPoolExecutor(MEETINGS + 3) as crowd:
            crowd.submit(monkey.tire, seconds * rounds)
            beating = [crowd.submit(monkey.parts), crowd.submit(monkey.database)]
            try:
                ended = []
                for wave in range(rounds):
                    numbers = range(wave * MEETINGS, (wave + 1) * MEETINGS)
                    playing = [crowd.submit(_meeting, house, folder, chromium, seed, number, seconds) for number in numbers]
                    ended += [one.result() for one in playing]
            finally:
                monkey.over.set()
            for one in beating:
                one.result()
        print(f"ended after {time.monotonic() - begun:.0f} s")
        assert monkey.killed["postgres"] >= 2 * rounds, monkey.killed
        assert monkey.killed["serve"] + monkey.killed["work"] >= 8 * rounds, monkey.killed
        faults = []
        with Client(house.base, house.key, Ledger(folder / "judge")) as judge:
            for client, played in ended:
                judge.ledger = client.ledger
                faults += [f"{played.script.name} {played.recording}: {fault}" for fault in judge_meeting(judge, played)] + j7(client.answers, LIMIT_S + 5)
        faults += j4(Place(house.database_url(), house.data / "store", house.data / "work", frozenset(monkey.pids)))
        asked = Counter(answer.status for client, _ in ended for answer in client.answers)
        print(f"killed {dict(monkey.killed)}, answers {dict(asked)}")
        assert faults == [], "\n".join(faults)


@pytest.mark.timeout(600)
def test_thirty_meetings_outlive_a_minute_of_kills(tmp_path: Path, chromium: Path) -> None:
    _monkey_business(tmp_path, chromium, seed=1, seconds=60, rounds=1, pause_s=(5, 20))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2, 3])
def test_three_hundred_meetings_outlive_ten_minutes_of_kills(tmp_path: Path, chromium: Path, seed: int) -> None:
    _monkey_business(tmp_path, chromium, seed=seed, seconds=60, rounds=10, pause_s=(5, 40))
