"""What a browser really shows and sounds: numbers read from each presented picture, beeps from what the element plays."""

import base64
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from playwright.sync_api import APIResponse, BrowserContext, Page, expect

from roomtape.testing import known

T = TypeVar("T")

# Each presented picture, 40 x 32 (8 x 8 pixels a cell), and its media time. The sound goes into a recording of its own.
WATCH = """
async (rate) => {
  const video = document.querySelector("video");
  const canvas = new OffscreenCanvas(40, 32);
  const pencil = canvas.getContext("2d", { willReadFrequently: true });
  window.shown = [];
  window.trouble = [];
  video.addEventListener("error", () => window.trouble.push(video.error?.message ?? "error"));
  const next = (_, { mediaTime }) => {
    if (window.ended) return; // what a page shows after the end is another source
    pencil.drawImage(video, 0, 0, 40, 32);
    const { data } = pencil.getImageData(0, 0, 40, 32);
    let luma = "";
    for (let n = 0; n < data.length; n += 4) luma += String.fromCharCode(data[n + 1]);
    window.shown.push([mediaTime, btoa(luma)]);
    video.requestVideoFrameCallback(next);
  };
  video.requestVideoFrameCallback(next);
  window.ended = null;
  video.addEventListener("ended", () => (window.ended ??= { ...window.state(), ended: true }), { once: true, capture: true });
  video.playbackRate = rate;
  await video.play();
  if (rate !== 1) return;
  const ears = new MediaRecorder(new MediaStream(video.captureStream().getAudioTracks()), { mimeType: "audio/webm;codecs=opus" });
  window.heard = [];
  window.earsDone = new Promise((done) => ears.addEventListener("stop", done));
  ears.addEventListener("dataavailable", ({ data }) => window.heard.push(data));
  video.addEventListener("ended", () => ears.stop());
  ears.start();
}
"""
HEARD = """
async () => {
  await window.earsDone;
  const bytes = new Uint8Array(await new Blob(window.heard).arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
"""
STATE = """
() => {
  window.state ??= () => {
    const video = document.querySelector("video");
    const { totalVideoFrames } = video.getVideoPlaybackQuality();
    return { at: video.currentTime, ended: video.ended, ready: video.readyState, frames: totalVideoFrames, trouble: window.trouble ?? [],
             ranges: Array.from({ length: video.buffered.length }, (_, n) => [video.buffered.start(n), video.buffered.end(n)]) };
  };
  return window.ended ?? window.state(); // after its end a page may go on to another source
}
"""


@dataclass(frozen=True, slots=True)
class Roomtape:
    """A running installation: `login` is its one-time link; `session` holds the cookies of the person who used it."""

    login: str
    session: Path

    @property
    def address(self) -> str:
        return self.login.split("/login")[0]

    @property
    def data(self) -> Path:
        return self.session.parent / "data"


def fresh_link(roomtape: Roomtape) -> str:
    """Another one-time link, as people get it."""
    said = subprocess.run([sys.executable, "-m", "roomtape", "login", "--data", str(roomtape.data)], check=True, capture_output=True, text=True, timeout=60)
    return said.stdout.strip()


def post(page: Page, path: str, **json: object) -> dict[str, Any]:
    """A POST of the person who is signed in on this page."""
    csrf = page.locator('meta[name="csrf-token"]').get_attribute("content")
    came = page.context.request.post(f"/api/v1/{path}", data=json, headers={"X-CSRF-Token": csrf or ""})
    assert came.ok, f"{path}: {came.status} {came.text()[:400]}"
    told: dict[str, Any] = came.json()
    return told


def record(page: Page, title: str) -> None:
    page.goto("/record")
    expect(page.locator("[data-state=ready]")).to_be_attached(timeout=15_000)
    page.get_by_label("Name").fill(title)
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled(timeout=15_000)


def until(ask: Callable[[], T | None], *, limit_s: float, what: str) -> T:
    """Asks until the answer is true; AssertionError after `limit_s`."""
    end = time.monotonic() + limit_s
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


def pictures(page: Page) -> list[known.Seen]:
    """Time and number of every picture that was shown since WATCH ran."""
    shown = page.evaluate("() => window.shown")
    return [(at, known.read_picture(np.frombuffer(base64.b64decode(luma), np.uint8).reshape(32, 40))) for at, luma in shown]


def beeps(page: Page, folder: Path) -> list[known.Seen]:
    """The beeps that the element played (it has ended)."""
    file = folder / "heard.webm"
    file.write_bytes(base64.b64decode(page.evaluate(HEARD)))
    return known.read_beeps(file)


def within(seen: list[known.Seen]) -> list[known.Seen]:
    """Without what was cut in two at the very start and the very end: the recording began or ended inside that beep."""
    first, last = (0, len(seen))
    if seen and seen[0][1] == known.UNREADABLE:
        first = 1
    if seen and seen[-1][1] == known.UNREADABLE:
        last -= 1
    return seen[first:last]


def answer(context: BrowserContext, path: str) -> APIResponse:
    """A GET with the session of the context; waits while the answer is 202."""

    def ask() -> APIResponse | None:
        came = context.request.get(path)
        assert came.ok, f"{path}: {came.status} {came.text()[:400]}"
        return None if came.status == 202 else came

    return until(ask, limit_s=60, what=path)
