"""All SQL about who records: one holder per live capture, with a fence that makes a holder who was thought dead harmless."""

from datetime import timedelta
from uuid import UUID

from roomtape.db.database import Connection, one, scalar
from roomtape.db.rows import Lease

_TAKE = """
    INSERT INTO leases (recording_id, tenant_id, holder, fence, until)
    SELECT id, tenant_id, %(holder)s, nextval('lease_fence'), now() + %(ttl)s FROM recordings WHERE id = %(recording_id)s
    ON CONFLICT (recording_id) DO UPDATE SET holder = excluded.holder, fence = excluded.fence, until = excluded.until
        WHERE leases.until < now() OR leases.holder = excluded.holder
    RETURNING *
"""


async def take(connection: Connection, recording_id: UUID, holder: str, *, ttl: timedelta = timedelta(seconds=30)) -> Lease | None:
    """The lease, prolonged and with a new fence, or None while another holder's stands. Times are the database's; one that is not taken again ends by itself."""
    return await one(connection, Lease, _TAKE, recording_id=recording_id, holder=holder, ttl=ttl)


async def still_held(connection: Connection, lease: Lease) -> bool:
    """Whether the fence still stands; holds the lease's row, so that it stands until this transaction ends."""
    return bool(
        await scalar(
            connection, "SELECT true FROM leases WHERE recording_id = %(id)s AND fence = %(fence)s FOR UPDATE", id=lease.recording_id, fence=lease.fence
        )
    )
