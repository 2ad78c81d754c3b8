"""The samples of a track as arrays over all its files: counted, cut, filled. 900 files in an hour leave no time for a loop over files in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.timeline import CLOSING, MAX_SPAN_US, OPENING, OPUS_STEP_US, SNAP_US, TOUCH_US, Run
from roomtape.media.laid import Before, OpenFile, Taken, Unlike
from roomtape.media.placed import PLACED, joined
from roomtape.media.sample import SAMPLE, Index, Part, Samples, Stream
from roomtape.media.silence import silence

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SANE_US = 1 << 50  # timestamps are the client's: sums of them must not overflow
_SOME_US = 20_000  # the length of a packet or frame that nothing tells
_NEAR = 15  # frame distances that tell how long a file's last frame lasts
_KINDS = (Kind.VIDEO, Kind.AUDIO)
_PLAYED = frozenset({"vp8", "vp9", "av1", "h264", "opus", "aac"})


@dataclass(slots=True)
class Rows:
    """Samples of one lane in order of file and time: which segment and file they are of, when they are, and their row in Track.samples."""

    segment: Ints
    file: Ints
    time: Ints
    duration: Ints
    key: Mask
    row: Ints

    def __len__(self) -> int:
        return len(self.time)

    def take(self, which: Mask | Ints) -> "Rows":
        return Rows(*(getattr(self, one.name)[which] for one in fields(self)))

    @property
    def end(self) -> Ints:
        return self.time + self.duration

    def begins(self, broken: Sequence[int]) -> Ints:
        """The rows at which decoding begins anew: the first of each file, and the first after lost bytes (`broken`: the segments after them)."""
        files = np.flatnonzero(np.diff(self.file, prepend=-1))
        after = np.searchsorted(self.segment, np.array(sorted(broken), np.int64))
        return np.unique(np.concatenate([files, after[after < len(self)]]))

    def edges(self, files: int) -> tuple[Ints, Ints]:
        """For each file its first row and the one after its last."""
        numbers = np.arange(files)
        return np.searchsorted(self.file, numbers), np.searchsorted(self.file, numbers, side="right")


@dataclass(frozen=True, slots=True)
class Track:
    """The segments that can be played, in order, and all their samples. `heads`: for each file the place of its head in `segments`; `begun`: its head.

    `before`: what stands in front of them; a file that began there is the first, and goes on in the first segment.
    """

    segments: tuple[tuple[Taken, Index], ...]
    file_of: Ints
    heads: tuple[int, ...]
    begun: tuple[Taken, ...]
    samples: Samples
    segment_of: Ints
    starts: Ints  # of each segment's bytes in the track's, one more than segments
    streams: tuple[tuple[Stream | None, Stream | None], ...]  # of each file: picture, sound
    setups: tuple[tuple[Stream, ...], tuple[Stream, ...]]
    setup_of: Ints  # [kind, file]
    before: Before | None = None

    @property
    def files(self) -> int:
        return len(self.heads)

    @property
    def opened(self) -> OpenFile | None:
        """What is known of the first file if it began before."""
        return self.before.file if self.before else None


def gather(taken: Sequence[Taken], before: Before | None = None) -> Track:
    """The playable segments of `taken` (sorted by index): those with an index, from the first head on."""
    segments: list[tuple[Taken, Index]] = []
    opened = before.file if before else None
    heads: list[int] = [0] if opened else []
    for segment in taken:
        index = segment.indexed
        if index is None or (index.part is Part.HEAD and index.warning and not index.streams):
            continue
        if index.part is Part.HEAD:
            heads.append(len(segments))
        if heads:
            segments.append((segment, index))
    counts = [len(index.samples) for _, index in segments]
    samples = joined([index.samples for _, index in segments], SAMPLE)
    starts = np.zeros(len(segments) + 1, np.int64)
    np.cumsum([segment.size for segment, _ in segments], out=starts[1:])
    starts += before.chunks.size if before else 0
    file_of = np.zeros(len(segments), np.int64)
    file_of[heads[1:]] = 1
    held = before.setups if before else ((), ())
    streams = _streams(segments, [*heads, len(segments)], held)
    begun = tuple(segments[head][0] for head in heads)
    if opened:
        streams, begun = (opened.streams, *streams[1:]), (opened.head, *begun[1:])
    setups, setup_of = _setups(streams, held)
    segment_of = np.repeat(np.arange(len(segments)), counts)
    return Track(tuple(segments), np.cumsum(file_of), tuple(heads), begun, samples, segment_of, starts, streams, setups, setup_of, before)


def _streams(
    segments: Sequence[tuple[Taken, Index]], edges: Sequence[int], held: tuple[Sequence[Stream], Sequence[Stream]],
) -> tuple[tuple[Stream | None, Stream | None], ...]:  # fmt: skip
    """The first playable picture and sound of each file; a head shorter than its header leaves them to a later cut.

    A file's picture or sound with a codec that has no place in one container with what the track began with is left out.
    """
    found: list[tuple[Stream | None, Stream | None]] = []
    codecs = [next((one.codec for one in some), None) for some in held]
    for first, stop in pairwise(edges):
        told = [index.streams for _, index in segments[first:stop] if index.streams]
        streams = next((some for some in told if all(one.setup for one in some)), next(iter(told), ()))  # Annex B has its set-up in its first key frame
        pair: list[Stream | None] = []
        for number, kind in enumerate(_KINDS):
            stream = next((one for one in streams if one.kind is kind and _fits(one.codec, codecs)), None)
            codecs[number] = codecs[number] or (stream.codec if stream else None)
            pair.append(stream)
        found.append((pair[0], pair[1]))
    return tuple(found)


def _fits(codec: str, codecs: Sequence[str | None]) -> bool:
    """Whether a codec is played, beside those that the track began with: VP8 has no place in an MP4, H.264 and AAC have none in WebM."""
    whole = {codec, *codecs}
    return codec in _PLAYED and not ("vp8" in whole and whole & {"h264", "aac"})


def _setups(
    streams: Sequence[tuple[Stream | None, Stream | None]], held: tuple[Sequence[Stream], Sequence[Stream]],
) -> tuple[tuple[tuple[Stream, ...], tuple[Stream, ...]], Ints]:  # fmt: skip
    """For each kind the set-ups that need a decoder of their own (those `held` first), and for each kind and file which of them it has."""
    lists = list(held[0]), list(held[1])
    known = tuple({(one.codec, one.setup, one.channels, one.rate): number for number, one in enumerate(some)} for some in lists)
    of = np.zeros((2, len(streams)), np.int64)
    for file, pair in enumerate(streams):
        for kind, stream in enumerate(pair):
            if stream is None:
                continue
            number = known[kind].setdefault((stream.codec, stream.setup, stream.channels, stream.rate), len(lists[kind]))
            if number == len(lists[kind]):
                lists[kind].append(stream)
            of[kind, file] = number
    return (tuple(lists[0]), tuple(lists[1])), of


def lane(track: Track, kind: int) -> Rows:
    """The samples of the picture (0) or the sound (1) of all files, in the files' own times."""
    numbers = np.array([pair[kind].number if pair[kind] else -1 for pair in track.streams], np.int64)  # type: ignore[union-attr]
    file = track.file_of[track.segment_of]
    row = np.flatnonzero(track.samples["stream"] == numbers[file])
    some = track.samples
    time = np.clip(some["time_us"][row], -SANE_US, SANE_US)
    rows = Rows(track.segment_of[row], file[row], time, some["duration_us"][row].astype(np.int64), some["key"][row] != 0, row)
    if np.any((np.diff(rows.time) < 0) & (np.diff(rows.file) == 0)):
        if track.before:
            raise Unlike
        rows = rows.take(np.lexsort((rows.time, rows.file)))
    if len(rows):  # timestamps that lie are left out before anything is reckoned by them
        first = np.minimum(rows.edges(track.files)[0], len(rows) - 1)
        firsts = rows.time[first]
        run = track.opened.runs[kind] if track.opened else None
        if track.opened and run and rows.file[0] == 0:
            if rows.time[0] < track.opened.last_us[kind]:
                raise Unlike
            firsts[0] = run.first_us
        sane = rows.time - firsts[rows.file] < MAX_SPAN_US
        rows = rows if sane.all() else rows.take(sane)
    return rows


def shift_pauses(track: Track, lanes: Sequence[Rows], stated: Sequence[int | None], pauses: Sequence[tuple[int, int]]) -> None:
    """Puts back the time that MediaRecorder.pause cuts out of a file: what was captured after a pause moves by its length."""
    for file, start in enumerate(stated):
        until = next((later for later in stated[file + 1 :] if later is not None), None)
        inside = [(a, b) for a, b in pauses if start is not None and a > start and b > a and (until is None or a < until)]
        if start is None or not inside:
            continue
        shares = [rows for rows in lanes if len(rows)]
        edges = [tuple(int(edge[file]) for edge in rows.edges(track.files)) for rows in shares]
        known = [run.first_us for run in track.opened.runs if run] if track.opened and not file else []
        zero = min([*known, *(int(rows.time[lo]) for rows, (lo, hi) in zip(shares, edges, strict=True) if lo < hi)], default=0)
        for rows, (lo, hi) in zip(shares, edges, strict=True):
            for a, b in sorted(inside):
                part = rows.time[lo:hi]
                part[part - zero >= a - start] += b - a


def last_frames(rows: Rows, broken: Sequence[int]) -> None:
    """Frames last up to the next one; the last one of a file or before lost bytes, where nothing tells how long, as long as those before it (their median)."""
    if not len(rows):
        return
    first = rows.begins(broken)
    last = np.append(first[1:], len(rows)) - 1
    distance = np.append(np.diff(rows.time), 0)
    near = last[:, None] - 1 - np.arange(_NEAR)[None, :]
    known = np.where(near >= first[:, None], distance[np.maximum(near, 0)], -1)
    known.sort(axis=1)
    count = np.minimum(last - first, _NEAR)
    median = np.where(count > 0, known[np.arange(len(last)), np.minimum(_NEAR - count + count // 2, _NEAR - 1)], 2 * _SOME_US)
    told = rows.duration[last]
    rows.duration = distance
    rows.duration[last] = np.where(told > 0, told, median)


def count_packets(rows: Rows, counted: Mask, files: int, opened: Run | None = None) -> Rows:
    """Opus packets stand one after the other from their file's first: WebM's milliseconds jitter. Where a timestamp departs by more than 20 ms it is right.

    `counted` tells which files are Opus; others keep their timestamps. A packet whose time is already taken is left out. `opened`: the first file so far.
    """
    if not len(rows):
        return rows
    silent = rows.duration <= 0
    if silent.any():
        rows.duration = np.where(silent, _SOME_US, rows.duration)
    first, stop = rows.edges(files)
    begun = np.cumsum(rows.duration) - rows.duration
    origin = np.minimum(first, len(rows) - 1)
    zero = rows.time[origin] - begun[origin]
    if opened and rows.file[0] == 0:
        zero[0] = opened.end_us
    count = begun + zero[rows.file]
    apart = rows.time - count
    wrong = (apart > SNAP_US) | (apart < -np.maximum(SNAP_US, rows.duration // 2))
    keep = np.ones(len(rows), np.bool_)
    for file in np.unique(rows.file[wrong & counted[rows.file]]).tolist():
        part = slice(int(first[file]), int(stop[file]))
        count[part], keep[part] = _recount(rows.time[part].tolist(), rows.duration[part].tolist(), int(zero[file] + begun[part.start]))
    rows.time = np.where(counted[rows.file], count, rows.time)
    return rows if keep.all() else rows.take(keep)


def _recount(times: list[int], durations: list[int], at: int) -> tuple[list[int], list[bool]]:
    counts, keeps = [], []
    for time, duration in zip(times, durations, strict=True):
        if time - at > SNAP_US:
            at = time
        keep = at - time <= max(SNAP_US, duration // 2)
        counts.append(at)
        keeps.append(keep)
        at += duration if keep else 0
    return counts, keeps


def decodable(rows: Rows, files: int, broken: Sequence[int], *, opened: bool = False) -> Mask:
    """Which frames can be decoded: from the first key frame of their file on, and again after lost bytes (`broken`: the segments after them).

    `opened`: the first file is being decoded already.
    """
    begins = rows.begins(broken)
    if opened and len(rows) and rows.file[0] == 0:
        begins = begins[1:]
    stop = rows.edges(files)[1]
    keys = np.flatnonzero(rows.key)
    where = np.searchsorted(keys, begins)
    goes_on = np.minimum(np.append(keys, len(rows))[where], stop[rows.file[begins]])
    depth = np.zeros(len(rows) + 1, np.int64)
    np.add.at(depth, begins, 1)
    np.add.at(depth, np.maximum(goes_on, begins), -1)
    whole: Mask = np.cumsum(depth[:-1]) == 0
    return whole


def runs(rows: Rows, usable: Mask, files: int, packet: Mask) -> list[Run | None]:
    """For each file the run of its rows; None without one that is usable. `packet`: the files whose sound is counted in Opus packets."""
    first, stop = rows.edges(files)
    positions = np.append(np.flatnonzero(usable), len(rows))
    use = positions[np.searchsorted(positions, first)]
    found: list[Run | None] = [None] * files
    some = np.flatnonzero(use < stop)
    columns = (rows.time[first[some]], rows.end[stop[some] - 1], rows.time[use[some]], np.where(packet[some], rows.duration[first[some]], 0))
    for file, a, b, c, d in zip(some.tolist(), *(column.tolist() for column in columns), strict=True):
        found[file] = Run(a, b, c, d)
    return found


def witnessed(found: list[Run | None], rows: Rows, usable: Mask) -> list[Run | None]:
    """Runs of pictures, with the times of the first and last ones of each file."""
    first, stop = rows.edges(len(found))
    seen: list[Run | None] = []
    for run, a, b in zip(found, first.tolist(), stop.tolist(), strict=True):
        if run is None:
            seen.append(None)
            continue
        times = rows.time[a:b][usable[a:b]]
        seen.append(replace(run, opening=tuple(times[:OPENING].tolist()), closing=tuple(times[-CLOSING:].tolist())))
    return seen


def until_next(edges: Ints) -> Ints:
    """For each file the earliest of `edges` among the files after it."""
    after = np.append(edges[1:], 1 << 60)
    return np.minimum.accumulate(after[::-1])[::-1]


def placed(track: Track, rows: Rows, kind: int) -> npt.NDArray[np.void]:
    """Rows as PLACED, each up to the next one; of two at the same time the later one goes."""
    order = np.diff(rows.time, append=1 << 60)
    if np.any(order <= 0):
        rows = rows.take(np.argsort(rows.time, kind="stable"))
        rows = rows.take(np.diff(rows.time, prepend=-(1 << 60)) > 0)
    out = np.zeros(len(rows), PLACED)
    some, row = track.samples, rows.row
    out["time_us"], out["duration_us"], out["cts_us"], out["key"] = rows.time, rows.duration, some["cts_us"][row], rows.key
    out["setup"], out["literal"] = track.setup_of[kind][rows.file], -1
    out["at"], out["size"] = track.starts[rows.segment] + some["offset"][row], some["size"][row]
    return out


def stretch(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Each sample lasts up to the next one: the last picture is held over a hole."""
    if len(rows):
        rows["duration_us"][:-1] = np.diff(rows["time_us"])
    return rows


def fill(rows: npt.NDArray[np.void], setups: Sequence[Stream], literals: list[bytes], begin_us: int, end_us: int) -> npt.NDArray[np.void]:
    """The sound without holes from begin_us to end_us: silence between packets, and what is left is stretched over.

    Many players count samples instead of reading timestamps, so the silence is reckoned on a grid of 2.5 ms of the clock itself: what one hole is given too
    much the next one lacks, and a thousand restarts an hour do not add up. (What overlaps, or lacks a hair, at a mended join does: silence would be heard.)
    """
    if not len(rows):
        return rows
    ends = np.concatenate([[begin_us], rows["time_us"] + rows["duration_us"]])
    until = np.append(rows["time_us"], max(end_us, int(ends[-1])))
    before = np.maximum(np.arange(len(ends)) - 1, 0)[: len(ends)]
    setup = rows["setup"][before].astype(np.int64)
    counted = np.array([one.codec == "opus" for one in setups], np.bool_)[setup]
    half = OPUS_STEP_US // 2
    steps = (until + half) // OPUS_STEP_US - (ends + half) // OPUS_STEP_US
    where = np.flatnonzero((until - ends > TOUCH_US) & ((steps > 0) | ~counted))
    kinds = np.stack([setup, steps], axis=1)[where]
    pieces = [rows]
    for setup, steps in np.unique(kinds, axis=0).tolist():
        same = ends[where[(kinds[:, 0] == setup) & (kinds[:, 1] == steps)]]
        piece = _silent(silence(setups[setup], steps * OPUS_STEP_US), setup, literals)
        many = np.tile(piece, len(same))
        many["time_us"] += np.repeat(same, len(piece))
        pieces.append(many)
    return stretch(merged(pieces))


def merged(pieces: Sequence[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """Placed rows of several arrays in order of time."""
    if len(pieces) == 1:
        return pieces[0]
    rows = joined(pieces, PLACED)
    return rows[np.argsort(rows["time_us"], kind="stable")]


def _silent(packets: Sequence[tuple[bytes, int]], setup: int, literals: list[bytes]) -> npt.NDArray[np.void]:
    literals.extend(packet for packet in dict.fromkeys(packet for packet, _ in packets) if packet not in literals)
    numbers = {packet: number for number, packet in enumerate(literals)}
    return literal_rows([(numbers[packet], len(packet), length) for packet, length in packets], setup, 0)


def number_literals(rows: npt.NDArray[np.void], literals: Sequence[bytes], known: Sequence[bytes]) -> tuple[bytes, ...]:
    """Numbers the generated rows anew in the order in which their packets first appear, after `known` ones: so a track that grows keeps its numbers."""
    generated = np.flatnonzero(rows["literal"] >= 0)
    used, first, which = np.unique(rows["literal"][generated], return_index=True, return_inverse=True)
    table = {packet: number for number, packet in enumerate(known)}
    numbers = np.zeros(len(used), np.int32)
    for at in np.argsort(first).tolist():
        numbers[at] = table.setdefault(literals[used[at]], len(table))
    rows["literal"][generated] = numbers[which]
    return tuple(table)


def literal_rows(packets: Sequence[tuple[int, int, int]], setup: int, start_us: int) -> npt.NDArray[np.void]:
    """Generated packets (number of the literal, size, length in µs), one after the other from start_us on."""
    out = np.zeros(len(packets), PLACED)
    if packets:
        numbers, sizes, lengths = np.array(packets, np.int64).T
        out["time_us"], out["duration_us"] = start_us + np.cumsum(lengths) - lengths, lengths
        out["key"], out["setup"], out["literal"], out["size"] = 1, setup, numbers, sizes
    return out
