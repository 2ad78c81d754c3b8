"""Makes what is missing of a recording: gathers the facts, plans, does the next step, plans again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import structlog
from procrastinate import App

from roomtape.core.errors import RoomtapeError, StorageFull, Unavailable
from roomtape.core.lifecycle import Status
from roomtape.core.plan import Facts, Step, plan, recipe, why_failed
from roomtape.db import artifacts, chunks, jobs, ledger
from roomtape.db.database import Connection, Database
from roomtape.db.jobs import Ticket
from roomtape.db.rows import Recording
from roomtape.media.layout import joins_wanted
from roomtape.media.runner import Runner
from roomtape.pipeline.steps import mend, move, original, take_up
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Layouts, Tape
from roomtape.tapes.whole import Ropes

log = structlog.get_logger()

_ROUNDS = 500  # each round does a step; more means that a step does not do what the plan thinks
_REST = timedelta(hours=1)
_FAILURES = {
    "no_media": "Nothing was recorded: no segment arrived before the recording was completed.",
    "unreadable": "Segments arrived, but none of them holds media that can be read. They can still be downloaded as they came.",
    "segment_lost": "Segments arrived and were taken, but their bytes were lost before they were in the store: this is our fault.",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What the steps work with. `work`: a folder for jobs on this machine; `host`: whose spool this process sees."""

    database: Database
    store: SpooledStore
    layouts: Layouts
    ropes: Ropes
    runner: Runner
    queue: App
    work: Path
    host: str


async def advance(bench: Bench, recording_id: UUID, ticket: Ticket) -> None:
    """Does what is missing. A store that fails leaves the recording `processing`, with the reason and a time of retry; it is never `failed` for that.

    Raises Unavailable or StorageFull where a completed recording cannot be measured again.
    """
    try:
        for _ in range(_ROUNDS):
            if not await _round(bench, recording_id, ticket):
                return
        log.error("plan.endless", recording=str(recording_id))
    except (Unavailable, StorageFull) as wrong:
        await _later(bench, recording_id, ticket, wrong)


async def _round(bench: Bench, recording_id: UUID, ticket: Ticket) -> bool:
    async with bench.database.transaction() as connection:
        if not await jobs.still_mine(connection, ticket):
            return False
        recording = await ledger.find_recording(connection, recording_id)
    if recording is None or recording.deleted_at is not None:
        return False
    tape = await bench.layouts.tape(recording)
    facts = await _facts(bench, tape)
    steps = plan(facts)
    if not steps:
        return False
    log.info("step.started", recording=str(recording_id), step=steps[0].value)
    await _DOERS[steps[0]](bench, tape, facts, ticket)
    return True


async def _facts(bench: Bench, tape: Tape) -> Facts:
    async with bench.database.transaction() as connection:
        rows = await chunks.chunks_of(connection, tape.recording.id)
        made = await artifacts.find_artifact(connection, tape.recording.id, original.KIND)
        mends = await chunks.mends_of(connection, tape.recording.id)
    troubled = [name for name, layout in tape.layouts.items() if layout.off_grid] if tape.ended else []
    unmended = sum(len(joins_wanted(tape.facts[name], tape.taken[name])) for name in troubled)
    return Facts(
        status=tape.recording.status,
        chunks=len(rows),
        lost=sum(row.lost for row in rows),
        waiting=sum(not row.parsed for row in rows),
        spooled=sum(row.waits for row in rows),
        unmended=unmended,
        playable=sum(layout.playable for layout in tape.layouts.values()),
        inputs=recipe(((row.track_id, row.index, row.sha256) for row in rows if not row.lost), len(mends)),
        original=made.recipe if made else None,
    )


async def _take_up(bench: Bench, tape: Tape, _: Facts, ticket: Ticket) -> None:
    await take_up.take_up(bench.database, bench.store, tape.recording, ticket)


async def _move(bench: Bench, tape: Tape, _: Facts, __: Ticket) -> None:
    await move.move(bench.database, bench.store, tape.recording, bench.host)


async def _mend(bench: Bench, tape: Tape, _: Facts, ticket: Ticket) -> None:
    await mend.mend(bench.database, bench.store, bench.runner, bench.work, tape, ticket)


async def _original(bench: Bench, tape: Tape, facts: Facts, ticket: Ticket) -> None:
    await original.make(bench.database, bench.store, bench.runner, bench.work, bench.ropes, tape, facts.inputs, ticket)


async def _complete(bench: Bench, tape: Tape, _: Facts, ticket: Ticket) -> None:
    async with bench.database.transaction() as connection:
        if await jobs.still_mine(connection, ticket):
            await ledger.move(connection, tape.recording.id, Status.COMPLETED, fields={"error": None})
            log.info("recording.completed", recording=str(tape.recording.id))


async def _fail(bench: Bench, tape: Tape, facts: Facts, ticket: Ticket) -> None:
    code = why_failed(facts)
    async with bench.database.transaction() as connection:
        if await jobs.still_mine(connection, ticket):
            await ledger.move(connection, tape.recording.id, Status.FAILED, why=code, fields={"error": {"code": code, "message": _FAILURES[code]}})
            log.info("recording.failed", recording=str(tape.recording.id), code=code)


_DOERS: dict[Step, Callable[[Bench, Tape, Facts, Ticket], Awaitable[None]]] = {
    Step.TAKE_UP: _take_up,
    Step.MOVE: _move,
    Step.MEND: _mend,
    Step.ORIGINAL: _original,
    Step.COMPLETE: _complete,
    Step.FAIL: _fail,
}


async def _later(bench: Bench, recording_id: UUID, ticket: Ticket, wrong: RoomtapeError) -> None:
    """Says why nothing moves, and when it is tried again."""
    wait = timedelta(seconds=max(5, wrong.retry_after_s or 0))
    async with bench.database.transaction() as connection:
        if not await jobs.still_mine(connection, ticket):
            return
        recording = await ledger.lock_recording(connection, recording_id)
        if recording.status is Status.COMPLETED:
            raise wrong  # nobody waits for it: it is put off, and others have their turn
        await _note(connection, recording, wrong.code, wrong.message, wait)
        await jobs.ask(bench.queue, connection, recording.id, at=datetime.now(UTC) + wait)
    log.warning("step.later", recording=str(recording_id), code=wrong.code, wait_s=wait.total_seconds())


async def _note(connection: Connection, recording: Recording, code: str, message: str, wait: timedelta) -> None:
    if recording.status is Status.PROCESSING:
        error = {"code": code, "message": message, "retry_at": (datetime.now(UTC) + wait).isoformat().replace("+00:00", "Z")}
        await ledger.set_fields(connection, recording.id, {"error": error})


async def rest(connection: Connection, recording_id: UUID, *, code: str, message: str) -> None:
    """Leaves a recording alone for an hour and says why: a fault of ours comes again when it is tried at once, and one that kills workers kills the work of others."""
    recording = await ledger.find_recording(connection, recording_id)
    if recording is not None:
        await _note(connection, recording, code, message, _REST)
        log.error("recording.rests", recording=str(recording_id), code=code)


def _rests(recording: Recording, now: datetime) -> bool:
    """Whether its time of retry is still to come."""
    until = (recording.error or {}).get("retry_at")
    return until is not None and datetime.fromisoformat(until) > now


async def forgotten(connection: Connection, recording: Recording, now: datetime) -> bool:
    """Whether no job looks after a recording, and it does not rest.

    A second job beside a running one would begin to count its attempts anew, and a recording that kills workers would kill for ever.
    """
    if await jobs.asked(connection, jobs.waiting_name(recording.id)):
        return False
    after = await ledger.find_recording(connection, recording.id)  # only now: a job that fails and the rest that it brings are one commit
    return after is not None and after.status is Status.PROCESSING and not _rests(after, now)
