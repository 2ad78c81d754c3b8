"""The embedded PostgreSQL: closed to others, ends with its owner, heals whatever a kill left."""

import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from roomtape.core.errors import Refused
from roomtape.db.embedded import EmbeddedPostgres, running_url
from roomtape.testing.postgres import open_folder
from roomtape.testing.servers import require

OWNER = Path(__file__).parent / "own_postgres.py"
AS_ROOT = pytest.mark.usefixtures("as_root")
LONG = "x" * 60 + "/" + "y" * 60


@pytest.fixture
def as_root() -> None:
    require(os.geteuid() == 0 or None, "takes another user's part, as only root can")


def until(condition: Callable[[], object], what: str, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def postgres_on(folder: Path) -> list[int]:
    """By /proc, written anew here: the processes whose working folder is the data folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.path.samefile(entry / "cwd", folder / "data"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def login_as(user: str, url: str) -> str:
    """What a process of this user gets: "connected" or the class of the error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(pwd.getpwnam(user).pw_gid)
        os.setuid(pwd.getpwnam(user).pw_uid)
        try:
            psycopg.connect(url, connect_timeout=5).close()
            answer = "connected"
        except psycopg.OperationalError as exc:
            answer = f"refused: {exc}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    answer = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return answer


def row_in(server: EmbeddedPostgres) -> object:
    with psycopg.connect(server.url()) as connection:
        return connection.execute("SELECT value FROM kept").fetchone()


@pytest.fixture
def owner(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(OWNER), str(folder / "pg")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(owner: "subprocess.Popen[str]") -> None:
    owner.kill()
    owner.wait()
    for pipe in (owner.stdin, owner.stdout):
        assert pipe is not None
        pipe.close()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[EmbeddedPostgres, Path]]:
    with open_folder() as folder:
        before = {parent: parent.stat().st_mode for parent in (folder, *folder.parents)}
        server = EmbeddedPostgres(folder / "pg")
        server.start()
        yield server, folder / "pg"
        assert {parent: parent.stat().st_mode for parent in before} == before, "a folder above was opened or closed"
        server.stop()
        assert postgres_on(folder / "pg") == []
        assert running_url(folder / "pg") is None


def test_folders_are_closed_the_password_is_private_and_no_port_is_open(running: tuple[EmbeddedPostgres, Path]) -> None:
    server, folder = running
    assert mode(folder) == mode(folder / "data") == mode(folder / "socket") == 0o700
    assert mode(folder / "password") == mode(folder / "postgres.log") == 0o600
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert {row[0] for row in connection.execute("SELECT auth_method FROM pg_hba_file_rules")} == {"scram-sha-256"}


def test_no_password_and_a_wrong_one_are_refused_even_to_who_reaches_the_socket(running: tuple[EmbeddedPostgres, Path]) -> None:
    server, folder = running
    password = (folder / "password").read_text()
    for wrong in ("", ":wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url().replace(f":{password}", wrong))
    assert running_url(folder) == server.url()


@AS_ROOT
def test_as_root_it_runs_as_a_user_of_its_own(running: tuple[EmbeddedPostgres, Path]) -> None:
    server, _ = running
    assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("roomtape-pg").pw_uid
    with psycopg.connect(server.url()) as connection, pytest.raises(psycopg.Error):
        connection.execute("COPY (SELECT 1) TO '/etc/roomtape-was-here'")


def test_a_second_owner_is_refused_while_the_first_lives(running: tuple[EmbeddedPostgres, Path]) -> None:
    server, folder = running
    with pytest.raises(Refused, match="Another Roomtape is running"):
        EmbeddedPostgres(folder).start()
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@AS_ROOT
@pytest.mark.parametrize("below", ["pg", f"{LONG}/pg"], ids=["short", "longer than a socket's address"])
def test_another_user_of_the_machine_does_not_get_in(folder: Path, below: str) -> None:
    server = EmbeddedPostgres(folder / below)
    server.start()
    try:
        assert login_as("root", server.url()) == "connected"
        password = (folder / below / "password").read_text()
        assert login_as("nobody", server.url()).startswith("refused")
        assert login_as("nobody", server.url().replace(f":{password}", "")).startswith("refused")
        with psycopg.connect(server.url()) as connection:
            sockets = Path(str(connection.execute("SELECT trim('\"' FROM current_setting('unix_socket_directories'))").fetchone()[0]))  # type: ignore[index]
        assert mode(sockets) == 0o700
        assert len(str(sockets)) < 90
    finally:
        server.stop()
    assert not (sockets.exists() and below != "pg"), "the short socket folder is left behind"


@AS_ROOT
def test_a_folder_below_a_closed_one_works_or_is_refused_with_a_sentence(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    server = EmbeddedPostgres(folder / "closed" / "pg")
    try:
        server.start()
    except Refused as exc:
        assert "--data" in exc.message  # noqa: PT017  # both ways are right, by what the machine allows
    else:
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()
    assert mode(folder / "closed") == 0o700


def test_killing_the_owner_leaves_no_process_and_the_next_start_has_every_row(folder: Path, owner: "subprocess.Popen[str]") -> None:
    assert owner.stdout is not None
    postmaster = int(owner.stdout.readline())
    assert postmaster in postgres_on(folder / "pg")
    end(owner)
    until(lambda: not postgres_on(folder / "pg"), "PostgreSQL outlives its owner")
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    assert row_in(server) == ("acknowledged",)
    server.stop()


def test_a_start_right_after_the_owner_was_killed_waits_for_the_old_server(folder: Path, owner: "subprocess.Popen[str]") -> None:
    assert owner.stdout is not None
    owner.stdout.readline()
    end(owner)
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    assert row_in(server) == ("acknowledged",)
    server.stop()


def test_a_kill_within_initdb_is_healed(folder: Path, owner: "subprocess.Popen[str]") -> None:
    until(lambda: list(folder.glob("pg/data.new-*/PG_VERSION")) or (folder / "pg/data").exists(), "initdb does not begin")
    end(owner)
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    server.stop()
    assert not list(folder.glob("pg/data.new-*"))


def test_a_killed_postmaster_is_healed_by_the_next_start(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'acknowledged' AS value")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    again = EmbeddedPostgres(folder / "pg")
    again.start()
    assert row_in(again) == ("acknowledged",)
    again.stop()


def test_a_stale_pid_file_with_the_number_of_a_living_process_does_not_block(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    lines = (folder / "pg/data/postmaster.pid").read_text().splitlines()
    server.stop()
    (folder / "pg/data/postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    (folder / "pg/socket/.s.PGSQL.5432").touch()
    (folder / "pg/socket/.s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    server.start()
    server.stop()


def test_data_of_another_major_version_is_refused_and_what_opens_it_is_named(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    server.stop()
    (folder / "pg/data/PG_VERSION").write_text("17\n")
    with pytest.raises(Refused, match=r"start the Roomtape that wrote it.*PostgreSQL 17.*pg_dump.*ROOMTAPE_DATABASE_URL"):
        EmbeddedPostgres(folder / "pg").start()


def test_a_folder_that_cannot_be_written_is_refused_with_a_sentence(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(Refused, match="--data"):
        EmbeddedPostgres(folder / "file" / "pg").start()


@AS_ROOT
def test_a_full_disk_at_the_first_start_is_refused_with_a_sentence_and_healed_by_room(folder: Path) -> None:
    (folder / "small").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(folder / "small")], check=False, capture_output=True)
    require(mounted.returncode == 0 or None, "no file system may be mounted here")
    server = EmbeddedPostgres(folder / "small" / "pg")
    try:
        with pytest.raises(Refused, match="no room left") as refused:
            server.start()
        assert refused.value.code == "storage_full"
        subprocess.run(["mount", "-o", "remount,size=200m", str(folder / "small")], check=True)
        server.start()
    finally:
        server.stop()
        subprocess.run(["umount", str(folder / "small")], check=True)


def test_another_thread_may_not_start_it(folder: Path) -> None:
    refused: list[str] = []

    def start() -> None:
        try:
            EmbeddedPostgres(folder / "pg").start()
        except Refused as exc:
            refused.append(exc.message)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in refused[0]
