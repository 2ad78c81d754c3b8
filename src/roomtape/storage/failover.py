"""The spool: while the store fails, what was taken is kept on this machine's disk, served from there, and moved when the store is back."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from math import ceil
from pathlib import Path

from roomtape.core.errors import Conflict, NotFound, RoomtapeError, StorageFull, Unavailable
from roomtape.core.model import StoredIn
from roomtape.core.ports import Store, Stored
from roomtape.storage.breaker import Breaker
from roomtape.storage.local import LocalStore

PATIENCE_S = 5.0
SLOWEST_BYTES_PER_S = 1024 * 1024
_FAILURES = (Unavailable, StorageFull)
_MISSED = (NotFound, *_FAILURES)


class SpooledStore:
    """A Store with a spool beside it. Everything of Store goes to the primary; `keep`, `move` and `drop` are what a segment goes through.

    keep → (row says where) → move → (row says primary) → drop. Each may be repeated after a crash at any line.
    A local primary has no spool: it is the disk itself.
    """

    def __init__(self, primary: Store, spool: LocalStore | None = None, *, patience_s: float = PATIENCE_S) -> None:
        """`patience_s`: how long an upload waits for the primary before it is kept in the spool (and a second more for each MiB)."""
        taking = spool or primary
        if not isinstance(taking, LocalStore):
            raise TypeError("A remote store needs a spool on this machine's disk.")
        self.primary = primary
        self.spool = spool
        self.intake = taking.intake  # its files are in the file system where `keep` may have to leave them
        self._disk = taking
        self._patience_s = patience_s
        self._breaker = Breaker(time.monotonic)
        self._reads = Breaker(time.monotonic)  # of its own: a store that is full or read-only still gives what it has
        self.trouble = ""  # the code of the last failure of the primary, "" while it is well; for health and metrics

    def host(self) -> str:
        """The name of this machine's spool, by which rows say where a body waits; without one nothing waits."""
        return self.spool.folder.name() if self.spool is not None else ""

    async def keep(self, path: Path, key: str, *, size: int, sha256: str) -> StoredIn:
        """Makes a sealed upload an object and says where it is; `path` is gone afterwards.

        The ack may stand on the answer. StorageFull: neither the store nor the spool has room. Conflict, BadInput: as Store.adopt.
        """
        if self.spool is None:
            await self.primary.adopt(key, path, size=size, sha256=sha256)
            return StoredIn.PRIMARY
        if ticket := self._breaker.enter():
            try:
                with self._watched(ticket):
                    async with asyncio.timeout(self._patience_s + size / SLOWEST_BYTES_PER_S):
                        await self.primary.adopt(key, path, size=size, sha256=sha256)
            except _FAILURES:
                pass  # its code is in `trouble`
            else:
                return StoredIn.PRIMARY
        await self.spool.adopt(key, path, size=size, sha256=sha256)
        return StoredIn.SPOOL

    async def move(self, key: str, *, size: int, sha256: str) -> None:
        """Sends a spooled object to the primary, which checks size and digest; the spool keeps its copy until `drop`.

        NotFound: neither the spool of this machine nor the store has it. Unavailable with `retry_after_s` while the store fails.
        """
        if self.spool is None:
            return
        if not (ticket := self._breaker.enter()):
            raise Unavailable("The object store fails; it is tried again later.", code=self.trouble, retry_after_s=max(1, ceil(self._breaker.wait_s)))
        with self._watched(ticket):
            try:
                await self.primary.put(key, self.spool.read(key), size=size, sha256=sha256)
            except NotFound:
                await self._moved_before(key, size)

    async def drop_upload(self, key: str, *, where: StoredIn) -> None:
        """Removes what `keep` has kept, and no row names."""
        if where is StoredIn.SPOOL:
            await self.drop(key)
        else:
            await self.primary.delete(key)

    async def drop(self, key: str) -> None:
        """Removes the spool's copy; the row must say by now that the primary has it."""
        if self.spool is not None:
            await self.spool.delete(key)

    async def read(self, key: str, start: int = 0, stop: int | None = None, *, where: StoredIn = StoredIn.PRIMARY) -> AsyncIterator[bytes]:
        """As Store.read, from where the row says it is, else from the other place: it may just have been moved, or the store be away."""
        errors: list[RoomtapeError] = []
        for store in self._places(where, key):
            given = False
            try:
                async with aclosing(self._read(store, key, start, stop)) as body:
                    async for piece in body:
                        given = True
                        yield piece
            except _MISSED as exc:
                if given:
                    raise
                errors.append(exc)
            else:
                return
        raise _said(errors, where)

    async def _read(self, store: Store, key: str, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """As Store.read; of a primary that did not answer just now it is said at once, so that a rope of many objects costs one wait and not one for each."""
        if store is self.spool or self.spool is None:
            async for piece in store.read(key, start, stop):
                yield piece
            return
        if not (ticket := self._reads.enter()):
            raise Unavailable(
                "The object store does not answer; it is asked again in a moment.", code="storage_error", retry_after_s=max(1, ceil(self._reads.wait_s))
            )
        try:
            async for piece in store.read(key, start, stop):
                self._reads.worked()
                yield piece
        except NotFound:
            self._reads.worked()
            raise
        except _FAILURES:
            self._reads.failed(ticket)
            raise
        finally:
            self._reads.left(ticket)

    async def head(self, key: str, *, where: StoredIn = StoredIn.PRIMARY) -> Stored:
        """As Store.head, from where the row says it is, else from the other place."""
        errors: list[RoomtapeError] = []
        for store in self._places(where, key):
            try:
                return await store.head(key)
            except _MISSED as exc:
                errors.append(exc)
        raise _said(errors, where)

    def path(self, key: str, *, where: StoredIn = StoredIn.PRIMARY) -> Path | None:
        """Where this machine's disk has the object, for sendfile; None where it has to be streamed."""
        if where is StoredIn.SPOOL and self.spool is not None:
            path = self.spool.path(key)
            return path if path.is_file() else None
        return self.primary.path(key)

    async def put(self, key: str, body: AsyncIterable[bytes], *, size: int, sha256: str) -> None:
        """As Store.put, to the primary: artifacts can be made again and wait in the queue, not in the spool."""
        await self.primary.put(key, body, size=size, sha256=sha256)

    async def adopt(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """As Store.adopt, to the primary."""
        await self.primary.adopt(key, path, size=size, sha256=sha256)

    async def delete(self, key: str) -> None:
        """Removes an object wherever it is."""
        if self.spool is not None:
            await self.spool.delete(key)
        await self.primary.delete(key)

    def list(self, prefix: str) -> AsyncIterator[Stored]:
        """As Store.list, of the primary."""
        return self.primary.list(prefix)

    async def presign(self, key: str, *, ttl_s: int, disposition: str = "") -> str | None:
        """As Store.presign, of the primary."""
        return await self.primary.presign(key, ttl_s=ttl_s, disposition=disposition)

    def free_bytes(self) -> int:
        """Room on the disk that takes uploads, for the low-water mark."""
        return self._disk.free_bytes()

    async def sweep(self) -> int:
        """Removes what killed processes have left half written on the disk that takes uploads; returns how many files."""
        return await asyncio.to_thread(self._disk.folder.sweep)

    async def close(self) -> None:
        """Closes both."""
        await self.primary.close()
        if self.spool is not None:
            await self.spool.close()

    def _places(self, where: StoredIn, key: str) -> tuple[Store, ...]:
        """What this machine's spool has is read there, whatever the row says: the bytes are the same, and a failing store costs a wait for each piece."""
        if self.spool is None:
            return (self.primary,)
        here = where is StoredIn.SPOOL or self.spool.path(key).is_file()
        return (self.spool, self.primary) if here else (self.primary, self.spool)

    async def _moved_before(self, key: str, size: int) -> None:
        if (await self.primary.head(key)).size != size:
            raise Conflict("The store has other bytes under this key.", code="object_differs")

    @contextmanager
    def _watched(self, ticket: int) -> Iterator[None]:
        """One call that the breaker let through: how it ends says whether the store is well."""
        try:
            yield
        except TimeoutError as exc:
            self._breaker.failed(ticket)
            self.trouble = "storage_timeout"
            raise Unavailable("The object store did not answer in time.", code=self.trouble) from exc
        except _FAILURES as exc:
            self._breaker.failed(ticket)
            self.trouble = exc.code
            raise
        else:
            self._breaker.worked()
            self.trouble = ""
        finally:
            self._breaker.left(ticket)  # cancelled, or an error about the bytes: says nothing about the store


def _said(errors: list[RoomtapeError], where: StoredIn) -> RoomtapeError:
    """What to tell of several failures: the place that the row names counts; what is in no place we see is in another machine's spool."""
    if where is StoredIn.PRIMARY:
        return errors[0]
    if isinstance(errors[-1], NotFound):
        return Unavailable("The object is in the spool of another machine until it is moved.", code="spooled_elsewhere", retry_after_s=30)
    return errors[-1]
