"""Real servers for tests: where one is missing a test is skipped with its reason, unless the run demands them all."""

import os
import shutil
import socket
import time
from pathlib import Path
from typing import TypeVar

import pytest

_T = TypeVar("_T")
DEMAND = "ROOMTAPE_REQUIRE_SERVERS"  # CI sets it to 1: a server that is not there is a failure


def require(found: _T | None, reason: str) -> _T:
    """`found`, or the end of the test: skipped with `reason`, failed where ROOMTAPE_REQUIRE_SERVERS=1."""
    if found is not None:
        return found
    if os.environ.get(DEMAND) == "1":
        pytest.fail(f"{reason} ({DEMAND}=1)")
    pytest.skip(reason)


def binary(name: str, variable: str) -> Path | None:
    """A program: the path in the environment variable, else from PATH, else from Go's folder of binaries."""
    if named := os.environ.get(variable):
        return Path(named) if Path(named).is_file() else None
    found = shutil.which(name) or shutil.which(name, path=str(Path.home() / "go" / "bin"))
    return Path(found) if found else None


def free_port() -> int:
    """A loopback port nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int, *, within_s: float = 10.0) -> bool:
    """Waits until somebody answers on a loopback port."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
