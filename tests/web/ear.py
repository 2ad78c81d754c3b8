"""One who listens to server-sent events, in a thread of its own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from .house import LIMIT_S, House, Json, until

EVENTS = "/api/v1/events"


def events(lines: Iterator[str]) -> Iterator[Json]:
    """CloudEvents of a stream of server-sent events, with the stream's own id as `_id`."""
    at = ""
    for line in lines:
        if line.startswith("id: "):
            at = line[4:]
        if line.startswith("data: "):
            yield json.loads(line[6:]) | {"_id": at}


class Ear:
    """Listens in a thread of its own until the block ends."""

    def __init__(self, client: httpx2.Client, last: str | None) -> None:
        self.heard: list[Json] = []
        self.comments: list[str] = []
        self.headers: httpx2.Headers = httpx2.Headers()
        self.ready = threading.Event()
        self.ended = threading.Event()
        self._client, self._last = client, last
        self._over = False
        self.thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        headers = {"last-event-id": self._last} if self._last else {}
        try:
            with self._client.stream("GET", EVENTS, headers=headers, timeout=httpx2.Timeout(5, read=120)) as answer:
                assert answer.status_code == 200
                self.headers = answer.headers
                for event in events(self._lines(answer)):
                    self.heard.append(event)
        except httpx2.HTTPError:
            if not self._over:
                raise
        finally:
            self.ended.set()

    def _lines(self, answer: httpx2.Response) -> Iterator[str]:
        for line in answer.iter_lines():
            if line.startswith(":"):
                self.comments.append(line)
                self.ready.set()
            yield line

    def of(self, recording: str) -> list[Json]:
        return [event for event in self.heard if event["data"]["recording_id"] == recording]

    def wait_for(self, recording: str, count: int) -> None:
        until(lambda: len(self.of(recording)) >= count, f"{count} events")

    def close(self) -> None:
        self._over = True


@contextmanager
def listening(house: House, bearer: str, last: str | None = None) -> Iterator[Ear]:
    with house.client(bearer) as client:
        ear = Ear(client, last)
        ear.thread.start()
        assert ear.ready.wait(LIMIT_S)
        try:
            yield ear
        finally:
            ear.close()
