"""What answers look like, for the API's description alone: nothing is validated on its way out; the tests hold every answer they get against these."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from roomtape.core.access import Role, Visibility
from roomtape.core.lifecycle import ChunkState, Health, MeetingState, Status
from roomtape.core.model import ClockTrust, Kind, Source, StoredIn

Described = dict[int | str, dict[str, Any]]


def says(shape: type[BaseModel], *statuses: int) -> Described:
    """A route's `responses`: JSON of this shape, with 200 or these statuses."""
    return {status: {"model": shape} for status in statuses or (200,)}


class Shape(BaseModel):
    """An answer: these keys and no others; those with a default may be absent. Times are RFC 3339 in UTC, durations seconds."""

    model_config = ConfigDict(extra="forbid")


class Remark(Shape):
    """Something a person should know: `code` for programs, `message` for people."""

    code: str
    message: str


class Person(Shape):
    """A participant of a meeting."""

    user_id: str
    full_name: str
    role: Role
    joined_at: datetime
    left_at: datetime | None


class Meeting(Shape):
    """A meeting; `state` follows its newest recording, whose id is `recording_id`."""

    id: UUID
    room_code: str
    title: str
    host_id: str | None
    state: MeetingState
    source: Source | None
    metadata: dict[str, Any]
    analysis: Any
    participants: list[Person]
    recording_id: UUID | None
    created_at: datetime


class Totals(Shape):
    """How many there are in all: `total`, exact, to 10,000; from there on `total_at_least`."""

    total: int = Field(default_factory=int)
    total_at_least: int = Field(default_factory=int)


class Meetings(Totals):
    meetings: list[Meeting]
    limit: int
    offset: int


class Track(Shape):
    """What one recorder of a participant sent; `codec`: its streams, picture first, joined by commas."""

    id: str
    participant_id: str | None
    kind: Kind | None
    source: Literal["camera", "microphone", "screen"] | None
    codec: str | None
    start_s: float | None
    end_s: float | None
    clock: ClockTrust


class Gap(Shape):
    """Where a track has nothing."""

    track_id: str
    start_s: float
    end_s: float
    reason: Literal["segment_missing", "header_missing", "not_indexed", "other_codec", "paused", "no_media"]
    segment_index: int = Field(default_factory=int)


class Artifact(Shape):
    """Something made of a recording."""

    id: UUID
    kind: str
    mime_type: str | None
    size_bytes: int | None
    sha256: str | None
    duration_s: float | None
    url: str
    state: str


class ListedRecording(Shape):
    """A recording as lists have it."""

    id: UUID
    recording_id: UUID
    meeting_id: UUID
    room_code: str
    title: str
    description: str
    metadata: dict[str, Any]
    status: Status
    stage: Literal["receiving", "transcoding", "packaging", "storing", "done"]
    health: Health
    source: Source
    layout: str
    audio_only: bool
    video_codec: str | None
    audio_codec: str | None
    fps: float | None
    bitrate: int | None
    width: int | None
    height: int | None
    rendition: str | None
    started_at: datetime | None
    stopped_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    deleted_at: datetime | None
    last_byte_at: datetime | None
    duration_s: float | None
    size_bytes: int
    sha256: str | None
    mime_type: str | None
    stored_in: StoredIn | None
    storage_url: str | None
    encrypted: bool
    watermarked: bool
    playback_url: str
    download_url: str
    thumbnail_url: str | None
    owner_id: str
    visibility: Visibility
    expires_at: datetime | None
    legal_hold: bool
    warnings: list[Remark]
    error: Remark | None


class Recording(ListedRecording):
    """Everything about a recording."""

    participants: list[Person]
    tracks: list[Track]
    gaps: list[Gap]
    artifacts: list[Artifact]


class RecordingsPage(Totals):
    """A page by cursor, or by offset with a total."""

    recordings: list[ListedRecording]
    next_cursor: str | None


class MeetingRecordings(Totals):
    recordings: list[ListedRecording]
    limit: int
    offset: int


class Live(Shape):
    """The open recording of a meeting."""

    recording_id: UUID
    source: Source
    status: Status
    health: Health
    started_at: datetime | None
    elapsed_s: float
    last_byte_at: datetime | None
    tracks: list[Track]
    bytes: int


class RecordingStatus(Shape):
    """Where a recording stands, in short."""

    recording_id: UUID
    status: Status
    stage: Literal["receiving", "transcoding", "packaging", "storing", "done"]
    progress: float | None
    eta_s: float | None
    size_bytes: int
    duration_s: float | None
    error: Remark | None


class People(Shape):
    participants: list[Person]


class Tracks(Shape):
    tracks: list[Track]
    gaps: list[Gap]


class Event(Shape):
    """A CloudEvent; `data` has `seq`, `recording_id`, `meeting_id` and what belongs to its type."""

    specversion: Literal["1.0"]
    id: UUID
    type: str
    source: str
    subject: str
    time: datetime
    datacontenttype: Literal["application/json"]
    data: dict[str, Any]


class Timeline(Shape):
    events: list[Event]
    gaps: list[Gap]


class Segment(Shape):
    """A segment that was taken; `start_s` on the recording's clock."""

    index: int
    track_id: str
    size_bytes: int
    sha256: str
    state: ChunkState
    started_at: datetime | None
    start_s: float | None
    duration_s: float | None
    warnings: list[Remark] = Field(default_factory=list)


class Segments(Shape):
    segments: list[Segment]


class Playback(Shape):
    """URLs that play without another header, while the token lives."""

    token: str
    hls_url: str | None
    stream_url: str
    mp4_url: str | None
    webm_url: str | None
    preparing: None
    expires_at: datetime


class Range(Shape):
    """A window that Media Source takes on its own."""

    start_us: int
    duration_us: int
    url: str
    offset_us: int
    mime_type: str


class StreamTrack(Shape):
    id: str
    participant_id: str | None
    kind: Kind
    source: Literal["camera", "microphone", "screen"] | None
    mime_type: str
    ranges: list[Range]


class Stream(Shape):
    """What became settled after `after`; ask again with `next` until `ended`."""

    tracks: list[StreamTrack]
    next: int
    ended: bool


class ServiceHealth(Shape):
    """`status` is degraded while something is wrong, which `storage` names; `sandbox`: how decoders are locked in."""

    status: Literal["ok", "degraded"]
    storage: str
    version: str
    sandbox: dict[str, Any] | None


class Ready(Shape):
    status: Literal["ok"]


class Clock(Shape):
    now_us: int


class Camel(Shape):
    """Answers of the segmented upload: camelCase."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class SegmentedStarted(Camel):
    meeting_id: UUID
    recording_id: UUID
    track_id: str
    prefix: str
    state: Status


class TakenSegment(Camel):
    """A segment that is durable."""

    track_id: str
    segment_index: int
    sha256: str
    size_bytes: int
    state: ChunkState
    warnings: list[Remark] = Field(default_factory=list)


class Completing(Camel):
    """`jobId` is null while other tracks are open."""

    job_id: str | None
    state: Status
