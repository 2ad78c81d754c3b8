"""Where things are built and joined: the only place that knows every part."""

import asyncio
import resource
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
import uvicorn
from fastapi import FastAPI
from uuid_utils.compat import uuid7

from roomtape.capture.segments import Segments
from roomtape.core.errors import BadInput, NotFound, RoomtapeError, Unavailable
from roomtape.core.keys import DEFAULT_TENANT
from roomtape.db import jobs, ledger, people
from roomtape.db.database import Database
from roomtape.db.outbox import Listener
from roomtape.library.catalog import when
from roomtape.library.export import export as write_folder
from roomtape.library.janitor import Janitor
from roomtape.media.refusal import MediaError
from roomtape.media.runner import Runner
from roomtape.pipeline.advance import Bench
from roomtape.recorder import EVERY_S, Watch
from roomtape.settings import Settings
from roomtape.storage import store as stores
from roomtape.storage.disk import Disk
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.supervisor import listen
from roomtape.tapes.layouts import Layouts
from roomtape.tapes.whole import Ropes
from roomtape.web.protocol import RopeProtocol
from roomtape.web.services import Services
from roomtape.web.site import around, site
from roomtape.web.tokens import TokenJudge
from roomtape.worker import every, register, spool_mover
from roomtape.worker import work as work_on

log = structlog.get_logger()

Ready = Callable[[str | None], None]  # called once, when a part does its work; with its URL, if it has one
_PORT_FILE = "port"
_GRACE_S = 5
_FILES = 16_384
_WARM_S = 5.0
_ENDLESS = "/api/v1/events"


def now_us() -> int:
    """The server's clock."""
    return time.time_ns() // 1000


def _database(settings: Settings) -> Database:
    assert settings.database_url is not None
    return Database(settings.database_url.get_secret_value())


def _store(settings: Settings) -> SpooledStore:
    assert settings.storage_url is not None
    primary = stores.open_store(
        settings.storage_url,
        access_key_id=settings.aws_access_key_id,
        secret_access_key=settings.aws_secret_access_key.get_secret_value(),
        session_token=settings.aws_session_token.get_secret_value(),
        endpoint=settings.aws_endpoint_url,
        region=settings.aws_region,
        scratch=_work_folder(settings),  # the system's /tmp may be small, or memory
    )
    if isinstance(primary, LocalStore):
        return SpooledStore(primary)
    return SpooledStore(primary, stores.open_folder(settings.spool.absolute().as_uri()))


async def check_storage(settings: Settings) -> None:
    """Refused where the configured store cannot be the right one. One that is only away is waited for: what comes meanwhile is kept in the spool."""
    store = _store(settings)
    try:
        await stores.check(store.primary)
    except Unavailable as wrong:
        log.warning("storage.away", why=wrong.message)
    finally:
        await store.close()


@asynccontextmanager
async def _beside(look: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs something while the block does; at its end it is given up."""
    task = asyncio.create_task(look)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _look_at(store: SpooledStore) -> None:
    """Says at the start of a part what is wrong with the store. It goes on all the same: what was refused yesterday may be a key that is just being renewed."""
    if store.spool is None:
        return  # a folder has shown itself when it was opened
    try:
        await stores.check(store.primary)
    except RoomtapeError as wrong:
        store.trouble = wrong.code
        log.warning("storage.troubled", code=wrong.code, why=wrong.message)


def _work_folder(settings: Settings) -> Path:
    folder = settings.data / "work"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@asynccontextmanager
async def _bench(settings: Settings) -> AsyncIterator[Bench]:
    """What steps work with, opened."""
    database, store = _database(settings), _store(settings)
    conninfo = database.conninfo
    async with AsyncExitStack() as stack:
        await database.open()
        stack.push_async_callback(database.close)
        stack.push_async_callback(store.close)
        runner = await stack.enter_async_context(Runner(allow_unsandboxed=settings.allow_unsandboxed, ffmpeg=settings.ffmpeg, warm=1))
        layouts = Layouts(database, wait_s=settings.live_wait_s, now_us=now_us)
        queue = jobs.queue_app(conninfo, heartbeat_s=settings.heartbeat_s)
        yield Bench(database, store, layouts, Ropes(), runner, queue, _work_folder(settings), store.host())


class _Server(uvicorn.Server):
    """Ends quietly: streams of events, which have no end, at once; who is still there after the grace, as if he had gone."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, RopeProtocol) and connection.cycle is not None and connection.cycle.scope["path"] == _ENDLESS:
                connection.transport.close()
        cut = asyncio.get_running_loop().call_later(_GRACE_S, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _open_more_files() -> None:
    """As many as we may: each reader and sender is a file, and what a login shell gives, 1024, is less than a thousand of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(settings: Settings, fd: int | None, ready: Ready) -> None:
    """The API and the pages, until SIGTERM; `ready` is called with their URL when they answer."""
    _open_more_files()
    sock = socket.socket(fileno=fd) if fd is not None else listen(settings.host, settings.port)
    config = uvicorn.Config(
        around(_application(settings, lambda: ready(_url(sock)))),
        http=RopeProtocol,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2 * _GRACE_S,  # _Server ends connections before
        limit_concurrency=4000,
        lifespan="on",
    )
    (settings.data / _PORT_FILE).write_text(str(sock.getsockname()[1]))
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)  # uvicorn sets its own, and when it is done raises again what it caught, which would end us with -15 instead of 0
    try:
        _Server(config).run(sockets=[sock])
    except SystemExit as ended:  # its code for a start that failed is 3, which is ours for a refusal
        raise SystemExit(1) from ended


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _application(settings: Settings, ready: Callable[[], None]) -> FastAPI:
    """The web application; what it needs is opened when it starts."""
    judge = TokenJudge(settings)
    database, store = _database(settings), _store(settings)
    queue = jobs.queue_app(database.conninfo)
    layouts = Layouts(database, wait_s=settings.live_wait_s, now_us=now_us)
    segments = Segments(database, store, host=store.host(), limit_bytes=settings.max_segment_bytes, reserve_bytes=settings.reserve_bytes, now_us=now_us)
    listener = Listener(database.conninfo)
    services = Services(settings, database, store, _disk(store, settings), segments, layouts, judge, queue, listener, Ropes())
    app = site(services)
    bench = Bench(database, store, layouts, services.ropes, Runner(allow_unsandboxed=settings.allow_unsandboxed), queue, settings.data, store.host())
    register(bench)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await database.open()
            stack.push_async_callback(database.close)
            stack.push_async_callback(store.close)
            await stack.enter_async_context(jobs.opened(queue))
            await stack.enter_async_context(listener.listening())
            await stack.enter_async_context(spool_mover(bench, Janitor(database, store, trash_days=settings.trash_days)))
            await stack.enter_async_context(_beside(_look_at(store)))
            await stack.enter_async_context(_beside(every(_WARM_S, "warm", layouts.warm)))
            app.state.sandbox = await _level(bench.runner)
            ready()
            yield

    app.router.lifespan_context = lifespan
    return app


def _disk(store: SpooledStore, settings: Settings) -> Disk:
    """The disk that takes uploads; what is wrong with it now is said, and does not keep us from serving what is there."""
    taking = store.spool or store.primary
    assert isinstance(taking, LocalStore)
    disk = Disk(store, taking.folder.root, settings.reserve_bytes)
    if wrong := disk.trouble():
        log.warning("storage.refuses", folder=str(disk.folder), code=wrong.code, why=wrong.message, **wrong.facts)
    return disk


async def _level(runner: Runner) -> dict[str, Any] | None:
    """How decoders are locked in here, for /healthz; None: not at all, and media is refused."""
    try:
        return asdict(await runner.level())
    except MediaError:
        return None


async def work(settings: Settings, ready: Ready) -> None:
    """A worker, until SIGTERM."""
    async with _bench(settings) as bench:
        register(bench)
        janitor = Janitor(bench.database, bench.store, trash_days=settings.trash_days)
        await _until_told(work_on(bench, janitor, settings.heartbeat_s, lambda: ready(None)))


async def record(settings: Settings, ready: Ready) -> None:
    """The recorder, until SIGTERM."""
    async with _bench(settings) as bench:
        watch = Watch(bench.database, bench.store, bench.layouts, bench.runner, bench.work)
        await _until_told(_watching(watch, ready))


async def _watching(watch: Watch, ready: Ready) -> None:
    await watch.database.ping()
    ready(None)
    await every(EVERY_S, "watch", watch.look)


async def _until_told(work_of: Awaitable[None]) -> None:
    """Runs it until it ends, or SIGTERM or SIGINT come: then it is cancelled and cleans up."""
    task = asyncio.ensure_future(work_of)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


async def login_link(settings: Settings, user: str) -> str:
    """A one-time token for the login page; the user `admin` is the administrator."""
    token = secrets.token_urlsafe(32)
    async with _opened(settings) as database, database.transaction() as connection:
        roles = ("admin",) if user == "admin" else ()
        await people.create_login_link(connection, DEFAULT_TENANT, token, user, roles=roles)
    return token


def running_port(settings: Settings) -> int:
    """The port of the `serve` that runs on this data folder, else the configured one."""
    try:
        return int((settings.data / _PORT_FILE).read_text())
    except (OSError, ValueError):
        return settings.port


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Database]:
    database = _database(settings)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def export(settings: Settings, recording_id: str, folder: Path) -> dict[str, Any]:
    """Writes a recording out as a folder. NotFound for an unknown id."""
    try:
        name = UUID(recording_id)
    except ValueError as wrong:
        raise NotFound(f"{recording_id!r} is no id of a recording.") from wrong
    store = _store(settings)
    async with _opened(settings) as database, AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        async with database.transaction() as connection:
            recording = await ledger.get_recording(connection, DEFAULT_TENANT, name)
        if recording is None or recording.deleted_at is not None:
            raise NotFound(f"There is no recording {recording_id}.")
        tape = await Layouts(database, wait_s=settings.live_wait_s, now_us=now_us).tape(recording)
        return await write_folder(database, store, tape, folder)


async def create_key(settings: Settings, name: str, role: str, user: str | None) -> dict[str, Any]:
    """A new API key; the secret is in the answer and nowhere else."""
    secret = "rt_" + secrets.token_urlsafe(32)
    async with _opened(settings) as database, database.transaction() as connection:
        key = await people.create_key(connection, DEFAULT_TENANT, uuid7(), secret, name=name, role=role, user_id=user)
    return {"id": str(key.id), "name": key.name, "role": key.role, "user_id": key.user_id, "key": secret}


async def list_keys(settings: Settings) -> list[dict[str, Any]]:
    """All keys without their secrets."""
    async with _opened(settings) as database, database.transaction() as connection:
        found = await people.list_keys(connection, DEFAULT_TENANT)
    return [
        {
            "id": str(key.id),
            "name": key.name,
            "role": key.role,
            "user_id": key.user_id,
            "created_at": when(key.created_at),
            "last_used_at": when(key.last_used_at),
            "revoked_at": when(key.revoked_at),
        }
        for key in found
    ]


async def revoke_key(settings: Settings, key_id: str) -> None:
    """Ends a key. BadInput for what is no id, NotFound for an unknown one."""
    try:
        name = UUID(key_id)
    except ValueError as wrong:
        raise BadInput(f"{key_id!r} is no id of a key: `roomtape keys list` shows them.") from wrong
    async with _opened(settings) as database, database.transaction() as connection:
        await people.revoke_key(connection, DEFAULT_TENANT, name)
