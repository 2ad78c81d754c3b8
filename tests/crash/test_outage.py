"""The object store fails while meetings are recorded: every segment is acknowledged from the spool, served from there, and moved when the store is back."""

import asyncio
import hashlib
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from roomtape.testing.faultproxy import FaultProxy, Mode, Rule
from roomtape.testing.s3 import S3Server, s3_server
from roomtape.testing.servers import require

from .client import Client, Ledger, Played, script
from .house import until
from .judge import j7, judge_meeting
from .stage import Stage

STATUSES = (500, 502, 503, 429, 403, 404, 507)
FAULTS = [Rule(Mode.STATUS, status=status, retry_after_s=1 if status in {503, 429} else None) for status in STATUSES] + [
    Rule(Mode.REFUSE),
    Rule(Mode.BLACKHOLE),
]
AWAY = Rule(Mode.STATUS, status=503)
WELL = Rule()


@contextmanager
def proxied(port: int) -> Iterator[FaultProxy]:
    """A FaultProxy in a thread of its own; its rule may be set from here."""
    found: list[FaultProxy] = []
    ready, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with FaultProxy(port) as proxy:
            found.append(proxy)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        over.set()
        thread.join()


@dataclass(slots=True)
class Away:
    """A stage whose store is a bucket behind a proxy."""

    stage: Stage
    proxy: FaultProxy
    server: S3Server
    client: Client

    @property
    def spool(self) -> list[Path]:
        return [path for path in (self.stage.folder / "data/spool").rglob("*") if path.is_file() and ".tmp" not in path.parts and path.name != ".name"]

    def objects(self, recording: str) -> dict[str, int]:
        """Digests of the chunks that the bucket has of a recording, asked behind the gateway's back."""
        found = [path for path in (self.server.objects / "bucket").rglob("*") if recording in str(path) and path.is_file()]
        return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in found)

    def get(self, path: str) -> Any:
        return self.client.ask("GET", f"/api/v1/recordings/{path}", 200).json()

    def states(self, recording: str) -> dict[int, str]:
        return {one["index"]: one["state"] for one in self.get(f"{recording}/segments")["segments"]}

    def send(self, played: Played, at: int) -> dict[str, Any]:
        """Uploads one segment as its client does; returns how it stands."""
        what = played.script
        self.client.upload(played.meeting, played.recording, at + 1, what.files[at].read_bytes(), started_ms=what.started_ms[at])
        return {"state": self.states(played.recording)[at + 1]}

    def begin(self, folder: Path, code: str, count: int | None = None) -> Played:
        meeting, recording = self.client.start(code)
        return Played(meeting, recording, "recording", script(folder, count))

    def complete(self, played: Played) -> None:
        body = {"meetingId": played.meeting, "recordingId": played.recording, "lastSegmentIndex": len(played.script.files)}
        self.client.ask("POST", "/api/v1/meetings/complete-recording", 202, json=body)

    def judged(self, played: Played) -> list[str]:
        """Waits for the end and judges; everything is in the bucket, once."""
        until("it is completed", lambda: self.get(f"{played.recording}/status")["status"] == "completed", within_s=120)
        acked = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in played.script.files)
        there = self.objects(played.recording)
        return judge_meeting(self.client, played) + ([] if there == acked else [f"the bucket has {there}, acknowledged was {acked}"])


@contextmanager
def away(folder: Path, *, spool_size: str | None = None) -> Iterator[Away]:
    with ExitStack() as stack:
        server = stack.enter_context(s3_server(folder / "s3"))
        server.make_bucket()
        proxy = stack.enter_context(proxied(server.port))
        place = folder / "stage"
        place.mkdir()
        spool = place / "data/spool"
        if spool_size:
            spool.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={spool_size}", "tmpfs", spool], check=True)
            stack.callback(lambda: subprocess.run(["umount", "--lazy", spool], check=True))
        aws = {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key}
        stage = Stage(place, {"ROOMTAPE_STORAGE_URL": server.url(port=proxy.port), **aws})
        stack.callback(stage.end)
        stage.start()
        client = stack.enter_context(Client(stage.base, stage.key(), Ledger(folder / "ledger"), patience_s=120))
        yield Away(stage, proxy, server, client)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    with away(tmp_path_factory.mktemp("outage")) as one:
        yield one


@pytest.fixture(autouse=True)
def well_again(house: Away) -> Iterator[None]:
    """Each test begins with a store that works and an empty spool."""
    yield
    house.proxy.rule = WELL
    until("the spool is empty", lambda: not house.spool, within_s=90)
    assert j7(house.client.answers, 30) == []


def test_each_kind_of_failure_is_bridged_by_the_spool(house: Away, chromium: Path) -> None:
    played = house.begin(chromium / "A-opus", "all-kinds")
    body_of = played.script.files
    for at in range(len(body_of)):
        house.proxy.rule = fault = FAULTS[at] if at < len(FAULTS) else WELL
        before = house.send(played, at)["state"]
        assert before == ("queued" if fault is not WELL else "done"), fault
        kept = house.client.ask("GET", f"/api/v1/recordings/{played.recording}/segments/{at + 1}", 200)
        assert kept.content == body_of[at].read_bytes(), "it is served from wherever it is"
        house.proxy.rule = WELL
        until(f"{fault} is over and the segment is moved", lambda: set(house.states(played.recording).values()) == {"done"}, within_s=90)
    house.complete(played)
    assert house.judged(played) == []


@pytest.mark.parametrize(
    "rule",
    [Rule(Mode.STATUS, every=2), Rule(Mode.STATUS, status=503, times=10), Rule(Mode.STATUS, status=429, match="PUT", every=3)],
    ids=["every 2nd", "the first 10", "every 3rd PUT"],
)
def test_a_store_that_fails_now_and_then_loses_nothing(house: Away, chromium: Path, rule: Rule) -> None:
    played = house.begin(chromium / "A-opus", f"now-and-then-{rule.every}-{rule.times}-{rule.match}")
    house.proxy.rule = rule
    for at in range(len(played.script.files)):
        assert house.send(played, at)["state"] in {"queued", "in_progress", "done"}
    house.complete(played)
    until("it is completed although the store is as it is", lambda: house.get(f"{played.recording}/status")["status"] == "completed", within_s=120)
    house.proxy.rule = WELL
    assert house.judged(played) == []


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_whole_meeting_in_each_kind_of_failure(house: Away, chromium: Path, fault: Rule, every: int) -> None:
    played = house.begin(chromium / "B-vp8", f"whole-{fault.mode}-{fault.status}-{every}")
    house.proxy.rule = Rule(fault.mode, status=fault.status, retry_after_s=fault.retry_after_s, every=every)
    for at in range(len(played.script.files)):
        house.send(played, at)
    house.complete(played)
    house.proxy.rule = WELL
    assert house.judged(played) == []


def _plays(house: Away, played: Played) -> None:
    """Everything that a player asks for is there: the whole by ranges, each fragment of HLS, each piece for Media Source."""
    given = house.client.ask("POST", f"/api/v1/recordings/{played.recording}/playback", 200, json={}).json()
    whole_url = given["mp4_url"] or given["webm_url"]
    with httpx2.Client(base_url=house.stage.base, timeout=60) as player:
        whole = player.get(whole_url)
        assert whole.status_code == 200
        size = len(whole.content)
        for first, last in ((0, 0), (0, size - 1), (size // 3, 2 * size // 3), (size - 7, size - 1)):
            part = player.get(whole_url, headers={"range": f"bytes={first}-{last}"})
            assert part.status_code == 206
            assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
            assert part.content == whole.content[first : last + 1]
        master = player.get(given["hls_url"])
        playlist = next(line for line in master.text.splitlines() if line and not line.startswith("#"))
        media = master.url.join(playlist)
        lines = [line for line in player.get(media).text.splitlines() if line and not line.startswith("#")]
        assert lines
        for line in lines:
            assert player.get(media.join(line)).status_code == 200
        for track in player.get(given["stream_url"]).json()["tracks"]:
            for piece in track["ranges"]:
                assert player.get(piece["url"]).status_code == 200


def test_twenty_recordings_made_while_the_store_is_away_are_whole_when_it_is_back(house: Away, chromium: Path) -> None:
    house.proxy.rule = AWAY
    meetings = []
    for number in range(20):
        played = house.begin(chromium / "B-opus", f"away-{number}", 3)
        for at in range(3):
            assert house.send(played, at)["state"] == "queued"
        house.complete(played)
        meetings.append(played)
    first = meetings[0]
    error = until("it says why it waits", lambda: house.get(first.recording)["error"])
    assert error["code"].startswith("storage")
    assert error["retry_at"]
    assert house.get(f"{first.recording}/status")["status"] == "processing"
    assert httpx2.get(f"{house.stage.base}/healthz").json()["status"] == "degraded"
    _plays(house, first)
    assert sum(sum(house.objects(played.recording).values()) for played in meetings) == 0
    house.proxy.rule = WELL
    for played in meetings:
        assert house.judged(played) == []
    assert httpx2.get(f"{house.stage.base}/healthz").json()["storage"] == "ok"


def test_a_recording_in_the_bucket_plays_by_ranges(house: Away, chromium: Path) -> None:
    played = house.begin(chromium / "B-vp9", "in-the-bucket")
    for at in range(len(played.script.files)):
        assert house.send(played, at)["state"] == "done"
    house.complete(played)
    assert house.judged(played) == []
    _plays(house, played)


def test_a_full_spool_answers_507_and_takes_again_when_it_is_emptied(tmp_path: Path, chromium: Path) -> None:
    require(os.geteuid() == 0 or None, "mounting needs root")
    with away(tmp_path, spool_size="2m") as small:
        played = small.begin(chromium / "B-vp8", "full")
        small.proxy.rule = AWAY
        refused = None
        for at in range(len(played.script.files)):
            names = {"meetingId": played.meeting, "recordingId": played.recording, "segmentIndex": 100 + at}
            answer = small.client.once("POST", "/api/v1/meetings/upload-segment", params=names, content=os.urandom(600_000))
            assert answer is not None
            if answer.status_code == 507:
                refused = answer
                break
            assert answer.status_code == 201
        assert refused is not None
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["code"] == "storage_full"
        assert set(small.states(played.recording).values()) == {"queued"}
        small.proxy.rule = WELL
        assert small.client.ask(
            "POST", "/api/v1/meetings/upload-segment", 201, params={**names, "segmentIndex": 1}, content=played.script.files[0].read_bytes()
        )
        until("all is moved", lambda: set(small.states(played.recording).values()) == {"done"} and not small.spool, within_s=90)
        assert j7(small.client.answers, 30) == []
