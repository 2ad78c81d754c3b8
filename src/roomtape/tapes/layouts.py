"""Layouts of tracks, made from the ledger and kept while nothing changes: what every player, playlist and download is read from."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from operator import attrgetter
from uuid import UUID

import structlog

from roomtape.core.errors import RoomtapeError
from roomtape.core.lifecycle import NEXT, OPEN, TAKING
from roomtape.core.model import ClockTrust
from roomtape.core.plan import HEADS
from roomtape.core.timeline import Mend
from roomtape.db import chunks, ledger
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Pause, Recording, Track
from roomtape.media.index import unpack
from roomtape.media.layout import Layout, Taken, TrackFacts, grow, server_start_us
from roomtape.media.mends import unpack_mend

log = structlog.get_logger()

_KEPT_BYTES = 256 << 20  # an hour of two streams takes some 25 MB
_MOST_REELS = 1000
_FEW = 8  # segments tell how long one is
_FINAL = frozenset(status for status, after in NEXT.items() if not after)


@dataclass(frozen=True, slots=True)
class Tape:
    """One recording as it stands: its row, its tracks, and what each track's layout is and was made of.

    `marks` name a layout's content: equal marks, equal bytes of everything generated from it.
    """

    recording: Recording
    tracks: tuple[Track, ...]
    layouts: Mapping[str, Layout]
    facts: Mapping[str, TrackFacts]
    taken: Mapping[str, Sequence[Taken]]
    marks: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Nothing more is captured: playlists end, everything there is listed."""
        return self.recording.status not in OPEN

    def main(self) -> str | None:
        """The track that stands for the whole: the first with a picture, else the first with sound."""
        for wanted in ("has_picture", "has_sound"):
            for track in self.tracks:
                if track.id in self.layouts and getattr(self.layouts[track.id], wanted):
                    return track.id
        return None


@dataclass(slots=True)
class _Held:
    """What is kept of a track between requests: its segments as they were committed, in order of index, and the layout of the facts it was made for."""

    seen: int = 0
    taken: tuple[Taken, ...] = ()
    facts: TrackFacts | None = None
    layout: Layout | None = None
    changed: bool = False
    indexed_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Of memory, about: samples as they were indexed, and as they are placed."""
        return self.indexed_bytes + sum(block.nbytes for lane in (self.layout.placement.lanes if self.layout else ()) for block in lane.blocks)


@dataclass(slots=True)
class _Reel:
    """What is kept of a recording: its tracks, up to which commit they were read, and, once it has ended for good, the whole tape."""

    seen: int = 0
    tracks: dict[str, _Held] = field(default_factory=dict)
    final: Tape | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: int = 0


class Layouts:
    """The layouts of this process. Each look costs some small queries; only what was committed since is read and laid out."""

    def __init__(self, database: Database, *, wait_s: float, now_us: Callable[[], int], most_bytes: int = _KEPT_BYTES) -> None:
        """`wait_s`: how long the live edge waits for a missing segment before it goes on without it. `most_bytes`: of what is kept; the newest stays in any case."""
        self._most = most_bytes
        self._database = database
        self._wait_us = round(wait_s * 1_000_000)
        self._now_us = now_us
        self._reels: OrderedDict[UUID, _Reel] = OrderedDict()
        self._waits: dict[tuple[UUID, str, int], int] = {}
        self._fresh: dict[UUID, Recording] = {}
        self._warmed = False

    async def tape(self, recording: Recording) -> Tape:
        """The recording and the layouts of all its tracks, as of now.

        Nothing changes once it is completed or failed: then it is answered without a query. That `recording` was read just now, and may be seen, is the
        caller's affair.
        """
        reel = self._reel(recording.id)
        async with reel.lock:
            if reel.final is None or recording.status not in _FINAL:
                return await self._tape(recording, reel)
            return replace(reel.final, recording=recording)

    def note(self, recording: Recording) -> None:
        """Something was committed: the layout is made soon, so that at stop only the last of it is new."""
        self._fresh[recording.id] = recording

    async def warm(self) -> None:
        """Lays out what was noted since the last time, at first everything that goes on; to be called seldom: some segments cost as much as one.

        Lists have their durations from here.
        """
        if not self._warmed:
            async with self._database.transaction() as connection:
                self._fresh |= {one.id: one for one in await ledger.running_recordings(connection, list(TAKING))}
            self._warmed = True
        noted, self._fresh = self._fresh, {}
        for recording in noted.values():
            try:
                tape = await self.tape(recording)
                if (main := tape.main()) is not None:
                    async with self._database.transaction() as connection:
                        await ledger.note_duration(connection, recording.id, tape.layouts[main].end_us)
            except (RoomtapeError, ValueError) as wrong:  # a damaged index is one recording's trouble
                log.warning("layout.cold", recording=str(recording.id), why=str(wrong))

    async def _tape(self, recording: Recording, reel: _Reel) -> Tape:
        async with self._database.transaction() as connection:
            fresh = await ledger.get_recording(connection, recording.tenant_id, recording.id) or recording
            tracks = await chunks.tracks_of(connection, recording.id)
            held = {track.id: reel.tracks.setdefault(track.id, _Held()) for track in tracks}
            new = await chunks.chunks_of(connection, recording.id, after_commit_seq=reel.seen, with_index=True)
            pauses = await ledger.pauses_of(connection, recording.id)
            mends = await chunks.mends_of(connection, recording.id)
        came = await asyncio.to_thread(_unpacked, new)  # a day of them takes seconds
        for name, one in held.items():
            _take_in(one, came.get(name, []))
        if all(chunk.track_id in held for chunk in new):  # else a track was made between two queries: its chunks are read next time
            reel.seen = max((chunk.commit_seq for chunk in new), default=reel.seen)
        skips = {track.id: self._given_up(fresh, track, held[track.id]) for track in tracks}
        if late := {track.id: sorted(skips[track.id] - set(track.live_skips)) for track in tracks if skips[track.id] - set(track.live_skips)}:
            async with self._database.transaction() as connection:
                for name, indices in late.items():
                    await chunks.give_up(connection, recording.id, name, indices)
        origin_us = _origin(fresh, tracks, held)
        facts = {}
        for track in tracks:
            own = tuple(unpack_mend(mend.blob) for mend in mends if mend.track_id == track.id)
            facts[track.id] = _facts(fresh, track, held[track.id], pauses=pauses, mends=own, skips=skips[track.id], origin_us=origin_us)
        layouts = {name: await _layout(held[name], facts[name]) for name in facts}
        taken = {name: one.taken for name, one in held.items()}
        marks = {name: _mark(recording.id, facts[name], held[name].seen) for name in facts}
        tape = Tape(fresh, tuple(tracks), layouts, facts, taken, marks)
        reel.final = tape if fresh.status in _FINAL else None
        reel.held = sum(one.bytes for one in held.values())
        return tape

    def _reel(self, recording: UUID) -> _Reel:
        reel = self._reels.setdefault(recording, _Reel())
        self._reels.move_to_end(recording)
        while len(self._reels) > 1 and (len(self._reels) > _MOST_REELS or sum(one.held for one in self._reels.values()) > self._most):
            self._reels.popitem(last=False)
        return reel

    def _given_up(self, recording: Recording, track: Track, held: _Held) -> set[int]:
        """Indices that the live edge no longer waits for: missing for `wait_s` while later ones are there."""
        already = set(track.live_skips)
        open_ = recording.status in OPEN and bool(held.taken)
        newest, missing = held.taken[-1].index if open_ else 0, set[int]()
        if len(held.taken) < newest < len(held.taken) + 10_000:
            missing = set(range(1, newest)).difference(already, (one.index for one in held.taken))
        now = self._now_us()
        for key in [key for key in self._waits if key[:2] == (recording.id, track.id) and key[2] not in missing]:
            del self._waits[key]
        return already | {index for index in missing if now - self._waits.setdefault((recording.id, track.id, index), now) >= self._wait_us}


def _unpacked(new: Sequence[Chunk]) -> dict[str, list[tuple[int, Taken]]]:
    """By track: (commit_seq, segment)."""
    found: dict[str, list[tuple[int, Taken]]] = {}
    for chunk in new:
        indexed = unpack(chunk.index_blob) if chunk.index_blob is not None else None
        taken = Taken(chunk.index, chunk.key, chunk.size_bytes, chunk.stated_us, indexed, 2 * chunk.commit_seq, _us(chunk.arrived_at))
        found.setdefault(chunk.track_id, []).append((chunk.commit_seq, taken))
    return found


def _take_in(held: _Held, new: Sequence[tuple[int, Taken]]) -> None:
    came = {taken.index: taken for seq, taken in new if seq > held.seen}
    if came:
        kept = [one for one in held.taken if one.index not in came]
        held.indexed_bytes += sum(one.indexed.samples.nbytes + one.indexed.patches.nbytes for one in came.values() if one.indexed)
        held.taken = tuple(sorted([*kept, *came.values()], key=attrgetter("index")))
        held.changed = True
    held.seen = max([held.seen, *(seq for seq, _ in new)])


def _origin(recording: Recording, tracks: Sequence[Track], held: Mapping[str, _Held]) -> int:
    """The recording's zero on the server's clock: while it runs the first that came, afterwards the earliest first sample of its tracks."""
    if recording.status in OPEN and recording.origin_us is not None:
        return recording.origin_us
    starts = []
    for track in tracks:
        taken = held[track.id].taken[:_FEW]
        first = next(iter(taken), None)
        if first is not None and first.stated_us is not None and track.clock != ClockTrust.NONE:
            lost = server_start_us(TrackFacts(track.id, ClockTrust(track.clock), shift_us=track.clock_shift_us), taken) if first.index > 1 else None
            starts.append(first.stated_us + track.clock_shift_us if lost is None else lost)
    return min(starts, default=recording.origin_us or 0)


def _mark(recording: UUID, facts: TrackFacts, seen: int) -> str:
    told = f"{recording} {facts.id} {seen} {facts.closed} {facts.origin_us} {facts.shift_us} {facts.pauses} {len(facts.mends)} {sorted(facts.skips)} {HEADS}"
    return sha256(told.encode()).hexdigest()[:32]


def _facts(recording: Recording, track: Track, held: _Held, *, pauses: Sequence[Pause], mends: tuple[Mend, ...], skips: set[int], origin_us: int) -> TrackFacts:
    return TrackFacts(
        id=track.id,
        trust=ClockTrust(track.clock),
        origin_us=origin_us,
        begin_us=origin_us,
        shift_us=track.clock_shift_us,
        pauses=tuple((_us(pause.from_at), _us(pause.to_at)) for pause in pauses if pause.to_at is not None),
        mends=mends,
        closed=recording.status not in OPEN or track.closed_last_index is not None,
        skips=frozenset(skips),
        last_index=track.closed_last_index,
        close_seq=2 * held.seen + 1,  # after every commit so far, before every later one
    )


def _us(when: datetime) -> int:
    return round(when.timestamp() * 1_000_000)


async def _layout(held: _Held, facts: TrackFacts) -> Layout:
    if held.layout is None or held.changed or held.facts != facts:
        held.layout = await asyncio.to_thread(grow, held.layout, facts, held.taken)
        held.facts, held.changed = facts, False
    return held.layout
