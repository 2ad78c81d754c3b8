"""What nobody needs any more goes: the trash after its days, expired secrets, and objects that no row knows."""

import time
from collections.abc import Callable

import structlog

from roomtape.db import artifacts, chunks, ledger, people
from roomtape.db.database import Database
from roomtape.db.rows import Recording
from roomtape.storage.failover import SpooledStore

log = structlog.get_logger()


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
        self._seen: dict[str, float] = {}

    async def sweep(self) -> int:
        """Expired secrets and the trash; returns how many recordings are gone for good."""
        async with self._database.transaction() as connection:
            await people.forget_expired(connection)
            due = await ledger.to_purge(connection, trash_days=self._trash_days)
        for recording in due:
            await self._purge(recording)
        return len(due)

    async def _purge(self, recording: Recording) -> None:
        """Revoke, objects, rows: in this order, so that a kill on the way leaves a row that says what is still to be done."""
        async with self._database.transaction() as connection:
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

    async def collect_orphans(self) -> int:
        """Objects of recordings that no row names: an upload that died before its row, a recording that is gone. Returns how many were removed.

        One is removed only when it was an orphan in two looks that are `orphan_s` apart: an upload may be between its object and its row.
        """
        now, orphans, removed = self._now_s(), set(), 0
        async for stored in self._store.list(""):
            async with self._database.transaction() as connection:
                known = await chunks.knows_key(connection, stored.key)
            if not known:
                orphans.add(stored.key)
        self._seen = {key: self._seen.get(key, now) for key in orphans}
        for key, since in list(self._seen.items()):
            if now - since >= self._orphan_s:
                await self._store.delete(key)
                del self._seen[key]
                removed += 1
                log.info("orphan.removed", key=key)
        return removed
