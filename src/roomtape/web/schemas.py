"""What requests may say: both spellings are taken, an unknown key is an error."""

import math
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from roomtape.core.access import Role, Visibility
from roomtape.core.model import Kind, Source
from roomtape.web.route import storable


def _no_dots(text: str) -> str:
    if text in {".", ".."}:
        raise ValueError("a track is not named . or ..")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
TrackId = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]{1,64}$"), AfterValidator(_no_dots)]  # it stands in paths of URLs
MAX_INDEX = 2_147_483_647
_DEEPEST = 64


def kept(value: Any) -> Any:
    """A JSON value that PostgreSQL keeps as it is. ValueError: NUL, half a surrogate pair, NaN, or too deep."""
    _walk(value, 0)
    return value


def _walk(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"nothing is nested deeper than {_DEEPEST}")
    if isinstance(value, str) and not storable(value):
        raise ValueError("there is a character in it that no text has (NUL, or half a surrogate pair)")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and Infinity are no JSON")
    for inner in [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        _walk(inner, depth + 1)


class Asked(BaseModel):
    """A request body: snake_case or camelCase, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", str_strip_whitespace=False)

    @model_validator(mode="before")
    @classmethod
    def _kept(cls, value: Any) -> Any:
        return kept(value)


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
    bitrate: Annotated[int, Field(ge=1, le=10**10)] | None = None
    max_duration_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
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


def _near(moment: datetime) -> datetime:
    if not 1970 < moment.year < 9000:  # what PostgreSQL and Python both can say in every zone
        raise ValueError("a time lies between 1971 and 8999")
    return moment


class RecordingPatch(Asked):
    """PATCH /recordings/{id}: what is left out stays."""

    title: Annotated[str, Field(max_length=500)] | None = None
    description: Text | None = None
    visibility: Visibility | None = None
    expires_at: Annotated[AwareDatetime, AfterValidator(_near)] | None = None
    legal_hold: bool | None = None


def _moment(value: Any) -> Any:
    """startedAt: RFC 3339 or Unix milliseconds -> integer microseconds since the epoch."""
    if isinstance(value, str):
        text = value.strip()
        try:
            return round(float(text) * 1000)
        except OverflowError as wrong:
            raise ValueError("a time is a finite number") from wrong
        except ValueError:
            pass
        try:
            when = datetime.fromisoformat(text)
        except ValueError as wrong:
            raise ValueError("a time is RFC 3339 with its zone, or Unix milliseconds") from wrong
        if when.tzinfo is None:
            raise ValueError("a time needs its zone, e.g. 2026-01-31T12:00:00Z")
        return round(when.timestamp() * 1_000_000)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18:
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
