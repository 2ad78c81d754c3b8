"""P3: byte ranges over a rope of 361 pieces against nginx's sendfile of the same bytes in one file; P2: the same file written out, against cat."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.stage import Result, Roomtape, an_hour, cpu_s, machine, pairs, timed

RUNS, SECONDS = 5, 4
_LUA = """
local size, total = {size}, {total}
math.randomseed(7)
request = function()
  local start = math.random(0, total - size - 1)
  return wrk.format("GET", "{path}", {{["Range"] = "bytes=" .. start .. "-" .. (start + size - 1)}})
end
"""
_NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
 fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""


def run(folder: Path, running: Roomtape) -> list[Result]:
    """P3a and P3b for ranges of 1 MiB and of 8 MiB, the worse one counts; one core for the server, one for wrk."""
    recording, meeting = running.record(an_hour(folder, "fmp4"))
    running.client.post("/api/v1/meetings/complete-recording", json={"meetingId": meeting, "recordingId": recording}).raise_for_status()
    while running.client.get(f"/api/v1/recordings/{recording}/status").json()["status"] not in {"completed", "failed"}:
        time.sleep(0.5)
    url = running.client.post(f"/api/v1/recordings/{recording}/playback", json={}).json()["mp4_url"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        whole = Path(temporary) / "whole.mp4"
        with running.client.stream("GET", url) as answer, whole.open("wb") as file:
            for block in answer.iter_raw(1 << 20):
                file.write(block)
        speed, cpu = [], []
        for size in (1 << 20, 8 << 20):
            faster, cheaper = _compare(Path(temporary), whole, running, url, size)
            print(f"P3 {size >> 20} MiB: {faster:.2f}x MB/s, {cheaper:.2f}x CPU/MB")
            speed.append(faster)
            cpu.append(cheaper)
        results = [
            Result("P3a", "ranges over a rope, MB/s", min(speed), "ratio", "higher", "nginx sendfile of the materialised file", 0.9, 1.0, RUNS, machine()),
            Result("P3b", "ranges over a rope, CPU/MB", max(cpu), "ratio", "lower", "nginx sendfile of the materialised file", 1.0, 0.7, RUNS, machine()),
            _export(Path(temporary), running, recording),
        ]
    running.forget(recording)
    return results


def _compare(temporary: Path, whole: Path, running: Roomtape, url: str, size: int) -> tuple[float, float]:
    port = 18_471
    config = temporary / "nginx.conf"
    config.write_text(_NGINX.format(folder=temporary, port=port))
    temporary.chmod(0o755)  # nginx's worker is nobody
    nginx = subprocess.Popen(["taskset", "-c", "0", shutil.which("nginx") or "nginx", "-c", str(config)])
    try:
        time.sleep(1)
        workers = _children(nginx.pid)
        serve = _serve(running)
        subprocess.run(["taskset", "-a", "-c", "-p", "0", str(serve)], check=True, capture_output=True)
        total = whole.stat().st_size
        scripts = {}
        for name, path in (("nginx", f"/{whole.name}"), ("rope", url)):
            scripts[name] = temporary / f"{name}.lua"
            scripts[name].write_text(_LUA.format(size=size, total=total, path=path))
        loads = {
            "nginx": lambda: _load(f"http://127.0.0.1:{port}", scripts["nginx"], workers),
            "rope": lambda: _load(running.base, scripts["rope"], [serve]),
        }
        cpus: dict[str, list[float]] = {"nginx": [], "rope": []}

        def once(name: str) -> float:
            rate, cost = loads[name]()
            cpus[name].append(cost)
            return rate

        faster, _ = pairs(RUNS, lambda: once("nginx"), lambda: once("rope"))
        ratios = sorted(b / a for a, b in zip(cpus["nginx"][1:], cpus["rope"][1:], strict=True))
        return faster, ratios[len(ratios) // 2]
    finally:
        nginx.terminate()
        nginx.wait()


def _load(base: str, script: Path, pids: list[int]) -> tuple[float, float]:
    """MB/s and the server's CPU seconds per MB."""
    before = cpu_s(pids)
    said = subprocess.run(
        ["taskset", "-c", "1", "wrk", "-t1", "-c4", f"-d{SECONDS}s", "-s", str(script), base], check=True, capture_output=True, text=True
    ).stdout
    assert "Non-2xx" not in said, said
    line = next(line for line in said.splitlines() if "requests in" in line)
    amount = line.split(",")[-1].split()[0]
    factor = {"K": 1e3, "M": 1e6, "G": 1e9}
    size = float(amount[:-2]) * factor[amount[-2]]
    return size / SECONDS / 1e6, (cpu_s(pids) - before) / (size / 1e6)


def _children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _serve(running: Roomtape) -> int:
    return next(pid for pid in _children(running.process.pid) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _export(temporary: Path, running: Roomtape, recording: str) -> Result:
    """The original as one file on the same disk, by the program's own writing out, in a process of its own that has found its rope."""
    joined, out = temporary / "joined", temporary / "out.mp4"
    writer = Writer(running.folder, recording, out)
    cat = f"xargs -0 cat < {out.with_suffix('.stored')} > {joined} && sync {joined}"
    try:
        ratio, _ = pairs(RUNS, lambda: timed(lambda: subprocess.run(cat, shell=True, check=True)), writer.write)
        print(f"P2: RSS grew by {writer.grown_mb():.0f} MB over all runs")
    finally:
        writer.close()
    return Result("P2", "export one file", ratio, "ratio", "lower", "cat of the same stored segments, synced", 1.15, 1.05, RUNS, machine())


class Writer:
    """bench/writer.py on a recording: each line in is one writing out, each line out its seconds."""

    def __init__(self, data: Path, recording: str, out: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.writer", str(data), recording, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = int(self._line().split()[0])
        self.last = self.first

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("write\n")
        self.process.stdin.flush()
        seconds, rss = self._line().split()
        self.last = int(rss)
        return float(seconds)

    def grown_mb(self) -> float:
        return (self.last - self.first) / 1024

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
