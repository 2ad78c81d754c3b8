"""One tree of errors; each says its HTTP status, its stable code and whose fault it is.

RoomtapeError
├── BadInput 422            the request cannot mean anything
├── NotSignedIn 401         nobody asks
├── Forbidden 403           somebody asks who may not
├── NotFound 404            unknown, or not to be known by the one who asks
├── Conflict 409            the state of things says no: already_recording, segment_differs, …
├── TooLarge 413            over a limit
├── StorageFull 507         no room for bytes
├── Unavailable 503         database or store away; try again later
└── Refused                 configuration or rights: the program does not start (exit code 3)
"""

from enum import StrEnum
from typing import Any, ClassVar


class Fault(StrEnum):
    """Whose doing an error is: it decides who has to act."""

    CALLER = "caller"
    STACK = "stack"
    STORE = "store"
    US = "us"


class RoomtapeError(Exception):
    """Something went wrong."""

    status: ClassVar[int] = 500
    fault: ClassVar[Fault] = Fault.US
    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str = "", *, code: str = "", retry_after_s: int | None = None, **facts: Any) -> None:
        """`message` is one sentence for a person; `facts` are extra members of the problem document."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s
        self.facts = facts
        super().__init__(self.message)


class BadInput(RoomtapeError):
    """The request is not understood."""

    status, fault, default_code = 422, Fault.CALLER, "invalid"


class NotSignedIn(RoomtapeError):
    """Sign in first: send a session cookie, an API key or a token of the host application."""

    status, fault, default_code = 401, Fault.CALLER, "not_signed_in"


class Forbidden(RoomtapeError):
    """You may not do this."""

    status, fault, default_code = 403, Fault.CALLER, "forbidden"


class NotFound(RoomtapeError):
    """There is no such thing, or you may not see it."""

    status, fault, default_code = 404, Fault.CALLER, "not_found"


class Conflict(RoomtapeError):
    """The present state does not allow this."""

    status, fault, default_code = 409, Fault.CALLER, "conflict"


class TooLarge(RoomtapeError):
    """The body is larger than this installation takes."""

    status, fault, default_code = 413, Fault.CALLER, "too_large"


class StorageFull(RoomtapeError):
    """There is no room left for recordings; nothing was taken, keep the bytes and try again."""

    status, fault, default_code = 507, Fault.STORE, "storage_full"


class Unavailable(RoomtapeError):
    """The service cannot answer now; nothing was taken, try again."""

    status, fault, default_code = 503, Fault.US, "unavailable"


class Refused(RoomtapeError):
    """Roomtape does not start like this."""

    status, fault, default_code = 500, Fault.CALLER, "refused"
