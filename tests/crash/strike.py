"""Kills or fails the Nth system call of running processes: strace, attached from outside, so that nothing of ours is built for it."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from roomtape.testing.servers import require

from .stage import Stage, kill, until

SETS = {
    "fsync": ("fsync", "fdatasync"),
    "rename": ("rename", "renameat", "renameat2"),
    "write": ("write", "pwrite64", "writev", "pwritev"),
    "send": ("sendto", "sendmsg"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
}
_KILLED = re.compile(r"^\d+ +\+\+\+ killed by SIGKILL", re.MULTILINE)
_CALL = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)
_NAMES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,}|\d+")


@dataclass(frozen=True, slots=True)
class Point:
    """Where to kill: the process of `victim` that makes its `nth` call of a set. `whole`: all other processes of the victim die with it."""

    victim: str
    calls: str
    nth: int
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.victim}{' whole' if self.whole else ''} {self.calls} {self.nth}"


def strace() -> str:
    """The path of a strace that may trace here, or the end of the test with a reason."""
    path = require(shutil.which("strace"), "strace is not installed: it kills at the Nth system call")
    tried = subprocess.run([path, "-f", "-e", "trace=fsync", sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    return require(path if tried.returncode == 0 else None, f"strace may not trace here: {tried.stderr[-200:]}")


@dataclass(slots=True)
class Trace:
    """A running strace and what it has written."""

    process: "subprocess.Popen[bytes]"
    log: Path
    fired: bool = field(default=False)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Lets go of all that is traced; it runs on. By SIGKILL, the kernel detaches: strace itself waits for ever for one who is dying just then."""
        self.process.kill()
        self.process.wait()

    def killed_at(self, calls: str, nth: int) -> str | None:
        """The call at which somebody was killed, with names and numbers left out: the first thread's nth. None: it never came to that."""
        text = self.text()
        if not _KILLED.search(text):
            return None
        counted: Counter[str] = Counter()
        for line in text.splitlines():
            found = _CALL.match(line)
            if found is not None and found[2] in SETS[calls]:
                counted[found[1]] += 1
                if counted[found[1]] == nth:
                    return _NAMES.sub("#", line.split(None, 1)[1])[:140]
        return None


def traced(pids: Sequence[int]) -> bool:
    """Whether every thread of the processes is being traced; one that has ended meanwhile does not count."""
    for pid in pids:
        try:
            threads = [*Path(f"/proc/{pid}/task").iterdir()]
        except OSError:
            continue
        for thread in threads:
            try:
                if "TracerPid:\t0\n" in (thread / "status").read_text():
                    return False
            except OSError:
                continue
    return True


@contextmanager
def attached(program: str, pids: Sequence[int], log: Path, *options: str) -> Iterator[Trace]:
    """strace on processes, their threads and all children they will have; it is gone at the end of the block, they are not."""
    command = [program, "-f", "-qq", "-y", "-s", "48", "-o", str(log), *options, *(word for pid in pids for word in ("-p", str(pid)))]
    log.unlink(missing_ok=True)
    log.touch()
    with (log.with_suffix(".err")).open("wb") as errors:
        trace = Trace(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors), log)
    try:
        until(lambda: traced(pids) or trace.process.poll() is not None, f"strace did not attach: {log.with_suffix('.err').read_text()[-500:]}")
        yield trace
    finally:
        trace.stop()


def named(calls: str) -> str:
    """The calls of a set as strace takes them; one that this processor does not have is left out."""
    return ",".join(f"?{name}" for name in SETS[calls])


def survey(trace: Trace) -> dict[str, int]:
    """By set, how many calls the busiest thread made: up to there the Nth call can be struck."""
    counted: Counter[tuple[str, str]] = Counter()
    groups = {name: group for group, names in SETS.items() for name in names}
    for pid, name in _CALL.findall(trace.text()):
        if name in groups:
            counted[pid, groups[name]] += 1
    return {group: max((count for (_, one), count in counted.items() if one == group), default=0) for group in SETS}


def watch(stage: Stage, point: Point, trace: Trace) -> None:
    """Ends the trace after its first kill, so that it stays the only one; a whole crash takes the victim's other processes with it, at once."""
    if not trace.fired and _KILLED.search(trace.text()):
        trace.fired = True
        if point.whole:
            kill(stage.victims(point.victim))
        trace.stop()
