"""The pool of connections: one transaction per request, at the edge, and one place where PostgreSQL's errors become ours."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from roomtape.core.errors import BadInput, NotFound, StorageFull, Unavailable
from roomtape.db.rows import Row, row_of

Connection = AsyncConnection[TupleRow]
T = TypeVar("T")

CONNECT_S = 5
_POOL_WAIT_S = 5.0
_STATEMENT_MS = 10_000
_IDLE_MS = 30_000  # a transaction that its owner forgot holds locks no longer


class Database:
    """The pool. Opening does not wait for the server: it may come later, and until then everything is Unavailable."""

    def __init__(self, conninfo: str, *, max_size: int = 20) -> None:
        self.conninfo = conninfo
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=max_size,
            timeout=_POOL_WAIT_S,
            reconnect_timeout=_POOL_WAIT_S,  # with more, its back-off grows beyond the 5 s in which we want to be back
            kwargs={"connect_timeout": CONNECT_S, "application_name": "roomtape"},
            configure=_configure,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )

    async def open(self) -> None:
        await self.pool.open()

    async def close(self) -> None:
        await self.pool.close()

    async def ping(self) -> None:
        """Returns when the server answers; Unavailable."""
        async with self.transaction() as connection:
            await connection.execute("SELECT 1")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed at the end, rolled back by any exception.

        Raises Unavailable (server away, time-out, deadlock; safe to repeat) and StorageFull. When the connection is lost in the commit itself,
        nobody knows whether it happened: everything written here is idempotent by key, so repeating converges.
        """
        with translated():
            async with (
                self.pool.connection() as connection,
                connection.transaction(),
            ):  # begun here, so that a transaction() inside is a savepoint, not a commit
                yield connection


@contextmanager
def translated() -> Iterator[None]:
    """PostgreSQL's errors as ours."""
    try:
        yield
    except psycopg.errors.DiskFull as exc:
        raise StorageFull("The database has no room left; nothing was taken, keep the bytes and try again.", retry_after_s=10) from exc
    except psycopg.DataError as exc:  # what the doors let through and no column takes
        raise BadInput("There is a value that cannot be kept: too large, or a character that no text has.") from exc
    except (PoolTimeout, PoolClosed, TooManyRequests, psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as exc:
        raise Unavailable(retry_after_s=2) from exc


async def one(connection: Connection, row: type[Row], query: LiteralString, **values: Any) -> Row | None:
    """The first row as a value, or None."""
    async with connection.cursor(row_factory=row_of(row)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchone()


async def many(connection: Connection, row: type[Row], query: LiteralString, **values: Any) -> list[Row]:
    """All rows as values."""
    async with connection.cursor(row_factory=row_of(row)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


async def scalar(connection: Connection, query: LiteralString, **values: Any) -> Any:
    """The first column of the first row, or None."""
    found = await (await connection.execute(query, values)).fetchone()
    return found[0] if found else None


def found(value: T | None) -> T:
    """The value; a row that is not there is NotFound."""
    if value is None:
        raise NotFound
    return value


async def _configure(connection: Connection) -> None:
    await connection.set_autocommit(True)
    await connection.execute(f"SET statement_timeout = {_STATEMENT_MS}; SET idle_in_transaction_session_timeout = {_IDLE_MS}; SET timezone = 'UTC'")
    await connection.set_autocommit(False)
