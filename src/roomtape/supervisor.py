"""`roomtape up`: the embedded database and the three parts as children, kept alive, and all of it ended together."""

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import structlog

from roomtape.core.errors import Refused
from roomtape.db.embedded import EmbeddedPostgres

log = structlog.get_logger()

PARTS = ("serve", "work", "record")
_PR_SET_PDEATHSIG = 1
_GRACE_S = 25.0
_READY_S = 90.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_QUIET_S = 30.0  # a part that ran so long has earned a fast restart again
_TODO = {errno.EROFS: "Make it writable or name", errno.ENOSPC: "Make room or name", errno.EDQUOT: "Make room or name"}
_REFUSED = 3  # a part that refuses its configuration will not start better the second time
_ADDRESSES = "Name one in ROOMTAPE_HOST or with --host: 127.0.0.1 for this machine alone, 0.0.0.0 for every network it is in."


def listen(host: str, port: int) -> socket.socket:
    """The one listening socket: held here, so that a restarted part loses no connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except PermissionError as wrong:
        raise Refused(f"Port {port} needs root. Choose one above 1023 with --port.", code="port_refused") from wrong
    except (socket.gaierror, UnicodeError) as wrong:
        raise Refused(f"{host!r} is no address. {_ADDRESSES}", code="host_refused") from wrong
    except OSError as wrong:
        if wrong.errno == errno.EADDRNOTAVAIL:
            raise Refused(f"{host} is no address of this machine. {_ADDRESSES}", code="host_refused") from wrong
        raise Refused(
            f"{host}:{port} cannot be listened on ({wrong.strerror}). Stop what uses it, or choose another with --port (0 takes any free one).",
            code="port_taken",
        ) from wrong
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def _die_with(parent: int) -> None:
    """In the child: whoever kills `up` ends its parts at once, so that nothing holds the port; they outlive their own kills by what is on the disk."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


@dataclass(slots=True)
class Part:
    """One child and how often it fell."""

    name: str
    process: subprocess.Popen[bytes]
    started: float
    falls: int = 0
    due: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """Starts the parts, restarts what dies, ends all on SIGTERM or SIGINT."""

    environment: Mapping[str, str]
    sock: socket.socket
    database: EmbeddedPostgres | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    ending: bool = False
    settled: bool = False
    database_falls: int = 0
    database_due: float = 0.0

    def start(self) -> None:
        """All parts, in order."""
        for name in PARTS:
            self.parts[name] = Part(name, self._spawn(name), time.monotonic())

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        more = ["--fd", str(self.sock.fileno())] if name == "serve" else []
        return subprocess.Popen(  # noqa: S603  (our own program, no shell)
            [sys.executable, "-m", "roomtape", name, *more],
            env=dict(self.environment),
            pass_fds=[self.sock.fileno()] if name == "serve" else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what a part says there is for who runs it alone
            preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509  (one thread here)
        )

    def ready(self) -> None:
        """Waits until the API answers; Refused when a part refuses, or nothing answers in time."""
        host, port = self.sock.getsockname()[:2]
        url = f"http://[{host}]:{port}/readyz" if ":" in host else f"http://{host}:{port}/readyz"
        opener = build_opener(ProxyHandler({}))  # a proxy of the environment's is for the way out, and knows nothing of our own address
        end = time.monotonic() + _READY_S
        while time.monotonic() < end and not self.ending:
            self.tend()
            try:
                with opener.open(url, timeout=2) as answer:
                    if answer.status == HTTPStatus.OK:
                        self.settled = True
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        if not self.ending:
            raise Refused("The API did not come up in time; the lines above say why.", code="not_ready")

    def tend(self) -> None:
        """Looks at each part once and restarts what fell, after a pause that grows."""
        now = time.monotonic()
        self._tend_database(now)
        for part in self.parts.values():
            code = part.process.poll()
            if code is None or self.ending:
                continue
            if not part.due:
                if code == _REFUSED and not self.settled:  # later it is a disk that filled up, say: the recordings that run go on when there is room
                    raise Refused(f"The part `{part.name}` refused to start; the lines above say why.", code="part_refused")
                part.falls = 0 if now - part.started > _QUIET_S else part.falls
                part.due = now + _BACKOFF_S[min(part.falls, len(_BACKOFF_S) - 1)]
                part.falls += 1
                log.warning("part.fell", part=part.name, code=code)
            elif now >= part.due:
                part.process, part.started, part.due = self._spawn(part.name), now, 0.0

    def _tend_database(self, now: float) -> None:
        """A database that was killed starts again under its old address; one that cannot (a full disk) is tried again, for as long as it takes."""
        if self.database is None or self.ending or self.database.pid is not None or now < self.database_due:
            return
        log.warning("database.fell", falls=self.database_falls + 1)
        self.database_due = now + _BACKOFF_S[min(self.database_falls, len(_BACKOFF_S) - 1)]
        self.database_falls += 1
        try:
            self.database.revive()
        except Refused as wrong:
            log.warning("database.down", why=wrong.message)
        else:
            self.database_falls = 0

    def run(self) -> None:
        """Until somebody says stop."""
        while not self.ending:
            self.tend()
            time.sleep(0.1)

    def end(self) -> None:
        """SIGTERM to all, time to finish, then SIGKILL; nothing stays."""
        self.ending = True
        for part in self.parts.values():
            if part.process.poll() is None:
                part.process.terminate()
        end = time.monotonic() + _GRACE_S
        for part in self.parts.values():
            try:
                part.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait()
        self.sock.close()


def on_signals(supervisor: Supervisor) -> None:
    """SIGTERM, SIGINT and SIGHUP end the supervisor's loop."""

    def ask(*_: object) -> None:
        supervisor.ending = True

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, ask)


def prepare(data: Path) -> None:
    """The data folder, ours alone; a sentence for each thing that can be wrong with it."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data / f".probe-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except FileExistsError as wrong:
        raise Refused(f"{data} is a file. Name a folder with --data.", code="data_folder") from wrong
    except PermissionError as wrong:
        raise Refused(f"{data} cannot be written by this user. Give it to the user, or name another folder with --data.", code="data_folder") from wrong
    except OSError as wrong:
        todo = _TODO.get(wrong.errno or 0, "Name")
        raise Refused(f"{data} cannot be used: {wrong.strerror}. {todo} another folder with --data.", code="data_folder") from wrong
