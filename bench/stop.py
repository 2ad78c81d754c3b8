"""P1: from the moment one presses stop to a playable MP4, for an hour in 360 segments, against ffmpeg's concat with faststart."""

import subprocess
import tempfile
import time
from pathlib import Path

from bench.stage import Result, Roomtape, an_hour, ffmpeg, machine, pairs, timed

RUNS = 5


def run(folder: Path, running: Roomtape) -> list[Result]:
    """The worse of WebM (VP9) and fragmented MP4 (H.264) counts."""
    found = {kind: _one(folder, running, kind) for kind in ("fmp4", "webm")}
    for kind, (ratio, ours_ms) in found.items():
        print(f"P1 {kind}: 1/{1 / ratio:.0f}, ours {ours_ms:.1f} ms")
    worst = max(ratio for ratio, _ in found.values())
    reference = "Debian's ffmpeg concat -c copy -movflags +faststart, wall"
    return [Result("P1", "stop to playable MP4, 1 h / 360 segments", worst, "ratio", "lower", reference, 1 / 100, 1 / 400, RUNS, machine())]


def _one(folder: Path, running: Roomtape, kind: str) -> tuple[float, float]:
    files = an_hour(folder, kind)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        listing = Path(temporary) / "list"
        listing.write_text("".join(f"file '{path}'\n" for path in files))
        out = Path(temporary) / "out.mp4"
        join = [ffmpeg(), "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", str(listing), "-c", "copy", "-movflags", "+faststart", str(out)]
        taken: list[float] = []

        def ours() -> float:
            recording, _ = running.record(files, ended=False)
            playback = running.client.post(f"/api/v1/recordings/{recording}/playback", json={}).json()
            time.sleep(3)  # the meeting goes on for a moment after its last segment; nobody presses stop within the same millisecond
            wall = timed(lambda: _stop_and_play(running, recording, playback["mp4_url"]))
            taken.append(wall)
            running.forget(recording)
            return wall

        ratio, _ = pairs(RUNS, lambda: timed(lambda: subprocess.run(join, check=True)), ours)
    return ratio, sorted(taken)[len(taken) // 2] * 1000


def _stop_and_play(running: Roomtape, recording: str, url: str) -> None:
    """Stop is answered, and then the whole head of the file and the first of its media have arrived: what a player needs to begin."""
    running.client.post(f"/api/v1/recordings/{recording}/stop").raise_for_status()
    head = running.client.get(url, headers={"range": "bytes=0-1048575"})
    assert head.status_code == 206, head.text
    size = int.from_bytes(head.content[32:36], "big") + 32 if head.content[36:40] == b"moov" else _moov_end(head.content)
    if size > len(head.content):
        rest = running.client.get(url, headers={"range": f"bytes=1048576-{size + 65535}"})
        assert rest.status_code == 206


def _moov_end(head: bytes) -> int:
    at = 0
    while at + 8 <= len(head):
        size, name = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        at += size
        if name == b"moov":
            return at
    raise AssertionError("no moov in front")
