"""uvicorn's httptools protocol with what it lacks: limits for headers, slow senders and slow readers, and file bytes that go out by sendfile."""

import asyncio
import errno
import os
import socket
from enum import Enum, auto
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from roomtape.core.errors import Unavailable

_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_AT_ONCE = 1 << 20
_QUEUE = 256 << 10  # bytes on their way to one reader: with the kernel's 4 MB a proxy beside us reads at half the speed, and a thousand slow readers hold 4 GB
_FRAMED = 16  # a chunked body may be framed by so many bytes for each of its own


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
    stall_s = 60.0  # until a third of the socket's queue is taken, which the kernel makes 512 kB: a reader that takes less than 2.9 kB/s is cut, and one that takes nothing

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self._reading = _Reading.HEADERS
        self._watch: asyncio.TimerHandle | None = None
        self._watched = _Reading.NOTHING
        self._anew = False
        self._came = self._heads = 0
        self._frames = 0
        self._socket, self._writing = -1, -1
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
        transport.set_write_buffer_limits(high=0)  # then `flow` tells whether it holds anything back
        self._socket = sock.fileno()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        if self._writing >= 0:
            self.loop.remove_writer(self._writing)
            os.close(self._writing)
            self._writing = -1
        self._wake(ConnectionResetError())
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        self._frames += len(data)
        super().data_received(data)
        if self._anew or self._reading is not self._watched:
            self._anew = False
            self._unwatch()
            self._expect()
        if self._reading is _Reading.HEADERS and max(self._came, self._heads) > self.most_header_bytes and not self.transport.is_closing():
            self.send_400_response("The headers of this request are too long.")
        if self._reading is _Reading.BODY and self._frames > 2 * self.most_header_bytes and not self.transport.is_closing():
            self.transport.abort()  # trailers or chunk extensions without end

    def on_message_begin(self) -> None:
        self._reading, self._anew, self._heads = _Reading.HEADERS, True, 0  # each request has a time of its own
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading, self._frames = _Reading.BODY, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._heads += len(name) + len(value)
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
        if self.cycle is not None and not self.cycle.response_complete:  # who hears an answer is not cut for half of the next request
            self._expect()
        elif not self.transport.is_closing():
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

    async def send_file(self, fd: int, offset: int, size: int) -> int:
        """Sends bytes of an open file as part of the running response's body, without bringing them into this process; how many: fewer where the file ends.

        The response states its length. Raises ConnectionError when the reader is gone or too slow, see `stall_s`; Unavailable when the disk fails. The loop's own sendfile costs as much
        as 300 kB of sending.
        """
        at, end = offset, offset + size
        try:
            while at < end:
                await self._emptied()
                count = min(end - at, _AT_ONCE)
                sent = self._hand_over(fd, at, count)
                if sent == 0:
                    break
                if sent is not None:
                    self._answering.expected_content_length -= sent
                    at += sent
                if sent != count:
                    await self._writable()
                elif at < end:
                    await asyncio.sleep(0)  # a reader as fast as we are is not alone
        except (ConnectionError, TimeoutError) as gone:
            self.transport.abort()
            raise ConnectionResetError from gone
        except OSError as wrong:
            raise Unavailable(f"Sending a stored object failed: {os.strerror(wrong.errno or 0)}.", code="storage_error") from wrong
        finally:
            if self._writing >= 0:
                self.loop.remove_writer(self._writing)
        return at - offset

    def _hand_over(self, fd: int, offset: int, count: int) -> int | None:
        """By sendfile; where the file system cannot, by reading. How many bytes were taken: 0 at the file's end, None while the socket is full."""
        try:
            return os.sendfile(self._socket, fd, offset, count)
        except BlockingIOError:
            return None
        except OSError as wrong:
            if wrong.errno not in _NO_SENDFILE:
                raise
        block = os.pread(fd, min(count, _QUEUE), offset)
        self.transport.write(block)
        return len(block)

    async def _emptied(self) -> None:
        """Until the transport holds nothing back: what we write beside it would overtake."""
        if self.flow.write_paused:
            async with asyncio.timeout(self.stall_s):  # its TimeoutError is an OSError
                await self.flow.drain()
        if self.transport.is_closing():
            raise ConnectionResetError

    async def _writable(self) -> None:
        """Until the socket takes more; TimeoutError where it takes nothing for `stall_s`. A loop watches no descriptor of its transports for us, but a copy."""
        if self._writing < 0:
            self._writing = os.dup(self._socket)
        waiter = self._waiter = self.loop.create_future()
        self.loop.add_writer(self._writing, self._wake)
        due = self.loop.call_later(self.stall_s, self._wake, TimeoutError())
        try:
            await waiter
        finally:
            due.cancel()

    def _wake(self, wrong: OSError | None = None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if wrong is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(wrong)
