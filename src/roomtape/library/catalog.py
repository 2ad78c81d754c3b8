"""What the API says of meetings and recordings: measured where it can be measured, never guessed from clocks."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from roomtape.core.lifecycle import OPEN, Status, meeting_state
from roomtape.core.model import Gap
from roomtape.db.rows import Artifact, Chunk, Event, Meeting, Participant, Recording, Track
from roomtape.media.boxes import MP4_CODECS, playable_as_mp4
from roomtape.media.index import Stream, codec_string
from roomtape.media.layout import Layout, Span
from roomtape.tapes.indexing import NOT_INDEXED
from roomtape.tapes.layouts import Tape
from roomtape.tapes.whole import fps

View = dict[str, Any]

_STAGES = {  # `stopped` still receives: segments captured before the stop are taken until complete-recording
    Status.PENDING: "receiving",
    Status.RECORDING: "receiving",
    Status.PAUSED: "receiving",
    Status.STOPPED: "receiving",
    Status.PROCESSING: "packaging",
    Status.COMPLETED: "done",
    Status.FAILED: "done",
}


def when(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, with microseconds."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def seconds(microseconds: int | None) -> float | None:
    """Seconds for a screen or a JSON number."""
    return None if microseconds is None else round(microseconds / 1_000_000, 6)


def meeting_view(meeting: Meeting, people: Sequence[Participant], newest: Recording | None) -> View:
    """A meeting as the contract has it."""
    return {
        "id": str(meeting.id),
        "room_code": meeting.room_code,
        "title": meeting.title,
        "host_id": meeting.host_id,
        "state": meeting_state(newest.status if newest else None).value,
        "source": meeting.source,
        "metadata": meeting.metadata,
        "analysis": meeting.analysis,
        "participants": [person_view(person) for person in people],
        "recording_id": str(newest.id) if newest else None,
        "created_at": when(meeting.created_at),
    }


def person_view(person: Participant) -> View:
    return {
        "user_id": person.user_id,
        "full_name": person.full_name,
        "role": person.role,
        "joined_at": when(person.joined_at),
        "left_at": when(person.left_at),
    }


def short_view(recording: Recording, meeting: Meeting, *, spooled: bool = False) -> View:
    """A recording as lists have it: from its row alone. `spooled`: some of its bytes still wait for the store."""
    base = f"/api/v1/recordings/{recording.id}"
    return {
        "id": str(recording.id),
        "recording_id": str(recording.id),
        "meeting_id": str(recording.meeting_id),
        "room_code": meeting.room_code,
        "title": recording.title.strip() or meeting.title.strip(),
        "description": recording.description,
        "metadata": meeting.metadata,
        "status": recording.status.value,
        "stage": stage(recording),
        "health": recording.health.value,
        "source": recording.source,
        "layout": recording.layout,
        "audio_only": recording.audio_only,
        "video_codec": recording.video_codec,
        "audio_codec": recording.audio_codec,
        "fps": recording.fps,
        "bitrate": recording.bitrate,
        "width": recording.width,
        "height": recording.height,
        "rendition": "original" if recording.bytes else None,
        "started_at": when(recording.started_at),
        "stopped_at": when(recording.stopped_at),
        "completed_at": when(recording.completed_at),
        "created_at": when(recording.created_at),
        "deleted_at": when(recording.deleted_at),
        "last_byte_at": when(recording.last_byte_at),
        "duration_s": seconds(recording.duration_us),
        "size_bytes": recording.size_bytes if recording.size_bytes is not None else recording.bytes,
        "sha256": recording.sha256,
        "mime_type": _mime_of_row(recording),
        "stored_in": "spool" if spooled else "primary" if recording.bytes else None,
        "storage_url": None,
        "encrypted": False,
        "watermarked": False,
        "playback_url": f"{base}/playback",
        "download_url": f"{base}/download",
        "thumbnail_url": None,
        "owner_id": recording.owner_id,
        "visibility": recording.visibility,
        "expires_at": when(recording.expires_at),
        "legal_hold": recording.legal_hold,
        "warnings": recording.warnings,
        "error": recording.error,
    }


def whole_view(tape: Tape, meeting: Meeting, people: Sequence[Participant], artifacts: Sequence[Artifact], *, spooled: bool) -> View:
    """A recording with everything: what is running is measured from its layout as it stands."""
    recording = tape.recording
    view = short_view(recording, meeting, spooled=spooled)
    main = tape.main()
    if main is not None:
        view |= measured(tape.layouts[main], keep_duration=recording.duration_us if recording.status is Status.COMPLETED else None)
        view["rendition"] = "original" if len(tape.layouts) == 1 else f"track:{main}"
    view |= {
        "participants": [person_view(person) for person in people],
        "tracks": [track_view(track, tape.layouts[track.id]) for track in tape.tracks],
        "gaps": gaps_view(tape),
        "artifacts": [artifact_view(artifact) for artifact in artifacts if artifact.state != "wanted"],
    }
    return view


def measured(layout: Layout, *, keep_duration: int | None = None) -> View:
    """Codecs, size of the picture and duration, read from the media."""
    streams = {stream.kind.value: stream for stream in layout.newest}
    picture, sound = streams.get("video"), streams.get("audio")
    return {
        "video_codec": picture.codec if picture else None,
        "audio_codec": sound.codec if sound else None,
        "width": picture.width or None if picture else None,
        "height": picture.height or None if picture else None,
        "fps": fps(layout),
        "duration_s": seconds(keep_duration if keep_duration is not None else layout.end_us),
        "mime_type": mime_type(layout.newest),
    }


def mime_type(streams: Sequence[Stream]) -> str | None:
    """What a download of the original is: MP4 where the codecs allow, else WebM."""
    if not streams:
        return None
    kind = "video" if any(stream.kind == "video" for stream in streams) else "audio"
    codecs = ",".join(codec_string(stream) for stream in streams)
    return f'{kind}/{"mp4" if playable_as_mp4(streams) else "webm"};codecs="{codecs}"'


def _mime_of_row(recording: Recording) -> str | None:
    """As mime_type, of what was measured at the end, without the codecs' details, which only the media has."""
    named = [codec for codec in (recording.video_codec, recording.audio_codec) if codec]
    if not named or recording.size_bytes is None:  # until then the columns are wishes
        return None
    return f"{'video' if recording.video_codec else 'audio'}/{'mp4' if MP4_CODECS.issuperset(named) else 'webm'}"


def stage(recording: Recording) -> str:
    return _STAGES[recording.status]


def track_view(track: Track, layout: Layout) -> View:
    kind = "video" if layout.has_picture else "audio" if layout.has_sound else track.kind
    return {
        "id": track.id,
        "participant_id": track.participant_id,
        "kind": kind,
        "source": track.source,
        "codec": ",".join(stream.codec for stream in layout.newest) or None,
        "start_s": seconds(layout.start_us) if layout.playable else None,
        "end_s": seconds(layout.end_us) if layout.playable else None,
        "clock": track.clock,
    }


def gaps_view(tape: Tape) -> list[View]:
    """Every hole, by track and time."""
    return [gap_view(gap) for track in tape.tracks for gap in tape.layouts[track.id].gaps]


def gap_view(gap: Gap) -> View:
    view = {"track_id": gap.track, "start_s": seconds(gap.start_us), "end_s": seconds(gap.end_us), "reason": gap.reason}
    return view if gap.segment_index is None else view | {"segment_index": gap.segment_index}


def artifact_view(artifact: Artifact) -> View:
    return {
        "id": str(artifact.id),
        "kind": artifact.kind,
        "mime_type": artifact.mime_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "duration_s": seconds(artifact.duration_us),
        "url": f"/api/v1/recordings/{artifact.recording_id}/download?artifact={artifact.id}",
        "state": artifact.state,
    }


def segments_view(found: Sequence[Chunk], layouts: Mapping[str, Layout]) -> list[View]:
    """Every segment: a day of them has 43,200."""
    spans = {track: {span.index: span for span in layout.spans} for track, layout in layouts.items()}
    return [segment_view(chunk, spans.get(chunk.track_id, {}).get(chunk.index)) for chunk in found]


def segment_view(chunk: Chunk, span: Span | None) -> View:
    """One segment: when it began on the server's clock, and how long its media is."""
    view: View = {
        "index": chunk.index,
        "track_id": chunk.track_id,
        "size_bytes": chunk.size_bytes,
        "sha256": chunk.sha256,
        "state": chunk.state.value,
        "started_at": when(None if chunk.stated_us is None else datetime.fromtimestamp(chunk.stated_us / 1e6, UTC)),
        "start_s": seconds(span.start_us) if span else None,
        "duration_s": seconds(span.end_us - span.start_us) if span else None,
    }
    return view | warned(chunk)


def warned(chunk: Chunk) -> View:
    """`warnings` of a segment, where it has some."""
    if chunk.lost:
        return {"warnings": [{"code": "segment_lost", "message": "This segment was taken and its bytes are lost."}]}
    if not chunk.warning:
        return {}
    if chunk.warning == NOT_INDEXED:
        return {"warnings": [{"code": "not_indexed", "message": "This segment is not readable as media: it plays nothing and stays downloadable."}]}
    return {"warnings": [{"code": "partly_indexed", "message": f"Parts of this segment are not readable as media ({chunk.warning})."}]}


def live_view(recording: Recording, tape: Tape, now: datetime) -> View:
    """GET /meetings/{id}/recording."""
    started = recording.started_at
    return {
        "recording_id": str(recording.id),
        "source": recording.source,
        "status": recording.status.value,
        "health": recording.health.value,
        "started_at": when(started),
        "elapsed_s": round(((recording.stopped_at or now) - started).total_seconds(), 3) if started else 0,
        "last_byte_at": when(recording.last_byte_at),
        "tracks": [track_view(track, tape.layouts[track.id]) for track in tape.tracks],
        "bytes": recording.bytes,
    }


def status_view(recording: Recording, waiting: int) -> View:
    """GET /recordings/{id}/status; `waiting`: bodies still on their way to the store."""
    ended = recording.status in {Status.COMPLETED, Status.FAILED}
    return {
        "recording_id": str(recording.id),
        "status": recording.status.value,
        "stage": "storing" if waiting and recording.status not in OPEN else stage(recording),
        "progress": 1.0 if ended else None,
        "eta_s": 0 if ended else None,
        "size_bytes": recording.size_bytes if recording.size_bytes is not None else recording.bytes,
        "duration_s": seconds(recording.duration_us),
        "error": recording.error,
    }


def event_view(event: Event) -> View:
    """A CloudEvent."""
    return {
        "specversion": "1.0",
        "id": str(event.id),
        "type": event.type,
        "source": "/roomtape",
        "subject": f"recordings/{event.recording_id}",
        "time": when(event.at),
        "datacontenttype": "application/json",
        "data": {"seq": event.seq, "recording_id": str(event.recording_id), "meeting_id": str(event.meeting_id), **event.data},
    }
