"""The plain pages: they render what the services say and hold no rule, so that the API and the pages can never differ."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from starlette.staticfiles import StaticFiles

from roomtape.core.access import MeetingFacts, RecordingFacts, Role, Subject, Verb, Visibility, may
from roomtape.core.errors import Forbidden, NotFound, NotSignedIn, RoomtapeError

HERE = Path(__file__).parent
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; font-src 'self'; "
    "worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "Cache-Control": "no-store",  # a page shows who is signed in
    "Referrer-Policy": "no-referrer",  # /login?token=… must not travel on
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "camera=(self), microphone=(self), display-capture=(self)",
}


NEXT = "roomtape_next"  # a cookie: the page that somebody wanted before signing in
NEXT_FOR_S = 900


class PageServices(Protocol):
    """What the pages ask for; `app.state.pages` is one. Recordings come as the API's own JSON."""

    async def current_subject(self, request: Request) -> Subject | None:
        """Who is signed in by cookie; None: nobody."""

    async def csrf_token(self, request: Request) -> str:
        """The token that the session's writes must carry in `X-CSRF-Token`, or as the form field `csrf_token`."""

    async def library_rows(self, subject: Subject, cursor: str | None) -> tuple[Sequence[Mapping[str, Any]], str | None]:
        """One page of what the subject may see, newest first, and the cursor of the next page."""

    async def recording_view(self, subject: Subject, recording_id: str) -> Mapping[str, Any]:
        """Everything about one recording, a deleted one too while it can be brought back. NotFound, Forbidden."""


class RevalidatedFiles(StaticFiles):
    """Files whose names stay while their bytes change with a release: browsers ask each time and mostly hear 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


router = APIRouter(include_in_schema=False)
static = RevalidatedFiles(directory=HERE / "static")  # to be mounted at /static
templates = Jinja2Templates(HERE / "templates")


def clock(seconds: float | None) -> str:
    """84 -> 1:24, 3753 -> 1:02:33; never rounded up. None: a dash."""
    if seconds is None:
        return "–"
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """How long, in words: 0.25 -> 250 ms, 8 -> 8 s, 84 -> 1:24."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 60 else clock(seconds)


def size(count: float | None) -> str:
    """1234567 -> 1.2 MB. None: a dash."""
    if count is None:
        return "–"
    for unit, base in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= base:
            return f"{count / base:.1f} {unit}" if count < 10 * base else f"{count / base:.0f} {unit}"
    return f"{count:.0f} B"


def when(moment: str | None) -> str:
    """An RFC 3339 time for people, UTC; the page's script puts it into the reader's own zone. None: a dash."""
    return datetime.fromisoformat(moment).strftime("%-d %B %Y, %H:%M UTC") if moment else "–"


def came_s(recording: Mapping[str, Any]) -> float | None:
    """Seconds of a recording: measured, else the time over which its pieces came; None: not known."""
    started, last = recording["started_at"], recording["last_byte_at"]
    if recording["duration_s"] is not None or not (started and last):
        found: float | None = recording["duration_s"]
        return found
    return (datetime.fromisoformat(last) - datetime.fromisoformat(started)).total_seconds()


templates.env.filters.update(clock=clock, span=span, size=size, when=when, came_s=came_s)
templates.env.trim_blocks = templates.env.lstrip_blocks = True


async def page(request: Request, name: str, *, subject: Subject | None = None, status: int = 200, **facts: Any) -> HTMLResponse:
    """One page with the headers every page has."""
    services: PageServices = request.app.state.pages
    token = await services.csrf_token(request) if subject else ""
    context = {"subject": subject, "csrf_token": token, **facts}
    return templates.TemplateResponse(request, name, context, status_code=status, headers=HEADERS)


async def login_page(request: Request, *, token: str = "", refused: str = "", target: str = "") -> HTMLResponse:
    """The way in: one button that posts the link's token. `refused`: why the last one was not taken; `target`: the page to come to."""
    return await page(request, "login.html", status=401 if refused else 200, token=token, refused=refused, next=target)


async def refused(request: Request, status: int, sentence: str) -> HTMLResponse:
    """What a person sees who followed a link to nothing, or to what is not for them."""
    title = "Not found" if status == HTTPStatus.NOT_FOUND else "Not possible"
    try:
        subject = await _subject(request)
        return await page(request, "refused.html", subject=subject, status=status, sentence=sentence, heading=title)
    except RoomtapeError:  # what is wrong may be the database, which knows who is signed in
        return await page(request, "refused.html", status=status, sentence=sentence, heading=title)


async def _subject(request: Request) -> Subject | None:
    services: PageServices = request.app.state.pages
    return await services.current_subject(request)


def _to_login(request: Request) -> Response:
    target = quote(request.url.path, safe="/")
    return RedirectResponse(f"/login?next={target}" if target != "/" else "/login", 303, headers=HEADERS)


@router.get("/login")
async def login(request: Request, token: str = "") -> Response:
    """Never signs in by itself: programs that preview links fetch them, and a link is good for one time only."""
    if not token and await _subject(request):
        return RedirectResponse("/", 303, headers=HEADERS)
    asked = request.query_params.get("next")
    answer = await login_page(request, token=token, target=asked or unquote(request.cookies.get(NEXT, "")))
    if asked and not token:  # the fresh link that `roomtape login` prints does not know where its reader wanted to go
        answer.set_cookie(NEXT, quote(asked, safe="/"), max_age=NEXT_FOR_S, httponly=True, samesite="lax", path="/login")
    return answer


@router.get("/")
async def library(request: Request, cursor: str | None = None) -> Response:
    """All recordings, newest first."""
    subject = await _subject(request)
    if subject is None:
        return _to_login(request)
    services: PageServices = request.app.state.pages
    rows, following = await services.library_rows(subject, cursor)
    return await page(request, "library.html", subject=subject, rows=rows, cursor=cursor, next_cursor=following)


@router.get("/record")
async def record(request: Request) -> Response:
    """Camera and microphone of this device."""
    subject = await _subject(request)
    if subject is None:
        return _to_login(request)
    return await page(request, "record.html", subject=subject)


@router.get("/recordings/{recording_id}")
async def recording(request: Request, recording_id: str) -> Response:
    """One recording, live or finished; a public one for anybody."""
    subject = await _subject(request)
    services: PageServices = request.app.state.pages
    try:
        found = await services.recording_view(subject or Subject(), recording_id)
    except (NotFound, Forbidden, NotSignedIn):
        return await refused(request, 404, "There is no recording here that you may see.") if subject else _to_login(request)
    return await page(request, "recording.html", subject=subject, recording=found, may=rights(subject or Subject(), found))


def rights(subject: Subject, view: Mapping[str, Any]) -> Mapping[str, bool]:
    """What to offer, by the name of each verb; the API decides again."""
    role = next((Role(person["role"]) for person in view["participants"] if person["user_id"] == subject.user_id), None)
    meeting = MeetingFacts(subject.tenant, view["meeting_id"], view["room_code"], None, role)
    facts = RecordingFacts(meeting, view["owner_id"], Visibility(view["visibility"]), deleted=view["deleted_at"] is not None)
    return {verb.value: may(subject, verb, facts) for verb in Verb}
