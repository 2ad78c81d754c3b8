"""A whole `roomtape up` for tests that kill, race and starve it; whatever happens to the test, nothing of it stays."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

READY = "Roomtape is ready: "
PROGRAM = [sys.executable, "-m", "roomtape"]
START_LIMIT_S = 120
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], *, within_s: float = 60.0, pause_s: float = 0.05) -> T:
    """What `look` finds, as soon as it finds something; the test fails with `what` when time is up."""
    end = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"after {within_s} s still not: {what}")
        time.sleep(pause_s)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without anything that configures Roomtape or a store, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"(ROOMTAPE_(?!REQUIRE_SERVERS|VERSITYGW)|AWS_)", name)}
    return {**kept, **(more or {})}


def roomtape(*arguments: str, env: Mapping[str, str] | None = None, within_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=environment(env), timeout=within_s, check=False)


@dataclass(slots=True)
class Program:
    """A long-running command of ours: its lines on stdout, its log, and its process."""

    process: subprocess.Popen[bytes]
    log: Path
    out: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.log.read_text(errors="replace") + self.out.read_text(errors="replace"))

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log.read_text(errors="replace")))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if f'"event": "{name}"' in line]
        return [json.loads(line) for line in lines]

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = 60) -> int:
        return self.process.wait(within_s)


def _end_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a test run that is killed leaves nothing running


@contextmanager
def program(folder: Path, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Runs a command in a session of its own; at the end it is stopped, by force if need be, and so is all it has started."""
    log, out = folder / f"{name}.log", folder / f"{name}.out"
    with log.open("ab") as stderr, out.open("wb") as stdout:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509  (one call into libc)
        )
    running = Program(process, log, out)
    try:
        yield running
    finally:
        family = [process.pid, *descendants(process.pid)] if process.poll() is None else []
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end = time.monotonic() + 15
        while time.monotonic() < end and any(alive(pid) for pid in family):
            time.sleep(0.05)
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """All children, and theirs; of processes and threads that end meanwhile, what was seen of them."""
    found: list[int] = []
    with suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


@dataclass(slots=True)
class Up:
    """A running `roomtape up`."""

    running: Program
    data: Path
    base: str
    key: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def parts(self) -> dict[str, int]:
        """The process ids of serve, work, record and the postmaster, as far as they live."""
        found = {}
        for task in Path(f"/proc/{self.running.pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                words = command_of(child)
                if words[1:3] == ["-m", "roomtape"] and alive(child):
                    found[words[3]] = child
                elif words and words[0].endswith("/postgres") and alive(child):
                    found["postgres"] = child
        return found

    def client(self, **more: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.base, headers=self.headers, **{"timeout": 60, **more})

    def async_client(self, **more: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.base, headers=self.headers, **{"timeout": 60, **more})

    def database_url(self) -> str:
        lines = (self.data / "database/data/postmaster.pid").read_text().splitlines()
        password = (self.data / "database/password").read_text().strip()
        return f"postgresql://roomtape:{password}@/roomtape?host={lines[4]}"


@contextmanager
def up(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, name: str = "up", port: int = 0) -> Iterator[Up]:
    """Starts `roomtape up` on `folder`/data and waits until it says that it is ready."""
    data = folder / "data"
    with program(folder, name, "up", "--port", str(port), "--data", str(data), *arguments, env=env) as running:
        said = until("ready", lambda: _ready(running), within_s=START_LIMIT_S)
        made = roomtape("keys", "create", "test", "--role", "admin", "--data", str(data), env=env)
        assert made.returncode == 0, made.stderr
        key = made.stdout.strip()
        yield Up(running, data, said.split("/login")[0], key, {"authorization": f"Bearer {key}"})


def _ready(running: Program) -> str | None:
    found = re.search(re.escape(READY) + r"(\S+)\n", running.out.read_text())
    if found is None and running.process.poll() is not None:
        raise AssertionError(f"`up` ended with {running.process.returncode}:\n{running.log.read_text()[-3000:]}")
    return found[1] if found else None
