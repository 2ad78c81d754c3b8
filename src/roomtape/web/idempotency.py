"""Idempotency-Key on every POST: the first request does the work, every repetition gets its answer."""

import asyncio
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roomtape.core.errors import RoomtapeError
from roomtape.db import answers
from roomtape.db.rows import Answer
from roomtape.web.envelope import STREAMED
from roomtape.web.identity import subject_of
from roomtape.web.problems import problem
from roomtape.web.services import Services

_KEY_LIMIT = 255
_AT_ONCE = 6  # each holds a connection while its work takes others: the pool must never be all holders


class Idempotency:
    """ASGI middleware; plain, because Starlette's own kind would put a queue between a rope and its socket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/api/")
        request = Request(scope, receive) if wanted and not scope["path"].endswith(STREAMED) else None  # a segment is idempotent by itself
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
        heard = _Heard(body)
        try:
            async with self._room:
                return await self._once(request, key, heard)
        except _NotKept:
            return heard.response()
        except RoomtapeError as wrong:
            return problem(wrong.status, wrong.code, wrong.message, retry_after_s=wrong.retry_after_s, **wrong.facts)

    async def _once(self, request: Request, key: str, heard: "_Heard") -> Response:
        services: Services = request.app.state.services
        subject = await subject_of(request, services)
        digest = sha256(f"{request.url.path}?{request.url.query}\n".encode() + heard.asked).hexdigest()
        async with services.database.transaction() as connection:  # held while the work is done: a second request waits here
            seen = await answers.claim(connection, subject.tenant, subject.label, key, route=request.url.path, request_hash=digest)
            if seen is not None:
                return _repeated(seen, digest)
            await self.app(request.scope, heard.receive, heard.send)
            if heard.status >= 500:
                raise _NotKept  # and with it the claim: the next one does the work
            await answers.keep(connection, subject.tenant, subject.label, key, status=heard.status, body=bytes(heard.body))
        return heard.response()


class _NotKept(Exception):
    """The answer is no decision."""


def _repeated(seen: Answer, digest: str) -> Response:
    if seen.request_hash != digest:
        return problem(422, "idempotency_key_reused", "This Idempotency-Key came with another request before: use a fresh one for each.")
    if seen.status is None:
        return problem(409, "still_at_work", "The first request with this Idempotency-Key is still at work: ask again in a moment.")
    kind = "application/json" if seen.status < 400 else "application/problem+json"
    return Response(seen.body or b"", status_code=seen.status, media_type=kind, headers={"idempotency-replayed": "true"})


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
