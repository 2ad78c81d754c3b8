"""Where the files of a track stand on the recording's clock: stated starts jitter and clocks drift, so neither they nor summed durations decide alone."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from roomtape.core.model import Gap

SNAP_US = 20_000  # a stated start this near to the end of the file before it means that they touch
SLEW_US = 2_000  # what one join of pictures, or of sound that overlaps, may move towards the clock
CALM_US = 4_000  # nearer than this a stated start says nothing that its own jitter would not
TOUCH_US = 2_400  # less than the shortest Opus packet: stretched over, never filled
GRID_US = 10_000  # how far off the packet grid an overlap may be stated and still be on it (for packets of 60 ms; a sixth of the packet)
OPENING, CLOSING = 8, 32  # pictures of a file that bear witness at its joins
LATE_US = 45_000  # a busy machine states a start so far beside the truth; pictures that both recorders saw put it right
SAME_US = 3_000  # two recorders give a picture the camera's own time, in whole milliseconds
_WITNESSES = 3
SETTLE_US = 180_000  # an encoder has settled after so long (seen: the level dips 5.9 dB at its first packet, 2 dB at most after three of 60 ms)
MAX_OVERLAP_US = 2_000_000  # more is a clock that was set back, not an overlap; the live edge stays so far behind the newest file's end
BELIEVED_US = 60_000_000  # a clock that is further from the server's, by when its segments came, is not believed
MAX_SPAN_US = 26 * 3_600_000_000  # a track longer than this is a clock that was set forward: silence over years would fill the memory
QUIET_HOLE_US = 200_000  # shorter holes are stretched over without a word
WINDOW_US = 2_000_000
OPUS_STEP_US = 2_500
MANY_MISSING = 1_000  # a longer run of missing segments is one gap: indices may reach 2**31
_BRIDGE_US = 20_000
_EVEN_US = 200
_FAR = 1 << 60
_MENDED_SLEW_US = 1_000  # with the 1.25 ms by which the mend's packets may miss, less than TOUCH_US: no hole, no packet too many
_MEND_SEARCH_US = 60_000  # a mend that claims more than this against the clock found another word


@dataclass(frozen=True, slots=True)
class Run:
    """One stream of one file, in the file's own time. `from_us` is the first sample that can be decoded, `packet_us` the length of an Opus packet (else 0).

    `opening`, `closing`: of pictures, when the first OPENING and the last CLOSING of them are.
    """

    first_us: int
    end_us: int
    from_us: int
    packet_us: int = 0
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file as placement sees it. `stated_us`: its first sample on the recording's clock, if anybody said so.

    `late`: it came after the live edge had given it up; it is placed, but nothing after it moves. `arrived_us`: when its first bytes came, on the same
    clock; None where that proves nothing.
    """

    index: int
    stated_us: int | None
    picture: Run | None = None
    sound: Run | None = None
    late: bool = False
    arrived_us: int | None = None

    @property
    def first_us(self) -> int:
        return min(run.first_us for run in (self.picture, self.sound) if run)

    @property
    def end_us(self) -> int:
        return max(run.end_us for run in (self.picture, self.sound) if run)


@dataclass(frozen=True, slots=True)
class Mend:
    """The sound around a join off the packet grid, encoded anew.

    `file` is the index of the segment that begins the newer file; `offset_us` is the start of its first packet minus the end of the older file's last one
    (negative: they overlap); `packets` are Opus packets that fill the hole between the last old and the first new packet kept, see `cut_sound`.
    """

    file: int
    offset_us: int
    packets: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a file stands: its own zero, and from where on its sound and picture replace what came before, all on the recording's clock.

    `sound_until_us`: up to where the sound before it is kept; from there to `sound_from_us` a mend's packets stand, or silence.
    `on_grid`: it overlaps the file before it by whole packets, as far as stated starts can tell. `clock_set`: its stated start cannot be; it follows what
    came before it.
    """

    zero_us: int
    sound_from_us: int
    picture_from_us: int
    off_grid: bool = False
    mended: bool = False
    on_grid: bool = False
    sound_until_us: int = _FAR
    clock_set: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """What stands so far: all that the place of the next file hangs on."""

    file: FileFacts
    zero_us: int
    base_us: int  # where the track begins
    end_us: int
    shift_us: int  # added to what is stated: the clock was set

    @property
    def first_us(self) -> int:
        return self.zero_us + self.file.first_us


def place(files: Sequence[FileFacts], mends: Mapping[int, Mend], *, begin_us: int) -> list[Spot]:
    """A spot for each file, in order of index. `begin_us`: where the first file stands if nobody stated its start."""
    return [spot for spot, _ in follow(files, mends, None, begin_us=begin_us)]


def follow(files: Iterable[FileFacts], mends: Mapping[int, Mend], chain: Chain | None, *, begin_us: int) -> Iterator[tuple[Spot, Chain | None]]:
    """As `place`, for the files that follow on `chain`: for each its spot and what stands before it."""
    for file in files:
        spot, shift = _spot(file, chain, mends.get(file.index), begin_us)
        yield spot, chain
        if not file.late:
            end = spot.zero_us + file.end_us
            base = chain.base_us if chain else spot.zero_us
            chain = Chain(file, spot.zero_us, base, max(end, chain.end_us) if chain else end, shift)


def _spot(file: FileFacts, chain: Chain | None, mend: Mend | None, begin_us: int) -> tuple[Spot, int]:
    if chain is None:
        stated = begin_us if file.stated_us is None else file.stated_us
        return _cut(file, stated - file.first_us, 0), 0
    after = chain.end_us - file.first_us
    if file.stated_us is None:
        return _cut(file, after, 0), chain.shift_us
    clock = file.stated_us + chain.shift_us - file.first_us
    begins, ahead = clock + file.first_us, clock + file.end_us - chain.base_us
    back = chain.end_us - begins
    unborn = file.arrived_us is not None and begins > file.arrived_us + BELIEVED_US and -back > BELIEVED_US  # a hole up to a time that was still to come
    if back > MAX_OVERLAP_US or (back > 0 and begins <= chain.first_us) or ahead > MAX_SPAN_US or unborn:
        return replace(_cut(file, after, 0), clock_set=True), chain.shift_us + after - clock  # from here on it is read with a shift
    touch = _touching(file, chain)
    if mend and chain.file.sound and file.sound and abs(clock - touch - mend.offset_us) <= _MEND_SEARCH_US:
        exact = touch + mend.offset_us
        move = max(-_MENDED_SLEW_US, min(_MENDED_SLEW_US, slew(clock - exact)))
        return _cut(file, exact + move, max(0, touch - exact), mended=True), chain.shift_us
    error = clock - touch
    if error > SNAP_US:
        return _cut(file, clock, 0), chain.shift_us
    if error >= -SNAP_US:
        heard = file.sound and chain.file.sound
        return _cut(file, touch if heard else touch + slew(error), 0), chain.shift_us  # players count samples: what is no hole must be none in time either
    packet = file.sound.packet_us if file.sound and chain.file.sound and file.sound.packet_us == chain.file.sound.packet_us else 0
    if not packet:
        return _cut(file, clock, -error), chain.shift_us
    steps = (-error + packet // 2) // packet
    near = [n for n in (steps - 1, steps, steps + 1) if n > 0 and abs(clock - touch + n * packet) <= LATE_US]
    seen = [n for n in near if _same_pictures(file, chain, touch - n * packet)]
    if len(seen) == 1:  # both recorders have seen the same camera
        exact = touch - seen[0] * packet
        return replace(_cut(file, exact + slew(clock - exact), seen[0] * packet), on_grid=True), chain.shift_us
    exact = touch - steps * packet
    if abs(clock - exact) <= min(GRID_US, packet // 6):
        return replace(_cut(file, exact + slew(clock - exact), steps * packet), on_grid=steps > 0), chain.shift_us
    return _cut(file, clock, -error, off_grid=True), chain.shift_us


def _same_pictures(file: FileFacts, chain: Chain, zero_us: int) -> bool:
    """Whether with this zero the file's first pictures stand where the file before it has pictures too; False where there are too few to tell."""
    if not file.picture or not chain.file.picture or not chain.file.picture.closing:
        return False
    old = [chain.zero_us + at for at in chain.file.picture.closing]
    new = [zero_us + at for at in file.picture.opening if old[0] - SAME_US <= zero_us + at <= old[-1] + SAME_US]
    return len(new) >= _WITNESSES and all(min(abs(at - other) for other in old) <= SAME_US for at in new)


def _touching(file: FileFacts, chain: Chain) -> int:
    """The zero at which the file's sound follows the sound before it exactly; where only one of them has sound: the picture; else the whole."""
    before = chain.file
    if before.sound and file.sound:
        return chain.zero_us + before.sound.end_us - file.sound.first_us
    if before.picture and file.picture:
        return chain.zero_us + before.picture.end_us - file.picture.first_us
    return chain.zero_us + before.end_us - file.first_us


def slew(error_us: int) -> int:
    """How far a join moves towards the clock: a quarter of the error, so that jitter averages out, and 2 ms at most, so that nobody hears it."""
    if abs(error_us) <= CALM_US:
        return 0
    return max(-SLEW_US, min(SLEW_US, error_us // 4))


def _cut(file: FileFacts, zero_us: int, overlap_us: int, *, off_grid: bool = False, mended: bool = False) -> Spot:
    sound = picture = until = _FAR
    if file.sound:
        skip, hole = cut_sound(overlap_us, file.sound.packet_us)
        sound = zero_us + file.sound.first_us + skip
        until = sound - hole
    if file.picture:
        picture = zero_us + file.picture.from_us
    return Spot(zero_us, sound, picture, off_grid, mended, sound_until_us=until)


def cut_sound(overlap_us: int, packet_us: int) -> tuple[int, int]:
    """For two recorders whose sound overlaps: (how much of the newer one's beginning is left out, the hole before what is kept of it), in microseconds.

    The hole is rounded to what Opus packets can fill (2.5 ms). It is 0 on the packet grid, else one packet and 20 ms long at most: in less than 20 ms a mend
    cannot slide by the half step that the rounding leaves without being heard.
    """
    if packet_us <= 0 or overlap_us <= 0:
        return 0, 0
    settled = -(-SETTLE_US // packet_us) * packet_us
    skip = settled if overlap_us + TOUCH_US >= settled else 0  # a part of it is worse than none: what follows leans on what is left out
    hole = -(overlap_us - skip) % packet_us
    if min(hole, packet_us - hole) <= _EVEN_US:
        return skip, 0
    filled = (hole + OPUS_STEP_US // 2) // OPUS_STEP_US * OPUS_STEP_US
    return skip, filled if filled >= _BRIDGE_US else filled + packet_us


def split_gap(track: str, start_us: int, end_us: int, missing: Sequence[tuple[int, str]]) -> list[Gap]:
    """One gap for each missing (index, reason), the span split evenly between them; start_us > end_us counts as an empty span at start_us."""
    end_us, count = max(start_us, end_us), len(missing)
    edges = [start_us + (end_us - start_us) * n // count for n in range(count)] + [end_us]
    return [Gap(track, a, b, reason, index) for (index, reason), a, b in zip(missing, edges, edges[1:], strict=False)]


def uncovered(start_us: int, end_us: int, known: Iterable[Gap]) -> list[tuple[int, int]]:
    """What is left of a hole when the gaps that explain it are taken away; leftovers of ≤ 200 ms are nothing."""
    left, at = [], start_us
    for gap in sorted(known, key=lambda gap: gap.start_us):
        if gap.end_us <= at or gap.start_us >= end_us:
            continue
        left.append((at, gap.start_us))
        at = gap.end_us
    left.append((at, end_us))
    return [(a, b) for a, b in left if b - a > QUIET_HOLE_US]


def cut_windows(marks: Sequence[int], musts: Sequence[int], stop_us: int) -> list[tuple[int, int]]:
    """Windows (start, stop) from the first mark on: each ends at the first mark ≥ WINDOW_US after its start, at the next of `musts`, or at `stop_us`.

    `marks` and `musts` rise; what begins later than `stop_us` is not cut, and the last window is only there if it ends by then.
    """
    windows: list[tuple[int, int]] = []
    if not marks:
        return windows
    start = marks[0]
    while start < stop_us:
        mark, must = bisect_left(marks, start + WINDOW_US), bisect_right(musts, start)
        stop = min(marks[mark] if mark < len(marks) else stop_us, musts[must] if must < len(musts) else stop_us, stop_us)
        windows.append((start, stop))
        start = stop
    return windows
