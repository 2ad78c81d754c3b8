"""What the badge says while media come in as time goes: each trouble within 15 seconds of its cause, and well again soon after it."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from threading import Thread
from typing import Any

import httpx2
import numpy as np
import pytest

from roomtape.testing import synthetic

from ..media.studio import Part, Studio, Take, opened, until

FINE_S = 5  # good media first
TROUBLE_S = 17
AGAIN_S = 8
WHOLE_S = FINE_S + TROUBLE_S + AGAIN_S
WITHIN_S = 15.0
BUSY_S = 4.0  # what a busy machine may add
SIZE = (160, 90)
TROUBLES = ("silent", "black", "frozen", "stalled")
CYCLE = 10


@dataclass(slots=True)
class Seen:
    """A take, what is sent of it in which second, and when its trouble was sent first and last (for a stall: when it began and ended)."""

    take: Take
    source: str
    send: Callable[[int], bytes | None]
    trouble_at: float = 0.0
    well_at: float = 0.0
    shown: list[str] = field(default_factory=list)


class Media:
    """One-second segments, made before they are needed."""

    def __init__(self) -> None:
        voice = [synthetic.opus(synthetic.sampled(synthetic.voice(), second, 1.0)) for second in range(CYCLE)]
        numbers = [synthetic.pictures(synthetic.numbered(second * 30, 30, size=SIZE)) for second in range(CYCLE)]
        black, still = (synthetic.pictures(synthetic.plain(30, luma, size=SIZE)) for luma in (16, 120))
        silence = synthetic.opus(np.zeros(48_000))
        self.fine = [synthetic.webm(sound, shown, size=SIZE) for sound, shown in zip(voice, numbers, strict=True)]
        self.silent = [synthetic.webm(silence, shown, size=SIZE) for shown in numbers]
        self.black = [synthetic.webm(sound, black, size=SIZE) for sound in voice]
        self.frozen = [synthetic.webm(sound, still, size=SIZE) for sound in voice]

    def but(self, trouble: list[bytes] | None) -> Callable[[int], bytes | None]:
        """Good media, then this (None: nothing), then good media again."""

        def send(second: int) -> bytes | None:
            if FINE_S <= second < FINE_S + TROUBLE_S:
                return trouble[second % CYCLE] if trouble else None
            return self.fine[second % CYCLE]

        return send


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with opened(tmp_path_factory.mktemp("health")) as studio:
        yield studio


@pytest.fixture(scope="module")
def events(studio: Studio) -> Iterator[list[dict[str, Any]]]:
    """What a subscriber is told."""
    found: list[dict[str, Any]] = []
    stream = httpx2.Client(base_url=studio.client.base_url, headers=studio.client.headers, timeout=httpx2.Timeout(60, read=60))

    def listen() -> None:
        try:
            with stream.stream("GET", "/api/v1/events") as told:
                found.extend(json.loads(line[5:]) for line in told.iter_lines() if line.startswith("data:"))
        except (httpx2.HTTPError, httpx2.StreamError):
            return  # closed at the end

    thread = Thread(target=listen, daemon=True)
    thread.start()
    yield found
    stream.close()


@pytest.fixture(scope="module")
def seen(studio: Studio, events: list[dict[str, Any]]) -> dict[str, Seen]:
    """All recordings side by side, in real time."""
    media = Media()
    whole = {
        "live": Seen(studio.start("live"), "camera", media.but(media.fine)),
        "silent": Seen(studio.start("silent"), "camera", media.but(media.silent)),
        "black": Seen(studio.start("black"), "camera", media.but(media.black)),
        "frozen": Seen(studio.start("frozen"), "camera", media.but(media.frozen)),
        "screen": Seen(studio.start("screen"), "screen", media.but(media.frozen)),
        "stalled": Seen(studio.start("stalled"), "camera", media.but(None)),
        "paused": Seen(studio.start("paused"), "camera", media.but(None)),
    }
    began = time.time()
    sent = dict.fromkeys(whole, 0)
    for second in range(WHOLE_S):
        time.sleep(max(0.0, began + second + 1 - time.time()))  # it is heard when it is over
        for name, one in whole.items():
            if second == FINE_S:
                one.trouble_at = time.time()
            if second == FINE_S + TROUBLE_S:
                one.well_at = time.time()
            if name == "paused" and second in (FINE_S, FINE_S + TROUBLE_S):
                one.take.post("pause" if second == FINE_S else "resume")
            body = one.send(second)
            if body is not None:
                sent[name] += 1
                one.take.upload(sent[name], Part(body, (began + second) * 1000), source=one.source)
            if second in (FINE_S + TROUBLE_S - 1, WHOLE_S - 1):
                one.shown.append(one.take.view()["health"])
    until(lambda: True if all(len(verdicts(events, one)) >= (3 if name in TROUBLES else 1) for name, one in whole.items()) else None, "verdicts", limit_s=30)
    return whole


def verdicts(events: list[dict[str, Any]], one: Seen) -> list[tuple[float, str]]:
    """(when, what) was told of a take."""
    told = [event for event in events if event["type"] == "recording.health" and event["subject"] == f"recordings/{one.take.id}"]
    return [(datetime.fromisoformat(event["time"]).timestamp(), event["data"]["health"]) for event in told]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_is_said_within_fifteen_seconds_and_ends_when_it_is_over(trouble: str, seen: dict[str, Seen], events: list[dict[str, Any]]) -> None:
    one = seen[trouble]
    told = verdicts(events, one)
    assert [verdict for _, verdict in told] == ["live", trouble, "live"]
    assert told[1][0] - one.trouble_at <= WITHIN_S + BUSY_S
    assert told[2][0] - one.well_at <= WITHIN_S + BUSY_S
    assert one.shown[0] == trouble, "the recording says so too"


@pytest.mark.parametrize("name", ["live", "screen", "paused"])
def test_what_is_well_stays_well(name: str, seen: dict[str, Seen], events: list[dict[str, Any]]) -> None:
    """Slides stand still, and nothing comes in a pause."""
    assert [verdict for _, verdict in verdicts(events, seen[name])] == ["live"]
    assert seen[name].shown == ["live", "live"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_verdict_stands_in_the_timeline(trouble: str, seen: dict[str, Seen]) -> None:
    document = seen[trouble].take.get(f"/api/v1/recordings/{seen[trouble].take.id}/timeline").json()
    assert [event["data"]["health"] for event in document["events"] if event["type"] == "recording.health"] == ["live", trouble, "live"]


def test_what_was_recorded_in_trouble_completes(seen: dict[str, Seen]) -> None:
    for one in seen.values():
        one.take.finish()
        assert one.take.view()["status"] == "completed"
