"""`serve`, `work` and `record` alone: what each says of itself, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from roomtape import app
from roomtape.settings import Settings, unknown
from roomtape.storage.s3 import S3Store
from roomtape.supervisor import Supervisor
from roomtape.testing.postgres import fresh_database
from roomtape.testing.servers import free_port


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ROOMTAPE_")}
    folder = tmp_path_factory.mktemp("parts")
    with fresh_database() as url:
        yield plain | {"ROOMTAPE_DATABASE_URL": url, "ROOMTAPE_STORAGE_URL": (folder / "store").as_uri(), "ROOMTAPE_DATA": str(folder / "data")}


@contextmanager
def running(environment: Mapping[str, str], log: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A part in a process; its stderr is in `log`."""
    program = [sys.executable, "-m", "roomtape", *command]
    with log.open("wb") as out, subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=out, text=True) as child:
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


@pytest.mark.parametrize("as_json", [True, False], ids=["document", "sentence"])
@pytest.mark.parametrize("part", ["serve", "work", "record"])
def test_a_part_says_once_that_it_is_ready(environment: dict[str, str], tmp_path: Path, part: str, *, as_json: bool) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    more = ["--port", url.rpartition(":")[2]] if part == "serve" else []
    sentence = {"serve": f"Roomtape serves at {url}", "work": "Roomtape works", "record": "Roomtape records"}[part]
    with running(environment, tmp_path / "log", part, *more, *(["--json"] if as_json else [])) as child:
        said = line(child)
        if as_json:
            assert json.loads(said) == ({"ready": True, "url": url} if part == "serve" else {"ready": True})
        else:
            assert said == sentence + "\n"
        if part == "serve":
            assert httpx2.get(f"{url}/readyz", trust_env=False, timeout=20).status_code == 200
        child.send_signal(signal.SIGTERM)
        assert line(child) == ""
        assert child.wait(30) == 0, (tmp_path / "log").read_text()


@contextmanager
def serving(environment: Mapping[str, str], folder: Path, **more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with running({**environment, **more}, folder / "log", "serve", "--port", "0", "--json") as child:
        yield json.loads(line(child))["url"], child


def health(url: str) -> tuple[str, str]:
    said = httpx2.get(f"{url}/healthz", trust_env=False, timeout=20).json()
    return said["status"], said["storage"]


def test_health_names_a_store_that_is_moved_away_and_another_in_its_place(environment: dict[str, str], tmp_path: Path) -> None:
    store, away = tmp_path / "store", tmp_path / "away"
    with serving(environment, tmp_path, ROOMTAPE_STORAGE_URL=store.as_uri(), ROOMTAPE_RESERVE_BYTES="0") as (url, _):
        assert health(url) == ("ok", "ok")
        store.rename(away)
        assert health(url) == ("degraded", "storage_error")
        (store / ".tmp").mkdir(parents=True)
        assert health(url) == ("degraded", "storage_error")
        (store / ".tmp").rmdir()
        store.rmdir()
        away.rename(store)
        assert health(url) == ("ok", "ok")
        (store / ".tmp").rmdir()  # all else is there, but no upload can begin
        assert health(url) == ("degraded", "storage_error")


@pytest.mark.parametrize("store", ["file", "s3"])
def test_health_names_the_reserve_that_uploads_are_refused_for(environment: dict[str, str], tmp_path: Path, store: str) -> None:
    where = (tmp_path / "store").as_uri() if store == "file" else "s3://bucket?endpoint=http://127.0.0.1:1&allow_http=true"
    folder = tmp_path / ("store" if store == "file" else "spool")
    more = {"ROOMTAPE_STORAGE_URL": where, "ROOMTAPE_DATA": str(tmp_path), "ROOMTAPE_RESERVE_BYTES": str(1 << 60)}
    with serving(environment, tmp_path, **more) as (url, _):
        assert health(url) == ("degraded", "storage_full")
        assert f'"folder": "{folder}"' in (tmp_path / "log").read_text()


def test_ctrl_c_ends_a_stream_of_events_at_once_lets_an_upload_finish_and_says_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "roomtape", "keys", "create", "x", "--role", "admin"], env=environment, capture_output=True, text=True, check=True
    )
    with serving(environment, tmp_path) as (url, child), socket.socket() as events, socket.socket() as upload:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        key = f"host: x\r\nauthorization: Bearer {made.stdout.strip()}\r\n"
        started = httpx2.post(
            f"{url}/api/v1/meetings/start-recording", json={"userId": "u"}, headers={"authorization": f"Bearer {made.stdout.strip()}"}, trust_env=False
        ).json()
        for sock, request in (
            (upload, f"POST /api/v1/meetings/upload-segment?meetingId={started['meetingId']}&segmentIndex=1 HTTP/1.1\r\n{key}content-length: 9\r\n\r\nhalf"),
            (events, f"GET /api/v1/events HTTP/1.1\r\n{key}\r\n"),
        ):
            sock.settimeout(60)
            sock.connect(place)
            sock.sendall(request.encode())
        heard = b""
        while b": hello" not in heard:
            heard += events.recv(4096)
        child.send_signal(signal.SIGINT)
        while events.recv(4096):
            pass
        upload.sendall(b"-done")
        assert upload.recv(9) == b"HTTP/1.1 "  # it had its grace
        assert child.wait(60) == 0
    assert not any(word in (tmp_path / "log").read_text() for word in ("Traceback", "Cancel", "crashed", "Exception"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ROOMTAPE_PROT", "ROOMTAPE_PROT is no setting and does nothing: did you mean ROOMTAPE_PORT?"),
        ("roomtape_prot", "roomtape_prot is no setting and does nothing: did you mean ROOMTAPE_PORT?"),
        ("ROOMTAPE_XYZZY", "ROOMTAPE_XYZZY is no setting and does nothing."),
        ("ROOMTAPE_PORT", None),
        ("roomtape_port", None),
        ("ROOMTAPE_REQUIRE_SERVERS", None),
        ("AWS_REGION", None),
        ("PATH", None),
    ],
)
def test_a_variable_that_only_looks_like_a_setting_is_named(name: str, sentence: str | None) -> None:
    assert unknown([name]) == ({name: sentence} if sentence else {})


def test_a_worker_ends_whenever_it_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    """What it does in its first moments, listing and asking, must not make another error of the word to end."""
    for number in range(8):
        with running(environment, tmp_path / "log", "work") as child:
            assert line(child) == "Roomtape works\n"
            until = time.monotonic() + number * 0.006
            while time.monotonic() < until:
                pass
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0, (tmp_path / "log").read_text()


def test_the_api_opens_as_many_files_as_it_may(environment: dict[str, str], tmp_path: Path) -> None:
    narrow = ["prlimit", "--nofile=256:5000", sys.executable, "-m", "roomtape", "serve", "--port", str(free_port())]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(narrow, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            assert line(child).startswith("Roomtape serves")
            limits = Path(f"/proc/{child.pid}/limits").read_text()
        finally:
            child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert "Max open files            5000" in limits


def test_large_bodies_on_their_way_to_a_bucket_wait_in_the_data_folder(tmp_path: Path) -> None:
    store = app._store(Settings(storage_url="s3://bucket?endpoint=https://s3.test", data=tmp_path))
    assert isinstance(store.primary, S3Store)
    assert store.primary._scratch == tmp_path / "work"
    assert (tmp_path / "work").is_dir()


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_up_asks_its_own_api_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr("roomtape.supervisor._READY_S", 5.0)
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        supervisor = Supervisor({}, server.socket)
        supervisor.ready()
        server.shutdown()
    assert supervisor.settled
