"""The command line: parse, call one function, print; exit codes 0 done, 1 failed, 2 wrong usage, 3 refused."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from pydantic import SecretStr

from roomtape import app as parts
from roomtape import logs, supervisor
from roomtape.core.errors import Refused, RoomtapeError
from roomtape.db import schema
from roomtape.db.embedded import EmbeddedPostgres, running_url
from roomtape.db.reach import reach
from roomtape.settings import Settings, load, unknown

log = structlog.get_logger()

FAILED, REFUSED = 1, 3

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="A self-hosted meeting recorder.")
keys_cli = typer.Typer(no_args_is_help=True, help="API keys for programs.")
cli.add_typer(keys_cli, name="keys")

Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any free one [8470]")]
Data = Annotated[Path | None, typer.Option(help="Folder of all data [./roomtape-data]")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else")]
_LONGEST_USER = 200
Fd = Annotated[int | None, typer.Option(hidden=True)]


@cli.command()
def up(host: Host = None, port: Port = None, data: Data = None, *, as_json: Json = False) -> None:
    """All in one: database, API, pages, recorder and worker; ends with a one-time login link."""
    settings = _prepared(host=host, port=port, data=data)
    if settings.storage_url is not None:
        asyncio.run(parts.check_storage(settings))
    sock = supervisor.listen(settings.host, settings.port)
    database = EmbeddedPostgres(settings.data / "database") if settings.database_url is None else None
    whole = supervisor.Supervisor({}, sock, database)
    supervisor.on_signals(whole)
    try:
        if database is not None:
            database.start()
        whole.environment = _environment(settings, database)
        settings = settings if database is None else _on(settings, database.url())
        schema.migrate(_url(settings))
        whole.start()
        whole.ready()
        if not whole.ending:
            link = _link(settings, sock.getsockname()[1], asyncio.run(parts.login_link(settings, "admin")))
            _say({"url": link}, f"Roomtape is ready: {link}", as_json=as_json)
        whole.run()
    finally:
        whole.end()
        if database is not None:
            database.stop()


def _environment(settings: Settings, database: EmbeddedPostgres | None) -> dict[str, str]:
    """What the parts need beyond the operator's own environment."""
    said = {"ROOMTAPE_DATA": str(settings.data), "ROOMTAPE_HOST": settings.host, "ROOMTAPE_PORT": str(settings.port)}
    if database is not None:
        said["ROOMTAPE_DATABASE_URL"] = database.url()
    if settings.storage_url is None:
        said["ROOMTAPE_STORAGE_URL"] = (settings.data / "store").as_uri()
    typos = unknown(os.environ)  # `up` has said it
    return {**{name: value for name, value in os.environ.items() if name not in typos}, **said}


def _beside(settings: Settings) -> Settings:
    """Settings for commands that run beside a running `up` with the same data folder."""
    if settings.database_url is not None:
        _url(settings)
        return settings
    return _on(settings, running_url(settings.data.expanduser().absolute() / "database"))


def _on(settings: Settings, url: str | None) -> Settings:
    if url is None:
        raise Refused(f"No Roomtape is running on {settings.data}: start `roomtape up` there, or name its folder with --data.", code="not_running")
    return settings.model_copy(update={"database_url": SecretStr(url)})


def _url(settings: Settings) -> str:
    """The URL of a database that answers."""
    if settings.database_url is None:
        raise Refused("ROOMTAPE_DATABASE_URL is missing: name a PostgreSQL (15 or newer), or use `roomtape up`, which brings its own.", code="no_database")
    url = settings.database_url.get_secret_value()
    reach(url)
    return url


def _link(settings: Settings, port: int, token: str) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{settings.url or f'http://{host}:{port}'}/login?token={token}"


@cli.command()
def serve(host: Host = None, port: Port = None, data: Data = None, fd: Fd = None, *, as_json: Json = False) -> None:
    """The API and the pages, on ROOMTAPE_DATABASE_URL and ROOMTAPE_STORAGE_URL."""
    settings = _part(host=host, port=port, data=data)
    parts.serve(settings, fd, _ready("Roomtape serves at {url}", as_json=as_json))


@cli.command()
def work(data: Data = None, *, as_json: Json = False) -> None:
    """A worker: makes what is missing of recordings. Run as many as you like."""
    asyncio.run(parts.work(_part(data=data), _ready("Roomtape works", as_json=as_json)))


@cli.command()
def record(data: Data = None, *, as_json: Json = False) -> None:
    """The recorder: holds live captures and judges the health of what is being recorded."""
    asyncio.run(parts.record(_part(data=data), _ready("Roomtape records", as_json=as_json)))


def _ready(sentence: str, *, as_json: bool) -> parts.Ready:
    """Says that a part does its work."""

    def say(url: str | None) -> None:
        _say({"ready": True} | ({"url": url} if url else {}), sentence.format(url=url), as_json=as_json)

    return say


def _prepared(**said: Any) -> Settings:
    """The settings of what runs for long, with its data folder made."""
    settings = load(**said)
    settings = settings.model_copy(update={"data": settings.data.expanduser().absolute()})
    supervisor.prepare(settings.data)
    for name, why in unknown(os.environ).items():
        log.warning("setting.unknown", name=name, why=why)
    return settings


def _part(**said: Any) -> Settings:
    settings = _prepared(**said)
    if settings.storage_url is None:
        raise Refused("ROOMTAPE_STORAGE_URL is missing: file:///folder or s3://bucket/prefix?endpoint=…", code="no_storage")
    schema.migrate(_url(settings))
    return settings


@cli.command()
def login(user: Annotated[str, typer.Option(help="User id to sign in as")] = "admin", port: Port = None, data: Data = None, *, as_json: Json = False) -> None:
    """A new one-time login link, beside a running `up`."""
    settings = _beside(load(port=port, data=data))
    token = _run(parts.login_link(settings, _user(user)))
    link = _link(settings, parts.running_port(settings), token)
    _say({"url": link}, link, as_json=as_json)


@cli.command()
def export(
    recording: Annotated[str, typer.Argument(help="The recording's id")],
    path: Annotated[Path, typer.Argument(help="A folder to be made")],
    data: Data = None,
    *,
    as_json: Json = False,
) -> None:
    """A recording as a folder: manifest.json, chunks, artifacts."""
    settings = load(data=data)
    settings = settings.model_copy(update={"data": settings.data.expanduser().absolute()})
    if settings.storage_url is None:
        settings = settings.model_copy(update={"storage_url": (settings.data / "store").as_uri()})
    manifest = _run(parts.export(_beside(settings), recording, path))
    _say({"path": str(path), "chunks": len(manifest["chunks"]), "artifacts": manifest["artifacts"]}, f"Exported to {path}.", as_json=as_json)


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for")],
    role: Annotated[str, typer.Option(help="admin, service or user")] = ...,  # type: ignore[assignment]
    user: Annotated[str | None, typer.Option(help="Whom a `user` key stands for")] = None,
    data: Data = None,
    *,
    as_json: Json = False,
) -> None:
    """Makes a key and prints it: once, it is stored as a hash."""
    if role not in {"admin", "service", "user"}:
        raise typer.BadParameter("the role is admin, service or user", param_hint="--role")
    if role == "user" and not user:
        raise typer.BadParameter("a key of role `user` needs --user ID", param_hint="--user")
    if role != "user" and user is not None:
        raise typer.BadParameter("only a key of role `user` stands for somebody; a service names its user in the header Roomtape-User", param_hint="--user")
    if not name.strip():
        raise typer.BadParameter("say what the key is for", param_hint="NAME")
    made = _run(parts.create_key(_beside(load(data=data)), name, role, _user(user) if user is not None else None))
    _say(made, made["key"], as_json=as_json)


@keys_cli.command("list")
def list_keys(data: Data = None, *, as_json: Json = False) -> None:
    """All keys, without their secrets."""
    found = _run(parts.list_keys(_beside(load(data=data))))
    lines = [f"{key['id']}  {key['role']:8}{key['user_id'] or '':20}{key['name']}{'  (revoked)' if key['revoked_at'] else ''}" for key in found]
    _say(found, "\n".join(lines) or "There is no key yet: roomtape keys create NAME --role admin", as_json=as_json)


@keys_cli.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows")], data: Data = None, *, as_json: Json = False) -> None:
    """Ends a key at once."""
    _run(parts.revoke_key(_beside(load(data=data)), key_id))
    _say({"id": key_id, "revoked": True}, f"Revoked {key_id}.", as_json=as_json)


def _user(name: str) -> str:
    """A user id as the API takes it."""
    if not 0 < len(name.strip()) <= _LONGEST_USER:
        raise typer.BadParameter(f"a user id has 1 to {_LONGEST_USER} characters", param_hint="--user")
    return name


def _run(work_of: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work_of)


def _say(document: Any, text: str, *, as_json: bool) -> None:
    print(json.dumps(document) if as_json else text, flush=True)  # noqa: T201  (this is the command line)


def main() -> None:
    """Runs a command; an error is one sentence on stderr and an exit code."""
    logs.configure()
    try:
        cli()
    except Refused as wrong:
        print(f"roomtape: {wrong.message}", file=sys.stderr)  # noqa: T201
        sys.exit(REFUSED)
    except RoomtapeError as wrong:
        print(f"roomtape: {wrong.message}", file=sys.stderr)  # noqa: T201
        sys.exit(FAILED)
