"""The whole as it was recorded: one file that is never written, but measured, hashed and verified as if it were."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog
from uuid_utils.compat import uuid7

from roomtape.core.errors import NotFound
from roomtape.core.lifecycle import Health
from roomtape.core.rope import Literal, Rope, Woven, woven
from roomtape.db import artifacts, jobs, ledger
from roomtape.db.database import Database
from roomtape.db.jobs import Ticket
from roomtape.media import door
from roomtape.media.layout import Layout
from roomtape.media.refusal import MediaError
from roomtape.media.runner import Limits, Runner, job_folder
from roomtape.media.sandbox import Bounds
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Tape
from roomtape.tapes.whole import Ropes, fps

log = structlog.get_logger()

KIND = "original"
_LEAST_S = 60.0
_SET = "The clock of track {} jumped while it was recorded: what came after stands right behind what came before."


async def make(database: Database, store: SpooledStore, runner: Runner, work: Path, ropes: Ropes, tape: Tape, inputs: str, ticket: Ticket) -> None:
    """Measures the rope of the main track and writes what was found, if the job is still ours."""
    track = tape.main()
    if track is None:
        raise NotFound("There is nothing to measure.", code="nothing_to_play")
    layout = tape.layouts[track]
    rope, made, _ = await ropes.whole(tape, track, None)
    digest, found = await _read(store, runner, work, layout, rope)
    warnings = [warning for warning in tape.recording.warnings if warning["code"] not in {"not_verified", "clock_set"}]
    warnings += [{"code": "clock_set", "message": _SET.format(name)} for name, one in sorted(tape.layouts.items()) if one.clock_set]
    if found is not None:
        warnings.append({"code": "not_verified", "message": found})
    fields = _measured(layout) | {"size_bytes": rope.size, "sha256": digest, "warnings": warnings}
    async with database.transaction() as connection:
        if not await jobs.still_mine(connection, ticket):
            return
        artifact = await artifacts.want_artifact(connection, tape.recording.id, uuid7(), KIND, inputs)
        kind = "video" if layout.has_picture else "audio"
        done = {"state": "ready", "size_bytes": rope.size, "sha256": digest, "duration_us": layout.end_us, "mime_type": f"{kind}/{made}"}
        await artifacts.set_artifact(connection, artifact.id, done)
        for old in await artifacts.artifacts_of(connection, tape.recording.id):
            if old.kind == KIND and old.id != artifact.id:
                await artifacts.drop_artifact(connection, old.id)
        await ledger.set_fields(connection, tape.recording.id, fields)
        if tape.recording.health is Health.STARTING:  # it was over before anybody judged it
            await ledger.set_health(connection, tape.recording.id, Health.LIVE)


def _measured(layout: Layout) -> dict[str, Any]:
    picture = next((stream for stream in layout.newest if stream.kind == "video"), None)
    sound = next((stream for stream in layout.newest if stream.kind == "audio"), None)
    return {
        "duration_us": layout.end_us,
        "width": picture.width or None if picture else None,
        "height": picture.height or None if picture else None,
        "fps": fps(layout),
        "video_codec": picture.codec if picture else None,
        "audio_codec": sound.codec if sound else None,
    }


async def _read(store: SpooledStore, runner: Runner, work: Path, layout: Layout, rope: Rope) -> tuple[str, str | None]:
    """Reads the file once: its digest, and in a sandboxed child whether it decodes; the sentence says what does not."""
    wall_s = max(_LEAST_S, layout.duration_us / 1_000_000)
    limits = Limits(wall_s=wall_s, bounds=Bounds(cpu_s=int(wall_s)))
    try:
        with job_folder(work) as job:
            seen = await door.verify(runner, job, door.FEED, feed=blocks(store, rope), limits=limits)
        trouble = _trouble(layout, seen)
    except MediaError as wrong:
        trouble = f"The finished file could not be verified: {wrong.message}"
        log.warning("original.unverified", why=wrong.code)
    digest = sha256()  # a pass of its own: the child may stop reading early, and what is stated is the digest of every byte
    async for block in blocks(store, rope):
        await asyncio.to_thread(digest.update, block)
    return digest.hexdigest(), trouble


def _trouble(layout: Layout, seen: door.Seen) -> str | None:
    for lane in layout.placement.lanes:
        names = list(dict.fromkeys(stream.codec for stream in lane.setups))
        if len(names) > 1:
            return f"The {lane.kind.value} changes its codec ({', '.join(names)}): what comes after the change plays from `stream_url`, not from one file."
    errors = sum(stream.errors for stream in seen.streams)
    for lane in layout.placement.lanes:
        counted = next((stream for stream in seen.streams if stream.kind == lane.kind), None)
        if len(lane) and (counted is None or counted.packets != len(lane)):
            there = counted.packets if counted else 0
            return f"Of {len(lane)} {lane.kind} packets {there} can be read back."
    return f"{errors} packets do not decode: they were damaged when they came." if errors else None


async def blocks(store: SpooledStore, rope: Rope) -> AsyncIterator[bytes]:
    """The rope's bytes, in pieces of at most a mebibyte."""
    for part in woven(rope.slice(0, rope.size)):
        if isinstance(part, Literal):
            yield part.body
        elif isinstance(part, Woven):
            read = part.read
            yield part.weave(b"".join([block async for block in store.read(read.key, read.offset, read.offset + read.size)]))
        else:
            async for block in store.read(part.key, part.offset, part.offset + part.size):
                yield block
