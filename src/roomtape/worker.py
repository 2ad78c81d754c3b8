"""`roomtape work`: takes jobs from the queue, takes over those of dead workers, and looks now and then for what nobody asked for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID

import structlog
from procrastinate import JobContext

from roomtape.core.errors import RoomtapeError, StorageFull, Unavailable
from roomtape.core.lifecycle import Status
from roomtape.core.plan import FORM
from roomtape.db import jobs, ledger, outdated
from roomtape.db.jobs import Ticket
from roomtape.library.janitor import Janitor
from roomtape.media.runner import sweep_jobs
from roomtape.pipeline import advance
from roomtape.pipeline.advance import Bench
from roomtape.pipeline.steps import move

log = structlog.get_logger()

CONCURRENCY = 2
_RECONCILE_S = 15.0
_MEASURE_S = 60.0
_AT_ONCE = 4  # recordings that are to be measured again at a time
_SWEEP_S = 600.0
_SPOOL_S = 2.0
_GRACE_S = 8.0  # for the jobs that run when the worker is told to end; what they leave is done by the next one
_LAST_WORD_S = 2.0  # then for telling the database, which may be away
_LOST = f"{jobs.MAX_ATTEMPTS} workers died while they made this recording's files; it is tried again later."


def register(bench: Bench) -> None:
    """Puts our tasks onto the queue."""

    @bench.queue.task(name=jobs.ADVANCE, pass_context=True)
    async def task(context: JobContext, recording_id: str) -> None:
        job = context.job
        assert job is not None
        assert job.id is not None
        ticket = Ticket(job.id, job.attempts)
        try:
            await advance.advance(bench, UUID(recording_id), ticket)
        except (Unavailable, StorageFull):
            raise  # the database is away, or the store for what nobody waits for: the next look asks for it again
        except Exception as wrong:
            log.exception("job.failed", recording=recording_id)
            await _rest(bench, UUID(recording_id), ticket, wrong)
            raise


async def _rest(bench: Bench, recording_id: UUID, ticket: Ticket, wrong: Exception) -> None:
    """Keeps a recording whose job failed from being tried at once again."""
    code, message = (wrong.code, wrong.message) if isinstance(wrong, RoomtapeError) else ("internal", "Making the recording's files failed; the log says why.")
    async with bench.database.transaction() as connection:
        if await jobs.still_mine(connection, ticket):
            await advance.rest(connection, recording_id, code=code, message=message)


async def work(bench: Bench, janitor: Janitor, heartbeat_s: float, ready: Callable[[], None]) -> None:
    """Works until it is cancelled; `ready` is called when the queue is open."""
    async with jobs.opened(bench.queue), asyncio.TaskGroup() as group:
        ready()
        group.create_task(every(heartbeat_s, "take_over", lambda: take_over(bench, heartbeat_s)))
        group.create_task(every(_RECONCILE_S, "reconcile", lambda: reconcile(bench)))
        group.create_task(every(_MEASURE_S, "measure_again", lambda: measure_again(bench)))
        group.create_task(every(_SWEEP_S, "sweep", lambda: sweep(bench, janitor)))
        group.create_task(_jobs(bench))


async def _jobs(bench: Bench) -> None:
    """The queue's own loop; it ends when the database goes, and begins again when it is back.

    It runs beside: without a database it would turn our end into an error of its own, and say for ever what nobody hears.
    """
    while True:
        running = asyncio.create_task(
            bench.queue.run_worker_async(concurrency=CONCURRENCY, wait=True, delete_jobs="successful", shutdown_graceful_timeout=_GRACE_S)
        )
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait({running}, timeout=_GRACE_S + _LAST_WORD_S)
            if not running.done() or (not running.cancelled() and running.exception() is not None):
                log.warning("worker.unheard")  # it is missed by its heartbeat, and its jobs are taken over
            raise
        except Exception:
            log.exception("worker.interrupted")
        _heed()
        await asyncio.sleep(1)


async def every(seconds: float, name: str, do: Callable[[], Awaitable[object]]) -> None:
    """A supervisor, for ever: what goes wrong in a round is said, and the next round comes."""
    while True:
        try:
            await do()
        except RoomtapeError as wrong:
            log.warning("round.failed", round=name, code=wrong.code)
        except Exception:
            log.exception("round.failed", round=name)
        _heed()
        await asyncio.sleep(seconds)


def _heed() -> None:
    """The word to end, where something on the way has made another error of it, or nothing."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def take_over(bench: Bench, heartbeat_s: float) -> None:
    """Jobs of workers that are silent go back to the queue."""
    async with bench.database.transaction() as connection:
        taken = await jobs.take_over(connection, heartbeat_s=heartbeat_s)
        for job in taken:
            if job.outcome == "failed":
                recording_id = (await jobs.job_args(connection, job.job_id))["recording_id"]
                await advance.rest(connection, UUID(recording_id), code="workers_lost", message=_LOST)
    for job in taken:
        log.warning("job.taken_over", job=job.job_id, outcome=job.outcome, attempts=job.attempts)


async def reconcile(bench: Bench) -> None:
    """Recordings that wait for the pipeline without a job: whatever lost it, they are asked for again. Polling is the truth."""
    now = datetime.now(UTC)
    async with bench.database.transaction() as connection:
        for recording in await ledger.running_recordings(connection, [Status.PROCESSING]):
            if await advance.forgotten(connection, recording, now):
                await jobs.ask(bench.queue, connection, recording.id)


async def measure_again(bench: Bench) -> None:
    """Completed recordings whose file an update has changed: until they are measured again, a few at a time, nothing false is said of their bytes."""
    taken_back = 1
    while taken_back:
        async with bench.database.transaction() as connection:
            taken_back = await outdated.take_back_digests(connection, FORM)
    async with bench.database.transaction() as connection:
        for recording_id in await outdated.to_measure(connection, FORM, but=await jobs.put_off(connection), limit=_AT_ONCE):
            if not await jobs.asked(connection, jobs.waiting_name(recording_id)):
                await jobs.ask_quietly(bench.queue, connection, recording_id)


async def sweep(bench: Bench, janitor: Janitor) -> None:
    """What killed jobs have left here, jobs that ended long ago, the trash, expired secrets, and orphans."""
    await asyncio.to_thread(sweep_jobs, bench.work)
    await jobs.forget_ended(bench.queue)
    await janitor.sweep()
    await janitor.collect_orphans()


@contextlib.asynccontextmanager
async def spool_mover(bench: Bench, janitor: Janitor) -> AsyncIterator[None]:
    """Sends what is in this machine's spool while the block runs, and removes what the killed have left; beside whatever takes segments here."""
    tasks = [
        asyncio.create_task(every(_SPOOL_S, "spool", lambda: move.move_all(bench.database, bench.store, bench.host))),
        asyncio.create_task(every(_SWEEP_S, "temporary", bench.store.sweep)),
        asyncio.create_task(every(_SWEEP_S, "leftovers", janitor.collect_spool)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
