"""Idempotency-Key on every POST: the first request does the work, every repetition gets its answer."""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from roomtape.core.access import Standing
from roomtape.core.errors import RoomtapeError
from roomtape.db import answers
from roomtape.db.rows import Answer
from roomtape.web.envelope import STREAMED
from roomtape.web.identity import subject_of
from roomtape.web.problems import problem
from roomtape.web.services import Services

log = structlog.get_logger()

_KEY_LIMIT = 255
_NOT_KEPT = (STREAMED, "/playback")  # a segment is idempotent by itself; a playback's answer holds a token, and tokens are stored as digests only
_NAMING = "roomtape.naming"


class Idempotency:
    """ASGI middleware; plain, because Starlette's own kind would put a queue between a rope and its socket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/api/") and not scope["path"].endswith(_NOT_KEPT)
        request = Request(scope, receive) if wanted else None
        key = request.headers.get("idempotency-key") if request else None
        if request is None or not key:
            await self.app(scope, receive, send)
            return
        answer = await self._answer(request, key)
        await answer(scope, receive, send)

    async def _answer(self, request: Request, key: str) -> Response:
        if len(key) > _KEY_LIMIT:
            return problem(422, "bad_idempotency_key", f"An Idempotency-Key has at most {_KEY_LIMIT} characters.")
        try:
            body = await request.body()
        except HTTPException as wrong:
            return problem(wrong.status_code, "too_large", str(wrong.detail))
        try:
            return await self._once(request, key, _Heard(body))
        except RoomtapeError as wrong:
            return problem(wrong.status, wrong.code, wrong.message, retry_after_s=wrong.retry_after_s, **wrong.facts)

    async def _once(self, request: Request, key: str, heard: "_Heard") -> Response:
        services: Services = request.app.state.services
        subject = await subject_of(request, services)
        if subject.standing is Standing.ANONYMOUS:  # nothing is done for nobody, and nothing kept
            await self.app(request.scope, heard.receive, heard.send)
            return heard.response()
        owner = f"{subject.label}:{subject.key or ''}"  # two programs know nothing of each other's keys
        digest = sha256(f"{request.url.path}?{request.url.query}\n".encode() + heard.asked).hexdigest()
        async with services.database.transaction() as connection:
            held, ours = await answers.claim(connection, subject.tenant, owner, key, route=request.url.path, request_hash=digest)
        if not ours:
            return _repeated(held, digest)
        request.scope[_NAMING] = Naming(f"{subject.tenant}\n{owner}\n{key}\n{digest}", round(held.first_at.timestamp() * 1000))
        try:
            await self.app(request.scope, heard.receive, heard.send)
        finally:
            await _settle(services, subject.tenant, owner, key, held, heard)
        return heard.response()


async def _settle(services: Services, tenant: str, owner: str, key: str, held: Answer, heard: "_Heard") -> None:
    """Keeps what was decided; a refusal by the state of things, or a failure, leaves the key to the next try."""
    try:
        async with services.database.transaction() as connection:
            if 200 <= heard.status < 300 or heard.status == 422:
                await answers.keep(connection, tenant, owner, key, held, status=heard.status, body=bytes(heard.body))
            else:
                await answers.release(connection, tenant, owner, key, held)
    except RoomtapeError as wrong:  # what was done is done: its answer goes out, and a repetition does it again under the same ids
        log.warning("idempotency.unsettled", why=wrong.code)


def _repeated(seen: Answer, digest: str) -> Response:
    if seen.request_hash != digest:
        return problem(422, "idempotency_key_reused", "This Idempotency-Key came with another request before: use a fresh one for each.")
    if seen.status is None:
        return problem(409, "still_at_work", "The first request with this Idempotency-Key is still at work: ask again in a moment.", retry_after_s=1)
    kind = "application/json" if seen.status < 400 else "application/problem+json"
    return Response(seen.body or b"", status_code=seen.status, media_type=kind, headers={"idempotency-replayed": "true"})


@dataclass(frozen=True, slots=True)
class Naming:
    """Ids for what a request makes. With an Idempotency-Key they follow from it: a second try whose first one's answer was lost finds what that one made."""

    seed: str = ""
    at_ms: int = 0

    def id_of(self, kind: str) -> UUID:
        """The id of the one `kind` of thing that this request makes: a UUIDv7 of the time at which the key first came, the rest by the key; else a fresh one."""
        if not self.seed:
            return uuid7()
        rest = int.from_bytes(sha256(f"{kind}\n{self.seed}".encode()).digest()[:10])
        return UUID(int=self.at_ms << 80 | rest & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)  # RFC 9562, 5.7


def _naming(request: Request) -> Naming:
    return request.scope.get(_NAMING) or Naming()


Named = Annotated[Naming, Depends(_naming)]


@dataclass(slots=True)
class _Heard:
    """The inner application's request and answer, held in memory."""

    asked: bytes
    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    given: bool = False

    async def receive(self) -> Message:
        if self.given:
            return {"type": "http.disconnect"}
        self.given = True
        return {"type": "http.request", "body": self.asked, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def response(self) -> Response:
        answer: Any = Response(bytes(self.body), status_code=self.status)
        answer.raw_headers = self.headers
        return answer  # type: ignore[no-any-return]
