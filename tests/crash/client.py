"""A client that believes nobody: what was acknowledged to it stands in a ledger of its own, fsynced, and the judge asks only there."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx2

LIMIT_S = 30.0  # no request may take longer, whatever dies under it
HASTE_S = 0.3  # it comes back sooner than Retry-After asks for: harder on the server, and quicker
OVERLONG = 0  # stands where a status would: no answer in time
CUT = -1  # the connection was refused or lost
_AGAIN = frozenset({429, 500, 502, 503, 504, 507})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Ack:
    """What the server has acknowledged."""

    meeting: str
    recording: str
    track: str
    index: int
    sha256: str
    size: int
    status: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended. `retry_after`: what the header said; `status` may be OVERLONG or CUT."""

    method: str
    path: str
    status: int
    took_s: float
    retry_after: str | None = None


class Ledger:
    """A file of acks, one JSON line each, durable before the next request is made. Safe to use from many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.touch()

    def note(self, ack: Ack) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(asdict(ack)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def acks(self) -> list[Ack]:
        return [Ack(**json.loads(line)) for line in self.path.read_text().splitlines()]

    def of(self, recording: str) -> list[Ack]:
        return [ack for ack in self.acks() if ack.recording == recording]


@dataclass(frozen=True, slots=True)
class Script:
    """Segments of one recorder of a real browser. `cuts`: they are cuts of one file; else each is a file of its own."""

    name: str
    files: tuple[Path, ...]
    started_ms: tuple[float | None, ...]
    cuts: bool


def script(folder: Path, count: int | None = None) -> Script:
    """A set of tests/data/chromium, or its first `count` segments."""
    files = tuple(sorted(path for path in folder.iterdir() if path.name[:4].isdigit()))[:count]
    said = {meta["i"]: meta for meta in map(json.loads, (folder / "meta.jsonl").read_text().splitlines())}
    started = tuple(said[at].get("wall_start") or (said[0]["wall"] - said[0]["t"] if at == 0 else None) for at in range(len(files)))
    return Script(folder.name, files, started, cuts=folder.name.startswith("A-"))


@dataclass(frozen=True, slots=True)
class Played:
    """A meeting that was played to its end, as its client saw it."""

    meeting: str
    recording: str
    status: str
    script: Script


class UnexpectedAnswerError(AssertionError):
    """The server said what it must never say to this client."""


@dataclass(slots=True)
class Client:
    """Plays meetings against `base` and repeats what was not acknowledged until it is. `answers`: all it has heard."""

    base: str
    key: str
    ledger: Ledger
    patience_s: float = 90.0
    limit_s: float = LIMIT_S
    answers: list[Answer] = field(default_factory=list)
    _http: httpx2.Client | None = None

    def __enter__(self) -> Self:
        self._http = httpx2.Client(base_url=self.base, headers={"authorization": f"Bearer {self.key}"}, timeout=self.limit_s)
        return self

    def __exit__(self, *_: object) -> None:
        if self._http is not None:
            self._http.close()

    def once(self, method: str, path: str, **more: Any) -> httpx2.Response | None:
        """One try; None when no answer came. Heard is heard: it stands in `answers`."""
        assert self._http is not None
        begun = time.monotonic()
        response, status, retry_after = None, CUT, None
        try:
            response = self._http.request(method, path, **more)
            status, retry_after = response.status_code, response.headers.get("retry-after")
        except httpx2.TimeoutException:
            status = OVERLONG
        except httpx2.TransportError:
            pass  # refused or reset: whoever should answer is dead just now
        self.answers.append(Answer(method, path, status, time.monotonic() - begun, retry_after))
        return response

    def ask(self, method: str, path: str, *expected: int, **more: Any) -> httpx2.Response:
        """Repeats until one of `expected` comes. UnexpectedAnswerError: another final answer, or patience is over."""
        deadline, wait_s = time.monotonic() + self.patience_s, _FIRST_WAIT_S
        while time.monotonic() < deadline:
            response = self.once(method, path, **more)
            if response is not None and response.status_code in expected:
                return response
            if response is not None and response.status_code not in _AGAIN:
                raise UnexpectedAnswerError(f"{method} {path}: {response.status_code} {response.text[:500]}")
            asked_s = float(response.headers.get("retry-after", 0)) if response is not None else 0.0
            time.sleep(min(HASTE_S, asked_s) if asked_s else wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        raise UnexpectedAnswerError(f"{method} {path}: no answer of {expected} in {self.patience_s} s; the last: {self.answers[-5:]}")

    def start(self, code: str) -> tuple[str, str]:
        """(meeting, recording); said twice it joins what the lost answer has started."""
        body = {"userId": "u1", "meetingId": code, "title": code, "trackId": "1"}
        said = self.ask("POST", "/api/v1/meetings/start-recording", HTTPStatus.CREATED, HTTPStatus.OK, json=body).json()
        return said["meetingId"], said["recordingId"]

    def upload(self, meeting: str, recording: str, index: int, body: bytes, *, started_ms: float | None = None) -> Ack:
        """Sends one segment until it is acknowledged, and notes the ack durably."""
        digest = hashlib.sha256(body).hexdigest()
        names: dict[str, str | int | float] = {"meetingId": meeting, "recordingId": recording, "segmentIndex": index, "trackId": "1", "sha256": digest}
        if started_ms is not None:
            names |= {"startedAt": started_ms, "clockOffsetUs": 0}
        said = self.ask("POST", "/api/v1/meetings/upload-segment", HTTPStatus.CREATED, HTTPStatus.OK, params=names, content=body)
        if said.json()["sha256"] != digest:
            raise UnexpectedAnswerError(f"other bytes were acknowledged: {said.text}")
        ack = Ack(meeting, recording, "1", index, digest, len(body), said.status_code, time.time_ns() // 1000)
        self.ledger.note(ack)
        return ack

    def finish(self, meeting: str, recording: str, last: int) -> str:
        """Stops, completes, and waits for the end; returns the status in which it ended."""
        self.ask("POST", f"/api/v1/recordings/{recording}/stop", HTTPStatus.ACCEPTED)
        body = {"meetingId": meeting, "recordingId": recording, "lastSegmentIndex": last}
        self.ask("POST", "/api/v1/meetings/complete-recording", HTTPStatus.ACCEPTED, json=body)
        deadline = time.monotonic() + self.patience_s
        while (status := self.ask("GET", f"/api/v1/recordings/{recording}/status", HTTPStatus.OK).json()["status"]) not in {"completed", "failed"}:
            if time.monotonic() > deadline:
                raise UnexpectedAnswerError(f"the recording is still {status} after {self.patience_s} s")
            time.sleep(0.05)
        return str(status)

    def play(self, what: Script, code: str, between: Callable[[int], None] = lambda _: None) -> Played:
        """One whole meeting. `between` is called with the index after each ack."""
        meeting, recording = self.start(code)
        for at, path in enumerate(what.files):
            self.upload(meeting, recording, at + 1, path.read_bytes(), started_ms=what.started_ms[at])
            between(at + 1)
        return Played(meeting, recording, self.finish(meeting, recording, len(what.files)), what)
