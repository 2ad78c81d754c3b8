"""All SQL about who asks: keys, one-time links, sessions and playback tokens. Secrets come from the caller and are stored as their sha256 only."""

from datetime import timedelta
from hashlib import sha256
from uuid import UUID

from roomtape.db.database import Connection, found, many, one, scalar
from roomtape.db.rows import ApiKey, PlaybackToken, SignedIn

_USED_EVERY = "1 minute"  # last_used_at is a hint for people; not a write per request
_LOOKUP_KEY = f"""
    WITH key AS (SELECT * FROM api_keys WHERE key_hash = %(hash)s AND revoked_at IS NULL),
    noted AS (UPDATE api_keys SET last_used_at = now() FROM key
              WHERE api_keys.id = key.id AND (key.last_used_at IS NULL OR key.last_used_at < now() - interval '{_USED_EVERY}'))
    SELECT * FROM key
"""
_TOUCH = f"""
    UPDATE playback_tokens SET expires_at = least(until_at, now() + %(ttl)s)
    WHERE token_hash = %(hash)s AND expires_at > now() AND expires_at < least(until_at, now() + %(ttl)s - interval '{_USED_EVERY}')
"""
_PROLONG = """
    UPDATE playback_tokens SET expires_at = least(until_at, greatest(expires_at, now() + %(ttl)s))
    WHERE token_hash = %(hash)s AND expires_at > now() RETURNING *
"""


def digest(secret: str) -> bytes:
    """How a secret of 256 random bits is stored: plain sha256 is right for those, unlike for passwords."""
    return sha256(secret.encode()).digest()


async def create_key(connection: Connection, tenant: str, key_id: UUID, key: str, *, name: str, role: str, user_id: str | None = None) -> ApiKey:
    """Keeps an API key (`rt_` + 256 bits, made by the caller). role: admin, service, user (with its user_id)."""
    query = """
        INSERT INTO api_keys (id, tenant_id, name, role, user_id, key_hash) VALUES (%(id)s, %(tenant)s, %(name)s, %(role)s, %(user_id)s, %(hash)s) RETURNING *
    """
    return found(await one(connection, ApiKey, query, id=key_id, tenant=tenant, name=name, role=role, user_id=user_id, hash=digest(key)))


async def list_keys(connection: Connection, tenant: str) -> list[ApiKey]:
    """All keys, revoked ones too, the newest first."""
    return await many(connection, ApiKey, "SELECT * FROM api_keys WHERE tenant_id = %(tenant)s ORDER BY created_at DESC, id DESC", tenant=tenant)


async def revoke_key(connection: Connection, tenant: str, key_id: UUID) -> ApiKey:
    """Ends a key; again: the same answer. Raises NotFound."""
    query = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE tenant_id = %(tenant)s AND id = %(id)s RETURNING *"
    return found(await one(connection, ApiKey, query, tenant=tenant, id=key_id))


async def lookup_key(connection: Connection, key: str) -> ApiKey | None:
    """The key that is not revoked, or None."""
    return await one(connection, ApiKey, _LOOKUP_KEY, hash=digest(key))


async def key_stands(connection: Connection, tenant: str, key_id: UUID) -> bool:
    """Whether a key is there and not revoked: what it gave out ends with it."""
    query = "SELECT EXISTS (SELECT 1 FROM api_keys WHERE tenant_id = %(tenant)s AND id = %(id)s AND revoked_at IS NULL)"
    return bool(await scalar(connection, query, tenant=tenant, id=key_id))


async def create_login_link(
    connection: Connection, tenant: str, token: str, user_id: str, *, roles: tuple[str, ...] = (), ttl: timedelta = timedelta(minutes=10)
) -> None:
    """Keeps a one-time link."""
    query = "INSERT INTO login_links (token_hash, tenant_id, user_id, roles, expires_at) VALUES (%s, %s, %s, %s, now() + %s)"
    await connection.execute(query, [digest(token), tenant, user_id, list(roles), ttl])


async def use_login_link(connection: Connection, token: str) -> SignedIn | None:
    """Whom the link signs in, once: of two at the same time one gets None, as does a late one."""
    query = "UPDATE login_links SET used_at = now() WHERE token_hash = %(hash)s AND used_at IS NULL AND expires_at > now() RETURNING *"
    return await one(connection, SignedIn, query, hash=digest(token))


async def create_session(connection: Connection, token: str, who: SignedIn, *, csrf: str, ttl: timedelta = timedelta(days=14)) -> SignedIn:
    """Begins a session for `who`; the token goes into the cookie."""
    query = """
        INSERT INTO sessions (token_hash, tenant_id, user_id, roles, csrf, expires_at)
        VALUES (%(hash)s, %(tenant)s, %(user_id)s, %(roles)s, %(csrf)s, now() + %(ttl)s) RETURNING *
    """
    values = {"tenant": who.tenant_id, "user_id": who.user_id, "roles": who.roles, "csrf": csrf, "ttl": ttl}
    return found(await one(connection, SignedIn, query, hash=digest(token), **values))


async def find_session(connection: Connection, token: str) -> SignedIn | None:
    """Who is signed in, or None."""
    return await one(connection, SignedIn, "SELECT * FROM sessions WHERE token_hash = %(hash)s AND expires_at > now()", hash=digest(token))


async def end_session(connection: Connection, token: str) -> None:
    """Signs out."""
    await connection.execute("DELETE FROM sessions WHERE token_hash = %s", [digest(token)])


async def create_playback_token(
    connection: Connection,
    recording_id: UUID,
    token: str,
    subject: str,
    *,
    ttl: timedelta = timedelta(minutes=10),
    most: timedelta = timedelta(hours=12),
) -> PlaybackToken:
    """A token for players, bound to subject and recording; by the database's clock."""
    query = """
        INSERT INTO playback_tokens (token_hash, tenant_id, recording_id, subject, expires_at, until_at)
        SELECT %(hash)s, tenant_id, id, %(subject)s, now() + %(ttl)s, now() + %(most)s FROM recordings WHERE id = %(recording_id)s RETURNING *
    """
    values = {"recording_id": recording_id, "subject": subject, "ttl": ttl, "most": most}
    return found(await one(connection, PlaybackToken, query, hash=digest(token), **values))


async def find_playback_token(connection: Connection, token: str) -> PlaybackToken | None:
    """The token while it lives, or None. Whether the right still stands is the caller's question."""
    return await one(connection, PlaybackToken, "SELECT * FROM playback_tokens WHERE token_hash = %(hash)s AND expires_at > now()", hash=digest(token))


async def prolong_playback_token(connection: Connection, token: str, *, ttl: timedelta = timedelta(minutes=10)) -> PlaybackToken | None:
    """Lets a living token live for `ttl` from now, never beyond its `until_at`, never shorter than it would."""
    return await one(connection, PlaybackToken, _PROLONG, hash=digest(token), ttl=ttl)


async def touch_playback_token(connection: Connection, token: str, *, ttl: timedelta = timedelta(minutes=10)) -> None:
    """As prolong_playback_token, once a minute: a player asks for many ranges, and each write waits for the disk."""
    await connection.execute(_TOUCH, {"hash": digest(token), "ttl": ttl})


async def revoke_playback_tokens(connection: Connection, recording_id: UUID, subject: str | None = None) -> None:
    """Ends the tokens of a recording, or those of one subject."""
    await connection.execute("DELETE FROM playback_tokens WHERE recording_id = %s AND (%s::text IS NULL OR subject = %s)", [recording_id, subject, subject])


async def forget_expired(connection: Connection) -> int:
    """Removes links, sessions, tokens and idempotency answers that are of no more use; returns how many."""
    query = """
        WITH a AS (DELETE FROM login_links WHERE expires_at < now() RETURNING 1),
             b AS (DELETE FROM sessions WHERE expires_at < now() RETURNING 1),
             c AS (DELETE FROM playback_tokens WHERE expires_at < now() RETURNING 1),
             d AS (DELETE FROM idempotency WHERE at < now() - interval '1 day' RETURNING 1)
        SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b) + (SELECT count(*) FROM c) + (SELECT count(*) FROM d)
    """
    return int(await scalar(connection, query))
