"""Events: written in the transaction of what happened, read by polling. The notice on the channel only saves time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from uuid_utils.compat import uuid7

from roomtape.db.database import CONNECT_S, Connection, many, one, scalar
from roomtape.db.rows import Event

CHANNEL = "roomtape_events"
POLL_S = 1.0

_WRITE = """
    WITH bumped AS (
        UPDATE recordings SET event_seq = event_seq + 1 WHERE id = %(recording_id)s RETURNING id, tenant_id, meeting_id, event_seq
    ), written AS (
        INSERT INTO events (id, recording_id, tenant_id, meeting_id, seq, type, data)
        SELECT %(id)s, id, tenant_id, meeting_id, event_seq, %(type)s, %(data)s FROM bumped RETURNING seq
    )
    SELECT seq, pg_notify('roomtape_events', '') FROM written
"""
_COLUMNS = "e.id, e.tenant_id, e.recording_id, e.meeting_id, e.seq, e.global AS number, e.type, e.data, e.at"
_AFTER = f"""
    SELECT {_COLUMNS} FROM events e
    WHERE e.global > %(after)s AND e.tenant_id = %(tenant)s
      AND (%(subjects)s::text[] IS NULL OR EXISTS (
          SELECT 1 FROM acl a WHERE a.recording_id = e.recording_id AND a.subject = ANY(%(subjects)s::text[]) AND (a.expires_at IS NULL OR a.expires_at > now())))
    ORDER BY e.global LIMIT %(limit)s
"""
_OF_RECORDING = f"SELECT {_COLUMNS} FROM events e WHERE e.recording_id = %(recording_id)s ORDER BY e.seq LIMIT %(limit)s"
_BY_ID = f"SELECT {_COLUMNS} FROM events e WHERE e.tenant_id = %(tenant)s AND e.id = %(id)s"


async def write_event(connection: Connection, recording_id: UUID, kind: str, data: dict[str, Any] | None = None) -> int:
    """Writes one event of a recording and returns its `seq`. It holds the recording's row until the transaction ends, so that seq has no holes."""
    return int(await scalar(connection, _WRITE, id=uuid7(), recording_id=recording_id, type=kind, data=Jsonb(data or {})))


async def events_after(connection: Connection, tenant: str, number: int, *, subjects: Sequence[str] | None = None, limit: int = 500) -> list[Event]:
    """The committed events after `number` in order of commit, that one of `subjects` may view (None: all of the tenant).

    A smaller number never turns up later. Numbers may be left out (rollbacks, other tenants).
    """
    return await many(connection, Event, _AFTER, tenant=tenant, after=number, subjects=_list(subjects), limit=limit)


async def events_of(connection: Connection, recording_id: UUID, *, limit: int = 10_000) -> list[Event]:
    """What happened to one recording, in order."""
    return await many(connection, Event, _OF_RECORDING, recording_id=recording_id, limit=limit)


async def event_by_id(connection: Connection, tenant: str, event_id: UUID) -> Event | None:
    """An event by its public id, to go on after a `Last-Event-ID`."""
    return await one(connection, Event, _BY_ID, tenant=tenant, id=event_id)


async def last_number(connection: Connection) -> int:
    """The number of the newest event: a snapshot read in the same transaction stands before everything after it."""
    return int(await scalar(connection, "SELECT coalesce(max(global), 0) FROM events"))


def _list(subjects: Sequence[str] | None) -> list[str] | None:
    return None if subjects is None else list(subjects)


class Listener:
    """Wakes waiters when something may have been written. One connection of its own; while it is lost, the poll alone goes on."""

    def __init__(self, conninfo: str, *, poll_s: float = POLL_S) -> None:
        self._conninfo, self._poll_s = conninfo, poll_s
        self._rounds = asyncio.Condition()
        self._round = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Listener"]:
        """Listens while the block runs."""
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self._run())
            try:
                yield self
            finally:
                running.cancel()

    async def changed(self) -> None:
        """Returns after the next notice, or after the poll's time: look again then. Looking decides, the notice does not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s), self._rounds:
                seen = self._round
                await self._rounds.wait_for(lambda: self._round != seen)

    async def _run(self) -> None:
        while True:
            with suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, connect_timeout=CONNECT_S, application_name="roomtape-listen"
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await self._wake()  # what was written while nobody listened
                    async for _ in connection.notifies():
                        await self._wake()
            await asyncio.sleep(self._poll_s)

    async def _wake(self) -> None:
        async with self._rounds:
            self._round += 1
            self._rounds.notify_all()
