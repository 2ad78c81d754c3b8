"""All SQL about what is made from a recording: one row per (recording, kind, recipe), whatever is repeated or raced."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from roomtape.db.database import Connection, found, many, one
from roomtape.db.rows import Artifact, row_of

_WANT = """
    INSERT INTO artifacts (id, recording_id, tenant_id, kind, recipe, mime_type, state)
    SELECT %(id)s, id, tenant_id, %(kind)s, %(recipe)s, %(mime_type)s, 'wanted' FROM recordings WHERE id = %(recording_id)s
    ON CONFLICT (recording_id, kind, recipe) DO NOTHING RETURNING *
"""


async def want_artifact(connection: Connection, recording_id: UUID, artifact_id: UUID, kind: str, recipe: str, *, mime_type: str | None = None) -> Artifact:
    """The artifact of this recipe (a digest of everything that goes in): the row that is there, else a new one, `wanted`. Raises NotFound."""
    made = await one(connection, Artifact, _WANT, id=artifact_id, recording_id=recording_id, kind=kind, recipe=recipe, mime_type=mime_type)
    return made or found(await find_artifact(connection, recording_id, kind, recipe))


async def set_artifact(connection: Connection, artifact_id: UUID, fields: Mapping[str, Any]) -> Artifact:
    """Sets columns: state, key, size_bytes, sha256, duration_us, head, progress, error, mime_type. Raises NotFound."""
    query = sql.SQL("UPDATE artifacts SET {} WHERE id = {} RETURNING *").format(
        sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in fields), sql.Placeholder("_id")
    )
    values = {name: Jsonb(value) if name == "error" and value is not None else value for name, value in fields.items()}
    async with connection.cursor(row_factory=row_of(Artifact)) as cursor:
        return found(await (await cursor.execute(query, {**values, "_id": artifact_id})).fetchone())


async def find_artifact(connection: Connection, recording_id: UUID, kind: str, recipe: str | None = None) -> Artifact | None:
    """The artifact of a recipe, or without one the newest ready of its kind."""
    query = """
        SELECT * FROM artifacts WHERE recording_id = %(recording_id)s AND kind = %(kind)s
          AND (recipe = %(recipe)s OR (%(recipe)s::text IS NULL AND state = 'ready')) ORDER BY created_at DESC, id DESC LIMIT 1
    """
    return await one(connection, Artifact, query, recording_id=recording_id, kind=kind, recipe=recipe)


async def artifacts_of(connection: Connection, recording_id: UUID) -> list[Artifact]:
    """All artifacts, in the order of making."""
    return await many(connection, Artifact, "SELECT * FROM artifacts WHERE recording_id = %(id)s ORDER BY created_at, id", id=recording_id)


async def drop_artifact(connection: Connection, artifact_id: UUID) -> None:
    """Forgets an artifact whose object is gone."""
    await connection.execute("DELETE FROM artifacts WHERE id = %s", [artifact_id])
