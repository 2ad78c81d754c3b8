"""The queue: jobs live and die with our transaction, dead work goes on, and the dead change nothing."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from procrastinate import App
from procrastinate.jobs import Status
from uuid_utils.compat import uuid7

from roomtape.db import jobs
from roomtape.db.database import Connection, Database, scalar

pytestmark = pytest.mark.anyio
WORK = Path(__file__).parent / "work.py"


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[App]:
    app = jobs.queue_app(database_url)

    @app.task(name="step")
    async def step(thing: str) -> None:
        """Does nothing: tests fetch by hand."""

    async with jobs.opened(app):
        yield app


async def test_a_queue_that_is_told_to_end_while_it_connects_leaves_nothing_that_goes_on() -> None:
    called = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        writer.close()

    async def begin() -> None:
        async with jobs.opened(jobs.queue_app(f"postgresql://nobody@127.0.0.1:{port}/none")):
            pass

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    before = asyncio.all_tasks()
    beginning = asyncio.create_task(begin())
    await asyncio.wait_for(called.wait(), 20)
    answering = asyncio.all_tasks() - before - {beginning}
    beginning.cancel()
    await asyncio.wait({beginning}, timeout=20)
    assert beginning.cancelled()
    left = {task for task in asyncio.all_tasks() - before if task not in answering or "silent" not in repr(task)}
    assert left == set()
    server.close()


async def job_status(connection: Connection, job: int) -> str:
    return str(await scalar(connection, "SELECT status::text FROM procrastinate_jobs WHERE id = %(id)s", id=job))


@asynccontextmanager
async def worker(url: str, name: str, go: Path, *, heartbeat_s: float = 0.5) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, str(WORK), url, name, str(heartbeat_s), str(go), stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def count(database: Database, table: str) -> int:
    async with database.transaction() as connection:
        return int(await scalar(connection, f"SELECT count(*) FROM {table}"))


async def test_a_rollback_leaves_no_job_and_a_commit_one(database: Database, queue: App) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await jobs.defer(queue, connection, "step", thing="a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database, "procrastinate_jobs") == 0
    async with database.transaction() as connection:
        job = await jobs.defer(queue, connection, "step", thing="a")
        assert await job_status(connection, job) == "todo"
    assert await count(database, "procrastinate_jobs") == 1


async def test_a_job_that_waits_already_is_kept_and_the_transaction_goes_on(database: Database, queue: App) -> None:
    async with database.transaction() as connection:
        first = await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="a")
        assert await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="b") == first
        await connection.execute("CREATE TABLE written_after ()")
    assert await count(database, "written_after") == 0
    assert await count(database, "procrastinate_jobs") == 1


async def test_a_waiting_job_is_not_fetched_before_what_we_write_with_it_is_committed(database: Database, queue: App) -> None:
    worker_id = await queue.job_manager.register_worker()
    async with database.transaction() as connection:
        first = await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="a")
    async with database.transaction() as connection:
        assert await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="b") == first
        assert await queue.job_manager.fetch_job(queues=None, worker_id=worker_id) is None
    fetched = await queue.job_manager.fetch_job(queues=None, worker_id=worker_id)
    assert fetched is not None
    assert fetched.id == first
    async with database.transaction() as connection:
        assert await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="c") != first


async def test_a_hundred_askers_at_once_make_one_job(database: Database, queue: App) -> None:
    async def ask() -> int:
        async with database.transaction() as connection:
            return await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="a")

    assert len(set(await asyncio.gather(*(ask() for _ in range(100))))) == 1


async def test_a_worker_that_was_taken_over_can_neither_commit_nor_end_the_job(database: Database, queue: App) -> None:
    manager = queue.job_manager
    zombie, heir = await manager.register_worker(), await manager.register_worker()
    async with database.transaction() as connection:
        await jobs.defer(queue, connection, "step", thing="a")
    old = await manager.fetch_job(queues=None, worker_id=zombie)
    assert old is not None
    assert old.id is not None
    async with database.transaction() as connection:
        assert await jobs.still_mine(connection, jobs.Ticket(old.id, old.attempts))
        assert await jobs.take_over(connection) == [], "its worker lives"
        await connection.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute' WHERE id = %s", [zombie])
        assert await jobs.take_over(connection) == [jobs.TakenOver(old.id, "step", 1, "again")]
        assert await jobs.take_over(connection) == []
    new = await manager.fetch_job(queues=None, worker_id=heir)
    assert new is not None
    assert new.id == old.id
    await manager.finish_job(old, Status.FAILED, delete_job=False)
    await manager.retry_job(old)
    async with database.transaction() as connection:
        assert not await jobs.still_mine(connection, jobs.Ticket(old.id, old.attempts))
        assert await jobs.still_mine(connection, jobs.Ticket(old.id, new.attempts))
    await manager.finish_job(new, Status.SUCCEEDED, delete_job=False)
    async with database.transaction() as connection:
        assert await job_status(connection, old.id) == "succeeded"


async def test_a_job_that_kills_each_worker_ends_after_three_attempts(database: Database, queue: App) -> None:
    manager = queue.job_manager
    async with database.transaction() as connection:
        await jobs.defer(queue, connection, "step", thing="poison")
    outcomes = []
    for _ in range(3):
        worker_id = await manager.register_worker()
        assert await manager.fetch_job(queues=None, worker_id=worker_id) is not None
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM procrastinate_workers WHERE id = %s", [worker_id])
            outcomes += [taken.outcome for taken in await jobs.take_over(connection)]
    assert outcomes == ["again", "again", "failed"]
    assert await manager.fetch_job(queues=None, worker_id=await manager.register_worker()) is None


async def test_what_nobody_waits_for_is_done_last_and_one_at_a_time(database: Database, queue: App) -> None:
    async with database.transaction() as connection:
        quiet = [await jobs.ask_quietly(queue, connection, uuid7()) for _ in range(2)]
        wanted = await jobs.ask(queue, connection, uuid7())
    worker_id = await queue.job_manager.register_worker()
    fetched = [await queue.job_manager.fetch_job(queues=None, worker_id=worker_id) for _ in range(3)]
    assert [job.id if job else None for job in fetched] == [wanted, quiet[0], None]


@pytest.mark.parametrize(("silent_s", "outcomes"), [(80, []), (100, ["again"])])
async def test_a_worker_that_starts_robs_none_whose_beats_are_slow(database: Database, database_url: str, silent_s: int, outcomes: list[str]) -> None:
    slow, other = jobs.queue_app(database_url, heartbeat_s=30), jobs.queue_app(database_url, heartbeat_s=30)

    @slow.task(name="step")
    async def step(thing: str) -> None:
        """Is fetched by hand."""

    async with jobs.opened(slow), jobs.opened(other):
        worker_id = await slow.job_manager.register_worker()
        async with database.transaction() as connection:
            await jobs.defer(slow, connection, "step", thing="a")
        assert await slow.job_manager.fetch_job(queues=None, worker_id=worker_id) is not None
        async with database.transaction() as connection:
            await connection.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - make_interval(secs => %s)", [silent_s])
        await other.run_worker_async(wait=False, listen_notify=False)
        async with database.transaction() as connection:
            assert [taken.outcome for taken in await jobs.take_over(connection, heartbeat_s=30)] == outcomes


@pytest.mark.parametrize("status", ["succeeded", "failed", "aborted", "cancelled", "todo", "doing"])
async def test_jobs_that_ended_go_after_a_week_however_they_did(database: Database, queue: App, status: str) -> None:
    async with database.transaction() as connection:
        await jobs.defer(queue, connection, "step", thing="a")
        await connection.execute("UPDATE procrastinate_jobs SET status = %s", [status])
    for days, left in ((6, 1), (2, int(status in {"todo", "doing"}))):
        async with database.transaction() as connection:
            await connection.execute("UPDATE procrastinate_events SET at = at - make_interval(days => %s)", [days])
        await jobs.forget_ended(queue)
        assert await count(database, "procrastinate_jobs") == left


@pytest.mark.parametrize("how", ["taken over", "repeated"])
async def test_a_job_ends_where_another_with_its_queueing_lock_waits(database: Database, queue: App, how: str) -> None:
    manager = queue.job_manager
    worker_id = await manager.register_worker()
    async with database.transaction() as connection:
        first = await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="a")
    running = await manager.fetch_job(queues=None, worker_id=worker_id)
    assert running is not None
    async with database.transaction() as connection:
        second = await jobs.defer(queue, connection, "step", queueing_lock="r1", thing="b")
    if how == "repeated":
        await manager.retry_job(running)
    else:
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM procrastinate_workers")
            assert [taken.outcome for taken in await jobs.take_over(connection)] == ["merged"]
    async with database.transaction() as connection:
        assert await job_status(connection, first) == "aborted"
        assert await job_status(connection, second) == "todo"


async def test_the_work_of_a_killed_worker_is_done_once_by_another(database: Database, database_url: str, queue: App, folder: Path) -> None:
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE made (worker text, thing text)")
        job = await jobs.defer(queue, connection, "step", lock="r1", thing="film")
    async with worker(database_url, "slow", folder / "never") as first:
        assert await line(first) == "begun"
        first.kill()
        async with worker(database_url, "quick", folder / "never") as second:
            assert await line(second) == "begun"
            assert await line(second) == "made 1"
            await until(lambda: _is(database, job, "succeeded"))
    assert await count(database, "made") == 1


async def test_a_frozen_worker_that_wakes_after_its_work_was_done_changes_nothing(database: Database, database_url: str, queue: App, folder: Path) -> None:
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE made (worker text, thing text)")
        job = await jobs.defer(queue, connection, "step", thing="film")
    async with worker(database_url, "slow", folder / "go") as first:
        assert await line(first) == "begun"
        os.kill(first.pid, signal.SIGSTOP)
        async with worker(database_url, "quick", folder / "go") as second:
            assert await line(second) == "begun"
            assert await line(second) == "made 1"
            await until(lambda: _is(database, job, "succeeded"))
        (folder / "go").touch()
        os.kill(first.pid, signal.SIGCONT)
        assert await line(first) == "made 0"
    async with database.transaction() as connection:
        assert await (await connection.execute("SELECT worker FROM made")).fetchall() == [("quick",)]
    assert await _is(database, job, "succeeded")


async def _is(database: Database, job: int, status: str) -> bool:
    async with database.transaction() as connection:
        return await job_status(connection, job) == status
