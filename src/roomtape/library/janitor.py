"""What nobody needs any more goes: the trash after its days, expired secrets, and objects that no row knows."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID

import structlog

from roomtape.core.errors import RoomtapeError
from roomtape.core.keys import recording_of
from roomtape.core.ports import Store
from roomtape.db import artifacts, chunks, ledger, leftovers, people
from roomtape.db.database import Database
from roomtape.db.rows import Recording
from roomtape.storage.failover import SpooledStore

log = structlog.get_logger()

MARKS = "roomtape-installation/"  # below it a store has one object, named for the installation whose bytes it keeps
_PAGE = 500
_MOST, _MOST_SHARE = 50, 0.05  # more orphans than both at once are no leftovers of crashes: rows are missing


@dataclass(slots=True)
class _Looked:
    """What lies in a store. `marks`: names of installations; `ours`: how many objects of this database's recordings; `strangers`: of others'."""

    marks: set[str] = field(default_factory=set)
    ours: int = 0
    strangers: int = 0
    orphans: set[str] = field(default_factory=set)


class Janitor:
    """Cleans in rounds; every round may be killed and repeated. `orphan_s`: how long an object without a row must have been seen to be one."""

    def __init__(
        self, database: Database, store: SpooledStore, *, trash_days: float, orphan_s: float = 3600, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._store = store
        self._trash_days = trash_days
        self._orphan_s = orphan_s
        self._now_s = now_s
        self._seen: dict[bool, dict[str, float]] = {False: {}, True: {}}

    async def sweep(self) -> int:
        """Expired secrets and the trash; returns how many recordings are gone for good."""
        async with self._database.transaction() as connection:
            await people.forget_expired(connection)
            due = await ledger.to_purge(connection, trash_days=self._trash_days)
        return sum([await self._try_purge(recording) for recording in due])

    async def _try_purge(self, recording: Recording) -> bool:
        """One that the store will not let go is said, tried again in the next round, and keeps nothing else from going."""
        try:
            return await self._purge(recording)
        except RoomtapeError as wrong:
            log.warning("purge.failed", recording=str(recording.id), code=wrong.code)
            return False

    async def _purge(self, recording: Recording) -> bool:
        """Say so, revoke, objects, rows: in this order, so that nobody restores what is half gone, and a kill on the way leaves a row that says what is still to be done."""
        async with self._database.transaction() as connection:
            if not await ledger.begin_purge(connection, recording.id, trash_days=self._trash_days):
                return False
            await people.revoke_playback_tokens(connection, recording.id)
            keys = [chunk.key for chunk in await chunks.chunks_of(connection, recording.id)]
            keys += [artifact.key for artifact in await artifacts.artifacts_of(connection, recording.id) if artifact.key]
        for key in keys:
            await self._store.delete(key)
        async for stored in self._store.list(f"{recording.prefix}{recording.id}/"):
            await self._store.delete(stored.key)
        async with self._database.transaction() as connection:
            await ledger.purge(connection, recording.id)
        log.info("recording.purged", recording=str(recording.id), objects=len(keys))
        return True

    async def collect_orphans(self) -> int:
        """Objects in the store that no row names: of an upload that died before its row, of a recording that is gone. Returns how many were removed.

        Of the store only what has exactly our form and a recording that this database knows, or has purged: a database that is fresh, older or another's
        collects nothing. A store that carries another installation's name is not touched at all.
        """
        looked = await self._look(self._store.primary, spool=False)
        if not await self._is_ours(looked):
            return 0
        return await self._remove(self._store.primary, looked, spool=False)

    async def collect_spool(self) -> int:
        """The same in this machine's spool, where copies are left by those who died between a segment's row and the drop."""
        if self._store.spool is None:
            return 0
        looked = await self._look(self._store.spool, spool=True)
        return await self._remove(self._store.spool, looked, spool=True)

    async def _look(self, store: Store, *, spool: bool) -> _Looked:
        looked = _Looked()
        page: dict[str, UUID] = {}
        async for stored in store.list(""):
            if stored.key.startswith(MARKS):
                looked.marks.add(stored.key.removeprefix(MARKS))
            elif (recording := recording_of(stored.key)) is not None:
                page[stored.key] = recording
            if len(page) >= _PAGE:
                await self._ask(looked, page, spool=spool)
                page = {}
        await self._ask(looked, page, spool=spool)
        return looked

    async def _ask(self, looked: _Looked, page: dict[str, UUID], *, spool: bool) -> None:
        async with self._database.transaction() as connection:
            for one in await leftovers.look(connection, page, spool=spool):
                looked.ours += one.ours
                looked.strangers += not one.ours
                if one.ours and not one.named:
                    looked.orphans.add(one.key)

    async def _is_ours(self, looked: _Looked) -> bool:
        """Whether the store carries our name; one that has none and nothing of others is given it."""
        async with self._database.transaction() as connection:
            name = str(await leftovers.installation(connection))
        if looked.marks == {name}:
            return True
        if not looked.marks and not looked.strangers:
            body = name.encode()
            await self._store.put(MARKS + name, _whole(body), size=len(body), sha256=sha256(body).hexdigest())
            return True
        log.error("orphans.refused", why="the store is another installation's", installation=name, found=sorted(looked.marks), strangers=looked.strangers)
        return False

    async def _remove(self, store: Store, looked: _Looked, *, spool: bool) -> int:
        """Removes orphans that were such in two looks `orphan_s` apart: an upload may be between its object and its row. Too many at once: none."""
        now = self._now_s()
        seen = self._seen[spool] = {key: self._seen[spool].get(key, now) for key in looked.orphans}
        due = [key for key, since in seen.items() if now - since >= self._orphan_s]
        if looked.strangers:
            log.warning("orphans.strangers", objects=looked.strangers, spool=spool)
        if len(due) > _MOST and len(due) > _MOST_SHARE * looked.ours:
            log.error("orphans.too_many", orphans=len(due), objects=looked.ours, spool=spool)
            return 0
        return sum([await self._remove_one(store, key, spool=spool) for key in due])

    async def _remove_one(self, store: Store, key: str, *, spool: bool) -> bool:
        looked = _Looked()
        recording = recording_of(key)
        assert recording is not None
        await self._ask(looked, {key: recording}, spool=spool)  # a client may have sent it again since
        if key not in looked.orphans:
            return False
        await store.delete(key)
        log.info("orphan.removed", key=key, spool=spool)
        return True


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body
