"""uvicorn's httptools protocol with what it lacks: limits for headers, slow senders and slow readers, and file bytes that go out by sendfile."""

import asyncio
import errno
import os
import socket
from enum import Enum, auto
from typing import Any, BinaryIO

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

_BLOCK = 256 << 10
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_LEAST, _MOST = 256 << 10, 1 << 20  # a sendfile call is bounded, so that the stall limit sees progress; it grows while the reader is fast
_QUEUE = 256 << 10  # bytes on their way to one reader: with the kernel's 4 MB a proxy beside us reads at half the speed, and a thousand slow readers hold 4 GB
_FRAMED = 16  # a chunked body may be framed by so many bytes for each of its own
_FAST_S, _SLOW_S = 0.25, 2.0


class _Reading(Enum):
    """What of a request has to come next."""

    NOTHING = auto()  # between requests; uvicorn ends a connection that stays so
    HEADERS = auto()
    BODY = auto()


class RopeProtocol(HttpToolsProtocol):
    """Given to uvicorn as `http=`; responses find it as `scope["state"]["connection"]`."""

    header_timeout_s = 10.0
    most_header_bytes = 64 << 10
    body_window_s = 30.0
    body_floor_bytes = 30_000  # 1 kB/s over the window
    stall_s = 60.0  # for each 256 kB, those in the socket's queue too: a reader that takes less than 4.4 kB/s is cut, and one that takes nothing

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self._reading = _Reading.HEADERS
        self._watch: asyncio.TimerHandle | None = None
        self._watched = _Reading.NOTHING
        self._came = 0
        self._frames = 0
        self._at_once = _LEAST
        self._socket = -1

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
        self._socket = sock.fileno()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        self._frames += len(data)
        super().data_received(data)
        if self._reading is not self._watched:
            self._unwatch()
            self._expect()
        if self._reading is _Reading.HEADERS and self._came > self.most_header_bytes and not self.transport.is_closing():
            self.send_400_response("The headers of this request are too long.")
        if self._reading is _Reading.BODY and self._frames > 2 * self.most_header_bytes and not self.transport.is_closing():
            self.transport.abort()  # trailers or chunk extensions without end

    def on_message_begin(self) -> None:
        self._reading = _Reading.HEADERS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading, self._frames = _Reading.BODY, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is _Reading.HEADERS:  # what comes behind the body is no header, whatever it is called (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._frames -= _FRAMED * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = _Reading.NOTHING
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle  # `self.cycle` is the newest request, which may wait behind this one
        super()._start_asgi_task(cycle, app)

    def _expect(self) -> None:
        self._watched, self._came = self._reading, 0
        if self._reading is _Reading.HEADERS:
            self._watch = self.loop.call_later(self.header_timeout_s, self._headers_due)
        elif self._reading is _Reading.BODY:
            self._watch = self.loop.call_later(self.body_window_s, self._body_due)

    def _headers_due(self) -> None:
        self._watch = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _body_due(self) -> None:
        self._watch = None
        if self.transport.is_closing():
            return
        slow = self._came < self.body_floor_bytes and not self.flow.read_paused  # our own back-pressure is not the sender's fault
        if slow or self.cycle.response_complete:  # who was answered early gets this long to hear it: closed at once, the answer would be lost
            self.transport.abort()
            return
        self._expect()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def send_file(self, fd: int, offset: int, size: int) -> None:
        """Sends bytes of an open file as part of the running response's body, without bringing them into this process. The response states its length.

        Raises ConnectionError when the reader is gone or too slow, see `stall_s`.
        """
        end = offset + size
        while offset < end:
            if self.transport.is_closing():
                raise ConnectionResetError
            count = min(end - offset, self._at_once)
            done = self._directly(fd, offset, count)
            if done < count:
                done += await self._patiently(fd, offset + done, count - done)
            if done != count:  # the object is shorter than its row says: never pad, never lie
                self.transport.abort()
                raise ConnectionResetError
            self._answering.expected_content_length -= count
            offset += count

    def _directly(self, fd: int, offset: int, count: int) -> int:
        """What the socket's buffer takes at once: the loop's own sendfile costs as much as 300 kB. What it does not take says nothing; the loop will."""
        if self.transport.get_write_buffer_size():
            return 0
        try:
            return os.sendfile(self._socket, fd, offset, count)
        except OSError:
            return 0

    async def _patiently(self, fd: int, offset: int, count: int) -> int:
        begun = self.loop.time()
        try:
            async with asyncio.timeout(self.stall_s * (count + _QUEUE) / _LEAST):
                done = await self._hand_over(_file(fd), offset, count)
        except (TimeoutError, OSError) as gone:
            self.transport.abort()
            raise ConnectionResetError from gone
        took_s = self.loop.time() - begun
        if took_s > _SLOW_S:
            self._at_once = _LEAST
        elif took_s < _FAST_S:
            self._at_once = min(2 * self._at_once, _MOST)
        return done

    async def _hand_over(self, file: BinaryIO, offset: int, count: int) -> int:
        """By sendfile; where the file system cannot, by reading. Returns how many bytes went."""
        try:
            return await self.loop.sendfile(self.transport, file, offset, count, fallback=False)
        except asyncio.SendfileNotAvailableError as wrong:
            if not isinstance(wrong.__cause__, OSError) or wrong.__cause__.errno not in _NO_SENDFILE:
                raise ConnectionResetError from wrong  # the reader is gone
        file.seek(offset)
        sent = 0
        while sent < count and (block := file.read(min(count - sent, _BLOCK))):
            self.transport.write(block)
            await self.flow.drain()
            sent += len(block)
        return sent


def _file(fd: int) -> BinaryIO:
    """The descriptor as the loop wants it; closing it stays its owner's affair."""
    return open(fd, "rb", buffering=0, closefd=False)
