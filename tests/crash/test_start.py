"""Starting, ending, being killed and being refused: `up` and its parts as an operator meets them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from roomtape.cli import cli
from roomtape.testing.s3 import s3_server
from roomtape.testing.servers import free_port, require

from .client import Client, Ledger, Played, script
from .house import PROGRAM, Program, Up, alive, descendants, environment, program, roomtape, until, up
from .judge import judge_meeting

FAST = {"ROOMTAPE_HEARTBEAT_S": "1"}
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
GONE_S = 20.0  # generous: five seconds are promised on a machine that has nothing else to do


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that PostgreSQL's user may pass through."""
    path = Path(tempfile.mkdtemp(prefix="rt-start-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def record(client: Client, chromium: Path, code: str, name: str = "A-opus") -> Played:
    return client.play(script(chromium / name), code)


@contextmanager
def client_of(base: str, key: str, folder: Path) -> Iterator[Client]:
    with Client(base, key, Ledger(folder / "ledger"), patience_s=120) as client:
        yield client


@contextmanager
def guests(house: Up, chromium: Path) -> Iterator[None]:
    """Who is connected while it ends: a listener for events, an upload half sent, a reader that does not read."""
    host, port = house.base.removeprefix("http://").split(":")
    key = f"authorization: Bearer {house.key}\r\nhost: {host}\r\n"
    with ExitStack() as stack:
        client = stack.enter_context(house.client())
        started = client.post("/api/v1/meetings/start-recording", json={"userId": "u1"}).json()
        names = f"meetingId={started['meetingId']}&segmentIndex=1"
        body = b"".join(path.read_bytes() for path in sorted((chromium / "A-vp8").glob("0*.webm")))
        assert client.post(f"/api/v1/meetings/upload-segment?{names}", content=body).status_code == 201
        requests = [
            f"GET /api/v1/events HTTP/1.1\r\n{key}\r\n",
            f"POST /api/v1/meetings/upload-segment?meetingId={started['meetingId']}&segmentIndex=2 HTTP/1.1\r\n{key}content-length: 1000000\r\n\r\n"
            + "x" * 5000,
            f"GET /api/v1/recordings/{started['recordingId']}/segments/1 HTTP/1.1\r\n{key}\r\n",
        ]
        for request in requests:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((host, int(port)))
            sock.sendall(request.encode())
            if request.startswith("GET"):
                assert sock.recv(12) == b"HTTP/1.1 200"
        yield


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_it_ends_whole_although_guests_are_connected(folder: Path, chromium: Path, how: str) -> None:
    with up(folder, env=FAST) as house, guests(house, chromium):
        family = descendants(house.running.pid)
        if how == "SIGTERM":
            house.running.tell(signal.SIGTERM)
        else:
            os.killpg(house.running.pid, signal.SIGINT)  # a terminal tells all of the foreground
        assert house.running.wait(60) == 0
        assert [pid for pid in family if alive(pid)] == []
    assert not house.running.events("request.crashed")
    assert not house.running.said("Traceback|CancelledError|graceful")


def test_what_was_recorded_is_there_after_up_was_killed_and_after_all_was_killed_at_once(folder: Path, chromium: Path) -> None:
    port = free_port()
    what = script(chromium / "A-opus")
    with up(folder, env=FAST, port=port) as house, client_of(house.base, house.key, folder) as client, guests(house, chromium):
        key, before = house.key, record(client, chromium, "before")
        family = descendants(house.running.pid)
        house.running.tell(signal.SIGKILL)
        until("all its processes are gone", lambda: not any(alive(pid) for pid in family), within_s=GONE_S)
    with up(folder, env=FAST, name="second", port=port) as house, client_of(house.base, key, folder) as client:  # the port is free, the key still good
        assert judge_meeting(client, before) == []
        meeting, recording = client.start("in-the-middle")
        for at in range(6):
            client.upload(meeting, recording, at + 1, what.files[at].read_bytes(), started_ms=what.started_ms[at])
        family = [house.running.pid, *descendants(house.running.pid)]
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        until("all is dead", lambda: not any(alive(pid) for pid in family), within_s=GONE_S)
    with up(folder, env=FAST, name="third", port=port) as house, client_of(house.base, key, folder) as client:
        assert judge_meeting(client, before) == []
        for at in range(6, 12):
            client.upload(meeting, recording, at + 1, what.files[at].read_bytes(), started_ms=what.started_ms[at])
        assert client.finish(meeting, recording, 12) == "completed"
        assert judge_meeting(client, Played(meeting, recording, "completed", what)) == []


def test_up_says_once_what_is_odd_and_starts_all_the_same(folder: Path) -> None:
    with up(folder, env={**FAST, "ROOMTAPE_PROT": "1", "ROOMTAPE_RESERVE_BYTES": str(1 << 60)}) as house:
        (odd,) = house.running.events("setting.unknown")
        assert odd["why"] == "ROOMTAPE_PROT is no setting and does nothing: did you mean ROOMTAPE_PORT?"
        (low,) = house.running.events("storage.refuses")
        assert low["folder"] == str(house.data / "store")
        assert f"{low['free_bytes']} bytes free, ROOMTAPE_RESERVE_BYTES keeps {1 << 60}" in low["why"]
        assert httpx2.get(f"{house.base}/healthz").json()["storage"] == "storage_full"
        assert house.running.out.read_text().count("\n") == 1


def _refused(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """The one sentence with which a command refuses."""
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=environment(env), timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("roomtape: ")
    assert lines[0].endswith((".", "…"))
    return lines[0]


SETTINGS: list[tuple[dict[str, str], str]] = [
    ({"ROOMTAPE_JWT_KEY": "short", "ROOMTAPE_JWT_AUDIENCE": "x"}, "ROOMTAPE_JWT_KEY is too weak"),
    ({"ROOMTAPE_JWT_KEY": "k" * 40}, "ROOMTAPE_JWT_AUDIENCE is missing"),
    ({"ROOMTAPE_URL": "rec.example.org"}, "ROOMTAPE_URL: it must be an address like https://rec.example.org"),
    ({"ROOMTAPE_FFMPEG": "/nowhere/ffmpeg"}, "ROOMTAPE_FFMPEG: there is no program /nowhere/ffmpeg"),
    ({"ROOMTAPE_HOST": "256.1.1.1"}, "'256.1.1.1' is no address. Name one in ROOMTAPE_HOST or with --host"),
    ({"ROOMTAPE_HOST": "192.0.2.1"}, "no address of this machine. Name one in ROOMTAPE_HOST or with --host"),
    ({"ROOMTAPE_DATABASE_URL": "postgresql://x:secret@127.0.0.1:1/x"}, "ROOMTAPE_DATABASE_URL leads to no database that lets us in"),
    ({"ROOMTAPE_DATABASE_URL": "nonsense"}, "ROOMTAPE_DATABASE_URL is no address: make it like postgresql://"),
    ({"ROOMTAPE_STORAGE_URL": "ftp://somewhere"}, "it must be file:///folder or s3://bucket/prefix"),
    ({"ROOMTAPE_STORAGE_URL": "s3://bucket?endpoint=http://127.0.0.1:1"}, "allow_http=true"),
    ({"ROOMTAPE_STORAGE_URL": "file:///proc/nothing"}, "/proc/nothing cannot be written"),
]


@pytest.mark.parametrize(("env", "sentence"), SETTINGS, ids=[" ".join(env.values())[:30] for env, _ in SETTINGS])
def test_a_wrong_setting_is_refused_with_one_sentence(folder: Path, env: dict[str, str], sentence: str) -> None:
    assert sentence in _refused("up", "--port", "0", "--data", str(folder / "data"), env=env)


def test_a_bucket_that_is_not_there_and_wrong_credentials_are_refused(folder: Path) -> None:
    with s3_server(folder / "s3") as server:
        server.make_bucket()
        named = {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key}
        up_there = ["up", "--port", "0", "--data", str(folder / "data")]
        assert "bucket" in _refused(*up_there, env={**named, "ROOMTAPE_STORAGE_URL": server.url("missing")})
        wrong = {**named, "AWS_SECRET_ACCESS_KEY": "wrong", "ROOMTAPE_STORAGE_URL": server.url()}
        assert "AWS_" in _refused(*up_there, env=wrong)


def test_a_port_that_is_taken_is_refused(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "--port" in _refused("up", "--port", port, "--data", str(folder / "other"))


def test_data_of_another_postgresql_is_refused(folder: Path) -> None:
    database = folder / "data/database/data"
    database.mkdir(parents=True)
    (database / "PG_VERSION").write_text("17\n")
    said = _refused("up", "--port", "0", "--data", str(folder / "data"))
    assert "PostgreSQL 17" in said
    assert "start the Roomtape that wrote it" in said
    assert "pg_dump" in said


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Disks of a few MiB."""
    require(os.geteuid() == 0 or None, "mounting needs root")
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = folder / f"disk-{size}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_data_folder_that_cannot_be_used_is_refused(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("4m")
    (disk / "file").touch()
    assert "is a file" in _refused("up", "--port", "0", "--data", str(disk / "file"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "No such file or directory. Name another folder with --data." in _refused("up", "--port", "0", "--data", "/proc/nothing")
    assert "Read-only file system. Make it writable or name another folder with --data" in _refused("up", "--port", "0", "--data", str(disk / "data"))


def test_a_disk_that_is_full_is_refused_and_what_was_begun_is_no_hindrance(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("8m")
    said = _refused("up", "--port", "0", "--data", str(disk / "data"))
    assert "no room left" in said
    subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
    with up(disk, env=FAST):
        pass


def test_wrong_usage_is_2_and_not_running_is_3(folder: Path) -> None:
    data = str(folder / "data")
    for wrong in (["nonsense"], ["keys", "create", "x"], ["keys", "create", "x", "--role", "king"], ["keys", "create", "x", "--role", "user"]):
        done = CliRunner().invoke(cli, wrong)
        assert done.exit_code == 2, (wrong, done.stderr)
        assert done.stdout == ""
    assert roomtape("up", "--port", "many").returncode == 2
    assert "roomtape up" in _refused("keys", "list", "--data", data)
    dead = {"ROOMTAPE_DATABASE_URL": "postgresql://x:secret@127.0.0.1:1/x", "ROOMTAPE_STORAGE_URL": f"file://{folder}/store"}
    for command in (["keys", "list"], ["login"], ["serve"], ["work"], ["record"]):
        assert '"127.0.0.1", port 1 failed: Connection refused): start it, or correct the setting.' in _refused(*command, "--data", data, env=dead)
    assert "ROOMTAPE_STORAGE_URL is missing" in _refused("work", "--data", data)
    assert "ROOMTAPE_DATABASE_URL is missing" in _refused("serve", "--data", data, env={"ROOMTAPE_STORAGE_URL": f"file://{folder}/store"})


def test_the_command_line_beside_a_running_up(folder: Path) -> None:
    with up(folder, env=FAST) as house:
        at = ["--data", str(house.data)]
        assert "Another Roomtape is running" in _refused("up", "--port", "0", *at)

        def asked(*arguments: str) -> str:
            done = CliRunner().invoke(cli, [*arguments, *at])
            assert done.exit_code == 0, done.stderr
            return done.stdout

        key = asked("keys", "create", "robot", "--role", "user", "--user", "u7")
        assert re.fullmatch(r"rt_[\w-]{43}\n", key)
        made = json.loads(asked("keys", "create", "machine", "--role", "service", "--json"))
        assert made["role"] == "service"
        listed = json.loads(asked("keys", "list", "--json"))
        assert {one["name"] for one in listed} == {"test", "robot", "machine"}
        assert not any(word in asked("keys", "list") + json.dumps(listed) for word in (key.strip(), made["key"]))
        bearer = {"authorization": f"Bearer {made['key']}"}
        assert httpx2.get(f"{house.base}/api/v1/recordings", headers=bearer).status_code == 200
        assert json.loads(asked("keys", "revoke", made["id"], "--json")) == {"id": made["id"], "revoked": True}
        assert httpx2.get(f"{house.base}/api/v1/recordings", headers=bearer).status_code == 401
        assert roomtape("keys", "revoke", "no-id", *at).returncode == 1
        link = asked("login", "--user", "ann").strip()
        assert link.startswith(f"{house.base}/login?token=")
        public = roomtape("login", *at, env={"ROOMTAPE_URL": "https://rec.example.org/"}).stdout
        assert public.startswith("https://rec.example.org/login?token=")
        token = link.partition("token=")[2]
        assert json.loads(asked("login", "--json"))["url"].startswith(house.base)
        signed = httpx2.post(f"{house.base}/login", data={"token": token})
        assert signed.status_code == 303
        assert httpx2.post(f"{house.base}/login", data={"token": token}).status_code != 303, "a link is good for once"
        log = house.running.log.read_text()
        assert not any(secret in log for secret in (token, key.strip(), made["key"], house.key))


def test_every_command_has_help() -> None:
    top = get_command(cli)
    commands = vars(top)["commands"]
    names = [[name] for name in commands] + [["keys", name] for name in ("create", "list", "revoke")]
    assert {"up", "serve", "work", "record", "login", "keys"} <= set(commands)
    for name in [[], *names]:
        done = CliRunner().invoke(cli, [*name, "--help"])
        assert (done.exit_code, done.stderr) == (0, "")
        assert "Usage" in done.stdout
    assert roomtape("keys", "--help").stdout.count("create") >= 1


@contextmanager
def postgres_15(folder: Path) -> Iterator[str]:
    """The URL of a database on Debian's PostgreSQL 15, the oldest we take."""
    require(POSTGRES_15 / "initdb" if (POSTGRES_15 / "initdb").exists() else None, "PostgreSQL 15 is not installed: apt-get install postgresql-15")
    root = os.geteuid() == 0
    who: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    folder.mkdir()
    if root:
        shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text("a-password-of-a-test")
    (folder / "password").chmod(0o644)
    initdb: list[str | Path] = [
        POSTGRES_15 / "initdb",
        "-D",
        folder / "data",
        "-U",
        "roomtape",
        "--auth=scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "--no-sync",
        "-E",
        "UTF8",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **who)
    port = free_port()
    line: list[str | Path] = [
        POSTGRES_15 / "postgres",
        "-D",
        folder / "data",
        "-k",
        folder,
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"port={port}",
        "-c",
        "fsync=off",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, **who) as server:
        try:
            yield f"postgresql://roomtape:a-password-of-a-test@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)


@contextmanager
def parts_apart(folder: Path, env: Mapping[str, str]) -> Iterator[tuple[dict[str, Program], str]]:
    """serve, work and record, each by itself; their processes and the address."""
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(program(folder, name, name, *(["--port", "0"] if name == "serve" else []), "--data", str(folder / "data"), env=env))
            for name in ("serve", "work", "record")
        }

        def port() -> str | None:
            note = folder / "data/port"
            return note.read_text() if note.exists() else None

        base = f"http://127.0.0.1:{until('serve has a port', port)}"

        def ready() -> bool:
            try:
                return httpx2.get(f"{base}/readyz", timeout=10).status_code == 200
            except httpx2.TransportError:
                return False

        until("serve answers", ready)
        yield running, base


@pytest.mark.parametrize("store", ["file", "s3"])
def test_the_parts_apart_on_another_postgresql(folder: Path, chromium: Path, store: str) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(postgres_15(folder / "pg"))
        env = {**FAST, "ROOMTAPE_DATABASE_URL": url}
        if store == "s3":
            server = stack.enter_context(s3_server(folder / "s3"))
            server.make_bucket()
            env |= {"ROOMTAPE_STORAGE_URL": server.url(), "AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key}
        else:
            env["ROOMTAPE_STORAGE_URL"] = (folder / "store").as_uri()
        running, base = stack.enter_context(parts_apart(folder, env))
        made = roomtape("keys", "create", "test", "--role", "admin", "--data", str(folder / "data"), env=env)
        assert made.returncode == 0, made.stderr
        client = stack.enter_context(client_of(base, made.stdout.strip(), folder))
        for name in ("A-opus", "B-vp8"):
            assert judge_meeting(client, record(client, chromium, name, name)) == []
        for name, part in running.items():
            part.tell(signal.SIGTERM)
            assert part.wait() == 0, name
            assert not part.said("Traceback"), part.log.read_text()[-2000:]
