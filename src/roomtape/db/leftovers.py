"""All SQL about what lies in a store and may be nobody's any more: whose it is, and whether a row names it."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from roomtape.db.database import Connection, found, many, scalar

_LOOK = """
    SELECT o.key,
        EXISTS (SELECT 1 FROM recordings WHERE id = o.recording_id) OR EXISTS (SELECT 1 FROM purged WHERE recording_id = o.recording_id) AS ours,
        EXISTS (SELECT 1 FROM chunks c WHERE c.key = o.key AND (NOT %(spool)s OR c.stored_in = 'spool'))
            OR EXISTS (SELECT 1 FROM artifacts a WHERE a.recording_id = o.recording_id AND a.key = o.key) AS named
    FROM unnest(%(keys)s::text[], %(recordings)s::uuid[]) AS o (key, recording_id)
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What the rows say of an object. `ours`: its recording is, or was, one of this database; `named`: a row says that its bytes lie there."""

    key: str
    ours: bool
    named: bool


async def installation(connection: Connection) -> UUID:
    """The name of this installation, made with its database."""
    name: UUID = found(await scalar(connection, "SELECT id FROM installation"))
    return name


async def look(connection: Connection, objects: Mapping[str, UUID], *, spool: bool) -> list[Found]:
    """What the rows say of objects, given as key and recording. `spool`: they lie in a spool, where an object that its row has in the store is left over."""
    return await many(connection, Found, _LOOK, keys=list(objects), recordings=list(objects.values()), spool=spool)
