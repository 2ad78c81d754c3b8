"""ffmpeg behind the door: its line is guarded, its time and output have an end, and what it writes is what was asked for."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roomtape.media import door
from roomtape.media.refusal import MediaCrashed, MediaTimeout, MediaTooBig
from roomtape.media.runner import Limits, Runner, give, guarded, job_folder
from roomtape.media.sandbox import Bounds
from roomtape.media.sniff import DEMUXERS
from roomtape.testing.servers import require

pytestmark = pytest.mark.anyio


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    with job_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    async with Runner() as one:
        yield one


@pytest.mark.parametrize(
    "args",
    [
        ["-i", "a.mp4"],
        ["-f", "hls", "-i", "a"],
        ["-f", "mov", "-i", "/etc/passwd"],
        ["-f", "mov", "-i", "../other/a"],
        ["-f", "mov", "-i", "http://127.0.0.1/"],
        ["-f", "mov", "-i", "-y"],
        ["-f", "mov", "-i", "concat:a|b"],
        ["-f", "mov", "-i", "a", "-i", "b"],
        ["-f", "mov", "-i"],
    ],
)
def test_an_input_without_a_format_of_ours_or_with_a_strange_name_is_a_mistake(args: list[str]) -> None:
    with pytest.raises(ValueError, match="'"):
        guarded(args)


def test_the_white_lists_stand_before_each_input() -> None:
    line = guarded(["-ss", "1", "-f", "mov", "-i", "a", "-f", "lavfi", "-i", "anullsrc", "-c", "copy", "out/x"])
    assert line[:6] == ["-ss", "1", "-f", "mov", "-protocol_whitelist", "file,pipe"]
    assert line.count("-protocol_whitelist") == line.count("-format_whitelist") == 2
    assert line[line.index("-format_whitelist") + 1] == ",".join(DEMUXERS)


ENDLESS = ["-f", "lavfi", "-i", "testsrc=size=320x240"]


async def test_an_endless_job_is_killed_by_its_cpu_limit(runner: Runner, job: Path) -> None:
    with pytest.raises(MediaTimeout, match="CPU"):
        await runner.ffmpeg([*ENDLESS, "-f", "null", "-"], job, limits=Limits(wall_s=30, bounds=Bounds(cpu_s=1)))


async def test_an_endless_job_is_killed_by_the_wall_clock(runner: Runner, job: Path) -> None:
    began = time.monotonic()
    with pytest.raises(MediaTimeout):
        await runner.ffmpeg([*ENDLESS, "-f", "null", "-"], job, limits=Limits(wall_s=0.5, bounds=Bounds(cpu_s=60)))
    assert time.monotonic() - began < 5


async def test_a_cancelled_job_is_dead_when_the_cancel_returns(runner: Runner, job: Path) -> None:
    started = asyncio.Event()
    work = asyncio.ensure_future(runner.ffmpeg([*ENDLESS, "-f", "null", "-"], job, limits=Limits(), progress=lambda _: started.set()))
    await started.wait()
    children = our_children()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(children - our_children()) == 1


def our_children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_a_flood_of_output_is_capped(runner: Runner, job: Path, chromium: Path) -> None:
    with pytest.raises(MediaTooBig, match="output"):
        await runner.ffmpeg([*ENDLESS, "-f", "rawvideo", "out/x"], job, limits=Limits(bounds=Bounds(file_bytes=1 << 20)))
    assert (job / "out/x").stat().st_size <= 1 << 20
    give(job, "a", chromium / "B-vp8/0001.webm")
    with pytest.raises(MediaTooBig, match="answer"):
        await runner.run("watch", job, {"files": ["a"]}, limits=Limits(answer_bytes=500))


async def test_ffmpeg_writes_what_verify_finds_and_tells_how_far_it_is(runner: Runner, job: Path, chromium: Path) -> None:
    give(job, "a", chromium / "B-vp8/0001.webm")
    far: list[int] = []
    args = ["-f", "matroska", "-i", "a", "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "out/x.mp4"]
    await runner.ffmpeg(args, job, limits=Limits(bounds=Bounds(file_bytes=1 << 30)), progress=far.append)
    with job_folder(job.parent) as next_job:
        give(next_job, "x", job / "out/x.mp4")
        seen = await door.verify(runner, next_job, "x", full=True)
    assert seen.sound
    assert seen.streams[0].frames == 120
    assert far[-1] == pytest.approx(4_000_000, abs=50_000)


async def test_ffmpeg_takes_a_feed(runner: Runner, job: Path, chromium: Path) -> None:
    async def feed() -> AsyncIterator[bytes]:
        body = (chromium / "B-vp8/0001.webm").read_bytes()
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    await runner.ffmpeg(["-f", "matroska", "-i", "pipe:0", "-c", "copy", "out/x.webm"], job, limits=Limits(bounds=Bounds(file_bytes=1 << 30)), feed=feed())
    assert (job / "out/x.webm").stat().st_size > 200_000


async def test_a_given_file_cannot_be_changed_by_the_job(runner: Runner, job: Path, chromium: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes((chromium / "B-opus/0000.webm").read_bytes())
    give(job, "a", stored)
    assert (job / "a").stat().st_ino == stored.stat().st_ino
    with pytest.raises(MediaCrashed):
        await runner.ffmpeg(["-y", *ENDLESS, "-frames:v", "1", "-f", "rawvideo", "a"], job, limits=Limits(bounds=Bounds(file_bytes=1 << 20)))
    assert stored.read_bytes() == (chromium / "B-opus/0000.webm").read_bytes()


@pytest.mark.parametrize("layers", [["landlock"], ["landlock", "namespaces"]], ids="+".join)
async def test_another_ffmpeg_that_is_linked_dynamically_runs_too(job: Path, layers: list[str]) -> None:
    require(shutil.which("ffmpeg"), "no ffmpeg of the system's")
    async with Runner(ffmpeg="ffmpeg", layers=frozenset(layers)) as runner:
        await runner.ffmpeg([*ENDLESS, "-frames:v", "2", "-f", "rawvideo", "-pix_fmt", "gray", "out/x"], job, limits=Limits(bounds=Bounds(file_bytes=1 << 20)))
    assert (job / "out/x").stat().st_size == 2 * 320 * 240


async def test_an_ffmpeg_that_is_not_there_is_named(job: Path) -> None:
    async with Runner(ffmpeg="/no/ffmpeg") as runner:
        with pytest.raises(MediaCrashed, match="/no/ffmpeg"):
            await runner.ffmpeg([*ENDLESS, "-f", "null", "-"], job, limits=Limits())
