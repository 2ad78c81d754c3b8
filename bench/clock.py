"""P15: how far the timeline is off after an hour of 10 s segments, against ffmpeg's concat demuxer on the same files."""

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path

import av

from bench.stage import Result, Roomtape, ffmpeg, machine

SEGMENTS, SEGMENT_S = 360, 10
_LONG_US = SEGMENTS * SEGMENT_S * 1_000_000


def run(folder: Path, running: Roomtape) -> list[Result]:
    """One continuous recording of an hour, cut into files as restarted recorders do: each has its own zero, 10 s apart by the wall clock.

    The value is the worst error of any beep, as a ratio of ffmpeg's; the goal is 40 ms.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = _segments(Path(temporary))
        listing = Path(temporary) / "list"
        listing.write_text("".join(f"file '{path}'\n" for path in files))
        joined = Path(temporary) / "joined.webm"
        subprocess.run([ffmpeg(), "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", str(listing), "-c", "copy", str(joined)], check=True)
        theirs = _error_us(joined)
        recording = _record(running, files)
        ours_file = Path(temporary) / "ours.mp4"
        url = running.client.post(f"/api/v1/recordings/{recording}/playback", json={}).json()["mp4_url"]
        ours_file.write_bytes(running.client.get(url).content)
        ours = _error_us(ours_file)
    print(f"P15: ours {ours / 1000:.1f} ms after an hour, ffmpeg's concat demuxer {theirs / 1000:.0f} ms")
    return [
        Result(
            "P15",
            "timeline error after 1 h, 10 s segments",
            ours / 1000,
            "ms",
            "lower",
            f"ffmpeg concat demuxer: {theirs / 1000:.0f} ms",
            40,
            33.4,
            1,
            machine(),
        )
    ]


def _segments(folder: Path) -> list[Path]:
    """Restarted recorders: packets of 60 ms, only whole ones are kept, so each file ends up to 60 ms before the next begins; ten distinct ones are taken in turn."""
    made = []
    for number in range(10):
        path = folder / f"{number}.webm"
        source = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-f", "lavfi", "-i", "testsrc2=size=64x36:rate=30"]
        enc = [
            "-c:v",
            "libvpx-vp9",
            "-deadline",
            "realtime",
            "-cpu-used",
            "8",
            "-b:v",
            "20k",
            "-g",
            "300",
            "-c:a",
            "libopus",
            "-frame_duration",
            "60",
            "-b:a",
            "16k",
        ]
        subprocess.run([ffmpeg(), "-v", "error", "-y", *source, "-map", "0:a", "-map", "1:v", "-t", str(SEGMENT_S - 0.04), *enc, str(path)], check=True)
        made.append(path)
    return [made[number % len(made)] for number in range(SEGMENTS)]


def _record(running: Roomtape, files: list[Path]) -> str:
    session = running.client.post("/api/v1/meetings/start-recording", json={"userId": "bench"}).raise_for_status().json()
    begun = time.time() * 1000 - SEGMENTS * SEGMENT_S * 1000
    for index, path in enumerate(files, 1):
        body = path.read_bytes()
        names = {"meetingId": session["meetingId"], "segmentIndex": index, "startedAt": begun + (index - 1) * SEGMENT_S * 1000, "clockOffsetUs": 0}
        running.client.post("/api/v1/meetings/upload-segment", params={**names, "sha256": hashlib.sha256(body).hexdigest()}, content=body).raise_for_status()
    running.client.post(f"/api/v1/recordings/{session['recordingId']}/stop").raise_for_status()
    return str(session["recordingId"])


def _error_us(path: Path) -> int:
    """How far the first picture of the last segment stands from 59:50: key frames begin segments, one each."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        keys = [packet.pts * stream.time_base for packet in container.demux(stream) if packet.is_keyframe and packet.pts is not None]
    assert len(keys) == SEGMENTS, len(keys)
    return max(abs(round((key - keys[0]) * 1_000_000) - number * SEGMENT_S * 1_000_000) for number, key in enumerate(keys))
