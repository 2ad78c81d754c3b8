"""Answers made of ropes: ranges, ETags and HEAD over generated heads and untouched objects."""

import asyncio
import os
import re
from collections.abc import Mapping

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from roomtape.core.errors import RoomtapeError, Unavailable
from roomtape.core.ports import Store
from roomtape.core.rope import Literal, Rope, Span, Woven, woven
from roomtape.web.protocol import RopeProtocol

log = structlog.get_logger()

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.IGNORECASE)
_CONDITIONS = frozenset({b"range", b"if-range", b"if-none-match"})
_OK, _PARTIAL, _NOT_MODIFIED, _UNSATISFIABLE = 200, 206, 304, 416
_SMALL = 16 << 10  # below this, reading is cheaper than sendfile's bookkeeping


class RopeResponse(Response):
    """A rope as a body; one range at most (several are answered with the whole, as RFC 9110 allows). It may answer any number of requests."""

    def __init__(self, rope: Rope, store: Store, *, media_type: str, etag: str, headers: Mapping[str, str] | None = None) -> None:
        """`etag`: a strong validator of exactly these bytes, without quotes."""
        super().__init__(media_type=media_type, headers=dict(headers or {}))
        del self.headers["content-length"]
        self.rope = rope
        self.store = store
        self.etag = f'"{etag}"'
        self.headers["accept-ranges"] = "bytes"
        self.headers["etag"] = self.etag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (the ASGI shape)
        lane = scope.get("state", {}).get("lane")
        if lane is not None:
            lane.keep(scope, self)
        status, start, stop = self._judge(scope)
        headers = self._head_of(status, start, stop)
        if "request_id" not in scope:  # by the fast lane, past the envelope
            headers.append((b"x-request-id", uuid7().hex.encode()))
        connection = scope.get("state", {}).get("connection")
        protocol = connection if isinstance(connection, RopeProtocol) else None
        if scope["method"] == "HEAD":
            start = stop
        out = _Out(send, {"type": "http.response.start", "status": status, "headers": headers}, protocol if scope["scheme"] == "http" else None, stop - start)
        try:
            await self._send(start, stop, out)
        except ConnectionResetError:  # the reader went away, as players do with each seek
            await asyncio.sleep(0)  # the server hears of it before it asks why the answer is not complete
        except RoomtapeError as wrong:
            if out.ahead is not None:
                raise
            log.warning("answer.cut", code=wrong.code)  # too late to say so: the reader sees that bytes are missing
            if protocol is not None:
                protocol.transport.abort()
            await asyncio.sleep(0)

    async def _send(self, start: int, stop: int, out: "_Out") -> None:
        for part in woven(self.rope.slice(start, stop)):
            due = out.left - part.size
            if isinstance(part, Literal):
                await out.made(part.body)
            elif isinstance(part, Woven):
                read = b"".join([block async for block in self.store.read(part.read.key, part.read.offset, part.read.offset + part.read.size)])
                await out.stored(part.weave(read))
            elif (fd := self._opened(part) if out.protocol is not None and part.size > _SMALL else None) is not None:
                try:
                    await out.file(fd, part)
                finally:
                    os.close(fd)
            else:
                async for block in self.store.read(part.key, part.offset, part.offset + part.size):
                    await out.stored(block)
            if out.left != due:
                raise Unavailable("A stored object is shorter than what was taken.", code="object_short")  # never pad, never lie
        await out.end()

    def _opened(self, span: Span) -> int | None:
        """The file's descriptor; None where there is none, which the store then says itself."""
        path = self.store.path(span.key)
        try:
            return None if path is None else os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None

    def _head_of(self, status: int, start: int, stop: int) -> list[tuple[bytes, bytes]]:
        headers = [*self.raw_headers]
        if status != _NOT_MODIFIED:
            headers.append((b"content-length", b"%d" % (stop - start)))
        if status == _PARTIAL:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, self.rope.size)))
        if status == _UNSATISFIABLE:
            headers.append((b"content-range", b"bytes */%d" % self.rope.size))
        return headers

    def _judge(self, scope: Scope) -> tuple[int, int, int]:
        """Status, and the bytes start ≤ n < stop that are sent."""
        asked = {key: value.decode("latin-1") for key, value in scope["headers"] if key in _CONDITIONS}
        if {"*", self.etag} & {tag.strip().removeprefix("W/") for tag in asked.get(b"if-none-match", "").split(",")}:  # weak comparison (RFC 9110, 13.1.2)
            return _NOT_MODIFIED, 0, 0
        if asked.get(b"if-range", self.etag) != self.etag or b"range" not in asked:
            return _OK, 0, self.rope.size
        found = parse_range(asked[b"range"], self.rope.size)
        if found is None:
            return _OK, 0, self.rope.size
        return (_PARTIAL, *found) if found[0] < found[1] else (_UNSATISFIABLE, 0, 0)


class _Out:
    """The answer on its way: what the store cannot give is said before the head says 200, so the head waits for the first bytes that come out of it."""

    def __init__(self, send: Send, head: Message, protocol: RopeProtocol | None, size: int) -> None:
        """`protocol`: sends files by itself. `size`: bytes of the body, of which `left` are to come."""
        self.protocol = protocol
        self.left = size
        self.ahead: list[bytes] | None = []  # made by us, waiting for the head; None when that is out
        self._send, self._head = send, head

    async def made(self, body: bytes) -> None:
        self.left -= len(body)
        if self.ahead is not None:
            self.ahead.append(body)
        else:
            await self._body(body)

    async def stored(self, body: bytes) -> None:
        self.left -= len(body)
        await self._begin()
        await self._body(body)

    async def file(self, fd: int, span: Span) -> None:
        assert self.protocol is not None
        await self._begin()
        self.left -= await self.protocol.send_file(fd, span.offset, span.size)

    async def end(self) -> None:
        await self._begin()
        await self._body(b"", more=False)

    async def _begin(self) -> None:
        if self.ahead is not None:
            ahead, self.ahead = self.ahead, None
            await self._send(self._head)
            for body in ahead:
                await self._body(body)

    async def _body(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """`bytes=a-b` as start ≤ n < stop; an empty one (start ≥ stop) cannot be satisfied; None: not one plain range, answer the whole."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or (not found[1] and not found[2]) or len(header) > 64:
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    start = int(found[1])
    stop = min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < start:
        return None
    return start, stop
