"""A loopback HTTP proxy that fails on purpose, so that a test can see what is done about it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

_PIECE = 65536
_ALWAYS = 1_000_000_000


class Mode(StrEnum):
    """What happens to a request that a rule hits."""

    PASS = "pass"  # noqa: S105 - nothing
    STATUS = "status"  # read whole and answered with `status`; the server never sees it
    REFUSE = "refuse"  # reset at once
    BLACKHOLE = "blackhole"  # read for ever, never answered
    DELAY = "delay"  # passed on `delay_s` later
    SLOW = "slow"  # `bytes_per_s` both ways
    CUT_UP = "cut_up"  # both sides are reset after `at` bytes of the request's body
    CUT_DOWN = "cut_down"  # both sides are reset after `at` bytes of the answer
    LOST_ACK = "lost_ack"  # done by the server, its answer dropped, the caller's side reset
    TWICE = "twice"  # sent twice; the second answer is given
    FLIP = "flip"  # one bit of byte `at` of the request's body is turned


@dataclass(frozen=True, slots=True)
class Rule:
    """A mode for those requests whose first line contains `match`: after the first `skip`, every `every`-th, `times` of them at most."""

    mode: Mode = Mode.PASS
    match: str = ""
    skip: int = 0
    every: int = 1
    times: int = _ALWAYS
    status: int = 500
    retry_after_s: int | None = None
    at: int = 0
    delay_s: float = 1.0
    bytes_per_s: int = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the proxy saw it, and what it did."""

    line: str
    mode: Mode
    at_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes
    first: bytes  # of the body, came with the head
    size: int  # of the body; -1: chunked

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it stands on the wire, chunk lines and all."""
        if self.first:
            yield self.first
        got, tail = len(self.first), self.first[-8:]
        while not tail.endswith(b"0\r\n\r\n") if self.size < 0 else got < self.size:
            piece = await self.reader.read(_PIECE if self.size < 0 else min(_PIECE, self.size - got))
            if not piece:
                return
            got, tail = got + len(piece), (tail + piece)[-8:]
            yield piece


class FaultProxy:
    """`async with FaultProxy(port) as proxy:` listens on `proxy.port` and hands on to the loopback port given; set `proxy.rule` at any time.

    Each connection carries one request (`Connection: close` is put in), so that rules are exact. `seen` is the log.
    """

    def __init__(self, upstream_port: int, rule: Rule = Rule()) -> None:
        self.seen: list[Seen] = []
        self.port = 0
        self._upstream_port = upstream_port
        self._rule = rule
        self._matched = self._hit = 0
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def rule(self) -> Rule:
        """What goes wrong now; setting it starts its counts anew."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._rule, self._matched, self._hit = rule, 0, 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            request = await _request(reader, writer)
            if request is not None:
                await self._serve(request)
        except OSError:
            _reset(writer)
        except asyncio.CancelledError:
            _reset(writer)  # the proxy ends; asyncio's server would log the cancellation
        finally:
            writer.close()

    async def _serve(self, request: _Request) -> None:
        line = request.head.split(b"\r\n", 1)[0].decode("latin-1")
        rule = self._rule if self._hits(line) else Rule()
        self.seen.append(Seen(line, rule.mode, asyncio.get_running_loop().time()))
        match rule.mode:
            case Mode.REFUSE:
                _reset(request.writer)
            case Mode.BLACKHOLE:
                while await request.reader.read(_PIECE):
                    pass
            case Mode.STATUS:
                await _answer(request, rule)
            case _:
                await self._pass_on(request, rule)

    def _hits(self, line: str) -> bool:
        rule = self._rule
        if rule.match not in line:
            return False
        self._matched += 1
        if self._matched <= rule.skip or (self._matched - rule.skip) % rule.every or self._hit >= rule.times:
            return False
        self._hit += 1
        return True

    async def _pass_on(self, request: _Request, rule: Rule) -> None:
        if rule.mode is Mode.DELAY:
            await asyncio.sleep(rule.delay_s)
        reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            upstream.write(request.head)
            body = await _up(request, upstream, rule)
            if body is None:
                return
            if rule.mode is Mode.TWICE:
                again, second = await asyncio.open_connection("127.0.0.1", self._upstream_port)
                await reader.read()
                reader = again
                upstream.close()
                upstream = second
                second.write(request.head + body)
            await _down(request, reader, upstream, rule)
        finally:
            upstream.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request | None:
    """The head of a request, to be sent on with `Connection: close`; None where none came."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = await reader.read(_PIECE)
        if not piece:
            return None
        head += piece
    head, _, first = head.partition(b"\r\n\r\n")
    lines, size = head.split(b"\r\n"), 0
    for line in lines[1:]:
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            size = int(value)
        elif name == b"transfer-encoding" and b"chunked" in value:
            size = -1
        elif name == b"expect":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    kept = [line for line in lines[1:] if not line.lower().startswith((b"connection:", b"expect:"))]
    return _Request(reader, writer, b"\r\n".join([lines[0], b"Connection: close", *kept]) + b"\r\n\r\n", first, size)


async def _up(request: _Request, upstream: asyncio.StreamWriter, rule: Rule) -> bytes | None:
    """Sends the body on; returns it where it is needed again, None where the connection was cut."""
    sent, held = 0, bytearray()
    async for piece in request.body():
        going = piece
        if rule.mode is Mode.FLIP and sent <= rule.at < sent + len(piece):
            spot = rule.at - sent
            going = piece[:spot] + bytes([piece[spot] ^ 1]) + piece[spot + 1 :]
        if rule.mode is Mode.CUT_UP and sent + len(piece) > rule.at:
            upstream.write(piece[: rule.at - sent])
            await upstream.drain()
            _reset(upstream)
            _reset(request.writer)
            return None
        if rule.mode is Mode.SLOW:
            await asyncio.sleep(len(piece) / rule.bytes_per_s)
        if rule.mode is Mode.TWICE:
            held += piece
        upstream.write(going)
        await upstream.drain()
        sent += len(piece)
    return bytes(held)


async def _down(request: _Request, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, rule: Rule) -> None:
    """Brings the answer back, or what the rule leaves of it."""
    given = 0
    while piece := await reader.read(_PIECE):
        if rule.mode is Mode.LOST_ACK:
            continue
        if rule.mode is Mode.CUT_DOWN and given + len(piece) > rule.at:
            request.writer.write(piece[: rule.at - given])
            await request.writer.drain()
            _reset(upstream)
            _reset(request.writer)
            return
        if rule.mode is Mode.SLOW:
            await asyncio.sleep(len(piece) / rule.bytes_per_s)
        request.writer.write(piece)
        await request.writer.drain()
        given += len(piece)
    if rule.mode is Mode.LOST_ACK:
        _reset(request.writer)


async def _answer(request: _Request, rule: Rule) -> None:
    async for _ in request.body():
        pass
    wait = b"" if rule.retry_after_s is None else b"Retry-After: %d\r\n" % rule.retry_after_s
    request.writer.write(b"HTTP/1.1 %d Injected\r\nContent-Length: 0\r\n%sConnection: close\r\n\r\n" % (rule.status, wait))
    with suppress(ConnectionError):
        await request.writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
