"""The values of a layout, apart from the arrays that make it: what goes in, and what players and the API get out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roomtape.core.model import ClockTrust, Gap, Kind
from roomtape.core.rope import Piece
from roomtape.core.timeline import Chain, Mend, Run
from roomtape.media.placed import Chunks, Placement
from roomtape.media.sample import Container, Index, Stream

Pair = tuple[Stream | None, Stream | None]  # of picture and sound, as all pairs here


@dataclass(frozen=True, slots=True)
class Taken:
    """A segment as the ledger has it. `stated_us`: its first sample, `arrived_us`: its bytes, on the server's clock; `indexed` is None while it waits, or for ever."""

    index: int
    key: str
    size: int
    stated_us: int | None
    indexed: Index | None
    commit_seq: int
    arrived_us: int | None = None


@dataclass(frozen=True, slots=True)
class TrackFacts:
    """What placement has to know of a track beside its segments; all times on the server's clock.

    `begin_us`: where the track begins if no start is stated or believed; `shift_us` is added to what is stated (a clock that is not believed, only its
    differences); `pauses`: (from, to) of MediaRecorder.pause; `mends` are used once the track is closed, for they move what follows; `skips`: indices that the
    live edge has given up; `last_index`: what the client said; `close_seq`: the commit that closed the track.
    """

    id: str
    trust: ClockTrust = ClockTrust.CLIENT
    origin_us: int = 0
    begin_us: int | None = None
    shift_us: int = 0
    pauses: tuple[tuple[int, int], ...] = ()
    mends: tuple[Mend, ...] = ()
    closed: bool = False
    skips: frozenset[int] = frozenset()
    first_index: int = 1
    last_index: int | None = None
    close_seq: int = 0

    def stated(self, segment: Taken) -> int | None:
        """The segment's first sample on the recording's clock."""
        if self.trust is ClockTrust.NONE or segment.stated_us is None:
            return None
        return segment.stated_us + self.shift_us - self.origin_us

    def arrived(self, segment: Taken) -> int | None:
        """When it came, on the recording's clock; None where that says nothing of what is stated: the shift of a clock that is not believed is a late arrival."""
        return None if segment.arrived_us is None or self.shift_us else segment.arrived_us - self.origin_us


@dataclass(frozen=True, slots=True)
class Window:
    """An HLS fragment or Media Source range. `setup` is an index into Layout.maps; `gap`: given up, nothing to fetch; `seq`: the commit that settled it."""

    start_us: int
    stop_us: int
    setup: int
    gap: bool
    seq: int


@dataclass(frozen=True, slots=True)
class Packet:
    """An Opus packet where it is stored, and where it stands on the recording's clock."""

    pieces: tuple[Piece, ...]
    time_us: int
    duration_us: int


@dataclass(frozen=True, slots=True)
class Join:
    """Two recorders' sound that overlaps off the packet grid: what a child decodes, and what it has to make (a Mend).

    `old` begins four packets before the hole and goes on to the end of the older file, `new` begins with the newer file (no pre-roll: its decoder starts there)
    and covers the overlap. `offset_us` is Mend.offset_us by the clocks, right within some 20 ms: the child finds the exact one and asks timeline.cut_sound
    (-offset_us, packet_us) for the hole; by the clocks' offset that is `hole_us` = `samples` at 48 kHz from `start_us` on.
    """

    file: int
    offset_us: int
    packet_us: int
    old: tuple[Packet, ...]
    new: tuple[Packet, ...]
    start_us: int
    hole_us: int

    @property
    def samples(self) -> int:
        return self.hole_us * 48 // 1000


@dataclass(frozen=True, slots=True)
class Span:
    """Where the media of one segment stands, before cuts."""

    index: int
    start_us: int
    end_us: int


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
    container: Container
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
    off_grid: bool
    clock_set: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A track on the recording's clock.

    `windows` is what HLS lists: while the track is open it only grows. `late`: windows inside gap windows, of bytes that came after they were given up.
    `settled_us`: nothing before it will change while segments come in order. `maps`: for each set-up of windows the (picture, sound) that a decoder needs.
    `newest`: of picture and sound the last stream seen: the track's codecs, width and height now.
    `off_grid`: some joins are off the packet grid, see layout.joins_wanted. `clock_set`: somewhere the stated starts jumped.
    `before`: what a layout with more segments need not make again.
    """

    placement: Placement
    gaps: tuple[Gap, ...] = ()
    start_us: int = 0
    end_us: int = 0
    windows: tuple[Window, ...] = ()
    late: tuple[Window, ...] = ()
    settled_us: int = 0
    maps: tuple[tuple[Stream | None, Stream | None], ...] = ()
    spans: tuple[Span, ...] = ()
    newest: tuple[Stream, ...] = ()
    off_grid: bool = False
    clock_set: bool = False
    before: Before | None = None

    @property
    def duration_us(self) -> int:
        return self.end_us - self.start_us

    @property
    def has_picture(self) -> bool:
        return self._has(Kind.VIDEO)

    @property
    def has_sound(self) -> bool:
        return self._has(Kind.AUDIO)

    @property
    def playable(self) -> bool:
        return self.has_picture or self.has_sound

    def _has(self, kind: Kind) -> bool:
        return any(lane.kind is kind and len(lane) for lane in self.placement.lanes)
