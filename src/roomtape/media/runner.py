"""Starts decoders, and nothing else in the house does: sandboxed, limited, watched, and dead when their parent is."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import imageio_ffmpeg

from roomtape.media.refusal import KINDS, MediaCrashed, MediaTimeout, MediaTooBig, NoSandbox
from roomtape.media.sandbox import ENVIRONMENT, LAYERS, NOT_CONFINED, Bounds, Level
from roomtape.media.sniff import DECODERS, DEMUXERS

_SOURCE: Final = str(Path(__file__).parents[2])  # the child runs the very code of its parent, installed or not
_PIECE, _TAIL_SIZE = 1 << 16, 8 << 10
_JOB, _YOUNG_S = "job-", 10
_SIGNALLED = 255  # ffmpeg took a signal and tidied up; the CPU limit is the only one that sends it one it can take
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.%-]*)*")
# Inputs that are ours, not a stranger's: generated sources, and raw streams whose form we state. Everything else must be one of the nine.
_OURS = frozenset({"lavfi", "rawvideo", "s16le", "f32le", "concat", "png_pipe"})

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may take: wall seconds, the rlimits, bytes of its answer."""

    wall_s: float = 60
    bounds: Bounds = field(default_factory=Bounds)
    answer_bytes: int = 16 << 20


@contextlib.contextmanager
def job_folder(base: Path) -> Iterator[Path]:
    """A folder for one job, 0700, with the only place inside that the job may write to: `out`. Gone afterwards; its lock says that its owner lives."""
    folder = Path(tempfile.mkdtemp(prefix=_JOB, dir=base)).resolve()
    living = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(living, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "out").mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(living)


def sweep_jobs(base: Path) -> int:
    """Removes the folders that killed processes have left; returns how many. The lock tells, not a process id."""
    swept = 0
    for folder in base.glob(f"{_JOB}*"):
        with contextlib.suppress(OSError):  # gone, or locked by its living owner
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(held).st_mtime >= _YOUNG_S:  # a younger one may not be locked yet
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                    swept += 1
            finally:
                os.close(held)
    return swept


def give(job: Path, name: str, source: Path) -> None:
    """Puts a stored file into the job's folder: a hard link, which the job may read only; a copy where the disks differ."""
    try:
        os.link(source, job / name)
    except OSError:
        shutil.copyfile(source, job / name)


class Runner:
    """The door to decoders. With `warm` children waiting, a job starts in some 30 ms instead of 200; each child does one job and dies.

    `ffmpeg`: another binary than the one that comes with the package. `layers`: see sandbox.LAYERS.
    """

    def __init__(self, *, allow_unsandboxed: bool = False, ffmpeg: str | None = None, warm: int = 0, layers: frozenset[str] = LAYERS) -> None:
        self._place = {"unsandboxed": allow_unsandboxed, "layers": sorted(layers)}
        self._binary = ffmpeg
        self._warm = warm
        self._waiting: deque[Process] = deque()

    async def __aenter__(self) -> Self:
        await self._refill()
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._waiting:
            await _end(self._waiting.popleft())

    async def level(self) -> Level:
        """How this machine locks decoders in, found by doing it."""
        with job_folder(Path(tempfile.gettempdir())) as job:
            document = await self._ask("level", job, {}, Limits(), None)
        landlock, seccomp, namespaces = document["level"]
        return Level(int(landlock), bool(seccomp), bool(namespaces))

    async def run(
        self, task: str, job: Path, args: dict[str, Any], *, limits: Limits | None = None, feed: AsyncIterable[bytes] | None = None
    ) -> dict[str, Any]:
        """One task of media.child on the files of `job`, or on `feed` (file name "-"). The answer is from a process that may have been taken over: check it.

        Errors: MediaRefused, MediaTooBig, MediaTimeout, MediaCrashed, NoSandbox, and those of `feed`.
        """
        document = await self._ask(task, job, args, limits or Limits(), feed)
        if isinstance(result := document.get("result"), dict):
            return result
        raise MediaCrashed

    async def ffmpeg(self, args: list[str], job: Path, *, limits: Limits, feed: AsyncIterable[bytes] | None = None, progress: Progress | None = None) -> str:
        """Runs ffmpeg in the job's folder on `args` (see `guarded`); returns the tail of its stderr. `progress` gets the output time in microseconds.

        A return is not a success yet: verify what was written. Errors as `run`; MediaCrashed with the tail when ffmpeg says no.
        """
        plan = self._place | {"job": str(job), "program": self._program(), "bounds": asdict(limits.bounds)}
        head = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "warning", "-progress", "pipe:1"]
        process = await _start("sandbox", json.dumps(plan), *head, *guarded(args), stdin=PIPE if feed else DEVNULL, cwd=job)
        _, tail = await _converse(process, b"", feed, limits, _reporter(progress))
        if process.returncode == NOT_CONFINED:
            raise NoSandbox
        _judge(-signal.SIGXCPU if process.returncode == _SIGNALLED else process.returncode, tail)
        return tail

    def _program(self) -> str:
        binary = self._binary or imageio_ffmpeg.get_ffmpeg_exe()
        found = shutil.which(binary)
        if found is None:
            raise MediaCrashed(f"There is no ffmpeg at {binary}.")
        return str(Path(found).resolve())

    async def _ask(self, task: str, job: Path, args: dict[str, Any], limits: Limits, feed: AsyncIterable[bytes] | None) -> dict[str, Any]:
        place = self._place | {"job": str(job), "bounds": asdict(limits.bounds)}
        lines = json.dumps(place).encode() + b"\n" + json.dumps({"task": task, "args": args}).encode() + b"\n"
        process = await self._child()
        try:
            answer, tail = await _converse(process, lines, feed, limits, None)
        finally:
            await self._refill()  # only now: two that start at once on two busy cores are both late
        _judge(process.returncode, tail)
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError) as wrong:
            raise MediaCrashed(tail=tail) from wrong
        if not isinstance(document, dict):
            raise MediaCrashed(tail=tail)
        if isinstance(error := document.get("error"), dict):
            raise KINDS.get(str(error.get("kind")), MediaCrashed)(str(error.get("message"))[:500], tail=tail)
        return document

    async def _child(self) -> Process:
        process = None
        while self._waiting and process is None:
            process = self._waiting.popleft()
            if process.returncode is not None:
                process = None  # it died while it waited
        if process is None:
            process = await _start("child", stdin=PIPE)
        return process

    async def _refill(self) -> None:
        while len(self._waiting) < self._warm:
            self._waiting.append(await _start("child", stdin=PIPE))


def guarded(args: list[str]) -> list[str]:
    """`args` with the white lists before each input. ValueError: an input without a format of ours, or a file name that is none."""
    whole: list[str] = []
    since = 0  # where the options of the next input begin
    for at, argument in enumerate(args):
        if at and args[at - 1] == "-i":
            since = len(whole) + 1
        if argument != "-i":
            whole.append(argument)
            continue
        options = whole[since:]
        demuxer = next((value for option, value in pairwise(options) if option == "-f"), "")
        name = args[at + 1] if at + 1 < len(args) else ""
        if demuxer not in DEMUXERS and demuxer not in _OURS:
            raise ValueError(f"the input {name!r} has no format that is taken: {demuxer!r}")
        if demuxer != "lavfi" and name != "pipe:0" and not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name inside a job's folder")
        formats = ",".join((*DEMUXERS, demuxer) if demuxer in _OURS else DEMUXERS)
        decoders = [] if demuxer in _OURS else ["-codec_whitelist", ",".join(DECODERS)]
        whole += ["-protocol_whitelist", "file,pipe", "-format_whitelist", formats, *decoders, "-i"]
    return whole


async def _start(module: str, *argv: str, stdin: int, cwd: Path | None = None) -> Process:
    """A fresh interpreter: isolated, nothing of our environment, a session of its own, so that the whole group can be killed."""
    boot = f"import sys; sys.path.insert(0, {_SOURCE!r}); from roomtape.media.{module} import main; main()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-B", "-c", boot, str(os.getpid()), *argv),
        stdin=stdin,
        stdout=PIPE,
        stderr=PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
        cwd=cwd or "/",
        limit=_PIECE,
    )


async def _converse(
    process: Process, lines: bytes, feed: AsyncIterable[bytes] | None, limits: Limits, report: Callable[[bytes], None] | None
) -> tuple[bytes, str]:
    """Says the job, takes the answer, keeps the tail of stderr; whatever happens, the process group is dead afterwards."""
    assert process.stderr
    tail = bytearray()
    try:
        async with asyncio.timeout(limits.wall_s), asyncio.TaskGroup() as group:
            group.create_task(_say(process, lines, feed))
            group.create_task(_keep_tail(process.stderr, tail))
            taking = group.create_task(_take(process, limits.answer_bytes, report))
            group.create_task(process.wait())
    except TimeoutError as late:
        raise MediaTimeout(tail=tail.decode(errors="replace")) from late
    except ExceptionGroup as several:  # the feed failed: what the store says must be heard as such, it is no fault of the media or of ours
        wrong = several.exceptions[0]
        raise wrong from wrong.__cause__
    finally:
        await _end(process)
    if len(answer := taking.result()) > limits.answer_bytes:
        raise MediaTooBig("The answer about the media is too large.", tail=tail.decode(errors="replace"))
    return answer, tail.decode(errors="replace")


async def _say(process: Process, lines: bytes, feed: AsyncIterable[bytes] | None) -> None:
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: its exit code will tell
        process.stdin.write(lines)
        if feed is not None:
            async for piece in feed:
                process.stdin.write(piece)
                await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _take(process: Process, most: int, report: Callable[[bytes], None] | None) -> bytes:
    """The answer; one that goes on beyond `most` bytes ends the process."""
    assert process.stdout
    taken = bytearray()
    while piece := await process.stdout.read(_PIECE):
        if report:
            report(piece)
            continue
        taken += piece
        if len(taken) > most:
            _kill(process)
            break
    return bytes(taken)


async def _keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    while piece := await stream.read(_PIECE):
        tail += piece
        del tail[:-_TAIL_SIZE]


def _reporter(progress: Progress | None) -> Callable[[bytes], None]:
    """Reads ffmpeg's `-progress` lines, which may come in pieces."""
    rest = b""

    def report(piece: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-256:]
        for line in lines:
            name, _, value = line.partition(b"=")
            if progress and name == b"out_time_us" and value.strip().isdigit():
                progress(int(value))

    return report


def _judge(code: int | None, tail: str) -> None:
    """0 says that the process came to its end, no more."""
    if code == -signal.SIGXCPU:
        raise MediaTimeout("The media took more CPU time than it was given.", tail=tail)
    if code == -signal.SIGXFSZ:
        raise MediaTooBig("The output is larger than it may be.", tail=tail)
    if code:
        raise MediaCrashed(tail=f"{tail}\n(exit code {code})")


def _kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _end(process: Process) -> None:
    _kill(process)
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
