"""All SQL about Idempotency-Key: the first request of a key does the work, every later one gets its answer.

A claim is committed before the work begins and the answer is kept after it: no connection is held meanwhile, and a claim whose owner died is taken over.
"""

from datetime import timedelta

from roomtape.db.database import Connection, found, one
from roomtape.db.rows import Answer

_CLAIM = """
    INSERT INTO idempotency (tenant_id, subject, key, route, request_hash) VALUES (%(tenant)s, %(subject)s, %(key)s, %(route)s, %(request_hash)s)
    ON CONFLICT (tenant_id, subject, key) DO UPDATE SET at = clock_timestamp(), released = false, route = excluded.route, request_hash = excluded.request_hash,
            first_at = CASE WHEN idempotency.request_hash = excluded.request_hash THEN idempotency.first_at ELSE clock_timestamp() END
        WHERE idempotency.status IS NULL
            AND (idempotency.released OR (idempotency.request_hash = excluded.request_hash AND idempotency.at < now() - %(stale)s))
    RETURNING *
"""


async def claim(
    connection: Connection, tenant: str, subject: str, key: str, *, route: str, request_hash: str, stale: timedelta = timedelta(seconds=60)
) -> tuple[Answer, bool]:
    """What the key has seen, and whether it is ours: then do the work, and `keep` the answer or `release` the key. An unfinished claim is ours after `stale`.

    Another request_hash than ours is the caller's 422; a `status` of None is somebody who is still at work.
    """
    ours = await one(connection, Answer, _CLAIM, tenant=tenant, subject=subject, key=key, route=route, request_hash=request_hash, stale=stale)
    if ours is not None:
        return ours, True
    query = "SELECT * FROM idempotency WHERE tenant_id = %(tenant)s AND subject = %(subject)s AND key = %(key)s"
    return found(await one(connection, Answer, query, tenant=tenant, subject=subject, key=key)), False


async def keep(connection: Connection, tenant: str, subject: str, key: str, held: Answer, *, status: int, body: bytes) -> None:
    """Keeps the answer for the key's repetitions; nothing where the claim was taken over."""
    query = "UPDATE idempotency SET status = %s, body = %s WHERE tenant_id = %s AND subject = %s AND key = %s AND status IS NULL AND at = %s"
    await connection.execute(query, [status, body, tenant, subject, key, held.at])


async def release(connection: Connection, tenant: str, subject: str, key: str, held: Answer) -> None:
    """Gives the key back: nothing was decided. What was done all the same has the ids that the same request gets again."""
    query = "UPDATE idempotency SET released = true WHERE tenant_id = %s AND subject = %s AND key = %s AND status IS NULL AND at = %s"
    await connection.execute(query, [tenant, subject, key, held.at])
