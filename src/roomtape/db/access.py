"""Who may see which recording: the maintained table, and the lists that people wait for, read from it by keyset."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from roomtape.core.lifecycle import Status
from roomtape.db.database import Connection, many, scalar
from roomtape.db.rows import Recording

ADMIN = "role:admin"
TOTAL_EXACT_TO = 10_000

# What follows from owner, roles and visibility (`host-of:` and `guest-of:` stand for roles that a token of the host application states); shares (via = share:ID) are left alone.
_DERIVED = """
    WITH wanted AS (SELECT r.id, r.tenant_id, r.created_at, r.owner_id, r.visibility, r.meeting_id FROM recordings r
                    WHERE r.id = %(recording_id)s OR r.meeting_id = %(meeting_id)s),
    derived AS (
        SELECT id, tenant_id, created_at, 'user:' || owner_id AS subject, 'owner' AS permission, 'owner' AS via FROM wanted
        UNION ALL SELECT id, tenant_id, created_at, 'role:admin', 'owner', 'admin' FROM wanted
        UNION ALL SELECT w.id, w.tenant_id, w.created_at, 'user:' || p.user_id, 'host', 'host'
                  FROM wanted w JOIN participants p ON p.meeting_id = w.meeting_id AND p.role IN ('HOST', 'CO_HOST')
        UNION ALL SELECT w.id, w.tenant_id, w.created_at, 'host-of:' || named.name, 'host', 'host'
                  FROM wanted w JOIN meetings m ON m.id = w.meeting_id CROSS JOIN LATERAL (VALUES (m.id::text), (m.room_code)) AS named(name)
        UNION ALL SELECT w.id, w.tenant_id, w.created_at, 'user:' || p.user_id, 'view', 'visibility'
                  FROM wanted w JOIN participants p ON p.meeting_id = w.meeting_id AND w.visibility = 'participants' AND p.role <> 'VIEWER'
        UNION ALL SELECT w.id, w.tenant_id, w.created_at, 'guest-of:' || named.name, 'view', 'visibility'
                  FROM wanted w JOIN meetings m ON m.id = w.meeting_id AND w.visibility = 'participants'
                  CROSS JOIN LATERAL (VALUES (m.id::text), (m.room_code)) AS named(name)
        UNION ALL SELECT id, tenant_id, created_at, 'tenant:' || tenant_id, 'view', 'visibility' FROM wanted WHERE visibility IN ('tenant', 'public')
        UNION ALL SELECT id, tenant_id, created_at, 'public', 'view', 'visibility' FROM wanted WHERE visibility = 'public'
    ), dropped AS (
        DELETE FROM acl a USING wanted w WHERE a.recording_id = w.id AND a.via IN ('owner', 'admin', 'host', 'visibility')
            AND NOT EXISTS (SELECT 1 FROM derived d WHERE d.id = a.recording_id AND d.subject = a.subject AND d.via = a.via)
    )
    INSERT INTO acl (recording_id, tenant_id, subject, permission, via, sort_at)
    SELECT id, tenant_id, subject, permission, via, created_at FROM derived ON CONFLICT DO NOTHING
"""
_LIVE = "(a.expires_at IS NULL OR a.expires_at > now())"
_FILTER = """
    r.deleted_at IS NULL
    AND (%(meeting_id)s::uuid IS NULL OR r.meeting_id = %(meeting_id)s)
    AND (%(statuses)s::text[] IS NULL OR r.status = ANY(%(statuses)s::text[]))
    AND (%(like)s::text IS NULL OR r.title ILIKE %(like)s OR r.description ILIKE %(like)s
         OR EXISTS (SELECT 1 FROM meetings m WHERE m.id = r.meeting_id AND (m.title ILIKE %(like)s OR m.room_code ILIKE %(like)s)))
"""
# Each subject's rows are one index range that ends after limit + offset recordings (one may be there as owner and as host); their union is sorted again, so a list never reads what it does not show.
_IDS = f"""
    SELECT DISTINCT found.sort_at, found.recording_id
    FROM unnest(%(subjects)s::text[]) AS s(subject)
    CROSS JOIN LATERAL (
        SELECT DISTINCT a.sort_at, a.recording_id FROM acl a JOIN recordings r ON r.id = a.recording_id
        WHERE a.tenant_id = %(tenant)s AND a.subject = s.subject AND {_LIVE}
          AND (%(before_at)s::timestamptz IS NULL OR (a.sort_at, a.recording_id) < (%(before_at)s, %(before_id)s))
          AND {_FILTER}
        ORDER BY a.sort_at DESC, a.recording_id DESC LIMIT %(reach)s
    ) AS found
    ORDER BY found.sort_at DESC, found.recording_id DESC LIMIT %(limit)s OFFSET %(offset)s
"""
_PAGE = f"SELECT r.* FROM ({_IDS}) AS ids JOIN recordings r ON r.id = ids.recording_id ORDER BY ids.sort_at DESC, ids.recording_id DESC"
_COUNT = f"SELECT count(*) FROM ({_IDS}) AS ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a list shall hold. `statuses` empty: all."""

    meeting_id: UUID | None = None
    statuses: tuple[Status, ...] = ()
    q: str = ""


async def refresh_acl(connection: Connection, *, recording_id: UUID | None = None, meeting_id: UUID | None = None) -> None:
    """Makes the access rows of one recording, or of all of a meeting, follow owner, roles and visibility."""
    await connection.execute(_DERIVED, {"recording_id": recording_id, "meeting_id": meeting_id})


async def permissions_of(connection: Connection, recording_id: UUID, subjects: Sequence[str]) -> frozenset[str]:
    """What these subjects together may: owner, host, view, download, share."""
    query = f"SELECT coalesce(array_agg(DISTINCT a.permission), '{{}}') FROM acl a WHERE a.recording_id = %(id)s AND a.subject = ANY(%(subjects)s) AND {_LIVE}"
    return frozenset(await scalar(connection, query, id=recording_id, subjects=list(subjects)))


async def list_recordings(
    connection: Connection,
    tenant: str,
    subjects: Sequence[str],
    wanted: Wanted,
    *,
    limit: int = 50,
    offset: int = 0,
    before: tuple[datetime, UUID] | None = None,
) -> list[Recording]:
    """What these subjects may see, the newest first. `before` is (created_at, id) of the last one of the page before."""
    return await many(connection, Recording, _PAGE, **_arguments(tenant, subjects, wanted, before), limit=limit, offset=offset, reach=limit + offset)


async def count_recordings(connection: Connection, tenant: str, subjects: Sequence[str], wanted: Wanted) -> int:
    """How many there are, exact to 10,000; 10,001 stands for more."""
    most = TOTAL_EXACT_TO + 1
    return int(await scalar(connection, _COUNT, **_arguments(tenant, subjects, wanted, None), limit=most, offset=0, reach=most))


def _arguments(tenant: str, subjects: Sequence[str], wanted: Wanted, before: tuple[datetime, UUID] | None) -> dict[str, Any]:
    text = wanted.q.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return {
        "tenant": tenant,
        "subjects": list(subjects),
        "meeting_id": wanted.meeting_id,
        "statuses": [str(status) for status in wanted.statuses] or None,
        "like": f"%{text}%" if text else None,
        "before_at": before[0] if before else None,
        "before_id": before[1] if before else None,
    }
