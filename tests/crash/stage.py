"""Roomtape with its parts apart, each a process that can be killed, traced and started again without the others."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx2
from pydantic import SecretStr

from roomtape import app, supervisor
from roomtape.db import schema
from roomtape.db.embedded import EmbeddedPostgres
from roomtape.settings import load

from .house import descendants

T = TypeVar("T")
PARTS = ("serve", "work", "record")
HEARTBEAT_S = 1.0  # so that the work of a dead worker is taken over in seconds
# `python -m roomtape`, but it does not outlive a test that is killed.
_TIED = "import ctypes, runpy; ctypes.CDLL(None).prctl(1, 15); runpy.run_module('roomtape', run_name='__main__', alter_sys=True)"
_READY_S = 60.0
_TICK_S = 0.02


def until(condition: Callable[[], T], what: str, patience_s: float = 60.0) -> T:
    """Waits for a condition; returns what made it true."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(_TICK_S)
    return found


@dataclass(slots=True)
class Stage:
    """The folder, the database and the parts. Everything is tended from the main thread, to which the kernel ties the children's lives."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)
    parts: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)
    working: set[int] = field(default_factory=set)
    falls: dict[str, int] = field(default_factory=dict)
    postgres: EmbeddedPostgres = field(init=False)
    sock_fd: int = -1
    port: int = 0

    def __post_init__(self) -> None:
        self.postgres = EmbeddedPostgres(self.folder / "database")

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.postgres.url()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def work(self) -> Path:
        return self.folder / "data" / "work"

    def environment(self) -> dict[str, str]:
        said = {
            "ROOMTAPE_DATA": str(self.folder / "data"),
            "ROOMTAPE_DATABASE_URL": self.url,
            "ROOMTAPE_STORAGE_URL": self.store.as_uri(),
            "ROOMTAPE_RESERVE_BYTES": "0",
            "ROOMTAPE_HEARTBEAT_S": str(HEARTBEAT_S),
        }
        return {**os.environ, **said, **self.more}

    def start(self, parts: tuple[str, ...] = PARTS) -> None:
        self.postgres.start()
        schema.migrate(self.url)
        sock = supervisor.listen("127.0.0.1", 0)
        self.port, self.sock_fd = sock.getsockname()[1], sock.detach()
        for name in parts:
            self.spawn(name)
        self.ready()

    def spawn(self, name: str) -> None:
        """Starts a part; the log of all its lives is one file."""
        more = ["--fd", str(self.sock_fd)] if name == "serve" else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-c", _TIED, name, *more],
                env=self.environment(),
                pass_fds=[self.sock_fd] if more else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wanted.add(name)
        self.pids.add(self.parts[name].pid)

    def ready(self) -> None:
        """Until the API says that it can answer requests."""

        def answers() -> bool:
            try:
                return httpx2.get(f"{self.base}/readyz", timeout=10).status_code == 200
            except httpx2.TransportError:
                return False

        until(answers, f"the API did not come up; see {self.folder}/serve.log", _READY_S)

    def worker_ready(self) -> None:
        """Until the worker has once had a child that waits for jobs: that is its last step on the way up."""
        pid = self.parts["work"].pid
        if pid not in self.working:
            until(lambda: len(self.victims("work")) > 1, f"the worker did not come up; see {self.folder}/work.log")
            self.working.add(pid)

    def key(self) -> str:
        """An API key of an administrator."""
        settings = load(data=self.folder / "data", database_url=SecretStr(self.url), storage_url=self.store.as_uri())
        made: str = asyncio.run(app.create_key(settings, "crash", "admin", None))["key"]
        return made

    def tend(self) -> None:
        """What `up` does all the time, without its pauses: starts again what fell."""
        if self.postgres.pid is None:
            self.falls["postgres"] = self.falls.get("postgres", 0) + 1
            self.postgres.revive()
        for name in sorted(self.wanted):
            if self.parts[name].poll() is not None:
                self.falls[name] = self.falls.get(name, 0) + 1
                self.spawn(name)

    def during(self, act: Callable[[], T], watch: Callable[[], None] = lambda: None) -> T:
        """What `act` returns, which runs beside while the stage is tended."""
        with ThreadPoolExecutor(1) as beside:
            future = beside.submit(act)
            while not future.done():
                watch()
                self.tend()
                time.sleep(_TICK_S)
            return future.result()

    def victims(self, name: str) -> list[int]:
        """The processes of a part: its own and its children; of PostgreSQL the postmaster and all it has forked."""
        top = self.postgres.pid if name == "postgres" else self.parts[name].pid
        return [] if top is None else [top, *descendants(top)]

    def end(self) -> None:
        """Ends all, whatever state it is in; what hangs is killed."""
        self.wanted.clear()
        for part in self.parts.values():
            if part.poll() is None:
                part.terminate()
        for part in self.parts.values():
            try:
                part.wait(20)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait(20)
        self.postgres.stop()
        if self.sock_fd >= 0:
            os.close(self.sock_fd)
            self.sock_fd = -1


def kill(pids: list[int]) -> None:
    """SIGKILL for processes that this stage has started."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def staged(parts: tuple[str, ...] = PARTS, *, disk: Callable[[Path], AbstractContextManager[Path]] | None = None, **more: str) -> Iterator[Stage]:
    """A stage in a folder of its own, which goes with it; `disk` mounts something on its store. PostgreSQL's user has to be able to pass through the folder."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="roomtape-crash-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)
        stage = Stage(folder, more)
        if disk is not None:
            opened.enter_context(disk(stage.store))
        opened.callback(stage.end)
        stage.start(parts)
        yield stage
