"""What stands around every request: a limit for its body, a name to find it by, and headers that keep browsers from guessing."""

from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

JSON_LIMIT = 4 << 20  # an hour's transcript has 200 kB
STREAMED = "/upload-segment"  # counts its own body, by ROOMTAPE_MAX_SEGMENT_BYTES


class Envelope:
    """ASGI middleware; plain, because Starlette's own kind would put a queue between a rope and its socket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = uuid7().hex
        scope["request_id"] = name
        came = 0
        limited = not scope["path"].endswith(STREAMED)

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if limited and came > JSON_LIMIT:
                raise HTTPException(413, f"A request has at most {JSON_LIMIT} bytes here.")  # FastAPI lets this kind through as it is
            return message

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers.setdefault("x-content-type-options", "nosniff")
                if scope["path"].startswith("/api/"):
                    headers.setdefault("cache-control", "no-store")  # answers differ by who asks
            await send(message)

        with suppress(ClientDisconnect):  # who sent a body and has gone hears no answer; it is no crash of ours
            await self.app(scope, counted, dressed)
