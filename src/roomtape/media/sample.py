"""The values of the index, apart from its parsers, so that parsers and index do not import each other in a ring."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind

# One row per frame or packet, in byte order of the container. time_us is the decode time from the zero of the *file*
# (a file = a segment that begins with a header, and the byte cuts that continue it). offset is relative to the first byte of the
# *segment whose index this is*; it is negative where the sample began in the cut before. A sample stands in the index of the cut where it ends.
SAMPLE = np.dtype(
    [("stream", "u1"), ("key", "u1"), ("time_us", "<i8"), ("cts_us", "<i4"), ("duration_us", "<u4"), ("offset", "<i8"), ("size", "<u4")],
)
# Chromium's Matroska H.264 is Annex B: at each `offset` (relative as above) four bytes of start code are to be read as the big-endian NAL length `value`.
PATCH = np.dtype([("offset", "<i8"), ("value", "<u4")])

Samples = npt.NDArray[np.void]
Patches = npt.NDArray[np.void]


class Container(StrEnum):
    """How the bytes are wrapped."""

    WEBM = "webm"
    MP4 = "mp4"


class Part(StrEnum):
    """What a segment is of its file."""

    HEAD = "head"  # begins with a header: a whole file, or the first byte cut of one
    CUT = "cut"  # continues the cut before it


@dataclass(frozen=True, slots=True)
class Stream:
    """One elementary stream's set-up. `number` is what `stream` says in SAMPLE: the file's own track number where that is 1 to 255.

    `codec`: vp8 vp9 av1 h264 opus aac, or the container's own name for others. `setup` is in one form whatever the container:
    h264 = body of avcC, av1 = body of av1C, vp9 = body of vpcC with its version and flags (b"" unknown), opus = "OpusHead…" as WebM's CodecPrivate,
    aac = AudioSpecificConfig. A stream whose frames are compressed or encrypted by the container has "+encoded" after its codec: not playable in place.
    Two streams with equal (codec, setup, channels, rate) need no new decoder set-up.
    """

    number: int
    kind: Kind
    codec: str
    setup: bytes = b""
    width: int = 0
    height: int = 0
    channels: int = 0
    rate: int = 0
    annexb: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """What one segment holds. `warning` is "" or "code@place code@place …" where the parser met bytes it could not follow; places are relative as offsets are."""

    container: Container
    part: Part
    streams: tuple[Stream, ...]
    samples: Samples
    patches: Patches = field(default_factory=lambda: np.zeros(0, PATCH))
    warning: str = ""


class Warnings:
    """Warnings of one index: each code once, with the place where it was met first."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def add(self, code: str, place: int) -> None:
        self._first.setdefault(code, place)

    def __contains__(self, code: str) -> bool:
        return code in self._first

    def __str__(self) -> str:
        return " ".join(f"{code}@{place}" for code, place in self._first.items())
