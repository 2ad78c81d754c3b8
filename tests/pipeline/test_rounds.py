"""The worker's rounds: what each looks at, and what it leaves alone."""

from pathlib import Path

import pytest
from procrastinate.jobs import Status as Ended

from roomtape.core.errors import Unavailable
from roomtape.core.lifecycle import Status
from roomtape.core.plan import FORM
from roomtape.db import artifacts, outbox
from roomtape.db.database import scalar
from roomtape.db.rows import Artifact, Event, Recording
from roomtape.library.janitor import Janitor
from roomtape.pipeline.steps import original
from roomtape.worker import measure_again, sweep

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


async def jobs_of(house: House, recording: Recording, status: str = "todo") -> int:
    query = "SELECT count(*) FROM procrastinate_jobs WHERE args ->> 'recording_id' = %(id)s AND status = %(status)s"
    async with house.bench.database.transaction() as connection:
        return int(await scalar(connection, query, id=str(recording.id), status=status))


async def outdate(house: House, recording: Recording) -> None:
    """As if its file had been measured by a version with other heads."""
    async with house.bench.database.transaction() as connection:
        await connection.execute("UPDATE artifacts SET recipe = %s, sha256 = %s, size_bytes = 1 WHERE recording_id = %s", ["2-old", "00" * 32, recording.id])
        await connection.execute("UPDATE recordings SET sha256 = %s, size_bytes = 1 WHERE id = %s", ["00" * 32, recording.id])


async def told(house: House, recording: Recording) -> tuple[list[Event], list[Artifact]]:
    async with house.bench.database.transaction() as connection:
        return await outbox.events_of(connection, recording.id), await artifacts.artifacts_of(connection, recording.id)


async def test_a_completed_recording_whose_heads_have_changed_is_measured_again(house: House, chromium: Path) -> None:
    recording = await house.record(chromium / "A-opus", 2)
    await house.work()
    before, (events, made) = await house.now(recording), await told(house, recording)
    assert (before.status, len(made), made[0].recipe[: len(FORM)]) == (Status.COMPLETED, 1, FORM)
    await measure_again(house.bench)
    assert await jobs_of(house, recording) == 0, "it is up to date"
    await outdate(house, recording)
    await measure_again(house.bench)
    await measure_again(house.bench)
    assert await jobs_of(house, recording) == 1
    assert (await house.now(recording)).sha256 is None, "a digest that its bytes no longer have"
    assert [one.sha256 for one in (await told(house, recording))[1]] == [None]
    await house.work()
    assert await house.now(recording) == before, "nothing else has changed"
    assert (await told(house, recording))[0] == events
    again = (await told(house, recording))[1]
    assert [(one.recipe, one.sha256, one.size_bytes) for one in again] == [(made[0].recipe, made[0].sha256, made[0].size_bytes)]
    await measure_again(house.bench)
    assert await jobs_of(house, recording) == 0


async def test_measuring_again_goes_from_the_newest_on_and_leaves_for_a_day_what_cannot_be_read(house: House, chromium: Path) -> None:
    recordings = [await house.record(chromium / "A-opus", 1) for _ in range(6)]
    await house.work()
    for recording in recordings:
        await outdate(house, recording)
    for row in await house.rows(recordings[-1]):
        house.remote.path(row.key).unlink()
    await measure_again(house.bench)
    assert [await jobs_of(house, recording) for recording in recordings] == [0, 0, 1, 1, 1, 1]
    await house.work()
    assert [await jobs_of(house, recording, "failed") for recording in recordings] == [0, 0, 0, 0, 0, 1]
    assert [(await house.now(recording)).error for recording in recordings] == [None] * 6
    await measure_again(house.bench)
    assert [await jobs_of(house, recording) for recording in recordings] == [1, 1, 0, 0, 0, 0]
    await house.work()
    async with house.bench.database.transaction() as connection:
        await connection.execute("UPDATE procrastinate_events SET at = at - interval '25 hours'")
    await measure_again(house.bench)
    assert [await jobs_of(house, recording) for recording in recordings] == [0, 0, 0, 0, 0, 1]
    measured = [(await house.now(recording)).sha256 is not None for recording in recordings]
    assert measured == [True] * 5 + [False]


async def test_measuring_again_waits_a_day_for_a_store_that_fails(house: House, chromium: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = await house.record(chromium / "A-opus", 1)
    await house.work()
    await outdate(house, recording)
    await measure_again(house.bench)

    async def fails(*_: object) -> None:
        raise Unavailable(code="storage_error")

    monkeypatch.setattr(original, "make", fails)
    await house.work()
    assert await jobs_of(house, recording, "failed") == 1
    await measure_again(house.bench)
    assert await jobs_of(house, recording) == 0
    now = await house.now(recording)
    assert (now.status, now.error) == (Status.COMPLETED, None)
