"""What the ledger hands out: one frozen value per table; `SELECT *` may bring more columns than a value knows, so that old code reads a newer schema."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from psycopg import AsyncCursor

from roomtape.core.lifecycle import ChunkState, Health, Status

Json = dict[str, Any]
Row = TypeVar("Row")

_CASTS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("Recording", "status"): Status,
    ("Recording", "health"): Health,
    ("Chunk", "state"): ChunkState,
}


@dataclass(frozen=True, slots=True)
class Meeting:
    id: UUID
    tenant_id: str
    room_code: str
    title: str
    host_id: str | None
    source: str | None
    metadata: Json
    analysis: Json | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Participant:
    """`role` is HOST, CO_HOST, PARTICIPANT or VIEWER; `left_at` is None while the person is there."""

    meeting_id: UUID
    user_id: str
    full_name: str
    role: str
    joined_at: datetime
    left_at: datetime | None


@dataclass(frozen=True, slots=True)
class Recording:
    """`bytes` is what has been taken so far; duration_us (which grows until then) … fps are measured when the recording is completed."""

    id: UUID
    tenant_id: str
    meeting_id: UUID
    owner_id: str
    prefix: str
    source: str
    status: Status
    health: Health
    title: str
    description: str
    layout: str
    audio_only: bool
    format: str | None
    video_codec: str | None
    audio_codec: str | None
    bitrate: int | None
    max_duration_s: float | None
    strategy: str | None
    compose: str | None
    options: Json
    visibility: str
    legal_hold: bool
    expires_at: datetime | None
    started_at: datetime | None
    stopped_at: datetime | None
    complete_requested_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    deleted_at: datetime | None
    purging_at: datetime | None
    last_byte_at: datetime | None
    bytes: int
    origin_us: int | None
    duration_us: int | None
    size_bytes: int | None
    sha256: str | None
    width: int | None
    height: int | None
    fps: float | None
    warnings: list[Json]
    error: Json | None
    job_id: str | None
    event_seq: int


@dataclass(frozen=True, slots=True)
class Track:
    """`closed_last_index` is set by complete-recording; `live_skips` are indices that the live edge has given up.

    `clock_shift_us` is added to stated times of a clock that is not believed.
    """

    recording_id: UUID
    id: str
    participant_id: str | None
    kind: str | None
    source: str | None
    mime_type: str | None
    clock: str
    closed_last_index: int | None
    live_skips: list[int]
    clock_shift_us: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Chunk:
    """One segment. `index_blob` and `carry` are None where a query left them out as well as where there are none."""

    recording_id: UUID
    track_id: str
    index: int
    size_bytes: int
    sha256: str
    key: str
    mime_type: str | None
    state: ChunkState
    stored_in: str
    spool_host: str | None
    starts_file: bool
    stated_us: int | None
    clock_offset_us: int | None
    duration_ms: int | None
    warning: str | None
    arrived_at: datetime
    commit_seq: int
    parsed: bool
    media_start_us: int | None
    media_end_us: int | None
    index_blob: bytes | None = None
    carry: bytes | None = None

    @property
    def waits(self) -> bool:
        """Its bytes are in a spool, on their way to the store."""
        return self.state in {ChunkState.QUEUED, ChunkState.IN_PROGRESS}

    @property
    def lost(self) -> bool:
        """Its bytes were taken and are gone."""
        return self.state is ChunkState.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunk:
    """What a capture hands to the ledger when the bytes are durable under `key`."""

    recording_id: UUID
    track_id: str
    index: int
    size_bytes: int
    sha256: str
    key: str
    mime_type: str | None = None
    state: ChunkState = ChunkState.DONE
    stored_in: str = "primary"
    spool_host: str | None = None
    starts_file: bool = False
    stated_us: int | None = None
    clock_offset_us: int | None = None
    duration_ms: int | None = None
    warning: str | None = None
    parsed: bool = False
    media_start_us: int | None = None
    media_end_us: int | None = None
    index_blob: bytes | None = None
    carry: bytes | None = None


@dataclass(frozen=True, slots=True)
class Mend:
    """A few re-encoded packets around a join, as the media floor wrote them."""

    track_id: str
    index: int
    offset_us: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    from_at: datetime
    to_at: datetime | None
    by: str | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """`state`: wanted, making, ready, failed. `head` is the generated head of a rope, where the artifact is one."""

    id: UUID
    recording_id: UUID
    kind: str
    recipe: str
    key: str | None
    mime_type: str | None
    size_bytes: int | None
    sha256: str | None
    duration_us: int | None
    state: str
    progress: float
    error: Json | None
    head: bytes | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """`number` (the column `global`) rises in the order of commits over all recordings, `seq` by one within a recording."""

    id: UUID
    tenant_id: str
    recording_id: UUID
    meeting_id: UUID
    seq: int
    number: int
    type: str
    data: Json
    at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: UUID
    tenant_id: str
    name: str
    role: str
    user_id: str | None
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who a session or a one-time link stands for."""

    tenant_id: str
    user_id: str
    roles: list[str]
    expires_at: datetime
    csrf: str = ""


@dataclass(frozen=True, slots=True)
class PlaybackToken:
    """Ends at `expires_at`; may be prolonged up to `until_at`."""

    tenant_id: str
    recording_id: UUID
    subject: str
    permission: str
    expires_at: datetime
    until_at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    recording_id: UUID
    holder: str
    fence: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What an Idempotency-Key has seen: `status` is None while the first request is still at work; `first_at` stays when that is tried again."""

    route: str
    request_hash: str
    status: int | None
    body: bytes | None
    at: datetime
    first_at: datetime


def row_of(cls: type[Row]) -> Callable[[AsyncCursor[Any]], Callable[[Sequence[Any]], Row]]:
    """A psycopg row factory for a value: takes the columns it knows, by name, and gives states their enumeration."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]

    def factory(cursor: AsyncCursor[Any]) -> Callable[[Sequence[Any]], Row]:
        picked = [(at, column.name, _CASTS.get((cls.__name__, column.name))) for at, column in enumerate(cursor.description or ()) if column.name in known]

        def make(values: Sequence[Any]) -> Row:
            return cls(**{name: cast(values[at]) if cast else values[at] for at, name, cast in picked})

        return make

    return factory
