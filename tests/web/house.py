"""A Roomtape as it runs in production: `serve` and `work` as processes of their own, on a real PostgreSQL and a folder."""

import asyncio
import contextlib
import ctypes
import functools
import hashlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
from joserfc import jwt
from joserfc.jwk import OctKey
from pydantic import BaseModel, SecretStr, ValidationError

from roomtape import app
from roomtape.settings import Settings
from roomtape.testing.servers import free_port
from roomtape.web.site import site

CHROMIUM = Path(__file__).parents[1] / "data" / "chromium"
SECRET = "a secret that only the host application knows"
AUDIENCE, ISSUER = "https://roomtape.test", "https://host.test"
MAX_SEGMENT_BYTES = 300_000
READY_S = 60
LIMIT_S = 60  # for whatever a test waits for

_TLS = ssl.create_default_context()  # made once: each costs 30 ms, and nothing here uses it

Json = dict[str, Any]


def until(found: Callable[[], Any], what: str) -> Any:
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.03)
    raise AssertionError(f"it did not come: {what}")


def segments(name: str = "A-opus") -> list[bytes]:
    """The segments of a real Chromium, in order."""
    return [path.read_bytes() for path in sorted((CHROMIUM / name).glob("0*"))]


def token(sub: str | None = "jo", *, key: Any = None, alg: str = "HS256", header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    """A token of the host application; a claim that is None is left out."""
    whole = {"sub": sub, "aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 86_400, **claims}
    said = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode({"alg": alg, **(header or {})}, said, key or OctKey.import_key(SECRET), algorithms=[alg])


@dataclass
class Taken:
    """A recording that somebody began."""

    meeting_id: str
    id: str
    track_id: str
    host: str


@functools.cache
def routes() -> list[Any]:
    """Every route of the application as FastAPI serves it: path, methods, responses."""
    return [route for router in site(None).routes if hasattr(router, "effective_route_contexts") for route in router.effective_route_contexts()]  # type: ignore[arg-type]


def as_described(answer: httpx2.Response) -> None:
    """Every JSON that a test gets is what the API's description says of its route."""
    kind = answer.headers.get("content-type", "")
    if answer.is_error or kind != "application/json" or answer.url.path == "/api/v1/openapi.json":
        return
    answer.read()
    method = answer.request.method
    route = next(route for route in routes() if method in route.methods and route.path_regex.fullmatch(answer.url.path))
    shape: type[BaseModel] = route.responses[answer.status_code]["model"]
    try:
        shape.model_validate_json(answer.content, strict=True)
    except ValidationError as wrong:
        raise AssertionError(f"{method} {answer.url.path} does not answer as described: {wrong}\n{answer.text[:2000]}") from wrong


@dataclass
class House:
    """Where it listens, and what a test may look into."""

    url: str
    database_url: str
    store: Path
    log: Path
    data: Path
    keys: dict[tuple[str, str | None], str] = field(default_factory=dict)

    def key(self, role: str = "admin", user: str | None = None) -> str:
        """An API key; the same one for the same words."""
        if (role, user) not in self.keys:
            self.keys[role, user] = self.fresh_key(role, user)["key"]
        return self.keys[role, user]

    def fresh_key(self, role: str, user: str | None = None) -> Json:
        return asyncio.run(app.create_key(self.settings, f"{role} {user}", role, user))

    @property
    def settings(self) -> Settings:
        return Settings(database_url=SecretStr(self.database_url), data=self.data)

    def revoke(self, key_id: str) -> None:
        asyncio.run(app.revoke_key(self.settings, key_id))

    def login_token(self, user: str) -> str:
        return asyncio.run(app.login_link(self.settings, user))

    def client(self, bearer: str | None = None, *, user: str | None = None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        hooks: dict[str, list[Any]] = {"response": [as_described]}
        return httpx2.Client(
            base_url=self.url, headers=headers | ({"roomtape-user": user} if user else {}), timeout=30, trust_env=False, verify=_TLS, event_hooks=hooks
        )

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Looks into the database, or puts something there that no route can."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []


def begin(client: httpx2.Client, user: str, **said: Any) -> Taken:
    """Starts a recording of a fresh meeting as a browser does."""
    answer = client.post("/api/v1/meetings/start-recording", json={"userId": user, **said})
    assert answer.status_code in {200, 201}, answer.text
    body = answer.json()
    return Taken(body["meetingId"], body["recordingId"], body["trackId"], user)


def upload(client: httpx2.Client, taken: Taken, index: int, body: bytes, **said: Any) -> httpx2.Response:
    query = {"meetingId": taken.meeting_id, "recordingId": taken.id, "trackId": taken.track_id, "segmentIndex": index, **said}
    return client.post("/api/v1/meetings/upload-segment", params={name: value for name, value in query.items() if value is not None}, content=body)


def fill(client: httpx2.Client, taken: Taken, bodies: list[bytes]) -> None:
    now_ms = time.time() * 1000
    for index, body in enumerate(bodies, 1):
        answer = upload(client, taken, index, body, sha256=hashlib.sha256(body).hexdigest(), startedAt=round(now_ms), clockOffsetUs=0)
        assert answer.status_code == 201, answer.text


def complete(client: httpx2.Client, taken: Taken, **said: Any) -> httpx2.Response:
    return client.post("/api/v1/meetings/complete-recording", json={"meetingId": taken.meeting_id, "recordingId": taken.id, **said})


def completed(client: httpx2.Client, taken: Taken) -> Json:
    """The recording, once the pipeline is done with it."""
    assert complete(client, taken).status_code == 202
    path = f"/api/v1/recordings/{taken.id}"
    until(lambda: client.get(f"{path}/status").json()["status"] in {"completed", "failed"}, "the end of processing")
    found: Json = client.get(path).json()
    return found


def name(prefix: str = "u") -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid4().hex[:10]}"


@contextlib.contextmanager
def serving(folder: Path, database_url: str, *, worker: bool = True, **more: str) -> Iterator[House]:
    """`roomtape serve`, and `work`, until the block ends."""
    port = free_port()
    store, log = folder / "store", folder / "log"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ROOMTAPE_")}
    environment = plain | {
        "ROOMTAPE_DATABASE_URL": database_url,
        "ROOMTAPE_STORAGE_URL": store.as_uri(),
        "ROOMTAPE_RESERVE_BYTES": "0",
        "ROOMTAPE_MAX_SEGMENT_BYTES": str(MAX_SEGMENT_BYTES),
        "ROOMTAPE_JWT_AUDIENCE": AUDIENCE,
        "ROOMTAPE_JWT_ISSUER": ISSUER,
        "TMPDIR": str(folder / "tmp"),
        **more,
    }
    (folder / "tmp").mkdir()
    commands = [["serve", "--port", str(port), "--data", str(folder / "data")]] + ([["work", "--data", str(folder / "data")]] if worker else [])
    with log.open("wb") as out:
        children = [
            subprocess.Popen([sys.executable, "-m", "roomtape", *command], env=environment, stdout=out, stderr=out, preexec_fn=_die_with_us)  # noqa: PLW1509  (one thread here)
            for command in commands
        ]
        try:
            house = House(f"http://127.0.0.1:{port}", database_url, store, log, folder / "data")
            _ready(house, children)
            yield house
        finally:
            for child in children:
                child.send_signal(signal.SIGTERM)
            for child in children:
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a test run that is killed leaves nothing behind


def _ready(house: House, children: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        assert all(child.poll() is None for child in children), house.log.read_text()
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{house.url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(house.log.read_text())
