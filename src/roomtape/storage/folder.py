"""A folder that keeps what it was given through a power cut: every write is fsynced, every step is taken from an open folder without following links."""

import errno
import fcntl
import hashlib
import os
import socket
import stat
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from roomtape.core.errors import Conflict, NotFound, StorageFull, Unavailable
from roomtape.core.ports import Stored

TEMPORARY = ".tmp"  # no key begins with a dot
_NAME = ".name"
PIECE_BYTES = 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # a link where a folder or a file should be is nothing of ours
_YOUNG_S = 10  # a temporary file may not be locked yet in the instant after it was made
_TRIES = 20
_REMEMBERED = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A planted FIFO must not hang the one who opens it.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Parts = tuple[str, ...]
Mark = tuple[int, int, int]


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turns the system's errors into ours: no room is StorageFull, everything else is Unavailable with the code `storage_error`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull from exc
        raise Unavailable(f"The storage folder failed while {doing}: {os.strerror(exc.errno or 0)}.", code="storage_error") from exc


class Folder:
    """Blocking operations below `root`, safe to call from many threads and processes.

    OSError from the constructor: the folder cannot be made or used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        _make_durably(self.root)
        _make_durably(self.root / TEMPORARY)
        self._root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()  # between the look at a name and the rename onto it
        self._settled: dict[Parts, Mark] = {}  # folders whose own entry is known to be on the disk
        fd, probe = self.temporary()  # where we may not write it fails now, not at the first upload
        probe.unlink()
        os.close(fd)
        self.sweep()

    def close(self) -> None:
        """Closing twice is fine."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1  # the number soon belongs to somebody else

    def free_bytes(self) -> int:
        """Room that is left to us, in bytes."""
        with told("asking for its free room"):
            room = os.fstatvfs(self._root)
        return room.f_bavail * room.f_frsize

    def name(self) -> str:
        """The name this folder was given when it was first asked for. It goes with the disk: machines are renamed, and a disk that is not mounted is not its mount point."""
        note = self.root / _NAME
        with told("naming the folder"):
            if not note.exists():
                fd, fresh = self.temporary()
                with os.fdopen(fd, "w") as file:
                    file.write(f"{socket.gethostname()}-{token_hex(4)}")
                    file.flush()
                    os.fsync(fd)
                    with suppress(FileExistsError):  # the other parts do the same at this moment
                        os.link(fresh, note)
                    fresh.unlink()
                os.fsync(self._root)
            return note.read_text()

    def temporary(self) -> tuple[int, Path]:
        """A new, empty file for writing, (descriptor, path), in the file system of the objects. Its lock says that its owner lives."""
        path = self.root / TEMPORARY / f"{os.getpid()}-{token_hex(12)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd, path

    def sweep(self) -> int:
        """Removes what dead processes have left half written; returns how many files.

        The lock tells, not the process id: containers that share a volume have the same ids.
        """
        swept = 0
        for path in (self.root / TEMPORARY).iterdir():
            with suppress(OSError):  # gone, locked by its living owner, or not ours
                swept += _removed_if_dead(path)
        return swept

    def place(self, source: Path, parts: Parts, *, size: int, sha256: str) -> bool:
        """Renames a whole, fsynced file onto its key and makes the name durable. False: it lies in another file system.

        Conflict where other bytes have the key.
        """
        for _ in range(_TRIES):
            with told("keeping a file"), ExitStack() as opened:
                try:
                    folders = self._walk(parts[:-1], opened, make=True)
                    if not self._rename(source, folders[-1], parts[-1], size, sha256):
                        continue
                    self._settle(parts[:-1], folders)
                except FileNotFoundError:
                    if not source.exists():
                        raise
                    continue  # the last object of a folder was deleted, and the folder with it, under our feet
                except OSError as exc:
                    if exc.errno == errno.EXDEV:
                        return False
                    if exc.errno in {errno.EISDIR, errno.ENOTDIR, errno.ELOOP}:
                        raise Conflict("A folder stands where an object should be, or the other way round.", code="key_taken") from exc
                    raise
                return True
        raise Unavailable("A key was rewritten again and again while it was to be kept.", code="storage_error")

    def open(self, parts: Parts) -> tuple[int, int]:
        """(descriptor, size) of an object, or NotFound."""
        with told("opening a file"), ExitStack() as opened:
            try:
                fd = os.open(parts[-1], _FILE, dir_fd=self._walk(parts[:-1], opened)[-1])
            except OSError as exc:
                if exc.errno in _ABSENT:
                    raise NotFound from exc
                raise
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                return fd, found.st_size
            os.close(fd)
            raise NotFound

    def remove(self, parts: Parts) -> None:
        """Removes an object and the folders that are empty then; one that is not there is fine."""
        with told("deleting a file"), ExitStack() as opened:
            try:
                folders = self._walk(parts[:-1], opened)
                os.unlink(parts[-1], dir_fd=folders[-1])
            except OSError as exc:
                if exc.errno in _ABSENT | {errno.EISDIR}:
                    return
                raise
            os.fsync(folders[-1])  # what was deleted must not come back with the power
            for depth in range(len(parts) - 2, -1, -1):
                try:
                    os.rmdir(parts[depth], dir_fd=folders[depth])
                except OSError:
                    return
                self._settled.pop(parts[: depth + 1], None)

    def scan(self, parts: Parts) -> Generator[Stored, None, None]:
        """All objects below a folder; nothing where there is no such folder."""
        with told("listing"), ExitStack() as opened:
            try:
                top = self._walk(parts, opened)[-1]
            except OSError as exc:
                if exc.errno in _ABSENT:
                    return
                raise
            for path, folders, names, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
                if path == "." and not parts:
                    folders[:] = [name for name in folders if name != TEMPORARY]
                    names[:] = [name for name in names if name != _NAME]
                before = "/".join((*parts, *path.split("/")[1:], ""))
                for name in names:
                    with suppress(FileNotFoundError):  # deleted while we look
                        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode):
                            yield Stored(before.removeprefix("/") + name, found.st_size)

    def _walk(self, parts: Parts, opened: ExitStack, *, make: bool = False) -> list[int]:
        """Descriptors of the root and of each folder in turn."""
        folders = [self._root]
        for depth, part in enumerate(parts, 1):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folders[-1])
                    self._settled.pop(parts[:depth], None)
            fd = os.open(part, _FOLDER, dir_fd=folders[-1])
            opened.callback(os.close, fd)
            folders.append(fd)
        return folders

    def _rename(self, source: Path, folder: int, name: str, size: int, sha256: str) -> bool:
        """False: somebody was faster, look again. An equal object is replaced all the same: only so is its name made durable by the fsync that follows."""
        before = _mark(name, folder)
        if before is not None:
            fd = os.open(name, _FILE, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                if os.fstat(fd).st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise Conflict("The store has other bytes under this key.", code="object_differs")
        with self._lock:
            if _mark(name, folder) != before:
                return False
            os.rename(source, name, dst_dir_fd=folder)  # readers see the whole file or none
        return True

    def _settle(self, parts: Parts, folders: list[int]) -> None:
        """Fsyncs the folder of the object, then each folder above that has an entry not yet known to be on the disk."""
        os.fsync(folders[-1])
        for depth in range(len(parts), 0, -1):
            found, above = os.fstat(folders[depth]), os.fstat(folders[depth - 1])
            mark = (found.st_dev, found.st_ino, above.st_mtime_ns)  # another process may have removed it and made it anew: the inode may be the same
            if self._settled.get(parts[:depth]) == mark:
                continue
            os.fsync(folders[depth - 1])
            if len(self._settled) >= _REMEMBERED:
                self._settled.clear()
            self._settled[parts[:depth]] = mark


def _mark(name: str, folder: int) -> Mark | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _make_durably(path: Path) -> None:
    """Makes a folder and those above that are missing, 0700; folders that are there keep their rights."""
    if path.is_dir():
        return
    _make_durably(path.parent)
    with suppress(FileExistsError):
        path.mkdir(0o700)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _removed_if_dead(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if time.time() - os.fstat(fd).st_mtime < _YOUNG_S:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)
    return True
