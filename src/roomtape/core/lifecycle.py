"""The states of recordings, meetings and chunks, as tables: what is not listed cannot happen."""

from enum import StrEnum


class Status(StrEnum):
    """A recording's state; `completed` and `failed` are never left."""

    PENDING = "pending"
    RECORDING = "recording"
    PAUSED = "paused"
    STOPPED = "stopped"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class ChunkState(StrEnum):
    """A chunk's state: queued = durable in a spool, in_progress = on its way to the store, done = in the store."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"
    CLEANED = "cleaned"


class Health(StrEnum):
    """What the media itself says; see core.health."""

    STARTING = "starting"
    LIVE = "live"
    STALLED = "stalled"
    SILENT = "silent"
    BLACK = "black"
    FROZEN = "frozen"


class MeetingState(StrEnum):
    """A meeting's state follows its newest recording."""

    CREATED = "created"
    RECORDING = "recording"
    PROCESSING = "processing"
    PROCESSED = "processed"
    FAILED = "failed"


NEXT: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RECORDING, Status.STOPPED, Status.FAILED}),
    Status.RECORDING: frozenset({Status.PAUSED, Status.STOPPED, Status.FAILED}),
    Status.PAUSED: frozenset({Status.RECORDING, Status.STOPPED, Status.FAILED}),
    Status.STOPPED: frozenset({Status.PROCESSING}),
    Status.PROCESSING: frozenset({Status.COMPLETED, Status.FAILED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
}

CHUNK_NEXT: dict[ChunkState, frozenset[ChunkState]] = {
    ChunkState.QUEUED: frozenset({ChunkState.IN_PROGRESS}),
    ChunkState.IN_PROGRESS: frozenset({ChunkState.QUEUED, ChunkState.DONE, ChunkState.FAILED}),
    ChunkState.DONE: frozenset({ChunkState.CLEANED}),
    ChunkState.FAILED: frozenset({ChunkState.CLEANED}),
    ChunkState.CLEANED: frozenset(),
}

OPEN = frozenset({Status.PENDING, Status.RECORDING, Status.PAUSED})
TAKING = OPEN | {Status.STOPPED}  # segments are taken until complete-recording


def sources_of(target: Status) -> tuple[Status, ...]:
    """The states from which `target` may be reached: an UPDATE carries them in its WHERE."""
    return tuple(state for state, nexts in NEXT.items() if target in nexts)


def meeting_state(newest: Status | None) -> MeetingState:
    """The state of a meeting whose newest recording has the status `newest` (None: it has none)."""
    if newest is None:
        return MeetingState.CREATED
    if newest in OPEN:
        return MeetingState.RECORDING
    if newest in {Status.STOPPED, Status.PROCESSING}:
        return MeetingState.PROCESSING
    return MeetingState.PROCESSED if newest is Status.COMPLETED else MeetingState.FAILED
