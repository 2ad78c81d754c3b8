"""Lists and access: exact pages, filters, shares, and a foreign tenant that sees nothing."""

from datetime import UTC, datetime, timedelta

import pytest
from uuid_utils.compat import uuid7

from roomtape.core.lifecycle import Status
from roomtape.db import access, ledger
from roomtape.db.access import Wanted
from roomtape.db.database import Connection, Database
from roomtape.db.rows import Recording

from .tape import TENANT, a_meeting, a_recording

pytestmark = pytest.mark.anyio


async def titles(connection: Connection, *subjects: str, tenant: str = TENANT, wanted: Wanted | None = None, limit: int = 50) -> list[str]:
    return [found.title for found in await access.list_recordings(connection, tenant, subjects, wanted or Wanted(), limit=limit)]


async def share(connection: Connection, recording: Recording, subject: str, permission: str, *, expires_at: datetime | None = None) -> None:
    query = "INSERT INTO acl (recording_id, tenant_id, subject, permission, via, sort_at, expires_at) VALUES (%s, %s, %s, %s, 'share:1', %s, %s)"
    await connection.execute(query, [recording.id, TENANT, subject, permission, recording.created_at, expires_at])


async def test_pages_by_cursor_and_by_offset_show_each_recording_once_in_the_same_order(database: Database) -> None:
    async with database.transaction() as connection:
        made = [await a_recording(connection, title=str(number)) for number in range(25)]  # one transaction: all of one created_at, so the id decides
        subjects = ("user:owner", "user:host", "role:admin", "nobody")  # several ways to the same rows
        by_cursor = []
        before = None
        while page := await access.list_recordings(connection, TENANT, subjects, Wanted(), limit=7, before=before):
            by_cursor += [found.id for found in page]
            before = (page[-1].created_at, page[-1].id)
        by_offset = [found.id for at in range(0, 30, 7) for found in await access.list_recordings(connection, TENANT, subjects, Wanted(), limit=7, offset=at)]
        assert by_cursor == by_offset == [recording.id for recording in sorted(made, key=lambda recording: recording.id, reverse=True)]
        assert await access.count_recordings(connection, TENANT, subjects, Wanted()) == 25


async def test_a_foreign_tenant_sees_nothing_not_even_by_the_same_names(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection, title="ours")
        subjects = ("user:owner", "user:host", "role:admin", "public", "tenant:default")
        assert await titles(connection, *subjects) == ["ours"]
        assert await titles(connection, *subjects, tenant="other") == []
        assert await access.count_recordings(connection, "other", subjects, Wanted()) == 0
        assert await ledger.get_recording(connection, "other", recording.id) is None


async def test_a_room_code_means_the_room_of_ones_own_tenant(database: Database) -> None:
    async with database.transaction() as connection:
        for tenant in ("other", TENANT, "third"):
            meeting = await ledger.create_meeting(connection, tenant, uuid7(), "daily", host_id="host")
            await ledger.create_recording(
                connection, tenant, uuid7(), meeting.id, owner_id="owner", prefix="p/", source="segments", wishes={"title": f"of {tenant}"}
            )
        for tenant in (TENANT, "other", "third"):
            room = await ledger.find_meeting(connection, tenant, "daily")
            assert room is not None
            assert await titles(connection, "user:owner", tenant=tenant, wanted=Wanted(meeting_id=room.id)) == [f"of {tenant}"]


async def test_owner_host_co_host_and_admin_see_and_others_do_not(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection, host="ann")
        recording = await a_recording(connection, meeting, owner="olga", title="r")
        await ledger.put_participant(connection, meeting.id, "bob")
        await ledger.put_participant(connection, meeting.id, "cleo", role="CO_HOST")
        for subject in ("user:olga", "user:ann", "user:cleo", "role:admin"):
            assert await titles(connection, subject) == ["r"]
        for subject in ("user:bob", "user:eve", "tenant:default", "public"):
            assert await titles(connection, subject) == []
        await ledger.put_participant(connection, meeting.id, "cleo", role="PARTICIPANT")
        assert await titles(connection, "user:cleo") == []
        assert await access.permissions_of(connection, recording.id, ["user:olga", "user:ann"]) == {"owner", "host"}
        assert await access.permissions_of(connection, recording.id, ["user:eve"]) == frozenset()


async def test_visibility_opens_and_closes_without_touching_shares(database: Database) -> None:
    async with database.transaction() as connection:
        meeting = await a_meeting(connection)
        recording = await a_recording(connection, meeting, title="r")
        await share(connection, recording, "user:bob", "download")
        await ledger.set_fields(connection, recording.id, {"visibility": "participants"})
        await ledger.put_participant(connection, meeting.id, "bob")
        await ledger.put_participant(connection, meeting.id, "later")
        assert await titles(connection, "user:later") == ["r"]
        assert await access.permissions_of(connection, recording.id, ["user:bob"]) == {"view", "download"}
        await ledger.set_fields(connection, recording.id, {"visibility": "public"})
        assert await titles(connection, "public") == await titles(connection, "tenant:default") == ["r"]
        await ledger.set_fields(connection, recording.id, {"visibility": "private"})
        assert await titles(connection, "public", "tenant:default", "user:later") == []
        assert await access.permissions_of(connection, recording.id, ["user:bob"]) == {"download"}
        assert await titles(connection, "user:bob") == ["r"]


async def test_a_share_ends_at_its_time(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection, title="r")
        for who, end, seen in (("user:bob", timedelta(hours=1), ["r"]), ("user:eve", -timedelta(seconds=1), [])):
            await share(connection, recording, who, "view", expires_at=datetime.now(UTC) + end)
            assert await titles(connection, who) == seen
            assert bool(await access.permissions_of(connection, recording.id, [who])) is bool(seen)


async def test_filters_by_room_meeting_state_and_words(database: Database) -> None:
    async with database.transaction() as connection:
        standup, retro = await a_meeting(connection, room="standup"), await a_meeting(connection, room="retro_1")
        first = await a_recording(connection, standup, title="Budget 100%")
        await ledger.move(connection, first.id, Status.STOPPED)
        await a_recording(connection, standup, title="Hiring")
        await a_recording(connection, retro, title="Looking back")

        async def found(wanted: Wanted) -> set[str]:
            return set(await titles(connection, "user:owner", wanted=wanted))

        assert await found(Wanted(meeting_id=standup.id)) == {"Budget 100%", "Hiring"}
        assert await found(Wanted(meeting_id=retro.id)) == {"Looking back"}
        assert await found(Wanted(statuses=(Status.STOPPED, Status.FAILED))) == {"Budget 100%"}
        assert await found(Wanted(q="budget")) == {"Budget 100%"}
        assert await found(Wanted(q="0%")) == {"Budget 100%"}
        assert await found(Wanted(q="retro_")) == {"Looking back"}
        assert await found(Wanted(q="n_i")) == set(), "an underscore is no wildcard"
        assert await found(Wanted(meeting_id=uuid7())) == set()
        await ledger.soft_delete(connection, first.id)
        assert await found(Wanted()) == {"Hiring", "Looking back"}


async def test_the_total_is_exact_to_ten_thousand(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("""
            WITH m AS (INSERT INTO meetings (id, room_code) SELECT gen_random_uuid(), 'r' RETURNING id)
            INSERT INTO recordings (id, meeting_id, owner_id, prefix, source, status)
            SELECT gen_random_uuid(), m.id, 'many', 'p/', 'segments', 'completed' FROM m, generate_series(1, 10000)
        """)
        await connection.execute("INSERT INTO acl SELECT id, tenant_id, 'user:many', 'owner', 'owner', created_at FROM recordings")
        assert await access.count_recordings(connection, TENANT, ["user:many"], Wanted()) == 10_000
        assert len(await access.list_recordings(connection, TENANT, ["user:many"], Wanted(), limit=200, offset=9_900)) == 100
        recording = await a_recording(connection, owner="many")
        assert recording.owner_id == "many"
        await a_recording(connection, owner="many")
        assert await access.count_recordings(connection, TENANT, ["user:many"], Wanted()) == 10_001
