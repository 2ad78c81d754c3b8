"""What operators look at: health, readiness, metrics, and the reference of the API."""

import asyncio
import time
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roomtape import __version__
from roomtape.core.access import Standing
from roomtape.core.errors import Forbidden, NotSignedIn, RoomtapeError
from roomtape.db import ledger
from roomtape.web import pages, problems, shapes
from roomtape.web.identity import Asker
from roomtape.web.route import of
from roomtape.web.services import Of

router = APIRouter(tags=["operations"])

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REGISTRY = CollectorRegistry()
_REQUESTS = Counter("roomtape_requests_total", "Requests answered", ["method", "status"], registry=REGISTRY)
_SECONDS = Histogram("roomtape_request_seconds", "Until the answer's head was sent", ["method"], registry=REGISTRY)
_RECORDINGS = Gauge("roomtape_recordings", "Recordings by status", ["status"], registry=REGISTRY)
_SPOOL = Gauge("roomtape_store_trouble", "1 while the store fails and uploads wait in the spool", registry=REGISTRY)
_FREE = Gauge("roomtape_free_bytes", "Room on the disk that takes uploads", registry=REGISTRY)


@lru_cache(1024)
def _counted(method: str, status: int) -> tuple[Counter, Histogram]:
    """The series of such answers; a method nobody knows has no series of its own, for anybody can send any word."""
    known = method if method in _METHODS else "other"
    return _REQUESTS.labels(known, status), _SECONDS.labels(known)


class Measured:
    """ASGI middleware: counts answers and times their heads."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count, seconds = _counted(scope["method"], message["status"])
                count.inc()
                seconds.observe(time.perf_counter() - begun)
            await send(message)

        await self.app(scope, receive, counted)


@router.get("/healthz", responses=shapes.says(shapes.ServiceHealth))
async def get_health(request: Request, services: Of) -> JSONResponse:
    """Whether this process lives, what troubles it (first what uploads are refused for), and how decoders are locked in."""
    refused = await asyncio.to_thread(services.disk.trouble)
    trouble = refused.code if refused else services.store.trouble
    view = {"status": "degraded" if trouble else "ok", "storage": trouble or "ok", "version": __version__}
    return JSONResponse({**view, "sandbox": getattr(request.app.state, "sandbox", None)})


@router.get("/readyz", responses=shapes.says(shapes.Ready))
async def get_readiness(services: Of) -> JSONResponse:
    """Whether requests can be answered: the database does."""
    try:
        await services.database.ping()
    except RoomtapeError as wrong:
        return problems.problem(503, wrong.code, wrong.message, retry_after_s=2)
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response, responses=of("text/plain"))
async def get_metrics(services: Of, subject: Asker) -> Response:
    """Numbers for Prometheus; with an admin's key, for they tell how busy an organisation is."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    if subject.standing is not Standing.ADMIN:
        raise Forbidden
    async with services.database.transaction() as connection:
        for status, count in (await ledger.count_by_status(connection)).items():
            _RECORDINGS.labels(status).set(count)
    _SPOOL.set(1 if services.store.trouble else 0)
    _FREE.set(services.store.free_bytes())
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
async def get_docs(request: Request) -> HTMLResponse:
    """The API, route by route, from the OpenAPI document; no script, nothing from elsewhere."""
    document = request.app.openapi()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            groups.setdefault((route.get("tags") or ["other"])[0], []).append({"path": path, "method": method.upper(), **route})
    return await pages.page(request, "docs.html", groups=groups, version=document["info"]["version"])
