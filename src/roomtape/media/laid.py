"""The values of a layout, apart from the arrays that make it: what goes in, and what players and the API get out."""

from dataclasses import dataclass

from roomtape.core.model import ClockTrust, Gap, Kind
from roomtape.core.rope import Piece
from roomtape.core.timeline import Mend
from roomtape.media.placed import Placement
from roomtape.media.sample import Index, Stream


@dataclass(frozen=True, slots=True)
class Taken:
    """A segment as the ledger has it. `stated_us`: its first sample on the server's clock; `indexed` is None while it waits, or for ever."""

    index: int
    key: str
    size: int
    stated_us: int | None
    indexed: Index | None
    commit_seq: int


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


@dataclass(frozen=True, slots=True)
class Layout:
    """A track on the recording's clock.

    `windows` is what HLS lists: while the track is open it only grows. `late`: windows inside gap windows, of bytes that came after they were given up.
    `settled_us`: nothing before it will change while segments come in order. `maps`: for each set-up of windows the (picture, sound) that a decoder needs.
    `newest`: of picture and sound the last stream seen: the track's codecs, width and height now.
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
