"""uvicorn's h11 protocol with what it lacks: time limits for headers and bodies, and file bytes that go out by sendfile."""

import asyncio
import errno
import os
import socket
from typing import Any, BinaryIO

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_BLOCK = 256 << 10
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_LEAST, _MOST = 256 << 10, 1 << 20  # a sendfile call is bounded, so that the stall limit sees progress; it grows while the reader is fast
_QUEUE = 512 << 10  # bytes on their way to one reader: with the kernel's 4 MB a proxy beside us reads at half the speed, and a thousand slow readers hold 4 GB
_FAST_S, _SLOW_S = 0.25, 2.0


class _Placeholder:
    """Stands for `size` bytes that leave by another way: h11 counts them and passes the object through."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class RopeProtocol(H11Protocol):
    """Given to uvicorn as `http=`; responses find it as `scope["state"]["connection"]`."""

    header_timeout_s = 10.0
    body_window_s = 30.0
    body_floor_bytes = 30_000  # 1 kB/s over the window
    stall_s = 60.0  # for each 256 kB: a reader that takes less than 4.4 kB/s is cut, and one that takes nothing

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self._watch: asyncio.TimerHandle | None = None
        self._came = 0
        self._at_once = _LEAST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
        self._watch = self.loop.call_later(self.header_timeout_s, self._headers_due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE
        if self._watch is None and waiting and self.conn.trailing_data[0]:  # a second request has begun to drip in
            self._watch = self.loop.call_later(self.header_timeout_s, self._headers_due)
        elif not waiting and (self._watch is None or self._watch_is_for_headers):
            self._unwatch()
            if self.conn.their_state is h11.SEND_BODY:
                self._expect_body()

    @property
    def _watch_is_for_headers(self) -> bool:
        return self._watch is not None and self._watch._callback == self._headers_due  # type: ignore[attr-defined]  # noqa: SLF001

    def _expect_body(self) -> None:
        self._came = 0
        self._watch = self.loop.call_later(self.body_window_s, self._body_due)

    def _headers_due(self) -> None:
        self._watch = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()

    def _body_due(self) -> None:
        self._watch = None
        if self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            return
        if self._came < self.body_floor_bytes and not self.flow.read_paused:  # our own back-pressure is not the sender's fault
            self.transport.abort()
            return
        self._expect_body()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def send_file(self, file: BinaryIO, offset: int, size: int) -> None:
        """Sends bytes of a file as part of the running response's body, without bringing them into this process.

        Raises ConnectionError when the reader is gone or too slow, see `stall_s`.
        """
        end = offset + size
        while offset < end:
            if self.transport.is_closing():
                raise ConnectionResetError
            count = min(end - offset, self._at_once)
            sent = self.conn.send_with_data_passthrough(h11.Data(data=_Placeholder(count)))  # type: ignore[arg-type]
            for part in sent or []:
                if not isinstance(part, _Placeholder):  # the frame of a chunked body
                    self.transport.write(part)
            begun = self.loop.time()
            try:
                async with asyncio.timeout(self.stall_s * max(1, count / _LEAST)):
                    done = await self._hand_over(file, offset, count)
            except (TimeoutError, OSError) as gone:
                self.transport.abort()
                raise ConnectionResetError from gone
            if done != count:  # the object is shorter than its row says: never pad, never lie
                self.transport.abort()
                raise ConnectionResetError
            offset += count
            took_s = self.loop.time() - begun
            if took_s > _SLOW_S:
                self._at_once = _LEAST
            elif took_s < _FAST_S and count == self._at_once:
                self._at_once = min(2 * self._at_once, _MOST)

    async def _hand_over(self, file: BinaryIO, offset: int, count: int) -> int:
        """By sendfile; where the file system cannot, by reading. Returns how many bytes went."""
        went = self._directly(file, offset, count)
        if went == count:
            return went
        offset, count = offset + went, count - went
        try:
            return went + await self.loop.sendfile(self.transport, file, offset, count, fallback=False)
        except asyncio.SendfileNotAvailableError as wrong:
            if not isinstance(wrong.__cause__, OSError) or wrong.__cause__.errno not in _NO_SENDFILE:
                raise ConnectionResetError from wrong  # the reader is gone
        file.seek(offset)
        sent = 0
        while sent < count and (block := file.read(min(count - sent, _BLOCK))):
            self.transport.write(block)
            await self.flow.drain()
            sent += len(block)
        return went + sent

    def _directly(self, file: BinaryIO, offset: int, count: int) -> int:
        """What the socket's buffer takes at once: the loop's own sendfile costs as much as 300 kB. What it does not take says nothing; the loop will."""
        if self.transport.get_write_buffer_size():
            return 0
        try:
            return os.sendfile(self.transport.get_extra_info("socket").fileno(), file.fileno(), offset, count)
        except OSError:
            return 0
