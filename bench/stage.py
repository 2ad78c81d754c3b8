"""What every benchmark needs: an hour of segments, a running Roomtape, interleaved pairs, and honest arithmetic about them."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

SEGMENTS, SEGMENT_S, DISTINCT = 360, 10, 4
TICKS = os.sysconf("SC_CLK_TCK")
_VIDEO = {
    "webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1500k", "-g", "60", "-c:a", "libopus", "-b:a", "64k", "-f", "webm"],
    "vp8": ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "12", "-b:v", "1500k", "-g", "60", "-c:a", "libopus", "-b:a", "64k", "-f", "webm"],
    "fmp4": [
        *("-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-b:v", "1500k", "-maxrate", "1500k", "-bufsize", "3000k", "-g", "60"),
        *("-c:a", "aac", "-b:a", "96k", "-movflags", "frag_keyframe+empty_moov+default_base_moof", "-f", "mp4"),
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """One row of bench-results.json."""

    id: str
    what: str
    value: float
    unit: str
    better: str
    reference: str
    goal: float
    moonshot: float
    runs: int
    machine: str


def ffmpeg() -> str:
    """Debian's ffmpeg is the reference: the static one joins 2.3 times slower."""
    return os.environ.get("ROOMTAPE_BENCH_FFMPEG") or shutil.which("ffmpeg") or ""


def machine() -> str:
    """What the numbers were taken on."""
    model = next((line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model.strip()}, Linux {platform.release()}, Python {platform.python_version()}"


def an_hour(folder: Path, kind: str) -> list[Path]:
    """Segments as files: a few distinct ones of 10 s, 720p at 30 a second, taken in turn; each is one whole recorder's file."""
    folder = folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(DISTINCT):
        path = folder / f"{number}.seg"
        if not path.exists():
            source = ["-f", "lavfi", "-i", f"testsrc2=size=1280x720:rate=30,noise=alls=8:allf=t:all_seed={number}"]
            sound = ["-f", "lavfi", "-i", "anoisesrc=amplitude=0.1:sample_rate=48000,lowpass=3000"]
            draft = path.with_suffix(".part")
            subprocess.run([ffmpeg(), "-v", "error", "-y", *source, *sound, "-t", str(SEGMENT_S), *_VIDEO[kind], str(draft)], check=True)
            draft.rename(path)
        made.append(path)
    return [made[number % DISTINCT] for number in range(SEGMENTS)]


class Roomtape:
    """`roomtape up` on a folder of its own, and an admin's client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roomtape", "up", "--data", str(folder), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "Roomtape is ready" in line)
        self.base = line.split(": ", 1)[1].split("/login")[0]
        made = subprocess.run(
            [sys.executable, "-m", "roomtape", "keys", "create", "bench", "--role", "admin", "--data", str(folder)], check=True, capture_output=True, text=True
        )
        self.client = httpx2.Client(base_url=self.base, headers={"authorization": f"Bearer {made.stdout.strip()}"}, timeout=60)

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(60)

    def record(self, files: Sequence[Path], *, ended: bool = True) -> tuple[str, str]:
        """Uploads the segments as one recording; returns (recording id, meeting id)."""
        bodies = {path: path.read_bytes() for path in set(files)}
        digests = {path: hashlib.sha256(body).hexdigest() for path, body in bodies.items()}
        session = self.client.post("/api/v1/meetings/start-recording", json={"userId": "bench"}).raise_for_status().json()
        begun = time.time() * 1000
        for index, path in enumerate(files, 1):
            names = {"meetingId": session["meetingId"], "segmentIndex": index, "sha256": digests[path], "startedAt": begun + (index - 1) * SEGMENT_S * 1000}
            answer = self.client.post("/api/v1/meetings/upload-segment", params={**names, "clockOffsetUs": 0}, content=bodies[path])
            assert answer.status_code in {200, 201}, answer.text
        if ended:
            self.client.post(f"/api/v1/recordings/{session['recordingId']}/stop").raise_for_status()
        return session["recordingId"], session["meetingId"]

    def forget(self, recording: str) -> None:
        self.client.post(f"/api/v1/recordings/{recording}/stop")
        self.client.delete(f"/api/v1/recordings/{recording}").raise_for_status()


@contextlib.contextmanager
def roomtape(folder: Path) -> Iterator[Roomtape]:
    """A running installation, ended and removed afterwards."""
    running = Roomtape(folder)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


def pairs(runs: int, reference: Callable[[], float], ours: Callable[[], float]) -> tuple[float, list[tuple[float, float]]]:
    """Interleaved A B A B after one warm-up each: the median of the ratios ours / reference, and all pairs."""
    reference(), ours()
    taken = [(reference(), ours()) for _ in range(runs)]
    return statistics.median(b / a for a, b in taken), taken


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of processes, user and system."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def write(results: Sequence[Result]) -> None:
    """The table, and the file."""
    Path("bench-results.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print(f"{'id':5}{'value':>10}  {'goal':>8}{'moonshot':>10}  what")
    for one in results:
        print(f"{one.id:5}{one.value:>10.4g}  {one.goal:>8.4g}{one.moonshot:>10.4g}  {one.what} (reference: {one.reference}; {one.runs} runs)")
