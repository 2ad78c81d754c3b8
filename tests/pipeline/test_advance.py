"""The pipeline's own word about a recording: why nothing moves, and when it is tried again."""

from pathlib import Path

import pytest

from roomtape.core.errors import Unavailable
from roomtape.db.jobs import Ticket
from roomtape.pipeline import advance
from roomtape.pipeline.steps import move

from .conftest import House

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("robbed", [False, True])
async def test_a_worker_thought_dead_says_nothing_of_a_store_that_fails(house: House, chromium: Path, monkeypatch: pytest.MonkeyPatch, *, robbed: bool) -> None:
    recording = await house.record(chromium / "A-opus", 1)
    manager = house.bench.queue.job_manager
    job = await manager.fetch_job(queues=None, worker_id=await manager.register_worker())
    assert job is not None
    assert job.id is not None

    async def fails(*_: object) -> None:
        async with house.bench.database.transaction() as connection:
            await connection.execute("UPDATE procrastinate_jobs SET attempts = attempts + %s", [int(robbed)])
        raise Unavailable(code="storage_error")

    monkeypatch.setattr(move, "move", fails)
    await advance.advance(house.bench, recording.id, Ticket(job.id, job.attempts))
    async with house.bench.database.transaction() as connection:
        waiting = await (await connection.execute("SELECT 1 FROM procrastinate_jobs WHERE status = 'todo'")).fetchall()
    assert ((await house.now(recording)).error is None, waiting == []) == (robbed, robbed)
