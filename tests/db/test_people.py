"""Keys, one-time links, sessions, playback tokens, repeated requests and leases: by the database's clock, by digest only."""

import asyncio
from datetime import timedelta

import pytest
from uuid_utils.compat import uuid7

from roomtape.core.errors import NotFound
from roomtape.db import answers, artifacts, leases, people
from roomtape.db.database import Database
from roomtape.db.rows import Answer, SignedIn

from .tape import TENANT, a_recording

pytestmark = pytest.mark.anyio


async def test_a_key_is_found_until_it_is_revoked_and_never_stored_as_it_is(database: Database) -> None:
    async with database.transaction() as connection:
        made = await people.create_key(connection, TENANT, uuid7(), "rt_secret", name="ci", role="service")
        found = await people.lookup_key(connection, "rt_secret")
        assert found is not None
        assert found.id == made.id
        assert await people.lookup_key(connection, "rt_other") is None
        dump = str(await (await connection.execute("SELECT api_keys::text FROM api_keys")).fetchall())
        assert "rt_secret" not in dump
        with pytest.raises(NotFound):
            await people.revoke_key(connection, "other", made.id)
        revoked = await people.revoke_key(connection, TENANT, made.id)
        assert revoked.last_used_at is not None
        assert await people.revoke_key(connection, TENANT, made.id) == revoked
        assert await people.lookup_key(connection, "rt_secret") is None
        assert await people.list_keys(connection, TENANT) == [revoked]
        assert await people.list_keys(connection, "other") == []


async def test_of_ten_clicks_on_a_login_link_one_signs_in(database: Database) -> None:
    async with database.transaction() as connection:
        await people.create_login_link(connection, TENANT, "link", "ann", roles=("admin",))
        await people.create_login_link(connection, TENANT, "late", "ann", ttl=timedelta(0))

    async def click() -> SignedIn | None:
        async with database.transaction() as connection:
            return await people.use_login_link(connection, "link")

    signed_in = [who for who in await asyncio.gather(*(click() for _ in range(10))) if who]
    assert [(who.user_id, who.roles) for who in signed_in] == [("ann", ["admin"])]
    async with database.transaction() as connection:
        assert await people.use_login_link(connection, "late") is None
        session = await people.create_session(connection, "cookie", signed_in[0], csrf="csrf")
        assert await people.find_session(connection, "cookie") == session
        assert (session.user_id, session.csrf) == ("ann", "csrf")
        await people.end_session(connection, "cookie")
        assert await people.find_session(connection, "cookie") is None


async def test_a_playback_token_is_prolonged_up_to_its_end_and_not_beyond(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        made = await people.create_playback_token(connection, recording.id, "token", "user:ann", ttl=timedelta(minutes=1), most=timedelta(minutes=5))
        assert await people.find_playback_token(connection, "token") == made
        longer = await people.prolong_playback_token(connection, "token", ttl=timedelta(minutes=3))
        assert longer is not None
        assert made.expires_at < longer.expires_at < longer.until_at
        most = await people.prolong_playback_token(connection, "token", ttl=timedelta(hours=1))
        assert most is not None
        assert most.expires_at == most.until_at
        await people.create_playback_token(connection, recording.id, "over", "user:ann", ttl=timedelta(0))
        assert await people.find_playback_token(connection, "over") is None
        assert await people.prolong_playback_token(connection, "over") is None
        await people.revoke_playback_tokens(connection, recording.id, "user:bob")
        assert await people.find_playback_token(connection, "token") is not None
        await people.revoke_playback_tokens(connection, recording.id)
        assert await people.find_playback_token(connection, "token") is None


async def test_a_playback_token_in_use_is_prolonged_once_a_minute_and_not_at_each_range(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)

        async def touched(**made: timedelta) -> tuple[timedelta, timedelta]:
            before = await people.create_playback_token(connection, recording.id, str(made), "user:ann", **made)
            await people.touch_playback_token(connection, str(made), ttl=timedelta(minutes=10))
            after = await people.find_playback_token(connection, str(made))
            assert after is not None
            return after.expires_at - before.expires_at, after.until_at - after.expires_at

        assert (await touched(ttl=timedelta(minutes=9, seconds=30)))[0] == timedelta(0)
        assert (await touched(ttl=timedelta(minutes=8)))[0] == timedelta(minutes=2)
        assert await touched(ttl=timedelta(minutes=1), most=timedelta(minutes=5)) == (timedelta(minutes=4), timedelta(0))


async def test_what_has_expired_is_forgotten_and_the_rest_stays(database: Database) -> None:
    async with database.transaction() as connection:
        await people.create_login_link(connection, TENANT, "late", "ann", ttl=timedelta(seconds=-1))
        await people.create_login_link(connection, TENANT, "good", "ann")
        assert await people.forget_expired(connection) == 1
        assert await people.forget_expired(connection) == 0
        assert await people.use_login_link(connection, "good") is not None


async def test_of_ten_who_claim_a_key_one_works_and_a_claim_of_a_dead_one_is_taken_over(database: Database) -> None:
    async def request(stale: timedelta = timedelta(seconds=60)) -> tuple[Answer, bool]:
        async with database.transaction() as connection:
            return await answers.claim(connection, TENANT, "user:ann", "key", route="POST /meetings", request_hash="h", stale=stale)

    asked = await asyncio.gather(*(request() for _ in range(10)))
    assert sorted(ours for _, ours in asked) == [False] * 9 + [True]
    assert {seen.status for seen, _ in asked} == {None}
    dead, heir = next(seen for seen, ours in asked if ours), (await request(timedelta(0)))
    assert heir[1], "a claim whose owner died is taken over"
    async with database.transaction() as connection:
        await answers.keep(connection, TENANT, "user:ann", "key", dead, status=201, body=b"of the dead")
        await answers.release(connection, TENANT, "user:ann", "key", dead)
        await answers.keep(connection, TENANT, "user:ann", "key", heir[0], status=201, body=b"made")
    kept, ours = await request(timedelta(0))
    assert (kept.status, kept.body, ours) == (201, b"made", False)
    assert kept.first_at == dead.first_at


async def test_a_key_that_was_given_back_is_free_for_any_request_and_the_same_one_keeps_its_time(database: Database) -> None:
    async def request(said: str) -> tuple[Answer, bool]:
        async with database.transaction() as connection:
            return await answers.claim(connection, TENANT, "user:ann", "key", route="POST /meetings", request_hash=said)

    async def give_back(held: Answer) -> None:
        async with database.transaction() as connection:
            await answers.release(connection, TENANT, "user:ann", "key", held)

    first, _ = await request("h")
    await give_back(first)
    async with database.transaction() as connection:
        await people.forget_expired(connection)
    again, ours = await request("h")
    assert (ours, again.first_at == first.first_at, again.at > first.at) == (True, True, True)
    await give_back(again)
    other, ours = await request("another")
    assert (ours, other.request_hash, other.first_at > first.first_at) == (True, "another", True)
    assert not (await request("another"))[1], "it is at work"


async def test_a_lease_has_one_holder_and_an_old_fence_holds_nothing(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        first = await leases.take(connection, recording.id, "a", ttl=timedelta(0))
        assert first is not None
    async with database.transaction() as connection:
        second = await leases.take(connection, recording.id, "b")
        assert second is not None
        assert second.fence > first.fence
        assert await leases.take(connection, recording.id, "a") is None
        assert not await leases.still_held(connection, first)
        assert await leases.still_held(connection, second)
        third = await leases.take(connection, recording.id, "b", ttl=timedelta(0))
        assert third is not None
        assert not await leases.still_held(connection, second)
    async with database.transaction() as connection:
        assert await leases.take(connection, recording.id, "a") is not None
        assert not await leases.still_held(connection, third)


async def test_ten_who_want_the_same_artifact_get_one(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)

    async def want() -> object:
        async with database.transaction() as connection:
            return (await artifacts.want_artifact(connection, recording.id, uuid7(), "original", "recipe")).id

    assert len(set(await asyncio.gather(*(want() for _ in range(10))))) == 1
    async with database.transaction() as connection:
        [made] = await artifacts.artifacts_of(connection, recording.id)
        assert await artifacts.find_artifact(connection, recording.id, "original") is None
        ready = await artifacts.set_artifact(connection, made.id, {"state": "ready", "head": b"moov", "error": {"code": "none"}})
        assert (ready.head, ready.error) == (b"moov", {"code": "none"})
        assert await artifacts.find_artifact(connection, recording.id, "original") == ready
        await artifacts.drop_artifact(connection, made.id)
        assert await artifacts.artifacts_of(connection, recording.id) == []
