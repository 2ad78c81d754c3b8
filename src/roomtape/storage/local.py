"""Objects as files below a folder: our own writes, because no library at hand fsyncs before it renames."""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

from roomtape.core.errors import BadInput, Unavailable
from roomtape.core.ports import Stored
from roomtape.storage import key as keys
from roomtape.storage.folder import PIECE_BYTES, Folder, told
from roomtape.storage.intake import Intake

_T = TypeVar("_T")
_THREADS = 16  # they wait for the disk, which takes many fsyncs in one go
_PAGE = 1000


class LocalStore:
    """A Store on this machine's disk. `intake` takes uploads into its file system; OSError: the folder cannot be made or written."""

    def __init__(self, root: Path) -> None:
        self.folder = Folder(root)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="roomtape-disk")
        self.intake = Intake(self.folder, self._pool)

    async def put(self, key: str, body: AsyncIterable[bytes], *, size: int, sha256: str) -> None:
        """Stores a stream; see Store."""
        keys.parts(key)
        upload = await self.intake.take(_up_to(body, size), limit=size)
        try:
            if (upload.size, upload.sha256) != (size, sha256):
                raise BadInput("The body is not the one that was announced: size or sha256 differ.", code="digest_mismatch")
            await self.adopt(key, upload.path, size=size, sha256=sha256)
        finally:
            upload.close()

    async def adopt(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """Takes a fsynced file by rename; from another file system by a copy that is checked against the digest."""
        await self._run(self._adopt, keys.parts(key), path, size, sha256)

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes start ≤ n < stop, or to the end; NotFound comes with the first piece."""
        parts = keys.parts(key)
        while stop is None or start < stop:
            piece, size = await self._run(self._piece, parts, start, PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - start))
            if piece:
                yield piece
            start += len(piece)
            if start >= size or not piece:
                return

    async def head(self, key: str) -> Stored:
        """Size of an object, or NotFound."""
        return Stored(key, (await self._run(self._piece, keys.parts(key), 0, 0))[1])

    async def delete(self, key: str) -> None:
        """Removes an object durably, and the folders that are empty then."""
        await self._run(self.folder.remove, keys.parts(key))

    async def list(self, prefix: str) -> AsyncIterator[Stored]:
        """All objects below the folder `prefix`."""
        found = self.folder.scan(keys.folder_parts(prefix))
        try:
            while page := await self._run(_page, found):
                for stored in page:
                    yield stored
        finally:
            self._pool.submit(_close, found)  # a thread may still be in it

    def path(self, key: str) -> Path:
        """Where the object is, for sendfile."""
        return _below(self.folder.root, key)

    async def presign(self, key: str, *, ttl_s: int, disposition: str = "") -> None:
        """A disk has no URL; ours are signed at the door."""

    def free_bytes(self) -> int:
        """Room that is left, for the low-water mark."""
        return self.folder.free_bytes()

    async def close(self) -> None:
        """Lets running work end and gives the threads back."""
        await asyncio.to_thread(self._pool.shutdown)
        self.folder.close()

    async def _run(self, call: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    def _piece(self, parts: tuple[str, ...], start: int, size: int) -> tuple[bytes, int]:
        """Some bytes and the object's size. Opened for each piece: no descriptor is lost with a request that is cancelled in between."""
        fd, whole = self.folder.open(parts)
        try:
            with told("reading a file"):
                return os.pread(fd, size, start), whole
        finally:
            os.close(fd)

    def _adopt(self, parts: tuple[str, ...], path: Path, size: int, sha256: str) -> None:
        with told("looking at a file"):
            found = os.lstat(path)
        if found.st_size != size or path.is_symlink():
            raise BadInput("The file is not the one that was announced: its size differs.", code="digest_mismatch")
        with told("keeping a file"):
            path.chmod(0o600)
        if self.folder.place(path, parts, size=size, sha256=sha256):
            return
        with self.intake.begin() as copy, told("copying a file"):
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    copy.write(piece)
            copy.seal()
            if (copy.size, copy.sha256) != (size, sha256):
                raise BadInput("The file is not the one that was announced: size or sha256 differ.", code="digest_mismatch")
            if not self.folder.place(copy.path, parts, size=size, sha256=sha256):
                raise Unavailable(f"Another file system lies over {self.folder.root} than when Roomtape started: start it again.", code="storage_error")
            path.unlink(missing_ok=True)


async def _up_to(body: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The body; BadInput as soon as it is longer than announced."""
    async for piece in body:
        size -= len(piece)
        if size < 0:
            raise BadInput("The body is longer than announced.", code="digest_mismatch")
        yield piece


def _page(found: Iterator[Stored]) -> list[Stored]:
    return list(islice(found, _PAGE))


def _close(found: Generator[Stored, None, None]) -> None:
    with suppress(ValueError):  # it is being executed: then it is closed when it is forgotten
        found.close()


@lru_cache(maxsize=4096)
def _below(root: Path, key: str) -> Path:
    """Players ask for the same objects again and again."""
    return root.joinpath(*keys.parts(key))
