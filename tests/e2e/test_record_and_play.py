"""From the camera to every way of playing: what the page recorded is read back picture by picture and beep by beep."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Route

from roomtape.testing import known
from roomtape.testing.servers import require

from .watching import STATE, WATCH, Roomtape, answer, beeps, pictures, record, until, within

SECONDS = 30

pytestmark = pytest.mark.timeout(240)


Times = dict[int, list[float]]  # a number: where it stands in the recording, by each piece that holds it


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished recording, what its raw pieces truly hold, and what a second page saw and heard of it while it ran."""

    id: str
    path: str
    numbers: Times
    seconds: Times
    live_pictures: list[known.Seen]
    live_beeps: list[known.Seen]
    live_state: dict[str, object]
    playback: dict[str, str | None]


def raw_pieces(context: BrowserContext, path: str, folder: Path) -> list[tuple[float, Path]]:
    """The very bytes that were taken, checked against their digests, each with its place in the recording."""
    pieces = []
    for said in context.request.get(f"{path}/segments").json()["segments"]:
        body = context.request.get(f"{path}/segments/{said['index']}?track_id={said['track_id']}").body()
        assert hashlib.sha256(body).hexdigest() == said["sha256"]
        piece = folder / f"{said['index']:04}.webm"
        piece.write_bytes(body)
        pieces.append((said["start_s"], piece))
    return pieces


def stated(pieces: list[tuple[float, Path]], read: Callable[[Path], list[known.Seen]]) -> Times:
    """What the pieces hold: the camera and the microphone are late when the machine is busy, so their own times are the measure."""
    times: Times = {}
    for start_s, piece in pieces:
        for at, number in read(piece):
            if number != known.UNREADABLE:
                times.setdefault(number, []).append(start_s + at)
    return dict(sorted(times.items()))


def stray_s(seen: list[known.Seen], truth: Times) -> float:
    """The farthest that something stands from where a piece has it."""
    return max(min(abs(at - time) for time in truth[number]) for at, number in seen if number in truth)


@pytest.fixture(scope="module")
def recorded(signed_in: BrowserContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("pieces")
    recorder, viewer = signed_in.new_page(), signed_in.new_page()
    viewer.goto("/")
    record(recorder, "Known content")
    viewer.get_by_role("link", name="Known content").click(timeout=10_000)  # the list moved by itself
    until(lambda: viewer.evaluate(STATE)["ready"] >= 2, limit_s=20, what="the live page has something to play")
    viewer.evaluate(WATCH, 1)
    until(lambda: recorder.locator("#timer").inner_text() >= f"0:{SECONDS}", limit_s=SECONDS + 15, what=f"{SECONDS} s are recorded")
    recorder.get_by_role("button", name="Stop").click()
    recorder.wait_for_url("**/recordings/*", timeout=30_000)
    name = recorder.url.rsplit("/", 1)[1]
    path = f"/api/v1/recordings/{name}"
    until(lambda: signed_in.request.get(f"{path}/status").json()["status"] == "completed", limit_s=60, what="the recording is completed")
    until(lambda: viewer.evaluate(STATE)["ended"], limit_s=SECONDS + 30, what="who watches live sees it to the end")
    pieces = raw_pieces(signed_in, path, folder)
    csrf = recorder.locator('meta[name="csrf-token"]').get_attribute("content")
    playback = signed_in.request.post(f"{path}/playback", data={}, headers={"X-CSRF-Token": csrf or ""}).json()
    yield Recorded(
        id=name,
        path=path,
        numbers=stated(pieces, known.read_frame_numbers),
        seconds=stated(pieces, known.read_beeps),
        live_pictures=pictures(viewer),
        live_beeps=beeps(viewer, folder),
        live_state=viewer.evaluate(STATE),
        playback=playback,
    )
    recorder.close()
    viewer.close()


def test_the_pieces_overlap_so_nothing_is_lost_between_them(recorded: Recorded) -> None:
    assert len(recorded.numbers) >= (SECONDS - 1) * known.FPS * 0.97, "the camera itself lost more than a busy machine explains"
    assert list(recorded.seconds) == list(range(min(recorded.seconds), max(recorded.seconds) + 1))
    assert len(recorded.seconds) >= SECONDS - 1


def assert_whole(frames: list[known.Seen], sounds: list[known.Seen], recorded: Recorded) -> None:
    """Every picture and beep that the pieces hold, once, in order and at its time."""
    seen, heard = known.judge(frames, recorded.numbers), known.judge(within(sounds), recorded.seconds, rate=1)
    assert (seen.missing, seen.doubled, seen.disordered, seen.unreadable) == ((), (), (), 0)
    assert (heard.missing, heard.doubled, heard.disordered, heard.unreadable) == ((), (), (), 0)
    assert stray_s(sounds, recorded.seconds) < 0.1  # a busy fake microphone loses 10 ms now and then, and sound is moved back towards the clock slowly
    assert stray_s(frames, recorded.numbers) < 0.03


def test_the_download_holds_every_picture_and_beep_once(recorded: Recorded, signed_in: BrowserContext, tmp_path: Path) -> None:
    file = tmp_path / "download"
    file.write_bytes(answer(signed_in, f"{recorded.path}/download").body())
    assert_whole(known.read_frame_numbers(file), known.read_beeps(file), recorded)


def hls_of(recorded: Recorded) -> str:
    return require(recorded.playback["hls_url"], "this Chromium records a codec that HLS cannot carry")


def test_hls_holds_every_picture_and_beep_once(recorded: Recorded, roomtape: Roomtape) -> None:
    url = roomtape.address + hls_of(recorded)
    assert_whole(known.read_frame_numbers(url), known.read_beeps(url), recorded)


def test_who_watches_live_sees_and_hears_all_of_it(recorded: Recorded) -> None:
    assert recorded.live_state["trouble"] == []
    check_shown(recorded.live_pictures, recorded, least=0.8)
    # A busy machine's sound output stops inside a beep: then its halves are told twice, or not at all. A beep that comes again later would be a jump back.
    halves = {at for (before, one), (at, other) in pairwise(recorded.live_beeps) if one == other and at - before < 0.5}
    heard = known.judge([beep for beep in recorded.live_beeps if beep[0] not in halves], rate=1)
    assert (heard.doubled, heard.disordered) == ((), ()), recorded.live_beeps
    assert len(heard.missing) <= heard.unreadable, recorded.live_beeps
    assert len(recorded.live_beeps) >= len(recorded.seconds) - 3


def check_shown(shown: list[known.Seen], recorded: Recorded, *, least: float) -> None:
    """What was on the screen: a page may skip a picture when the machine is busy, but never shows a wrong one, or one out of order."""
    seen = known.judge(shown, recorded.numbers)
    assert (seen.disordered, seen.unreadable) == ((), 0)  # a picture read twice is the reader's lateness; the decoder's count tells real doubles
    assert not {number for _, number in shown} - set(recorded.numbers)
    assert len(shown) >= least * len(recorded.numbers)
    assert stray_s(shown, recorded.numbers) < 0.2  # the reader may be some pictures late


def serve(body: str, content_type: str) -> Callable[[Route], None]:
    return lambda route: route.fulfill(body=body, content_type=content_type)


def player(page: Page, scripts: dict[str, str], start: str) -> None:
    """A bare page on the same origin, so that only the player is tested and not our own page."""
    for name, source in scripts.items():
        page.route(f"**/bare/{name}", serve(source, "text/javascript"))
    tags = "".join(f'<script src="/bare/{name}"></script>' for name in scripts)
    page.route("**/bare/page", serve(f"<!doctype html><video muted></video>{tags}", "text/html"))
    page.goto("/bare/page")
    page.evaluate(start)


def play_to_the_end(page: Page, *, rate: float) -> dict[str, object]:
    until(lambda: page.evaluate(STATE)["ready"] >= 2, limit_s=20, what="there is something to play")
    page.evaluate(WATCH, rate)
    until(lambda: page.evaluate(STATE)["ended"], limit_s=SECONDS / rate + 30, what="it plays to the end")
    state: dict[str, object] = page.evaluate(STATE)
    return state


def assert_played_whole(state: dict[str, object], recorded: Recorded) -> None:
    assert state["trouble"] == []
    assert isinstance(state["ranges"], list)
    assert len(state["ranges"]) == 1, "one stretch without a hole"
    assert state["frames"] == pytest.approx(len(recorded.numbers), abs=1)  # Media Source drops pictures silently; the decoder's own count tells


def test_hls_js_plays_every_picture(recorded: Recorded, signed_in: BrowserContext, hls_js: str) -> None:
    hls = hls_of(recorded)
    page = signed_in.new_page()
    start = f"""() => {{
        window.trouble = [];
        const hls = new Hls({{ maxBufferLength: 120 }});
        hls.on(Hls.Events.ERROR, (_, told) => window.trouble.push(told.details));
        hls.loadSource("{hls}");
        hls.attachMedia(document.querySelector("video"));
    }}"""
    player(page, {"hls.js": hls_js}, start)
    state = play_to_the_end(page, rate=2)
    assert_played_whole(state, recorded)
    check_shown(pictures(page), recorded, least=0.5)
    page.close()


def test_the_pieces_play_through_media_source(recorded: Recorded, signed_in: BrowserContext) -> None:
    page = signed_in.new_page()
    start = f"""async () => {{
        const {{ Feeder }} = await import("/static/feeder.js");
        const feeder = new Feeder(document.querySelector("video"), {{ stream: async () => "{recorded.playback["stream_url"]}", onChange: () => {{}} }});
        feeder.end();
        feeder.run();
    }}"""
    player(page, {}, start)
    state = play_to_the_end(page, rate=2)
    assert_played_whole(state, recorded)
    check_shown(pictures(page), recorded, least=0.5)
    page.close()
