"""The queue, procrastinate on our PostgreSQL: jobs that join our transaction, and fences so that a worker that was thought dead changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager, NotificationCallback

from roomtape.core.errors import Unavailable
from roomtape.db.database import CONNECT_S, Connection, scalar

ADVANCE = "advance"  # the pipeline's task
HEARTBEAT_S = 10.0  # also how often work is taken over: with a poll of 1 s, dead work goes on within 60 s
DEAD_BEATS = 3  # a worker that is silent for so many heartbeats is dead
MAX_ATTEMPTS = 3
_AGAIN_S = 1.0
_KEPT_H = 7 * 24

# A worker's word about a job counts only while the attempt it speaks of is the present one. A job that goes back to the queue while another with its
# queueing lock waits there ends instead: the waiting one does the same work (plan again), and the index allows only one.
_MINE = "SELECT id, queueing_lock FROM procrastinate_jobs WHERE id = %(id)s AND attempts = %(attempts)s AND status = 'doing' FOR UPDATE"
_FINISH = f"WITH mine AS MATERIALIZED ({_MINE}) SELECT procrastinate_finish_job_v1(id, %(status)s::procrastinate_job_status, %(delete)s) FROM mine"
_TWIN = "EXISTS (SELECT 1 FROM procrastinate_jobs twin WHERE twin.queueing_lock = mine.queueing_lock AND twin.status = 'todo')"
_RETRY = f"""
    WITH mine AS MATERIALIZED ({_MINE})
    SELECT CASE WHEN {_TWIN} THEN procrastinate_finish_job_v1(id, 'aborted', false)
                ELSE procrastinate_retry_job_v2(id, %(at)s, %(priority)s, %(queue)s, %(lock)s) END FROM mine
"""
_TAKE_OVER = f"""
    WITH mine AS MATERIALIZED (
        SELECT job.id, job.queueing_lock, job.attempts, job.task_name FROM procrastinate_jobs job LEFT JOIN procrastinate_workers w ON w.id = job.worker_id
        WHERE job.status = 'doing' AND (w.id IS NULL OR w.last_heartbeat < now() - make_interval(secs => %(silent_s)s))
        FOR UPDATE OF job SKIP LOCKED
    )
    SELECT id, task_name, attempts + 1, CASE WHEN attempts + 1 >= %(most)s THEN 'failed' WHEN {_TWIN} THEN 'merged' ELSE 'again' END,
        CASE WHEN attempts + 1 >= %(most)s THEN procrastinate_finish_job_v1(id, 'failed', false)
             WHEN {_TWIN} THEN procrastinate_finish_job_v1(id, 'aborted', false)
             ELSE procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) END
    FROM mine ORDER BY id
"""
_PUT_OFF = """
    SELECT (args ->> 'recording_id')::uuid FROM procrastinate_jobs job WHERE task_name = %s AND status = 'failed'
      AND EXISTS (SELECT 1 FROM procrastinate_events e WHERE e.job_id = job.id AND e.at > now() - interval '1 day')
"""


class TakenOver(NamedTuple):
    """A job whose worker died. `outcome`: again (back in the queue), merged (another job waits for the same), failed (killed too many workers)."""

    job_id: int
    task: str
    attempts: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which attempt of which job a step works for; from the worker's context: `Ticket(context.job.id, context.job.attempts)`."""

    job_id: int
    attempts: int


class FencedJobs(JobManager):
    """The library ends or repeats a job by its id alone, so that a worker woken from the dead would end the job that another one is doing; here the attempt counts.

    And it says a thing once: where the database is away in that moment, a living worker would never beat again and be robbed of each job at once, or a job
    whose end nobody heard would stay `doing` and hold its lock for as long as its worker lives. Here it is said until it is heard.
    """

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        await self._insist(_FINISH, id=job.id, attempts=job.attempts, status=status.value, delete=delete_job)

    async def retry_job(
        self, job: Job, retry_at: datetime | None = None, priority: int | None = None, queue: str | None = None, lock: str | None = None
    ) -> None:
        await self._insist(_RETRY, id=job.id, attempts=job.attempts, at=retry_at, priority=priority, queue=queue, lock=lock)

    async def update_heartbeat(self, worker_id: int) -> None:
        with suppress(ConnectorException):  # the next beat comes
            await super().update_heartbeat(worker_id)

    async def listen_for_jobs(self, *, on_notification: NotificationCallback, queues: Iterable[str] | None = None) -> None:
        while True:
            with suppress(ConnectorException):  # until it listens again, the poll alone finds jobs
                await super().listen_for_jobs(on_notification=on_notification, queues=queues)
            await asyncio.sleep(_AGAIN_S)

    async def _insist(self, query: str, **values: Any) -> None:
        """Repeats while the database is away; what it does not take for another reason is raised."""
        while True:
            try:
                await self.connector.execute_query_all_async(query=query, **values)
            except ConnectorException as exc:
                if not isinstance(exc.__cause__, psycopg.OperationalError):
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                return


def queue_app(conninfo: str, *, heartbeat_s: float = HEARTBEAT_S) -> App:
    """The procrastinate App on our database; tasks are registered on it, `run_worker_async` works it off. It has a small pool of its own."""
    connector = PsycopgConnector(
        conninfo=conninfo,
        min_size=1,
        max_size=4,
        timeout=5.0,
        reconnect_timeout=5.0,
        kwargs={"connect_timeout": CONNECT_S, "application_name": "roomtape-queue"},
    )
    app = App(
        connector=connector,
        worker_defaults={
            "fetch_job_polling_interval": 1.0,
            "update_heartbeat_interval": heartbeat_s,
            "stalled_worker_timeout": heartbeat_s * DEAD_BEATS,  # a worker that starts forgets those, and take_over takes the forgotten for dead
            "install_signal_handlers": False,
        },
    )
    app.job_manager = FencedJobs(connector)
    return app


@asynccontextmanager
async def opened(app: App) -> AsyncIterator[None]:
    """The queue's pool is open in the block. Cancelled while it connects, procrastinate leaves its pool behind, which swallows every cancellation: no end."""
    try:
        async with app.open_async():
            yield
    finally:
        await app.close_async()


async def ask(app: App, connection: Connection, recording_id: UUID, *, at: datetime | None = None) -> int:
    """Puts a look at a recording into the queue (ADVANCE: makes what is missing of it) and returns the job's id; one waits per recording."""
    name = waiting_name(recording_id)
    return await defer(app, connection, ADVANCE, lock=name, queueing_lock=name, schedule_at=at, recording_id=str(recording_id))


async def ask_quietly(app: App, connection: Connection, recording_id: UUID) -> int:
    """The same for what nobody waits for: it comes after everything else, and one at a time on all workers, so that each has a hand free."""
    name = waiting_name(recording_id)
    return await defer(app, connection, ADVANCE, lock=f"{ADVANCE}:quietly", queueing_lock=name, priority=-1, recording_id=str(recording_id))


def waiting_name(recording_id: UUID) -> str:
    """The queueing lock of looks at a recording."""
    return f"{ADVANCE}:{recording_id}"


async def defer(
    app: App,
    connection: Connection,
    task: str,
    *,
    lock: str | None = None,
    queueing_lock: str | None = None,
    schedule_at: datetime | None = None,
    priority: int = 0,
    **args: Any,
) -> int:
    """Puts a job into the queue as part of the caller's transaction and returns its id.

    With a queueing_lock, one that waits already is kept and its id returned; it is held until this transaction ends, so that no worker starts it before
    it can see what we write. `lock`: jobs with the same one run one after another.
    """
    wanted = app.configure_task(task, lock=lock, queueing_lock=queueing_lock, schedule_at=schedule_at, priority=priority, connection=connection)
    for _ in range(5):
        try:
            async with connection.transaction():  # a savepoint: a refused insert must not end the caller's transaction
                return int(await wanted.defer_async(**args))
        except AlreadyEnqueued:
            query = "SELECT id FROM procrastinate_jobs WHERE queueing_lock = %(lock)s AND status = 'todo' FOR KEY SHARE"
            waiting = await scalar(connection, query, lock=queueing_lock)
            if waiting is not None:
                return int(waiting)
        except ConnectorException as exc:
            if isinstance(exc.__cause__, psycopg.Error):  # the library hides it; our edge tells by it what is to be repeated
                raise exc.__cause__ from None
            raise
    raise Unavailable(retry_after_s=2)


async def still_mine(connection: Connection, ticket: Ticket) -> bool:
    """Whether this attempt is the job's present one; holds the job until the transaction ends. A step asks in the transaction that commits its result."""
    query = "SELECT true FROM procrastinate_jobs WHERE id = %(id)s AND attempts = %(attempts)s AND status = 'doing' FOR UPDATE"
    return bool(await scalar(connection, query, id=ticket.job_id, attempts=ticket.attempts))


async def take_over(connection: Connection, *, heartbeat_s: float = HEARTBEAT_S) -> list[TakenOver]:
    """Gives the jobs of dead workers back to the queue; to be called again and again, by any number of workers."""
    cursor = await connection.execute(_TAKE_OVER, {"silent_s": heartbeat_s * DEAD_BEATS, "most": MAX_ATTEMPTS})
    return [TakenOver(*row[:4]) for row in await cursor.fetchall()]


async def forget_ended(app: App) -> None:
    """Removes jobs that ended days ago, however they did; until then they say in the database what the log may have lost."""
    await app.job_manager.delete_old_jobs(_KEPT_H, include_failed=True, include_cancelled=True, include_aborted=True)


async def asked(connection: Connection, queueing_lock: str) -> bool:
    """Whether a job with this queueing lock waits or is being done, be it by a worker that is dead and not yet missed."""
    query = "SELECT EXISTS (SELECT 1 FROM procrastinate_jobs WHERE queueing_lock = %(lock)s AND status IN ('todo', 'doing'))"
    return bool(await scalar(connection, query, lock=queueing_lock))


async def put_off(connection: Connection) -> set[UUID]:
    """Recordings whose look failed within a day."""
    return {name for (name,) in await (await connection.execute(_PUT_OFF, [ADVANCE])).fetchall()}


async def job_args(connection: Connection, job_id: int) -> dict[str, Any]:
    """What a job was asked to do, {} when it is gone."""
    args: dict[str, Any] | None = await scalar(connection, "SELECT args FROM procrastinate_jobs WHERE id = %(id)s", id=job_id)
    return args or {}
