"""Who asks: session cookie, API key or a token of the host application; never a header that anyone could set."""

import hmac
import secrets
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from roomtape.core.access import Standing, Subject
from roomtape.core.errors import BadInput, Forbidden, NotSignedIn
from roomtape.db import people
from roomtape.db.rows import SignedIn
from roomtape.library.doorkeeper import acting_for
from roomtape.web.services import Of, Services

COOKIE = "roomtape_session"
CSRF_HEADER = "x-csrf-token"
_LONGEST_USER = 200
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_STANDINGS = {"admin": Standing.ADMIN, "service": Standing.SERVICE, "user": Standing.USER}


async def subject_of(request: Request, services: Of) -> Subject:
    """Who asks. NotSignedIn for credentials that are wrong; nobody (anonymous) where there are none."""
    header = request.headers.get("authorization", "")
    if header:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotSignedIn
        return await _by_token(services, token.strip(), _user_header(request))
    session = await session_of(request, services)
    if session is None:
        return Subject()
    if request.method not in _SAFE and not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode(), session.csrf.encode()):
        raise Forbidden("The page is out of date: reload it and try again.", code="csrf")
    standing = Standing.ADMIN if "admin" in session.roles else Standing.USER
    return Subject(standing, session.user_id, session.tenant_id)


Asker = Annotated[Subject, Depends(subject_of)]


async def session_of(request: Request, services: Services) -> SignedIn | None:
    """The session of the cookie, or None."""
    cookie = request.cookies.get(COOKIE)
    if not cookie or len(cookie) > 100:
        return None
    async with services.database.transaction() as connection:
        return await people.find_session(connection, cookie)


async def _by_token(services: Services, token: str, user: str | None) -> Subject:
    if not token.startswith("rt_"):
        return await services.judge.subject(token)
    async with services.database.transaction() as connection:
        key = await people.lookup_key(connection, token)
    if key is None:
        raise NotSignedIn("The API key is unknown or revoked.", code="bad_key")
    return acting_for(Subject(_STANDINGS[key.role], key.user_id, key.tenant_id, name=key.name, key=str(key.id)), user)


def _user_header(request: Request) -> str | None:
    """The header Roomtape-User as UTF-8; an empty one is none. BadInput."""
    sent = request.headers.get("roomtape-user", "").strip()
    try:
        user = sent.encode("latin-1").decode()
    except UnicodeDecodeError as wrong:
        raise BadInput("The header Roomtape-User is no UTF-8.", code="user_wanted") from wrong
    if len(user) > _LONGEST_USER:
        raise BadInput(f"A user id has at most {_LONGEST_USER} characters.", code="user_wanted")
    return user or None


async def sign_in(services: Services, token: str, response: Response, *, secure: bool) -> SignedIn:
    """Uses a one-time link and begins a session. NotSignedIn: the link was used before, or is too old."""
    async with services.database.transaction() as connection:
        who = await people.use_login_link(connection, token)
        if who is None:
            raise NotSignedIn("This link was used before, or is too old. Ask for a new one: `roomtape login`.", code="bad_link")
        session = secrets.token_urlsafe(32)
        await people.create_session(connection, session, who, csrf=secrets.token_urlsafe(32))
    response.set_cookie(COOKIE, session, max_age=14 * 86_400, httponly=True, samesite="lax", secure=secure, path="/")
    return who


async def sign_out(request: Request, services: Services, response: Response) -> None:
    """Ends the session."""
    cookie = request.cookies.get(COOKIE)
    if cookie:
        async with services.database.transaction() as connection:
            await people.end_session(connection, cookie)
    response.delete_cookie(COOKIE, path="/")
