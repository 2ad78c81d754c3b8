"""A whole Roomtape for the tests of what media go through; it is as impatient with missing segments as a test is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import httpx2
import pytest

from .studio import Studio

READY = "Roomtape is ready: "
START_LIMIT_S = 90
LIVE_WAIT_S = 1.0


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    data = tmp_path_factory.mktemp("media") / "data"
    log = (data.parent / "log").open("w+")
    environment = os.environ | {"ROOMTAPE_LIVE_WAIT_S": str(LIVE_WAIT_S)}
    command = [sys.executable, "-m", "roomtape"]
    up = subprocess.Popen([*command, "up", "--port", "0", "--data", str(data)], stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
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
        end(up)
        if up.stdout is not None:
            up.stdout.close()
        log.close()


def end(up: subprocess.Popen[str]) -> None:
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
        try:
            up.wait(40)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")
