"""Routes of the API: queries in both spellings, nothing unknown in them, and no text that PostgreSQL cannot keep."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic.alias_generators import to_camel

from roomtape.core.errors import BadInput, NotFound

PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457); docs/reference/errors.md lists every code.",
        "content": {
            "application/problem+json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "code": {"type": "string"},
                        "detail": {"type": "string"},
                    },
                    "required": ["type", "title", "status", "code", "detail"],
                }
            }
        },
    }
}


def of(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """How the API's description says that a route answers bytes of these media types."""
    return {200: {"description": "The bytes", "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}}


class Route(APIRoute):
    """Given to each router as its `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        names = {field.alias for field in get_flat_params(self.dependant) if isinstance(field.field_info, Query)}
        spelt = {to_camel(name): name for name in names} | {name: name for name in names}
        own = bool(self.openapi_extra and "parameters" in self.openapi_extra)  # reads its query itself, as strictly

        async def handler(request: Request) -> Response:
            if any("\x00" in str(value) for value in request.path_params.values()):
                raise NotFound
            if request.url.query and not own:
                request.scope["query_string"] = _one_spelling(request, spelt)
                request = Request(request.scope, request.receive)
            return await inner(request)

        return handler


def _one_spelling(request: Request, spelt: dict[str, str]) -> bytes:
    """The query with our own names. BadInput for others."""
    said = request.query_params.multi_items()
    unknown = [name for name, _ in said if name not in spelt]
    if unknown:
        known = ", ".join(sorted(set(spelt.values()))) or "nothing"
        raise BadInput(f"The query says {unknown[0]!r}; it may say: {known}.", code="unknown_key", field=unknown[0])
    if bad := [name for name, value in said if not storable(value)]:
        raise BadInput(f"The query's {bad[0]!r} has characters that no text has.", field=bad[0])
    return urlencode([(spelt[name], value) for name, value in said]).encode()


def storable(text: str) -> bool:
    """Whether PostgreSQL keeps the text as it is: it knows neither NUL nor halves of surrogate pairs."""
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
