"""All SQL about Idempotency-Key: the first request of a key does the work, every later one gets its answer."""

from roomtape.db.database import Connection, one
from roomtape.db.rows import Answer

_CLAIM = """
    INSERT INTO idempotency (tenant_id, subject, key, route, request_hash) VALUES (%(tenant)s, %(subject)s, %(key)s, %(route)s, %(request_hash)s)
    ON CONFLICT (tenant_id, subject, key) DO NOTHING RETURNING *
"""


async def claim(connection: Connection, tenant: str, subject: str, key: str, *, route: str, request_hash: str) -> Answer | None:
    """None: the key is ours, do the work and `keep` the answer in this very transaction. Else what the key has seen; another request_hash is the caller's 422.

    A second request waits here until the first one's transaction ends, so two never work at once.
    """
    if await one(connection, Answer, _CLAIM, tenant=tenant, subject=subject, key=key, route=route, request_hash=request_hash) is not None:
        return None
    query = "SELECT * FROM idempotency WHERE tenant_id = %(tenant)s AND subject = %(subject)s AND key = %(key)s"
    return await one(connection, Answer, query, tenant=tenant, subject=subject, key=key)


async def keep(connection: Connection, tenant: str, subject: str, key: str, *, status: int, body: bytes) -> None:
    """Keeps the answer for the key's repetitions."""
    query = "UPDATE idempotency SET status = %s, body = %s WHERE tenant_id = %s AND subject = %s AND key = %s"
    await connection.execute(query, [status, body, tenant, subject, key])
