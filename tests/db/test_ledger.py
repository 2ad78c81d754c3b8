"""Meetings and recordings in the ledger: one open recording, legal steps only, events without holes."""

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.lifecycle import Status
from roomtape.db import chunks, ledger, outbox
from roomtape.db.database import Database

from .tape import TENANT, a_chunk, a_meeting, a_recording

pytestmark = pytest.mark.anyio


async def test_a_hundred_starts_at_once_make_one_recording(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection)

    async def start() -> UUID | str:
        try:
            async with database.transaction() as connection:
                return (await ledger.create_recording(connection, TENANT, uuid7(), meeting.id, owner_id="u", prefix="p/", source="segments")).id
        except Conflict as exc:
            return str(exc.facts["recording_id"]) if exc.code == "already_recording" else exc.code

    answers = await asyncio.gather(*(start() for _ in range(100)))
    assert len([answer for answer in answers if isinstance(answer, UUID)]) == 1
    assert len({str(answer) for answer in answers}) == 1


async def test_a_meeting_is_found_by_id_and_by_room_in_its_tenant_only(database: Database) -> None:
    async with database.transaction() as connection:
        here = await a_meeting(connection, room="standup")
        there = await a_meeting(connection, room="standup", tenant="other")
        assert here.id != there.id
        assert await ledger.find_meeting(connection, TENANT, "standup") == here
        assert await ledger.find_meeting(connection, TENANT, str(here.id)) == here
        assert await ledger.find_meeting(connection, TENANT, there.id) is None
        assert await ledger.find_meeting(connection, TENANT, "unknown") is None
        with pytest.raises(Conflict) as taken:
            await a_meeting(connection, room="standup")
        assert taken.value.facts["meeting_id"] == str(here.id)
        assert await ledger.list_meetings(connection, TENANT) == [here]
        assert await ledger.list_meetings(connection, TENANT, user_id="stranger") == []


async def test_participants_join_change_and_leave(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection, host="ann")
        recording = await a_recording(connection, meeting)
        await ledger.put_participant(connection, meeting.id, "bob", full_name="Bob")
        await ledger.put_participant(connection, meeting.id, "bob", full_name="Bob B.", role="CO_HOST")
        left = await ledger.leave_participant(connection, meeting.id, "bob")
        assert (left.full_name, left.role) == ("Bob B.", "CO_HOST")
        assert left.left_at is not None
        assert await ledger.role_of(connection, meeting.id, "ann") == "HOST"
        assert await ledger.role_of(connection, meeting.id, "eve") is None
        assert [person.user_id for person in await ledger.participants_of(connection, meeting.id)] == ["ann", "bob"]
        assert [event.type for event in await outbox.events_of(connection, recording.id)] == ["participant.joined", "participant.joined", "participant.left"]
        with pytest.raises(NotFound):
            await ledger.leave_participant(connection, meeting.id, "eve")


async def test_metadata_is_replaced_in_the_tenant_only(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection)
        await ledger.set_metadata(connection, TENANT, meeting.id, {"a": 1})
        assert (await ledger.set_metadata(connection, TENANT, meeting.id, {"b": [2]})).metadata == {"b": [2]}
        with pytest.raises(NotFound):
            await ledger.set_metadata(connection, "other", meeting.id, {})


async def test_a_recording_goes_its_way_with_stamps_pauses_and_events(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
    way = (Status.RECORDING, Status.PAUSED, Status.RECORDING, Status.STOPPED, Status.PROCESSING, Status.COMPLETED)
    for target in way:
        async with database.transaction() as connection:
            moved = await ledger.move(connection, recording.id, target, fields={"duration_us": 5} if target is Status.COMPLETED else None)
            assert moved.status is target
            assert await ledger.move(connection, recording.id, target) == moved
    assert None not in (moved.started_at, moved.stopped_at, moved.complete_requested_at, moved.completed_at)
    assert moved.duration_us == 5
    async with database.transaction() as connection:
        events = await outbox.events_of(connection, recording.id)
        pauses = await ledger.pauses_of(connection, recording.id)
    assert [event.type.removeprefix("recording.") for event in events] == ["started", "paused", "resumed", "stopped", "processing", "completed"]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
    assert len(pauses) == 1
    assert pauses[0].to_at is not None


async def test_stop_after_the_end_gives_the_same_answer_and_pause_is_refused(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        for target in (Status.STOPPED, Status.PROCESSING, Status.COMPLETED):
            done = await ledger.move(connection, recording.id, target)
        assert await ledger.move(connection, recording.id, Status.STOPPED) == done
        assert await ledger.move(connection, recording.id, Status.PROCESSING) == done
        for target in (Status.PAUSED, Status.RECORDING, Status.FAILED):
            with pytest.raises(Conflict) as refused:
                await ledger.move(connection, recording.id, target)
            assert refused.value.facts["state"] == "completed"
        with pytest.raises(NotFound):
            await ledger.move(connection, uuid7(), Status.STOPPED)


async def test_twenty_writers_leave_no_hole_in_seq_and_readers_never_skip_a_number(database: Database) -> None:
    async with database.transaction() as connection:
        recordings = [(await a_recording(connection)).id for _ in range(3)]
    seen: list[int] = []
    done = asyncio.Event()

    async def write(which: int) -> None:
        for _ in range(5):
            async with database.transaction() as connection:
                await outbox.write_event(connection, recordings[which % 3], "recording.health")
                await asyncio.sleep(0)  # others number theirs in between

    async def read() -> None:
        while True:
            last = done.is_set()
            async with database.transaction() as connection:
                seen.extend(event.number for event in await outbox.events_after(connection, TENANT, seen[-1] if seen else 0, limit=7))
                total = await (await connection.execute("SELECT count(*) FROM events")).fetchone()
            if last and total == (len(seen),):
                return
            assert not last or total is None or len(seen) < 100, "the reader passed over an event"

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write(which) for which in range(20)))
    done.set()
    await asyncio.wait_for(reader, 20)
    assert len(seen) == 100
    assert seen == sorted(seen)
    async with database.transaction() as connection:
        for recording in recordings:
            seqs = [event.seq for event in await outbox.events_of(connection, recording)]
            assert seqs == list(range(1, len(seqs) + 1))


async def test_a_rolled_back_step_leaves_no_event(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)

    async def fail() -> None:
        async with database.transaction() as connection:
            await ledger.move(connection, recording.id, Status.STOPPED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.transaction() as connection:
        assert await outbox.events_of(connection, recording.id) == []
        assert (await ledger.get_recording(connection, TENANT, recording.id)) == recording
        assert await ledger.get_recording(connection, "other", recording.id) is None


async def test_trash_restore_hold_and_purge(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        with pytest.raises(Conflict, match="still running"):
            await ledger.soft_delete(connection, recording.id)
        await ledger.move(connection, recording.id, Status.STOPPED)
        await ledger.set_fields(connection, recording.id, {"legal_hold": True})
        with pytest.raises(Conflict, match="legal hold"):
            await ledger.soft_delete(connection, recording.id)
        await ledger.set_fields(connection, recording.id, {"legal_hold": False})
        deleted = await ledger.soft_delete(connection, recording.id, by="owner")
        assert await ledger.soft_delete(connection, recording.id) == deleted
        assert await ledger.to_purge(connection, trash_days=7) == []
        assert (await ledger.restore(connection, recording.id)).deleted_at is None
        assert await ledger.purge(connection, recording.id) is False
        await ledger.soft_delete(connection, recording.id)
    async with database.transaction() as connection:
        assert [found.id for found in await ledger.to_purge(connection, trash_days=0)] == [recording.id]
        assert await ledger.begin_purge(connection, recording.id, trash_days=7) is False
        assert await ledger.purge(connection, recording.id) is False
        assert await ledger.begin_purge(connection, recording.id, trash_days=0) is True
        assert [found.id for found in await ledger.to_purge(connection, trash_days=7)] == [recording.id], "what was begun goes on"
        for late in (ledger.restore(connection, recording.id), ledger.set_fields(connection, recording.id, {"legal_hold": True})):
            with pytest.raises(Conflict) as refused:
                await late
            assert refused.value.code == "purging"
        assert await ledger.purge(connection, recording.id) is True
        assert await ledger.get_recording(connection, TENANT, recording.id) is None


async def test_a_history_says_that_a_deleted_recording_came_back(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        await ledger.move(connection, recording.id, Status.STOPPED)
        assert await ledger.restore(connection, recording.id) == await ledger.find_recording(connection, recording.id), "it is not in the trash"
        await ledger.soft_delete(connection, recording.id)
        restored = await ledger.restore(connection, recording.id)
        assert await ledger.restore(connection, recording.id) == restored == await ledger.find_recording(connection, recording.id)
        told = await outbox.events_of(connection, recording.id)
    assert [event.type for event in told] == ["recording.stopped", "recording.deleted", "recording.restored"]


async def test_segments_without_a_recording_go_to_the_newest_that_is_not_complete(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection)
        assert await ledger.newest_takeable_recording(connection, meeting.id) is None
        first = await a_recording(connection, meeting)
        await ledger.move(connection, first.id, Status.STOPPED)
    async with database.transaction() as connection:
        second = await a_recording(connection, meeting)
        newest = await ledger.newest_takeable_recording(connection, meeting.id)
        assert newest is not None
        assert newest.id == second.id
        await ledger.move(connection, second.id, Status.STOPPED)
        await ledger.move(connection, second.id, Status.PROCESSING)
        newest = await ledger.newest_takeable_recording(connection, meeting.id)
        assert newest is not None
        assert newest.id == first.id
        last = await ledger.newest_recording(connection, meeting.id)
        assert last is not None
        assert last.id == second.id


async def test_health_speaks_only_when_it_changes(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        for health in ("live", "live", "silent"):
            await ledger.set_health(connection, recording.id, health)
        assert [event.data for event in await outbox.events_of(connection, recording.id)] == [{"health": "live"}, {"health": "silent"}]


async def test_a_waiter_is_woken_by_a_commit_long_before_the_poll(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
    async with outbox.Listener(database.conninfo, poll_s=60).listening() as listener:
        waiter = asyncio.create_task(listener.changed())
        while not waiter.done():  # the first writes may come before LISTEN stands
            async with database.transaction() as connection:
                await chunks.commit_chunk(connection, a_chunk(recording.id, await chunks.last_index(connection, recording.id, "1") + 1))
            await asyncio.wait([waiter], timeout=0.1)


async def test_a_waiter_looks_again_after_the_poll_when_no_notice_comes(database: Database) -> None:
    async with outbox.Listener("postgresql://nobody@/none?host=/nonexistent", poll_s=0.05).listening() as listener:
        await asyncio.wait_for(listener.changed(), 5)


async def test_an_event_is_found_by_its_id_in_its_tenant_only(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        await outbox.write_event(connection, recording.id, "recording.health")
        [event] = await outbox.events_of(connection, recording.id)
        assert await outbox.event_by_id(connection, TENANT, event.id) == event
        assert await outbox.event_by_id(connection, "another", event.id) is None
