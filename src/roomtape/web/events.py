"""What happens, as it happens: server-sent events, only of what one may view."""

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from roomtape.core.access import Standing, Subject
from roomtape.core.errors import Forbidden, NotSignedIn
from roomtape.db import outbox
from roomtape.library.catalog import event_view
from roomtape.library.doorkeeper import subjects_of
from roomtape.web.identity import Asker, subject_of
from roomtape.web.route import Route, of
from roomtape.web.services import Of, Services

router = APIRouter(tags=["events"], route_class=Route)

_QUIET_S = 15.0  # a comment this often keeps proxies from closing, and notices who has gone
_AT_ONCE = 200


@router.get("/events", response_class=Response, responses=of("text/event-stream"))
async def stream_events(request: Request, services: Of, subject: Asker) -> StreamingResponse:
    """CloudEvents as server-sent events; `Last-Event-ID` goes on where one left off."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    after = await _start(services, subject, request.headers.get("last-event-id"))
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_told(request, services, subject, after), media_type="text/event-stream", headers=headers)


async def _start(services: Services, subject: Subject, last: str | None) -> int:
    try:
        name = UUID(last) if last else None
    except ValueError:
        name = None
    async with services.database.transaction() as connection:
        found = await outbox.event_by_id(connection, subject.tenant, name) if name else None
        return found.number if found else await outbox.last_number(connection)


async def _still(request: Request, services: Services) -> Subject:
    try:
        return await subject_of(request, services)
    except (NotSignedIn, Forbidden):
        return Subject()


async def _told(request: Request, services: Services, subject: Subject, after: int) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n: hello\n\n"
    names = subjects_of(subject)
    loop = asyncio.get_running_loop()
    spoken = asked = loop.time()
    while True:
        if loop.time() - asked > _QUIET_S:
            subject, asked = await _still(request, services), loop.time()
            if subject.standing is Standing.ANONYMOUS:
                return  # signed out, revoked or expired meanwhile
            names = subjects_of(subject)
        async with services.database.transaction() as connection:
            newest = await outbox.last_number(connection)
            found = await outbox.events_after(connection, subject.tenant, after, subjects=names, limit=_AT_ONCE)
        for event in found:
            view = event_view(event)
            yield f"id: {view['id']}\nevent: {view['type']}\ndata: {json.dumps(view, separators=(',', ':'))}\n\n".encode()
            after, spoken = event.number, loop.time()
        if len(found) < _AT_ONCE:
            after = max(after, newest)  # what one might not view when it happened is not looked at again
            await services.listener.changed()
        if loop.time() - spoken > _QUIET_S:
            yield b": still here\n\n"
            spoken = loop.time()
