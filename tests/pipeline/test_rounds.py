"""The worker's rounds: what each looks at, and what it leaves alone."""

from pathlib import Path

import pytest
from procrastinate.jobs import Status as Ended

from roomtape.db.database import scalar
from roomtape.library.janitor import Janitor
from roomtape.worker import sweep

from .conftest import House

pytestmark = pytest.mark.anyio


async def test_the_sweep_removes_jobs_that_failed_long_ago(house: House, chromium: Path) -> None:
    await house.record(chromium / "A-opus", 1)
    manager = house.bench.queue.job_manager
    job = await manager.fetch_job(queues=None, worker_id=await manager.register_worker())
    assert job is not None
    await manager.finish_job(job, Ended.FAILED, delete_job=False)
    janitor = Janitor(house.bench.database, house.bench.store, trash_days=7)
    for days, left in ((6, 1), (2, 0)):
        async with house.bench.database.transaction() as connection:
            await connection.execute("UPDATE procrastinate_events SET at = at - make_interval(days => %s)", [days])
        await sweep(house.bench, janitor)
        async with house.bench.database.transaction() as connection:
            assert await scalar(connection, "SELECT count(*) FROM procrastinate_jobs") == left
