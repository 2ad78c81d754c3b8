"""Media for players: playlists, fragments, ranges of whole files; by cookie, Bearer, or a playback token in the path."""

import base64
import re
import secrets
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from roomtape.core.access import Role, Standing, Subject, Verb, role_in
from roomtape.core.errors import Conflict, NotFound, NotSignedIn
from roomtape.core.rope import Rope, Span
from roomtape.db import artifacts, ledger, people
from roomtape.db.database import Connection
from roomtape.db.rows import Recording
from roomtape.library import playback
from roomtape.library.doorkeeper import facts_of, recording_for
from roomtape.tapes.layouts import Tape
from roomtape.tapes.whole import FORMATS
from roomtape.web import shapes
from roomtape.web.identity import Asker, subject_of
from roomtape.web.ropes import RopeResponse
from roomtape.web.route import Route, of
from roomtape.web.schemas import PlaybackAsked
from roomtape.web.services import Of, Services

router = APIRouter(prefix="/recordings/{recording_id}", tags=["playback"], route_class=Route)
by_token = APIRouter(prefix="/recordings/{recording_id}", tags=["playback"], route_class=Route)  # mounted twice: below a playback token too

TrackQuery = Annotated[str | None, Query(max_length=64)]
_PLAYLIST = "application/vnd.apple.mpegurl"
_PRIVATE = {"cache-control": "private, no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
_FRAGMENT = {**_PRIVATE, "cache-control": "private, max-age=3600"}
_UNSAFE = re.compile(r'[\x00-\x1f\x7f"\\/:*?<>|]+')


async def viewer(request: Request, recording_id: UUID, services: Of) -> tuple[Recording, str]:
    """The recording if the one who asks may view it, and the base of its URLs: with the token, where one stands in the path."""
    token = request.path_params.get("token")
    if token is None:
        subject = await subject_of(request, services)
        async with services.database.transaction() as connection:
            recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
        return recording, f"/api/v1/recordings/{recording_id}"
    async with services.database.transaction() as connection:
        subject = await _of_token(connection, token, recording_id)
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
        await people.touch_playback_token(connection, token)  # the right still stands
    return recording, f"/api/v1/p/{token}/recordings/{recording_id}"


Viewed = Annotated[tuple[Recording, str], Depends(viewer)]


async def _of_token(connection: Connection, token: str, recording_id: UUID) -> Subject:
    """Whom a token stands for. NotSignedIn: it has ended, or is for another recording."""
    found = await people.find_playback_token(connection, token)
    recording = await ledger.get_recording(connection, found.tenant_id, recording_id) if found else None
    if found is None or recording is None or found.recording_id != recording_id:
        raise NotSignedIn("The playback token has ended: ask for another.", code="playback_ended")
    standing, stated, key, user = found.subject.split("|", 3)
    if key and not await people.key_stands(connection, found.tenant_id, UUID(key)):
        raise NotSignedIn("The API key that asked for this playback is revoked.", code="playback_ended")
    meetings = {str(recording.meeting_id): Role(stated)} if stated else {}
    return Subject(Standing(standing), user or None, found.tenant_id, meetings=meetings, by_token=bool(stated))


def _label(subject: Subject, role: Role | None) -> str:
    """The subject as a token's row has it; a role is kept only where the host application's own token stated it."""
    stated = role.value if role is not None and subject.by_token else ""
    return f"{subject.standing.value}|{stated}|{subject.key or ''}|{subject.user_id or ''}"


@router.post("/playback", tags=["playback"], responses=shapes.says(shapes.Playback))
async def create_playback(recording_id: UUID, services: Of, subject: Asker, asked: PlaybackAsked | None = None) -> dict[str, Any]:
    """URLs for players, with a token of their own; posting the token again prolongs it and leaves the URLs as they are."""
    asked = asked or PlaybackAsked()
    async with services.database.transaction() as connection:
        recording, meeting = await recording_for(connection, subject, recording_id, Verb.VIEW)
        role = role_in(subject, await facts_of(connection, subject, meeting))
        held = await people.prolong_playback_token(connection, asked.token) if asked.token else None
        token = asked.token
        if held is None or token is None or held.recording_id != recording_id or held.subject != _label(subject, role):
            token = secrets.token_urlsafe(32)
            held = await people.create_playback_token(connection, recording_id, token, _label(subject, role))
    tape = await services.layouts.tape(recording)
    urls = playback.urls(tape, f"/api/v1/p/{token}/recordings/{recording_id}", None)
    if asked.need and urls[f"{asked.need}_url"] is None and tape.main() is not None:  # while nothing has come nobody knows
        raise Conflict("This recording has to be transcoded for that, which this version does not do: play `stream_url`.", code="needs_transcoding")
    return {"token": token, **urls, "preparing": None, "expires_at": held.expires_at.isoformat().replace("+00:00", "Z")}


async def _tape(services: Services, viewed: tuple[Recording, str]) -> Tape:
    return await services.layouts.tape(viewed[0])


@by_token.get("/hls/master.m3u8", response_class=Response, responses=of("application/vnd.apple.mpegurl"))
async def get_hls_master(services: Of, viewed: Viewed, track_id: TrackQuery = None) -> PlainTextResponse:
    """The HLS master playlist."""
    tape = await _tape(services, viewed)
    return PlainTextResponse(playback.master(tape, playback.track_of(tape, track_id)), media_type=_PLAYLIST, headers=_PRIVATE)


@by_token.get("/hls/{track}/media.m3u8", response_class=Response, responses=of("application/vnd.apple.mpegurl"))
async def get_hls_playlist(track: str, services: Of, viewed: Viewed) -> PlainTextResponse:
    """A track's media playlist: grows while recording."""
    tape = await _tape(services, viewed)
    return PlainTextResponse(playback.media_playlist(tape, playback.track_of(tape, track)), media_type=_PLAYLIST, headers=_PRIVATE)


@by_token.get("/hls/{track}/init-{setup}.mp4", response_class=Response, responses=of("video/mp4"))
async def get_hls_init(track: str, setup: int, services: Of, viewed: Viewed) -> Response:
    """The set-up of fragments."""
    tape = await _tape(services, viewed)
    return Response(playback.init(tape, playback.track_of(tape, track), setup), media_type="video/mp4", headers=_FRAGMENT)


@by_token.get("/hls/{track}/{start_us}-{stop_us}.m4s", response_class=Response, responses=of("video/mp4"))
async def get_hls_fragment(track: str, start_us: int, stop_us: int, services: Of, viewed: Viewed) -> RopeResponse:
    """A fragment: a generated moof over untouched bytes."""
    tape = await _tape(services, viewed)
    name = playback.track_of(tape, track)
    return _rope(services, playback.fragment(tape, name, start_us, stop_us), "video/mp4", f"{tape.marks[name]}-{start_us}-{stop_us}")


@by_token.get("/stream.json", responses=shapes.says(shapes.Stream))
async def get_stream(services: Of, viewed: Viewed, after: Annotated[int, Query(ge=0)] = 0) -> JSONResponse:
    """What Media Source can append, in the order of commits."""
    return JSONResponse(playback.stream(await _tape(services, viewed), viewed[1], after), headers=_PRIVATE)


@by_token.get("/stream/{track}/{start_us}-{stop_us}.{suffix}", response_class=Response, responses=of("video/webm", "video/mp4"))
async def get_stream_piece(track: str, start_us: int, stop_us: int, suffix: str, services: Of, viewed: Viewed) -> RopeResponse:
    """A window that Media Source takes on its own."""
    tape = await _tape(services, viewed)
    name = playback.track_of(tape, track)
    rope, kind = playback.piece(tape, name, start_us, stop_us)
    if kind != suffix:
        raise NotFound
    return _rope(services, rope, playback.media_type(kind, tape.layouts[name]), f"{tape.marks[name]}-{start_us}-{stop_us}-{kind}")


def _rope(services: Services, rope: Rope, media_type: str, etag: str) -> RopeResponse:
    return RopeResponse(rope, services.store, media_type=media_type, etag=etag, headers=_FRAGMENT)


@by_token.head("/download", response_model=None, include_in_schema=False)
@by_token.get("/download", response_model=None, response_class=Response, responses=of("video/mp4", "video/webm"))
async def download_recording(
    services: Of,
    viewed: Viewed,
    artifact: Annotated[str | None, Query(max_length=64)] = None,
    format: Annotated[str | None, Query(pattern=f"^({'|'.join(FORMATS)})$")] = None,  # noqa: A002  (the contract's name)
    track_id: TrackQuery = None,
    *,
    inline: bool = False,
) -> Response:
    """The whole meeting as it was recorded: MP4 where the codec allows, else WebM; ranges, ETag."""
    found = await _artifact(services, viewed[0], artifact) if artifact is not None and artifact != "original" else None
    if found is not None:
        return found
    tape = await _tape(services, viewed)
    name = playback.track_of(tape, track_id)
    rope, made, etag = await services.ropes.whole(tape, name, format)
    kind = "inline" if inline else "attachment"
    filename = _UNSAFE.sub(" ", tape.recording.title).strip()[:120] or f"recording-{tape.recording.id}"
    ascii_name = filename.encode("ascii", "replace").decode().replace("?", "_").replace("%", "_")
    encoded = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in filename.encode())
    headers = {**_PRIVATE, "content-disposition": f"{kind}; filename=\"{ascii_name}.{made}\"; filename*=UTF-8''{encoded}.{made}"}
    if tape.recording.sha256 is not None and track_id is None and format is None:  # the digest is of that form
        headers["repr-digest"] = f"sha-256=:{_base64(tape.recording.sha256)}:"
    return RopeResponse(rope, services.store, media_type=playback.media_type(made, tape.layouts[name]), etag=etag, headers=headers)


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


async def _artifact(services: Services, recording: Recording, name: str) -> Response | None:
    """An artifact by id or kind; None: it is the original, which is no object of its own."""
    async with services.database.transaction() as connection:
        made = await artifacts.artifacts_of(connection, recording.id)
    found = next((one for one in made if one.state == "ready" and name in {str(one.id), one.kind}), None)
    if found is None:
        raise NotFound("There is no such artifact.", code="not_made")
    if found.kind == "original":
        return None
    if found.key is None or found.size_bytes is None:
        raise NotFound("There is no such artifact.", code="not_made")
    rope = Rope.of([Span(found.key, 0, found.size_bytes)])
    return RopeResponse(rope, services.store, media_type=found.mime_type or "application/octet-stream", etag=found.sha256 or str(found.id), headers=_PRIVATE)
