"""What requests may say: both spellings are taken, an unknown key is an error."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from roomtape.core.access import Role, Visibility
from roomtape.core.model import Kind, Source

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
TrackId = Annotated[str, Field(min_length=1, max_length=64)]
MAX_INDEX = 2_147_483_647


class Asked(BaseModel):
    """A request body: snake_case or camelCase, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", str_strip_whitespace=False)


class RecordingAsked(Asked):
    """What recording/start and recordings/start share."""

    source: Source | None = None
    title: Annotated[str, Field(max_length=500)] | None = None
    description: Text | None = None
    layout: Literal["grid", "speaker", "single-speaker", "screen", "audio-only"] | None = None
    audio_only: bool | None = None
    format: Literal["mp4", "webm"] | None = None
    video_codec: Annotated[str, Field(max_length=32)] | None = None
    audio_codec: Annotated[str, Field(max_length=32)] | None = None
    bitrate: Annotated[int, Field(ge=1)] | None = None
    max_duration_s: Annotated[float, Field(gt=0)] | None = None
    strategy: Literal["per_user", "mixed", "hybrid"] | None = None
    compose: Literal["live", "at_stop", "on_view"] | None = None
    options: dict[str, Any] | None = None
    user_id: Name | None = None


class StartByRoom(RecordingAsked):
    """POST /recordings/start."""

    room_code: Name | None = None
    room_id: Name | None = None


class MeetingAsked(Asked):
    """POST /meetings."""

    room_code: Name | None = None
    title: Annotated[str, Field(max_length=500)] | None = None
    host_id: Name | None = None
    user_id: Name | None = None
    source: Source | None = None
    metadata: dict[str, Any] | None = None


class ParticipantAsked(Asked):
    """PUT /meetings/{id}/participants/{user_id}."""

    full_name: Annotated[str, Field(max_length=200)]
    role: Role = Role.PARTICIPANT


class RecordingPatch(Asked):
    """PATCH /recordings/{id}: what is left out stays."""

    title: Annotated[str, Field(max_length=500)] | None = None
    description: Text | None = None
    visibility: Visibility | None = None
    expires_at: datetime | None = None
    legal_hold: bool | None = None


def _moment(value: Any) -> Any:
    """startedAt: RFC 3339 or Unix milliseconds -> integer microseconds since the epoch."""
    if isinstance(value, str):
        text = value.strip()
        try:
            return round(float(text) * 1000)
        except ValueError:
            pass
        try:
            when = datetime.fromisoformat(text)
        except ValueError as wrong:
            raise ValueError("a time is RFC 3339 with its zone, or Unix milliseconds") from wrong
        if when.tzinfo is None:
            raise ValueError("a time needs its zone, e.g. 2026-01-31T12:00:00Z")
        return round(when.timestamp() * 1_000_000)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value * 1000)
    return value


MomentUs = Annotated[int, BeforeValidator(_moment), Field(ge=0, le=253_402_300_799_000_000)]
_CLOCK_US = 366 * 86_400 * 1_000_000


class StartSegmented(Asked):
    """POST /meetings/start-recording."""

    user_id: Name | None = None
    meeting_id: Name | None = None
    title: Annotated[str, Field(max_length=500)] | None = None
    mime_type: Annotated[str, Field(max_length=200)] | None = None
    track_id: TrackId | None = None
    participant_id: Name | None = None
    recording_id: str | None = None
    kind: Kind | None = None
    source: Literal["camera", "microphone", "screen"] | None = None


class SegmentAsked(Asked):
    """The names of upload-segment, in the query or as form fields."""

    meeting_id: Name
    segment_index: Annotated[int, Field(ge=1, le=MAX_INDEX)]
    recording_id: str | None = None
    track_id: TrackId = "1"
    participant_id: Name | None = None
    kind: Kind | None = None
    source: Literal["camera", "microphone", "screen"] | None = None
    started_at: MomentUs | None = None
    duration_ms: Annotated[float, Field(ge=0, le=86_400_000)] | None = None
    clock_offset_us: Annotated[int, Field(ge=-_CLOCK_US, le=_CLOCK_US)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    mime_type: Annotated[str, Field(max_length=200)] | None = None


class CompleteAsked(Asked):
    """POST /meetings/complete-recording."""

    meeting_id: Name
    recording_id: str | None = None
    track_id: TrackId | None = None
    last_segment_index: Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = None
    last_segment_indexes: dict[str, Annotated[int, Field(ge=0, le=MAX_INDEX)]] | None = None
    allow_gaps: bool = False


class PlaybackAsked(Asked):
    """POST /recordings/{id}/playback."""

    token: Annotated[str, Field(max_length=100)] | None = None
    need: Literal["hls", "mp4"] | None = None
