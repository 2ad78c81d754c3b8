"""The index of a segment: where each frame and packet lies in bytes that are never touched again. The index is the product."""

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
    """One elementary stream's set-up.

    `codec`: vp8 vp9 av1 h264 opus aac, or the container's own name for others. `setup` is in one form whatever the container:
    h264 = body of avcC, av1 = body of av1C, vp9 = body of vpcC (b"" unknown), opus = "OpusHead…" as WebM's CodecPrivate, aac = AudioSpecificConfig.
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
    """What one segment holds. `sound` is false when the parser met bytes it could not follow; `warning` then says what."""

    container: Container
    part: Part
    streams: tuple[Stream, ...]
    samples: Samples
    patches: Patches = field(default_factory=lambda: np.zeros(0, PATCH))
    warning: str = ""
