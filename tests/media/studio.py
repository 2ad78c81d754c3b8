"""A client of a whole Roomtape that records what it is given, without waiting for the time to pass, and fetches what came out."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar
from urllib.parse import urljoin

import av
import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from roomtape.testing import known

DATA = Path(__file__).parents[1] / "data" / "chromium"
SETS = sorted(path.name for path in DATA.iterdir() if path.is_dir())
LIMIT_S = 120
START_LIMIT_S = 90
READY = "Roomtape is ready: "
JITTER = 24 * 48  # samples: Chromium's audio timestamps stray by up to 20 ms
T = TypeVar("T")


def until(what: Callable[[], T | None], why: str, *, limit_s: float = LIMIT_S, every_s: float = 0.1) -> T:
    end = time.monotonic() + limit_s
    while (found := what()) is None:
        if time.monotonic() > end:
            pytest.fail(f"{why}: not within {limit_s} s")
        time.sleep(every_s)
    return found


@contextmanager
def opened(folder: Path, **settings: str) -> Iterator["Studio"]:
    """A whole Roomtape of its own, ended afterwards whatever happens."""
    data = folder / "data"
    command = [sys.executable, "-m", "roomtape"]
    with (folder / "log").open("w+") as log:
        up = subprocess.Popen([*command, "up", "--port", "0", "--data", str(data)], stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | settings)
        late = Timer(START_LIMIT_S, up.kill)
        late.start()
        try:
            assert up.stdout is not None
            said = next((line for line in up.stdout if line.startswith(READY)), None)
            late.cancel()
            if said is None:
                log.seek(0)
                pytest.fail(f"`roomtape up` did not get ready:\n{log.read()[-4000:]}")
            made = subprocess.run([*command, "keys", "create", "tests", "--role", "admin", "--data", str(data)], capture_output=True, text=True, check=True)
            address = said.removeprefix(READY).strip().partition("/login")[0]
            with httpx2.Client(base_url=address, headers={"authorization": f"Bearer {made.stdout.strip()}"}, timeout=60) as client:
                yield Studio(client)
        finally:
            late.cancel()
            _end(up)


def _end(up: subprocess.Popen[str]) -> None:
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
        try:
            up.wait(40)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()
    if up.stdout is not None:
        up.stdout.close()


@dataclass(slots=True)
class Part:
    """A segment as a browser would send it. `start_ms`: what it states, Unix milliseconds."""

    body: bytes
    start_ms: float | None


def recorded(name: str) -> list[Part]:
    """A set of Chromium's own, with the starts that its page noted: the page's steady clock on top of the wall's first reading."""
    meta = {row["i"]: row for row in map(json.loads, (DATA / name / "meta.jsonl").read_text().splitlines())}
    files = sorted((DATA / name).glob("0*"))
    first = meta[0]
    zero_ms = first["wall_start"] - first["start_call"] if "wall_start" in first else first["wall"] - first["t"]
    return [
        Part(path.read_bytes(), zero_ms + meta[at]["start_call"] if "start_call" in meta[at] else zero_ms if at == 0 else None) for at, path in enumerate(files)
    ]


@dataclass(slots=True)
class Studio:
    """One running Roomtape and an administrator's key."""

    client: httpx2.Client

    def start(self, title: str = "", **more: Any) -> "Take":
        said = self.client.post("/api/v1/meetings/start-recording", json={"userId": "u1", "title": title, **more})
        assert said.status_code in (200, 201), said.text
        document = said.json()
        return Take(self.client, document["meetingId"], document["recordingId"])

    def record(self, parts: Sequence[Part], title: str = "", **more: Any) -> "Take":
        """All parts, then stop and complete; returns when it is completed."""
        take = self.start(title)
        for number, part in enumerate(parts):
            take.upload(number + 1, part, **more)
        return take.finish(last=len(parts))


@dataclass(slots=True)
class Take:
    """One recording."""

    client: httpx2.Client
    meeting: str
    id: str
    token: str = ""

    def upload(self, index: int, part: Part, *, measured: bool = True, expect: int = 201, **more: Any) -> dict[str, Any]:
        """`measured`: the client has measured that its clock is right, so old starts are believed."""
        query: dict[str, Any] = {"meetingId": self.meeting, "recordingId": self.id, "segmentIndex": index, "sha256": hashlib.sha256(part.body).hexdigest()}
        if part.start_ms is not None:
            query["startedAt"] = repr(part.start_ms)
        if measured:
            query["clockOffsetUs"] = 0
        answer = self.client.post("/api/v1/meetings/upload-segment", params=query | more, content=part.body)
        assert answer.status_code == expect, (answer.status_code, answer.text)
        document: dict[str, Any] = answer.json()
        return document

    def post(self, verb: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/v1/meetings/{self.meeting}/recording/{verb}", json=body)
        assert answer.status_code in (200, 201, 202), answer.text
        document: dict[str, Any] = answer.json()
        return document

    def stop(self) -> None:
        assert self.client.post(f"/api/v1/recordings/{self.id}/stop").status_code == 202

    def finish(self, **closing: Any) -> "Take":
        """Stop, complete (`last`, `allowGaps`, …) and wait for the end state."""
        self.stop()
        return self.complete(**closing)

    def complete(self, *, last: int | None = None, limit_s: float = LIMIT_S, **closing: Any) -> "Take":
        body = {"meetingId": self.meeting, "recordingId": self.id, **({} if last is None else {"lastSegmentIndex": last}), **closing}
        answer = self.client.post("/api/v1/meetings/complete-recording", json=body)
        assert answer.status_code == 202, answer.text

        def ended() -> str | None:
            status = self.client.get(f"/api/v1/recordings/{self.id}/status").json()["status"]
            return status if status in ("completed", "failed") else None

        until(ended, f"end of processing of {self.id}", limit_s=limit_s)
        return self

    def view(self) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get(f"/api/v1/recordings/{self.id}").json()
        return document

    def gaps(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.view()["gaps"]
        return found

    def urls(self) -> dict[str, Any]:
        """Where it can be played; always by the same token."""
        body = {"token": self.token} if self.token else {}
        document: dict[str, Any] = self.client.post(f"/api/v1/recordings/{self.id}/playback", json=body).json()
        self.token = document["token"]
        return document

    def get(self, path: str) -> httpx2.Response:
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:300])
        return answer

    def download(self, folder: Path, *, track: str | None = None) -> Path:
        """The file that people download."""
        answer = self.get(f"/api/v1/recordings/{self.id}/download" + (f"?track_id={track}" if track else ""))
        path = folder / f"{self.id}-{track or ''}.{answer.headers['content-type'].partition('/')[2]}"
        path.write_bytes(answer.content)
        return path

    def playlist(self, *, track: str = "1") -> "Playlist":
        path = self.urls()["hls_url"]
        assert path is not None
        master = self.get(path).text
        uri = next(line for line in master.splitlines() if line and not line.startswith("#"))
        media = urljoin(path, uri if track == "1" else uri.replace("1/", f"{track}/", 1))
        return Playlist(media, self.get(media).text, master)

    def hls_file(self, folder: Path) -> Path:
        """What an HLS player gets to decode: set-up and fragments, one after the other."""
        playlist, parts, held = self.playlist(), [], ""
        for entry in playlist.entries:
            assert not entry.gap
            if entry.init != held:
                parts.append(self.get(urljoin(playlist.url, entry.init)).content)
                held = entry.init
            parts.append(self.get(urljoin(playlist.url, entry.uri)).content)
        path = folder / f"{self.id}-hls.mp4"
        path.write_bytes(b"".join(parts))
        return path

    def stream(self, after: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = self.get(f"{self.urls()['stream_url']}?after={after}").json()
        return document

    def pieces(self, track: str = "1") -> Iterator[tuple[dict[str, Any], bytes]]:
        """What Media Source gets to append, with what stream.json says of it."""
        for one in next(one for one in self.stream()["tracks"] if one["id"] == track)["ranges"]:
            yield one, self.get(urljoin(self.urls()["stream_url"], one["url"])).content

    def stream_folder(self, folder: Path, track: str = "1") -> list[tuple[int, Path]]:
        """Each piece as a file of its own, with its start."""
        found = []
        for entry, body in self.pieces(track):
            path = folder / f"{self.id}-{entry['start_us']}"
            path.write_bytes(body)
            found.append((entry["start_us"] + entry["offset_us"], path))
        return found


@dataclass(frozen=True, slots=True)
class Entry:
    uri: str
    init: str
    length_s: float
    gap: bool


@dataclass(frozen=True, slots=True)
class Playlist:
    url: str
    text: str
    master: str

    @property
    def entries(self) -> list[Entry]:
        found, init, length, gap = [], "", 0.0, False
        for line in self.text.splitlines():
            if line.startswith("#EXT-X-MAP:"):
                init = re.findall('URI="([^"]*)"', line)[0]
            elif line.startswith("#EXTINF:"):
                length = float(line[8:].split(",")[0])
            elif line == "#EXT-X-GAP":
                gap = True
            elif line and not line.startswith("#"):
                found.append(Entry(line, init, length, gap))
                gap = False
        return found

    @property
    def ended(self) -> bool:
        return "#EXT-X-ENDLIST" in self.text

    @property
    def body(self) -> str:
        """Without what may change: everything up to the end mark, after the head."""
        return self.text.replace("#EXT-X-ENDLIST\n", "")


def lengths(path: Path) -> dict[str, float]:
    """The end of each stream's last packet, in seconds."""
    ends: dict[str, float] = {}
    with av.open(str(path)) as media:
        for packet in media.demux():
            if packet.pts is not None and packet.stream.type in ("audio", "video"):
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.type] = max(ends.get(packet.stream.type, 0.0), end)
    return ends


def levels(path: Path, *, hop_ms: int = 10) -> NDArray[np.float64]:
    """The sound's level (RMS) of each window, decoded by one decoder, on the file's clock; hours fit, sample by sample they would not."""
    with av.open(str(path)) as media:
        stream = media.streams.audio[0]
        hop = 48 * hop_ms
        rest = np.zeros(0, np.float32)
        pieces: list[NDArray[np.float64]] = []
        for frame in media.decode(stream):
            assert frame.sample_rate == known.RATE_HZ
            if not pieces and not rest.size:
                rest = np.zeros(round((frame.time or 0.0) * known.RATE_HZ), np.float32)
            rest = np.concatenate([rest, frame.to_ndarray().mean(axis=0, dtype=np.float32)])
            if rest.size > 1 << 16:
                whole = rest[: rest.size // hop * hop].reshape(-1, hop)
                pieces.append(np.sqrt(np.mean(whole**2, axis=1, dtype=np.float64)))
                rest = rest[whole.size :]
        whole = rest[: rest.size // hop * hop].reshape(-1, hop)
        pieces.append(np.sqrt(np.mean(whole**2, axis=1, dtype=np.float64)))
    return np.concatenate(pieces)


def sound_of(path: Path) -> NDArray[np.float32]:
    """The sound on the file's clock. Packet follows on packet, whatever WebM's rounded milliseconds say, unless the file says that one does not."""
    pieces: list[NDArray[np.float32]] = []
    until = 0
    with av.open(str(path)) as media:
        for frame in media.decode(audio=0):
            at = round(float(frame.time or 0.0) * known.RATE_HZ)
            if not pieces or at - until > JITTER:
                pieces.append(np.zeros(max(at - until, 0), np.float32))
                until = max(at, until)
            pieces.append(frame.to_ndarray().mean(axis=0, dtype=np.float32))
            until += frame.samples
    return np.concatenate(pieces)
