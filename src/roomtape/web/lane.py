"""A fast lane for ranges: a player that asks for the next range of a file a moment after the last one is not looked up again."""

import time
from collections import OrderedDict

from starlette.types import ASGIApp, Receive, Scope, Send

from roomtape.core.errors import RoomtapeError
from roomtape.web.ropes import RopeResponse

FRESH_S = 1.0  # so long a right that was lost still plays; every further request is judged anew
_KEPT, _MOST_BYTES = 256, 64 << 20
_METHODS = frozenset({"GET", "HEAD"})
_PREFIX, _SUFFIX = "/api/v1/p/", "/download"


class FastLane:
    """ASGI middleware: answers of the download route are kept for a second, by their whole URL, in which a playback token stands."""

    def __init__(self, app: ASGIApp, *, most_bytes: int = _MOST_BYTES) -> None:
        self.app = app
        self._most = most_bytes
        self._kept: OrderedDict[tuple[str, bytes], tuple[RopeResponse, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _METHODS or not scope["path"].endswith(_SUFFIX) or not scope["path"].startswith(_PREFIX):
            await self.app(scope, receive, send)
            return
        kept = self._kept.get((scope["path"], scope["query_string"]))
        if kept is not None and kept[1] > time.monotonic():
            scope.get("state", {}).pop("lane", None)
            try:
                await kept[0](scope, receive, send)
            except RoomtapeError:  # it is only raised before the head is out: the road through the application says what is wrong
                self._kept.pop((scope["path"], scope["query_string"]), None)
            else:
                return
        scope.setdefault("state", {})["lane"] = self
        await self.app(scope, receive, send)

    def keep(self, scope: Scope, answer: RopeResponse) -> None:
        """Called by the answer itself, when it has been found and allowed."""
        now = time.monotonic()
        place = (scope["path"], scope["query_string"])
        self._kept[place] = (answer, now + FRESH_S)
        self._kept.move_to_end(place)
        while self._kept and (self._oldest_until < now or len(self._kept) > _KEPT or self._held > self._most):
            self._kept.popitem(last=False)  # a file larger than all of it takes the long road each time

    @property
    def _oldest_until(self) -> float:
        return next(iter(self._kept.values()))[1]

    @property
    def _held(self) -> int:
        return sum({id(answer.rope): answer.rope.held for answer, _ in self._kept.values()}.values())  # several players watch one file
