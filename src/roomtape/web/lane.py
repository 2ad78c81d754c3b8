"""A fast lane for ranges: a player that asks for the next range of a file a moment after the last one is not looked up again."""

import time
from collections import OrderedDict

from starlette.types import ASGIApp, Receive, Scope, Send

from roomtape.web.ropes import RopeResponse

FRESH_S = 1.0  # so long a right that was lost still plays; every further request is judged anew
_KEPT = 256
_PREFIX, _SUFFIX = "/api/v1/p/", "/download"


class FastLane:
    """ASGI middleware: answers of the download route are kept for a second, by their whole URL, in which a playback token stands."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._kept: OrderedDict[tuple[str, bytes], tuple[RopeResponse, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(_SUFFIX) or not scope["path"].startswith(_PREFIX):
            await self.app(scope, receive, send)
            return
        kept = self._kept.get((scope["path"], scope["query_string"]))
        if kept is not None and kept[1] > time.monotonic():
            scope.get("state", {}).pop("lane", None)
            await kept[0](scope, receive, send)
            return
        scope.setdefault("state", {})["lane"] = self
        await self.app(scope, receive, send)

    def keep(self, scope: Scope, answer: RopeResponse) -> None:
        """Called by the answer itself, when it has been found and allowed."""
        self._kept[scope["path"], scope["query_string"]] = (answer, time.monotonic() + FRESH_S)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
