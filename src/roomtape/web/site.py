"""The web application: all routers, pages, and what stands around every answer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.types import ASGIApp

from roomtape import __version__
from roomtape.core.access import Standing, Subject
from roomtape.core.errors import Forbidden, NotFound, NotSignedIn
from roomtape.db import access
from roomtape.web import envelope, events, idempotency, identity, lane, media, meetings, operations, pages, problems, recordings, segmented
from roomtape.web.route import PROBLEM
from roomtape.web.services import Of, Services
from roomtape.web.views import whole

log = structlog.get_logger()

_PAGE = 50

# Only for the API's description: identity.subject_of decides.
bearer = HTTPBearer(auto_error=False, description="An API key (`rt_…`) or a token of the host application")
session_cookie = APIKeyCookie(name=identity.COOKIE, auto_error=False, description="A signed-in person; writes carry `X-CSRF-Token`")

sessions = APIRouter(include_in_schema=False)


@sessions.post("/login")
async def post_login(request: Request, services: Of, token: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/") -> Response:  # noqa: A002
    """Uses a one-time link."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("Sign in from Roomtape's own page.", code="csrf")  # nobody is signed in as somebody else from afar
    target = next if next.startswith("/") and not next.startswith(("//", "/\\")) else "/"
    response: Response = RedirectResponse(target, 303, headers=pages.HEADERS)
    try:
        await identity.sign_in(services, token.strip(), response, secure=(services.settings.url or str(request.url)).startswith("https:"))
    except NotSignedIn as wrong:
        return await pages.login_page(request, refused=wrong.message)
    return response


@sessions.post("/logout")
async def post_logout(request: Request, services: Of, csrf_token: Annotated[str, Form()] = "") -> Response:
    """Ends the session."""
    session = await identity.session_of(request, services)
    ours = request.headers.get("sec-fetch-site") == "same-origin"  # a page that was left open while somebody else signed in has an old token
    if session is not None and session.csrf != csrf_token and not ours:
        raise Forbidden("The page is out of date: reload it and try again.", code="csrf")
    response = RedirectResponse("/login", 303, headers=pages.HEADERS)
    await identity.sign_out(request, services, response)
    return response


class Pages:
    """What the pages ask for (pages.PageServices)."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def current_subject(self, request: Request) -> Subject | None:
        session = await identity.session_of(request, self._services)
        if session is None:
            return None
        return Subject(Standing.ADMIN if "admin" in session.roles else Standing.USER, session.user_id, session.tenant_id)

    async def csrf_token(self, request: Request) -> str:
        session = await identity.session_of(request, self._services)
        return session.csrf if session else ""

    async def library_rows(self, subject: Subject, cursor: str | None) -> tuple[Sequence[Mapping[str, Any]], str | None]:
        view = await recordings.page_of(self._services, subject, access.Wanted(), limit=_PAGE, cursor=cursor)
        return view["recordings"], view["next_cursor"]

    async def recording_view(self, subject: Subject, recording_id: str) -> Mapping[str, Any]:
        try:
            name = UUID(recording_id)
        except ValueError as wrong:
            raise NotFound from wrong
        return await whole(self._services, subject, name, deleted=True)


class Site(FastAPI):
    """FastAPI lays a described answer (shapes.py) over the route's own, which says only that it is an object."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for route in (route for methods in document["paths"].values() for route in methods.values()):
            for answer in route["responses"].values():
                for content in answer.get("content", {}).values():
                    if "$ref" in content["schema"]:
                        content["schema"] = {"$ref": content["schema"]["$ref"]}
        return document


def site(services: Services) -> FastAPI:
    """The application on these services."""
    app = Site(
        title="Roomtape",
        version=__version__,
        description="One recording service for every meeting stack.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.state.pages = Pages(services)
    problems.install(app)
    app.add_middleware(idempotency.Idempotency)
    app.add_middleware(envelope.Envelope)
    api = APIRouter(prefix="/api/v1")
    for router in (segmented.router, meetings.router, recordings.router, media.router, media.by_token, events.router):
        api.include_router(router)
    app.include_router(api, responses=PROBLEM, dependencies=[Depends(bearer), Depends(session_cookie)])
    app.include_router(media.by_token, prefix="/api/v1/p/{token}", include_in_schema=False)  # URLs that playback hands out; nobody builds them
    app.include_router(operations.router)
    app.include_router(sessions)
    app.include_router(pages.router)
    app.mount("/static", pages.static, name="static")
    return app


def around(app: ASGIApp) -> ASGIApp:
    """What stands outside of the application: ranges that were just found go past all of it."""
    return operations.Measured(lane.FastLane(app))
