"""All SQL about completed recordings whose original was measured under other heads than ours: an update changes their bytes, and what was said of them is no longer true.

`form` is what the recipe of an original of our heads begins with (core.plan.FORM).
"""

from collections.abc import Collection
from uuid import UUID

from roomtape.db.database import Connection

_OUTDATED = """
    FROM recordings r JOIN artifacts a ON a.recording_id = r.id AND a.kind = 'original' AND a.state = 'ready'
    WHERE r.status = 'completed' AND NOT starts_with(a.recipe, %(form)s)
"""
_TAKE_BACK = f"""
    WITH outdated AS (SELECT r.id, a.id AS made {_OUTDATED} AND r.sha256 IS NOT NULL LIMIT %(limit)s FOR NO KEY UPDATE OF r, a SKIP LOCKED),
    made AS (UPDATE artifacts SET sha256 = NULL WHERE id IN (SELECT made FROM outdated))
    UPDATE recordings SET sha256 = NULL WHERE id IN (SELECT id FROM outdated)
"""
_TO_MEASURE = f"SELECT r.id {_OUTDATED} AND r.deleted_at IS NULL AND r.id <> ALL(%(but)s) ORDER BY r.completed_at DESC, r.id DESC LIMIT %(limit)s"


async def take_back_digests(connection: Connection, form: str, *, limit: int = 1000) -> int:
    """Forgets digests that the bytes no longer have: none is better than a false one. Returns how many recordings were concerned; 0 when it is done."""
    return (await connection.execute(_TAKE_BACK, {"form": form, "limit": limit})).rowcount


async def to_measure(connection: Connection, form: str, *, but: Collection[UUID], limit: int) -> list[UUID]:
    """Recordings to be measured again, the newest first, without those in `but`."""
    cursor = await connection.execute(_TO_MEASURE, {"form": form, "but": list(but), "limit": limit})
    return [name for (name,) in await cursor.fetchall()]
