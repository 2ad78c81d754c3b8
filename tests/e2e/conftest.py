"""A whole Roomtape as people start it, and a real Chromium whose camera and microphone say what they show."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from roomtape.testing import known
from roomtape.testing.servers import binary, require

from .watching import Roomtape

HERE = Path(__file__).parent
READY = "Roomtape is ready: "
START_LIMIT_S = 90
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@pytest.fixture(scope="session")
def roomtape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roomtape]:
    data = tmp_path_factory.mktemp("roomtape") / "data"
    log = (data.parent / "log").open("w+")
    up = subprocess.Popen(
        [sys.executable, "-m", "roomtape", "up", "--port", "0", "--data", str(data)], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
    )
    late = Timer(START_LIMIT_S, up.kill)
    late.start()
    try:
        assert up.stdout is not None
        said = next((line for line in up.stdout if line.startswith(READY)), None)
        late.cancel()
        if said is None:
            log.seek(0)
            pytest.fail(f"`roomtape up` did not get ready:\n{log.read()[-4000:]}")
        yield Roomtape(said.removeprefix(READY).strip(), data.parent / "session")
        up.send_signal(signal.SIGTERM)
        assert up.wait(30) == 0, "SIGTERM ends it whole, with exit code 0"
    finally:
        late.cancel()
        if up.poll() is None:
            up.kill()
            up.wait()
        if up.stdout is not None:
            up.stdout.close()
        log.close()


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Chromium's flags for the numbered camera and the beeping microphone."""
    folder = tmp_path_factory.mktemp("devices")
    camera = known.write_numbers(folder / "numbers.mjpeg", 180)
    microphone = known.write_beeps(folder / "beeps.wav", 180)
    return [f"--use-file-for-fake-video-capture={camera}", f"--use-file-for-fake-audio-capture={microphone}"]


@pytest.fixture(scope="module")
def browser(devices: list[str]) -> Iterator[Browser]:
    """Of one file of tests: as long as Playwright runs, so does its event loop, and no asynchronous test can."""
    path = require(binary("chromium", "ROOMTAPE_CHROMIUM"), "no Chromium: install it, or name it in ROOMTAPE_CHROMIUM")
    flags = [*FLAGS, *devices]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def signed_in(browser: Browser, roomtape: Roomtape) -> Iterator[BrowserContext]:
    """A person who pressed the one button of the login link."""
    known_here = roomtape.session.exists()
    context = browser.new_context(permissions=["camera", "microphone"], base_url=roomtape.address, storage_state=roomtape.session if known_here else None)
    if not known_here:
        page = context.new_page()
        page.goto(roomtape.login)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/")
        page.close()
        context.storage_state(path=roomtape.session)
    yield context
    context.close()


@pytest.fixture
def page(signed_in: BrowserContext) -> Iterator[Page]:
    """A page whose scripts raise nothing and do only what its policy allows."""
    page = signed_in.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda said: trouble.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    page.close()
    assert trouble == []


@pytest.fixture(scope="session")
def hls_js(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of the player library, from the locked npm package."""
    npm = require(shutil.which("npm"), "no npm: install Node to run the tests with hls.js")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True, timeout=120)
    return (folder / "node_modules/hls.js/dist/hls.min.js").read_text()
