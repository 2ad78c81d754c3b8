"""What stands in front of the newest part of a track: all that laying out that part hangs on, so that an hour is not laid out again for each segment."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Gap
from roomtape.core.timeline import Chain, Run
from roomtape.media.laid import Span, Taken, TrackFacts, Window
from roomtape.media.placed import Chunks
from roomtape.media.sample import Index, Stream

Pair = tuple[Stream | None, Stream | None]  # of picture and sound, as all pairs here


class Unlike(Exception):
    """What came does not simply follow what stands: the track is laid out anew."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that began before and goes on. `last_us`: its last timestamps as they were read; `seen`, `keyed`: pictures, key frames of it are kept; `loud`: sound."""

    head: Taken
    streams: Pair
    runs: tuple[Run | None, Run | None]
    last_us: tuple[int, int]
    seen: bool
    keyed: bool
    loud: bool


@dataclass(frozen=True, slots=True)
class LaneBefore:
    """Of one lane: the rows that nothing changes any more, the time and size of the row after them, and the last row kept before the tail, not stretched.

    `until_us` is up to when that lane is there without a hole; `literals`: the generated packets of `blocks`.
    """

    blocks: tuple[npt.NDArray[np.void], ...]
    edge: tuple[int, int]
    last: npt.NDArray[np.void]
    until_us: int
    literals: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Before:
    """Everything before `time_us`, where a window ends, is settled; the tail is laid out from the segment `first` on, whose samples reach back behind it.

    `facts`: under which this is so; `taken`: the segments before; `segment`: the last of them that can be played; `newest`: the last index that was known;
    `ends_us`: up to where its lanes reached; `seq`: of the newest commit; `numbers`: Layout.maps by (picture, sound) set-up; `sound_setup`: heard last.
    """

    facts: TrackFacts
    taken: tuple[Taken, ...]
    first: Taken
    segment: tuple[Taken, Index]
    newest: int
    time_us: int
    start_us: int
    base_us: int
    chain: Chain | None
    file: OpenFile | None
    lanes: tuple[LaneBefore | None, LaneBefore | None]
    chunks: Chunks
    gaps: tuple[Gap, ...]
    windows: tuple[Window, ...]
    spans: tuple[Span, ...]
    span_end_us: int
    settled_us: int
    seq: int
    ends_us: tuple[int, int]
    numbers: tuple[tuple[int, int], ...]
    sound_setup: int
    setups: tuple[tuple[Stream, ...], tuple[Stream, ...]]
    streams: Pair
