"""Answers made of ropes: ranges, ETags and HEAD over generated heads and untouched objects."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roomtape.core.errors import RoomtapeError
from roomtape.core.ports import Store
from roomtape.core.rope import Literal, Rope, Span, Woven, woven
from roomtape.web.protocol import RopeProtocol

log = structlog.get_logger()

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
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
        connection = scope.get("state", {}).get("connection")
        protocol = connection if isinstance(connection, RopeProtocol) else None
        if scope["method"] == "HEAD":
            start = stop
        async with aclosing(self._blocks(start, stop, files=protocol is not None and scope["scheme"] == "http")) as blocks:
            ahead = await _to_first_stored(blocks)  # what the store cannot give is said before the head says 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            try:
                for block in ahead:
                    await _send_block(block, send, protocol)
                async for block in blocks:
                    await _send_block(block, send, protocol)
            except ConnectionResetError:  # the reader went away, as players do with each seek
                await asyncio.sleep(0)  # the server hears of it before it asks why the answer is not complete
                return
            except RoomtapeError as wrong:  # too late to say so: the reader sees that bytes are missing
                log.warning("answer.cut", code=wrong.code)
                if protocol is not None:
                    protocol.transport.abort()
                await asyncio.sleep(0)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

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
        if self.etag in [tag.strip() for tag in asked.get(b"if-none-match", "").split(",")]:
            return _NOT_MODIFIED, 0, 0
        if asked.get(b"if-range", self.etag) != self.etag or b"range" not in asked:
            return _OK, 0, self.rope.size
        found = parse_range(asked[b"range"], self.rope.size)
        if found is None:
            return _OK, 0, self.rope.size
        return (_PARTIAL, *found) if found[0] < found[1] else (_UNSATISFIABLE, 0, 0)

    async def _blocks(self, start: int, stop: int, *, files: bool) -> AsyncGenerator["_Block"]:
        """The body: bytes, and with `files` open files of which the protocol sends a part by itself."""
        for part in woven(self.rope.slice(start, stop)):
            if isinstance(part, Literal):
                yield _Block(part.body)
                continue
            if isinstance(part, Woven):
                read = b"".join([block async for block in self.store.read(part.read.key, part.read.offset, part.read.offset + part.read.size)])
                yield _Block(part.weave(read), stored=True)
                continue
            path = self.store.path(part.key) if files and part.size > _SMALL else None
            fd = _opened(path) if path is not None else None
            if fd is not None:
                try:
                    yield _Block(b"", stored=True, fd=fd, span=part)
                finally:
                    os.close(fd)
                continue
            async for block in self.store.read(part.key, part.offset, part.offset + part.size):
                yield _Block(block, stored=True)


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes of a body, or a part of an open file. `stored`: not made by us."""

    body: bytes
    stored: bool = False
    fd: int | None = None
    span: Span | None = None


async def _to_first_stored(blocks: AsyncIterator[_Block]) -> list[_Block]:
    """The blocks up to the first one that comes out of the store."""
    ahead = []
    async for block in blocks:
        ahead.append(block)
        if block.stored:
            break
    return ahead


async def _send_block(block: _Block, send: Send, connection: RopeProtocol | None) -> None:
    if block.fd is not None and block.span is not None and connection is not None:
        await connection.send_file(block.fd, block.span.offset, block.span.size)
    else:
        await send({"type": "http.response.body", "body": block.body, "more_body": True})


def _opened(path: Path) -> int | None:
    """The file's descriptor; None where there is none, which the store then says itself."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


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
