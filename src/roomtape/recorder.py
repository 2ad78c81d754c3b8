"""`roomtape record`: looks at what is being recorded and says what the media says; ends captures whose time is up."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from uuid import UUID

import structlog

from roomtape.core.errors import RoomtapeError
from roomtape.core.health import Facts, Picture, Sound, TrackFacts, judge
from roomtape.core.lifecycle import Status
from roomtape.core.rope import Literal, Woven, woven
from roomtape.db import leases, ledger
from roomtape.db.database import Database
from roomtape.db.rows import Lease, Recording
from roomtape.media import door
from roomtape.media.layout import Layout
from roomtape.media.placed import Lane
from roomtape.media.refusal import MediaError
from roomtape.media.runner import Runner, job_folder
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Layouts, Tape

log = structlog.get_logger()

EVERY_S = 2.0
_KEEP_US = 20_000_000  # readings older than this decide nothing
_AT_A_TIME = 4  # recordings: most of a look is waiting, for the database, the store and a child
_SEGMENT_BYTES = 4 << 20  # read in one go; a longer way between two packets of a segment is two reads
_AT_ONCE_US = 12_000_000  # the newest media of a track that has not been looked at for long


@dataclass(slots=True)
class _Track:
    """What has been read of a track, and up to where."""

    until_us: int = 0
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[Sound] = field(default_factory=list)


@dataclass(slots=True)
class Watch:
    """Watches all running recordings that no other recorder holds."""

    database: Database
    store: SpooledStore
    layouts: Layouts
    runner: Runner
    work: Path
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    _tracks: dict[tuple[UUID, str], _Track] = field(default_factory=dict)
    _resumed: dict[UUID, int] = field(default_factory=dict)

    async def look(self) -> None:
        """One round over what is running; what has no media yet is nothing to look at."""
        async with self.database.transaction() as connection:
            running = await ledger.running_recordings(connection, [Status.RECORDING, Status.PAUSED])
        places = asyncio.Semaphore(_AT_A_TIME)
        async with asyncio.TaskGroup() as group:
            for recording in running:
                group.create_task(self._look_at(recording, places))
        alive = {recording.id for recording in running}
        self._tracks = {place: track for place, track in self._tracks.items() if place[0] in alive}
        self._resumed = {place: at for place, at in self._resumed.items() if place in alive}

    async def _look_at(self, recording: Recording, places: asyncio.Semaphore) -> None:
        """One recording, supervised: whatever goes wrong with it is said and ends nobody else's round."""
        async with places:
            try:
                async with self.database.transaction() as connection:
                    held = await leases.take(connection, recording.id, self.holder)
                if held is not None:
                    await self._judge(recording, held)
            except (MediaError, RoomtapeError) as wrong:
                log.warning("watch.unread", recording=str(recording.id), why=wrong.code)
            except Exception:
                log.exception("watch.failed", recording=str(recording.id))

    async def _judge(self, recording: Recording, held: Lease) -> None:
        if await self._ended(recording, held):
            return
        tape = await self.layouts.tape(recording)
        for name, layout in tape.layouts.items():
            await self._read(tape, name, layout)
        origin_us = recording.origin_us or 0
        last = recording.last_byte_at
        facts = Facts(
            tracks=tuple(self._facts(tape, track.id, screen=track.source == "screen") for track in tape.tracks),
            last_byte_us=round(last.timestamp() * 1e6) - origin_us if last else None,
            resumed_us=self._since(recording) - origin_us,
            paused=recording.status is Status.PAUSED,
            before=recording.health,
        )
        verdict = judge(time.time_ns() // 1000 - origin_us, facts)
        if verdict is not recording.health:
            async with self.database.transaction() as connection:
                if await leases.still_held(connection, held):
                    await ledger.set_health(connection, recording.id, verdict.value)

    async def _ended(self, recording: Recording, held: Lease) -> bool:
        """max_duration_s stops a capture."""
        if recording.max_duration_s is None or recording.started_at is None:
            return False
        if (datetime.now(UTC) - recording.started_at).total_seconds() < recording.max_duration_s:
            return False
        async with self.database.transaction() as connection:
            if await leases.still_held(connection, held):
                await ledger.stop(connection, recording.id, why="max_duration_s")
        return True

    def _since(self, recording: Recording) -> int:
        """Since when bytes may be expected: the start, or the moment a pause was seen to end."""
        if recording.status is Status.PAUSED:
            self._resumed[recording.id] = time.time_ns() // 1000
        started = recording.started_at or recording.created_at
        return max(round(started.timestamp() * 1e6), self._resumed.get(recording.id, 0))

    async def _read(self, tape: Tape, name: str, layout: Layout) -> None:
        """Has a sandboxed child look at what came since the last look."""
        track = self._tracks.setdefault((tape.recording.id, name), _Track())
        if layout.end_us <= track.until_us:
            return
        start_us = max(track.until_us, layout.end_us - _AT_ONCE_US)
        streams = [stream for lane in layout.placement.lanes if (stream := await self._elementary(layout, lane, start_us)) is not None]
        track.until_us = layout.end_us
        if not streams:
            return
        with job_folder(self.work) as job:
            heard = await door.watch(self.runner, job, streams=streams)
        keep_us = layout.end_us - _KEEP_US
        track.pictures = [one for one in (*track.pictures, *heard.pictures) if one.at_us >= keep_us]
        track.sounds = [one for one in (*track.sounds, *heard.sounds) if one.end_us >= keep_us]

    async def _elementary(self, layout: Layout, lane: Lane, start_us: int) -> door.Elementary | None:
        """Of pictures the key frames, of sound every packet that was recorded, from `start_us` on."""
        rows = lane.cut(lane.before(start_us), len(lane))
        rows = rows[rows["literal"] < 0]
        if lane.kind == "video":
            rows = rows[rows["key"] == 1]
        if not len(rows):
            return None
        stream = lane.setups[int(rows["setup"][-1])]
        wanted = rows[["at", "size", "time_us", "key"]].tolist()
        bodies = await self._bodies(layout, [(at, size) for at, size, _, _ in wanted])
        packets = [(body, time_us, bool(key)) for body, (_, _, time_us, key) in zip(bodies, wanted, strict=True)]
        return door.Elementary(lane.kind.value, stream.codec, stream.setup, packets, stream.channels, stream.rate)

    async def _bodies(self, layout: Layout, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at each (place, size). A segment is read once and cut here: a bucket takes as long for a packet as for all of them."""
        pieces = [piece for at, size in places for piece in layout.placement.chunks.pieces(at, at + size)]
        found = []
        for part in woven(pieces, small=_SEGMENT_BYTES, most=_SEGMENT_BYTES):
            if isinstance(part, Literal):
                found.append(part.body)
                continue
            span = part.read if isinstance(part, Woven) else part
            body = b"".join([block async for block in self.store.read(span.key, span.offset, span.offset + span.size)])
            found.append(part.weave(body) if isinstance(part, Woven) else body)
        whole = memoryview(b"".join(found))
        ends = accumulate(size for _, size in places)
        return (bytes(whole[end - size : end]) for end, (_, size) in zip(ends, places, strict=True))

    def _facts(self, tape: Tape, name: str, *, screen: bool) -> TrackFacts:
        track = self._tracks.get((tape.recording.id, name), _Track())
        return TrackFacts(tuple(track.pictures), tuple(track.sounds), tape.layouts[name].end_us, screen=screen)
