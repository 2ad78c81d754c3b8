"""What can go wrong when strangers' media is opened, as errors; `tail` is for logs, never for the one who sent the media.

RoomtapeError
└── MediaError
    ├── MediaRefused 415    not one of the formats we open, or a playlist in disguise
    ├── MediaTooBig 413     more pixels, streams, memory or output than a meeting has
    ├── MediaTimeout 422    more CPU or wall time than it was given
    ├── MediaCrashed 422    the decoder stopped without an answer
    └── NoSandbox 503       this machine cannot lock decoders in
"""

from roomtape.core.errors import Fault, RoomtapeError


class MediaError(RoomtapeError):
    """The media could not be opened."""

    status, fault, default_code = 422, Fault.CALLER, "media_unreadable"

    def __init__(self, message: str = "", *, code: str = "", tail: str = "") -> None:
        """`tail`: the last lines the decoder wrote to stderr."""
        super().__init__(message, code=code)
        self.tail = tail


class MediaRefused(MediaError):
    """The file is not one of the media formats that are taken."""

    status, default_code = 415, "media_refused"


class MediaTooBig(MediaError):
    """The media asks for more than a meeting needs: pixels, streams, memory or output."""

    status, default_code = 413, "media_too_big"


class MediaTimeout(MediaError):
    """The media took more time than it was given."""

    default_code = "media_timeout"


class MediaCrashed(MediaError):
    """The decoder stopped without an answer."""

    fault, default_code = Fault.US, "media_crashed"


class NoSandbox(MediaError):
    """The machine has neither Landlock nor user namespaces, so media is not opened; ROOMTAPE_ALLOW_UNSANDBOXED=1 opens it all the same."""

    status, fault, default_code = 503, Fault.US, "no_sandbox"


KINDS: dict[str, type[MediaError]] = {kind.__name__: kind for kind in (MediaRefused, MediaTooBig, MediaTimeout, MediaCrashed, NoSandbox)}
