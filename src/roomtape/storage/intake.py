"""The taking of an upload: bytes are hashed on their way into a file that is fsynced before anyone hears that we have it."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from roomtape.core.errors import StorageFull, TooLarge, Unavailable
from roomtape.core.ports import Stored
from roomtape.storage import key as keys
from roomtape.storage.folder import PIECE_BYTES, Folder, told


class Upload:
    """One body on its way to the disk: `write` until it ends, then `commit`, or `seal` and hand `path` over; `close` in every case.

    The methods block. A failed write or fsync is the end of it: the file is gone and nothing of it was kept; it is never fsynced twice,
    because after a failed fsync the kernel may have dropped the pages and say yes the second time.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # a thread may still be writing while its request is cancelled
        self._hash = hashlib.sha256()
        self._fd = -1
        self._path: Path | None = None
        self._ended = False
        self.size = 0

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far, in hex."""
        return self._hash.hexdigest()

    @property
    def path(self) -> Path:
        """The file, from the first write on; whole and durable after `seal`."""
        if self._path is None:
            raise Unavailable("The upload has no file yet.", code="upload_aborted")
        return self._path

    def write(self, *pieces: bytes) -> None:
        """Appends; StorageFull or Unavailable when the disk says no."""
        with self._step():
            for piece in pieces:
                self._hash.update(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
                self.size += len(piece)

    def seal(self) -> None:
        """Makes the bytes durable (fsync)."""
        with self._step():
            os.fsync(self._fd)

    def commit(self, key: str) -> Stored:
        """Seals, renames onto the key, fsyncs the folder and each new folder above it: afterwards the object outlives a power cut."""
        names = keys.parts(key)
        self.seal()
        self._folder.place(self.path, names, size=self.size, sha256=self.sha256)
        self.close()
        return Stored(key, self.size)

    def close(self) -> None:
        """Ends it; a file that still has its temporary name is deleted."""
        with self._lock:
            self._ended = True
            if self._fd < 0:
                return
            try:
                self.path.unlink(missing_ok=True)
            finally:
                os.close(self._fd)  # and with it the lock that says that we live
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _step(self) -> Iterator[None]:
        """One step on the open file; if it fails the upload is over."""
        with ExitStack() as failed:
            failed.callback(self.close)
            with told("taking an upload"), self._lock:
                if self._ended:
                    raise Unavailable("The upload was given up.", code="upload_aborted")
                if self._fd < 0:
                    self._fd, self._path = self._folder.temporary()
                yield
            failed.pop_all()


class Intake:
    """Takes request bodies into the file system of a local store or spool, so that keeping them is a rename."""

    def __init__(self, folder: Folder, pool: Executor) -> None:
        self._folder = folder
        self._pool = pool

    def begin(self) -> Upload:
        """A new upload, to be driven from a thread."""
        return Upload(self._folder)

    async def take(self, body: AsyncIterable[bytes], *, limit: int, reserve: int = 0) -> Upload:
        """Streams a body into a sealed upload, holding ≤ 1 MiB and a piece of it; the caller closes it.

        TooLarge beyond `limit` bytes; StorageFull where less than `reserve` bytes are left on the disk, at the beginning or on the way.

        Writing and hashing run in a thread, 1 MiB at a time: a hop costs 0.09 ms, hashing and writing a MiB 0.9 ms that no other request should wait for.
        """
        loop, upload = asyncio.get_running_loop(), Upload(self._folder)
        waiting: list[bytes] = []
        held = taken = 0
        self._room(reserve)
        with ExitStack() as failed:
            failed.callback(self._pool.submit, upload.close)  # not here: a thread may be in the middle of a write
            async for piece in body:
                taken += len(piece)
                if taken > limit:
                    raise TooLarge(f"The body is larger than the {limit} bytes that are taken here.", limit_bytes=limit)
                waiting.append(piece)
                held += len(piece)
                if held >= PIECE_BYTES:
                    self._room(reserve)  # others write too
                    await loop.run_in_executor(self._pool, upload.write, *waiting)
                    waiting, held = [], 0
            await loop.run_in_executor(self._pool, _finish, upload, waiting)
            failed.pop_all()
        return upload

    def _room(self, reserve: int) -> None:
        if reserve and self._folder.free_bytes() < reserve:
            raise StorageFull(retry_after_s=10)


def _finish(upload: Upload, pieces: list[bytes]) -> None:
    upload.write(*pieces)
    upload.seal()
