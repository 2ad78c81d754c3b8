"""What several doors answer alike: a whole recording, totals, and the links of a list's pages."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Query, Request, Response

from roomtape.core.access import Subject, Verb
from roomtape.core.errors import BadInput
from roomtape.core.lifecycle import Status
from roomtape.db import access, artifacts, chunks, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Recording
from roomtape.library import catalog
from roomtape.library.doorkeeper import recording_for
from roomtape.web.services import Services

View = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]
Statuses = Annotated[str | None, Query(max_length=200, description="one state, or several as recording|stopped")]


async def whole(services: Services, subject: Subject, recording_id: UUID, *, deleted: bool = False) -> View:
    """Everything about a recording, measured from its media as it stands."""
    async with services.database.transaction() as connection:
        recording, meeting = await recording_for(connection, subject, recording_id, Verb.VIEW, deleted=deleted)
        people = await ledger.participants_of(connection, meeting.id)
        made = await artifacts.artifacts_of(connection, recording.id)
        spooled = await chunks.spooled(connection, [recording.id])
    tape = await services.layouts.tape(recording)
    return catalog.whole_view(tape, meeting, people, made, spooled=bool(spooled))


async def short_views(connection: Connection, found: Sequence[Recording]) -> list[View]:
    """A page of recordings, from rows alone: as many queries for fifty as for one."""
    meetings = await ledger.meetings_by_id(connection, {recording.meeting_id for recording in found})
    spooled = await chunks.spooled(connection, [recording.id for recording in found])
    return [catalog.short_view(recording, meetings[recording.meeting_id], spooled=recording.id in spooled) for recording in found]


def counted(total: int) -> View:
    """`total` is exact to 10,000."""
    return {"total": total} if total <= access.TOTAL_EXACT_TO else {"total_at_least": access.TOTAL_EXACT_TO}


def statuses(text: str | None) -> tuple[Status, ...]:
    """`recording|stopped` as states. BadInput."""
    names = [name for name in (text or "").replace(",", "|").split("|") if name]
    unknown = [name for name in names if name not in set(Status)]
    if unknown:
        raise BadInput(f"There is no status {unknown[0]!r}; there are {', '.join(Status)}.", code="unknown_status")
    return tuple(Status(name) for name in names)


def link(request: Request, response: Response, **pages: dict[str, Any] | None) -> None:
    """The header `Link` (RFC 8288): for each relation, this very query with other values."""
    said = dict(request.query_params)
    found = [f'<{request.url.path}?{urlencode({**said, **changed})}>; rel="{name}"' for name, changed in pages.items() if changed is not None]
    if found:
        response.headers["link"] = ", ".join(found)


def link_offsets(request: Request, response: Response, *, offset: int, limit: int, total: int) -> None:
    """The links of a list by offset."""
    link(
        request,
        response,
        next={"offset": offset + limit} if offset + limit < total else None,
        prev={"offset": max(0, offset - limit)} if offset else None,
    )
