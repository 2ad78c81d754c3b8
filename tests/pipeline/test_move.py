"""Bodies go from the spool to the store; one that cannot is told of and holds up no other."""

from pathlib import Path

import pytest

from roomtape.core.errors import Conflict
from roomtape.core.lifecycle import ChunkState, Status
from roomtape.pipeline.steps import move

from .conftest import HOST, House

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", ["gone", "rotten"])
@pytest.mark.parametrize("form", ["A-opus", "B-opus"])
async def test_a_lost_body_is_told_of_and_the_others_make_a_whole_recording(house: House, chromium: Path, form: str, how: str) -> None:
    recording = await house.record(chromium / form, 4)
    lost = (await house.rows(recording))[1]
    path = house.spool.path(lost.key)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    await house.work()
    assert [row.state for row in await house.rows(recording)] == [ChunkState.DONE, ChunkState.FAILED, ChunkState.DONE, ChunkState.DONE]
    made = await house.now(recording)
    assert made.status is Status.COMPLETED, made.error
    assert made.error is None
    assert [(one["code"], "Segment 2 of track 1" in one["message"]) for one in made.warnings if one["code"] == "segment_lost"] == [("segment_lost", True)]
    assert made.size_bytes
    tape = await house.bench.layouts.tape(made)
    assert tape.layouts["1"].gaps, "the hole is told"


async def test_a_recording_whose_every_body_is_lost_says_so(house: House, chromium: Path) -> None:
    recording = await house.record(chromium / "A-opus", 2)
    for row in await house.rows(recording):
        house.spool.path(row.key).unlink()
    await house.work()
    made = await house.now(recording)
    assert made.status is Status.FAILED
    assert made.error is not None
    assert made.error["code"] == "segment_lost"


async def test_a_body_that_is_stuck_holds_up_no_other(house: House, chromium: Path) -> None:
    recording = await house.record(chromium / "A-opus", 3)
    first = (await house.rows(recording))[0]
    in_the_way = house.remote.path(first.key)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"others")
    with pytest.raises(Conflict):
        await move.move_all(house.bench.database, house.bench.store, HOST)
    assert [row.state for row in await house.rows(recording)] == [ChunkState.QUEUED, ChunkState.DONE, ChunkState.DONE]
    in_the_way.unlink()
    await house.work()
    assert (await house.now(recording)).status is Status.COMPLETED
