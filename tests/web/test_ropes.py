"""Ropes over a real server: every range is the file's range, slow and silent clients are cut, good ones are not."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from roomtape.core.errors import NotFound, RoomtapeError
from roomtape.core.rope import Literal, Rope, Span
from roomtape.storage.local import LocalStore
from roomtape.web.lane import FRESH_S, FastLane
from roomtape.web.protocol import RopeProtocol
from roomtape.web.ropes import RopeResponse, parse_range

pytestmark = pytest.mark.anyio


class Folder:
    """Files of a folder as a store that can only be read."""

    def __init__(self, root: Path, *, remote: bool = False) -> None:
        self.root, self.remote = root, remote

    def path(self, key: str) -> Path | None:
        return None if self.remote else self.root / key

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        if not (self.root / key).exists():
            raise NotFound
        body = (self.root / key).read_bytes()[start:stop]
        for at in range(0, len(body), 70_000):
            yield body[at : at + 70_000]


class Hasty(RopeProtocol):
    """Cuts slow clients soon."""

    header_timeout_s = 0.4
    body_window_s = 0.4
    stall_s = 1.0


class Server:
    """uvicorn with our protocol on a free port of loopback."""

    def __init__(self, app: Starlette, http: type[RopeProtocol] = RopeProtocol) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, http=http, loop="asyncio", log_config=None, access_log=False, lifespan="off", ws="none"))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        task = asyncio.create_task(self.server.serve(sockets=[self.sock]))
        try:
            yield self
        finally:
            self.server.should_exit = True
            await task

    async def ask(self, lines: str, body: bytes = b"") -> tuple[str, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(lines.replace("\n", "\r\n").encode() + b"\r\nHost: x\r\nConnection: close\r\n\r\n" + body)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return first, {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}, content


def a_rope(root: Path) -> tuple[Rope, bytes]:
    first, second = bytes(range(256)) * 4000, bytes(reversed(range(256))) * 3000
    (root / "a").write_bytes(first)
    (root / "b").write_bytes(second)
    small = [piece for at in range(0, 20_000, 200) for piece in (Literal(b"<%d>" % at), Span("b", at, 150))]
    rope = Rope.of([Literal(b"head" * 100), Span("a", 0, len(first)), Span("b", 1000, 500_000), *small, Literal(b"tail")])
    woven = b"".join(b"<%d>" % at + second[at : at + 150] for at in range(0, 20_000, 200))
    return rope, b"head" * 100 + first + second[1000:501_000] + woven + b"tail"


def app_of(root: Path, *, remote: bool = False) -> Starlette:
    async def rope(_: Request) -> Response:
        return RopeResponse(a_rope(root)[0], Folder(root, remote=remote), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    async def size(request: Request) -> Response:
        return PlainTextResponse(str(sum([len(piece) async for piece in request.stream()])))

    return Starlette(routes=[Route("/rope", rope, methods=["GET", "HEAD"]), Route("/size", size, methods=["POST"])])


@pytest.mark.parametrize("remote", [False, True])
async def test_each_range_is_the_range_of_the_file(tmp_path: Path, *, remote: bool) -> None:
    _, whole = a_rope(tmp_path)
    async with Server(app_of(tmp_path, remote=remote)).running() as server:
        first, headers, body = await server.ask("GET /rope HTTP/1.1")
        assert (first, body == whole, headers["etag"]) == ("HTTP/1.1 200 OK", True, '"v1"')
        for start, stop in [(0, 1), (0, len(whole)), (399, 401), (1_000_000, 1_100_000), (len(whole) - 4, len(whole)), (len(whole) - 30_000, len(whole) - 7)]:
            first, headers, body = await server.ask(f"GET /rope HTTP/1.1\nRange: bytes={start}-{stop - 1}")
            assert first.startswith("HTTP/1.1 206")
            assert headers["content-range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
            assert body == whole[start:stop]
        first, _, body = await server.ask("GET /rope HTTP/1.1\nRange: bytes=-10")
        assert body == whole[-10:]


async def test_head_conditions_and_what_cannot_be_satisfied(tmp_path: Path) -> None:
    _, whole = a_rope(tmp_path)
    async with Server(app_of(tmp_path)).running() as server:
        first, headers, body = await server.ask("HEAD /rope HTTP/1.1")
        assert (headers["content-length"], body) == (str(len(whole)), b"")
        for known in ('"v1"', 'W/"v1"', '"v0", "v1"', "*"):
            first, _, body = await server.ask(f"GET /rope HTTP/1.1\nIf-None-Match: {known}")
            assert (first, body) == ("HTTP/1.1 304 Not Modified", b"")
        first, headers, _ = await server.ask(f"GET /rope HTTP/1.1\nRange: bytes={len(whole)}-")
        assert first.startswith("HTTP/1.1 416")
        assert headers["content-range"] == f"bytes */{len(whole)}"
        first, _, body = await server.ask('GET /rope HTTP/1.1\nRange: bytes=0-1\nIf-Range: "old"')
        assert (first, len(body)) == ("HTTP/1.1 200 OK", len(whole))


async def test_two_requests_on_one_connection(tmp_path: Path) -> None:
    _, whole = a_rope(tmp_path)
    async with Server(app_of(tmp_path)).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for start in (5, 900_000):
            writer.write(f"GET /rope HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + 199_999}\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(200_000) == whole[start : start + 200_000]
        writer.close()


async def test_requests_that_come_before_the_answers_are_answered_in_order(tmp_path: Path) -> None:
    _, whole = a_rope(tmp_path)
    async with Server(app_of(tmp_path)).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        starts = (5, 900_000, 300_000)
        writer.write(b"".join(f"GET /rope HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + 199_999}\r\n\r\n".encode() for start in starts))
        for start in starts:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(200_000) == whole[start : start + 200_000]
        writer.close()


async def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    async with Server(app_of(tmp_path)).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /rope HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(200)))
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            assert b"headers of this request are too long" in await reader.read()
        writer.close()


async def test_trailers_are_no_headers_and_end_somewhere(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    told: list[str] = []

    async def listen(request: Request) -> Response:
        await request.body()
        told.extend(name for name, _ in request.headers.items())
        return PlainTextResponse("heard")

    app.router.routes.append(Route("/listen", listen, methods=["POST"]))
    head = b"POST /listen HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    async with Server(app).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + b"Authorization: Bearer rt_x\r\nRoomtape-User: mallory\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert set(told) == {"host", "transfer-encoding"}
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"X-A: " + b"a" * 500 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()


async def test_a_sender_who_was_answered_and_goes_on_is_cut(tmp_path: Path) -> None:
    async def refuse(_: Request) -> Response:
        return PlainTextResponse("no", 413)

    app = app_of(tmp_path)
    app.router.routes.append(Route("/refuse", refuse, methods=["POST"]))
    async with Server(app, Hasty).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
            with contextlib.suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(bytes(10_000))
                    await writer.drain()
                    await asyncio.sleep(0.01)
        writer.close()


async def test_an_object_that_is_shorter_than_its_row_says_ends_the_connection(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    rope, whole = a_rope(tmp_path)

    async def short(_: Request) -> Response:
        return RopeResponse(rope, Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    app.router.routes.append(Route("/short", short))
    (tmp_path / "a").write_bytes(b"x" * 1000)
    async with Server(app).running() as server:
        _, headers, body = await server.ask("GET /short HTTP/1.1")
        assert int(headers["content-length"]) == len(whole)
        assert len(body) < len(whole)


@pytest.mark.parametrize("remote", [False, True])
async def test_an_object_that_is_missing_is_said_before_the_head(tmp_path: Path, *, remote: bool) -> None:
    app = app_of(tmp_path, remote=remote)
    app.add_exception_handler(RoomtapeError, lambda _, wrong: PlainTextResponse(wrong.code, wrong.status))
    a_rope(tmp_path)
    lost = Rope.of([Literal(b"head" * 100_000), Span("lost", 0, 500_000), Literal(b"tail")])

    async def answer(_: Request) -> Response:
        return RopeResponse(lost, Folder(tmp_path, remote=remote), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    app.router.routes.append(Route("/lost", answer))
    async with Server(app).running() as server:
        for more in ("", "\nRange: bytes=399990-400009"):
            first, _, body = await server.ask(f"GET /lost HTTP/1.1{more}")
            assert (first, body) == ("HTTP/1.1 404 Not Found", b"not_found")


def connected(port: int) -> socket.socket:
    """A reader whose machine holds little for it."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    reader.connect(("127.0.0.1", port))
    reader.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return reader


@contextlib.asynccontextmanager
async def a_big_file(root: Path, size: int) -> AsyncIterator[Server]:
    (root / "big").write_bytes(bytes(size))

    async def answer(_: Request) -> Response:
        return RopeResponse(Rope.of([Span("big", 0, size)]), Folder(root), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    server = Server(Starlette(routes=[Route("/big", answer)]), Hasty)
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)  # what is accepted inherits it
    async with server.running():
        yield server


async def test_a_slow_reader_that_is_steady_lives(tmp_path: Path) -> None:
    """Half a megabyte a second where 256 kB a second are asked for: as 8 kB/s are with the limit of a real server."""
    size = 3 << 20

    def read(port: int) -> int:
        with connected(port) as reader:
            came = 0
            while piece := reader.recv(32 << 10):
                came += len(piece)
                time.sleep(0.05)
            return came

    async with a_big_file(tmp_path, size) as server:
        assert await asyncio.to_thread(read, server.port) > size


async def test_a_reader_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    async with a_big_file(tmp_path, 8 << 20) as server:
        held = server.server.server_state.connections
        with connected(server.port):
            async with asyncio.timeout(30):
                while not held:
                    await asyncio.sleep(0.01)
                while held:
                    await asyncio.sleep(0.01)


async def test_the_lane_keeps_by_bytes_and_drops_what_is_old(tmp_path: Path) -> None:
    def answer(size: int) -> RopeResponse:
        return RopeResponse(Rope.of([Literal(bytes(size))]), Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    lane = FastLane(app_of(tmp_path), most_bytes=100_000)
    for number in range(10):
        lane.keep({"path": f"/{number}", "query_string": b""}, answer(30_000))
    assert [path for path, _ in lane._kept] == ["/7", "/8", "/9"]
    lane.keep({"path": "/huge", "query_string": b""}, answer(200_000))
    assert list(lane._kept) == []
    lane.keep({"path": "/old", "query_string": b""}, answer(1))
    await asyncio.sleep(FRESH_S + 0.1)  # what is kept is kept by time
    lane.keep({"path": "/new", "query_string": b""}, answer(1))
    assert [path for path, _ in lane._kept] == ["/new"]


async def test_who_drips_headers_or_bodies_is_cut_and_good_clients_are_not(tmp_path: Path) -> None:
    async with Server(app_of(tmp_path), Hasty).running() as server:
        drips = []
        for start in (b"", b"GET /rope HTTP/1.1\r\nHo", b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nabc"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(start)
            drips.append((reader, writer))
        body = b"z" * 3_000_000
        first, _, said = await server.ask(f"POST /size HTTP/1.1\nContent-Length: {len(body)}", body)
        assert (first, said) == ("HTTP/1.1 200 OK", b"3000000")
        for reader, writer in drips:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


async def test_a_second_request_that_drips_is_cut_too(tmp_path: Path) -> None:
    async with Server(app_of(tmp_path), Hasty).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"HEAD /rope HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /rope HT")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=90-500", (90, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=-0", (100, 100)),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=-", None),
        ("bytes=" + "0" * 100 + "-", None),
    ],
)
async def test_ranges_are_read_as_rfc_9110_says(header: str, found: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == found


async def test_a_reader_that_goes_away_is_no_error_and_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    rope = Rope.of([Literal(b"head"), Span("big", 0, 64 << 20)])

    async def answer(_: Request) -> Response:
        return RopeResponse(rope, Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    async with Server(Starlette(routes=[Route("/rope", answer)])).running() as server:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /rope HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readexactly(100_000)
            writer.transport.abort()
        first, _, body = await server.ask("GET /rope HTTP/1.1")
        assert (first, len(body)) == ("HTTP/1.1 200 OK", rope.size)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_the_lane_gives_what_was_kept_to_readers_alone_for_its_time_alone_under_its_url_alone(tmp_path: Path) -> None:
    calls: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["method"])
        answer = RopeResponse(Rope.of([Literal(scope["query_string"])]), Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]
        await (answer if scope["method"] == "GET" else PlainTextResponse("no", 405))(scope, receive, send)

    path = "/api/v1/p/t/recordings/r/download"
    async with Server(FastLane(application)).running() as server:  # type: ignore[arg-type]
        for _ in range(2):
            _, headers, body = await server.ask(f"GET {path}?format=mp4 HTTP/1.1")
            assert body == b"format=mp4"
            assert len(headers["x-request-id"]) == 32
        assert calls == ["GET"]
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await server.ask(f"{method} {path}?format=mp4 HTTP/1.1"))[0] == "HTTP/1.1 405 Method Not Allowed"
        assert (await server.ask(f"GET {path}?format=webm HTTP/1.1"))[2] == b"format=webm"
        calls.clear()
        assert FRESH_S <= 1
        await asyncio.sleep(FRESH_S + 0.1)  # a right may have been lost meanwhile
        await server.ask(f"GET {path}?format=mp4 HTTP/1.1")
        assert calls == ["GET"]


async def test_a_file_waits_for_what_the_transport_still_holds(tmp_path: Path) -> None:
    """A head larger than the socket's queue, as that of a long recording is."""
    head, body = os.urandom(6 << 20), os.urandom(9 << 20)
    (tmp_path / "big").write_bytes(body)

    async def answer(_: Request) -> Response:
        return RopeResponse(Rope.of([Literal(head), Span("big", 0, len(body))]), Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    def read(port: int) -> bytes:
        with connected(port) as reader:
            came = bytearray()
            while piece := reader.recv(64 << 10):
                came += piece
                if len(came) < 2 << 20:
                    time.sleep(0.005)
            return bytes(came)

    async with Server(Starlette(routes=[Route("/big", answer)])).running() as server:
        assert (await asyncio.to_thread(read, server.port)).partition(b"\r\n\r\n")[2] == head + body


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    async with Server(app_of(tmp_path)).running() as server:
        await server.ask("GET /rope HTTP/1.1\nRange: bytes=0-900000")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await server.ask("GET /rope HTTP/1.1\nRange: bytes=0-900000")
        assert len(os.listdir("/proc/self/fd")) <= before + 2


async def test_links_are_not_followed(tmp_path: Path) -> None:
    secret, root = tmp_path / "secret", tmp_path / "store"
    secret.write_bytes(b"s" * 100_000)
    root.mkdir()
    (root / "a").symlink_to(secret)
    store = LocalStore(root)

    async def answer(_: Request) -> Response:
        return RopeResponse(Rope.of([Span("a", 0, 100_000)]), store, media_type="video/mp4", etag="v1")

    application = Starlette(routes=[Route("/link", answer)])
    application.add_exception_handler(RoomtapeError, lambda _, wrong: PlainTextResponse(wrong.code, wrong.status))
    async with Server(application).running() as server:
        _, _, body = await server.ask("GET /link HTTP/1.1")
        assert b"sss" not in body
    await store.close()


async def test_a_disk_that_fails_while_a_file_goes_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "big").mkdir()  # reading it is an error of the system, as of a disk that is going

    async def answer(_: Request) -> Response:
        return RopeResponse(Rope.of([Span("big", 0, 100_000)]), Folder(tmp_path), media_type="video/mp4", etag="v1")  # type: ignore[arg-type]

    async with Server(Starlette(routes=[Route("/big", answer)])).running() as server:
        _, _, body = await server.ask("GET /big HTTP/1.1")
        assert body == b""
    assert "answer.cut" in capsys.readouterr().out


async def test_who_sends_request_after_request_is_never_late(tmp_path: Path) -> None:
    """Each packet ends inside of the next request's head: each head has a time of its own."""
    async with Server(app_of(tmp_path), Hasty).running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        begin, rest = b"HEAD /ro", b"pe HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(begin)
        for _ in range(15):
            await asyncio.sleep(0.08)  # of the 0.4 s that a head may take
            writer.write(rest + begin)
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
