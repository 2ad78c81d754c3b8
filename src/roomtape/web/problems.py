"""Every error as RFC 9457 problem details with a stable code and a sentence."""

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from roomtape.core.access import Standing
from roomtape.core.errors import BadInput, NotFound, NotSignedIn, RoomtapeError, TooLarge
from roomtape.web import pages
from roomtape.web.identity import subject_of

log = structlog.get_logger()


def problem(status: int, code: str, detail: str, /, *, retry_after_s: int | None = None, **facts: Any) -> JSONResponse:
    """One problem document; 429, 503 and 507 always say when to come back."""
    headers = {}
    if status in {429, 503, 507} or retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s or 5)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    body = {**facts, "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def _browsing(request: Request) -> bool:
    """Whether a person looks at the answer."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


async def _ours(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, RoomtapeError)
    if _browsing(request):
        return await pages.refused(request, wrong.status, wrong.message)
    if wrong.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request.failed", code=wrong.code, fault=wrong.fault.value)
    return problem(wrong.status, wrong.code, wrong.message, retry_after_s=wrong.retry_after_s, **wrong.facts)


async def _invalid(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, RequestValidationError)
    if _browsing(request):
        return await pages.refused(request, 404, "There is no such page.")
    if any(error["loc"] and error["loc"][0] == "path" for error in wrong.errors()):
        return await _unknown(request)
    if any(error["type"] == "json_invalid" for error in wrong.errors()):
        return problem(400, "bad_request", "The body is not readable as JSON.")
    fields = [{"field": ".".join(str(part) for part in error["loc"][1:]), "message": error["msg"]} for error in wrong.errors()]
    names = "; ".join(f"{field['field'] or 'body'}: {field['message']}" for field in fields[:5])
    return problem(422, BadInput.default_code, f"The request is not understood: {names}.", errors=fields)


async def _unknown(request: Request) -> Response:
    """A malformed id answers as an unknown one does: 404, and 401 to nobody."""
    try:
        subject = await subject_of(request, request.app.state.services)
    except RoomtapeError as wrong:
        return await _ours(request, wrong)
    return await _ours(request, NotSignedIn() if subject.standing is Standing.ANONYMOUS else NotFound())


async def _plain(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, HTTPException)
    if _browsing(request):
        return await pages.refused(
            request, wrong.status_code, "There is no such page." if wrong.status_code == HTTPStatus.NOT_FOUND else "This page is not opened like this."
        )
    codes = {400: "bad_request", 404: NotFound.default_code, 405: "method_not_allowed", 413: TooLarge.default_code}
    sentences = {404: "There is no such page or route.", 405: "This route does not take this method."}
    answer = problem(wrong.status_code, codes.get(wrong.status_code, "http_error"), sentences.get(wrong.status_code, str(wrong.detail)))
    answer.headers.update(wrong.headers or {})  # Allow
    return answer


async def _unforeseen(request: Request, wrong: Exception) -> JSONResponse:
    """An error nobody foresaw is logged whole and answered without its insides."""
    log.error("request.crashed", method=request.method, request=request.scope.get("request_id"), exc_info=wrong)
    return problem(500, "internal", "Something went wrong on our side; it was logged. Nothing was acknowledged: try again.")


def install(app: FastAPI) -> None:
    """Puts the handlers into an app."""
    app.add_exception_handler(RoomtapeError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _unforeseen)
