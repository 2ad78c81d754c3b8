"""Recordings over HTTP: every field, every list, playing and downloading, as the contract has them."""

import base64
import hashlib
import os
import re
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest

from .house import House, Json, Taken, begin, complete, completed, fill, name, segments, until, upload
from .test_contract_meetings import PERSON, is_time, problem

TEXT, TIME, NUMBER, COUNT, FLAG, LIST, OBJECT = str, "time", "number", int, bool, list, dict
NULL = None
RECORDING: dict[str, tuple[Any, ...]] = {
    "id": (TEXT,), "recording_id": (TEXT,), "meeting_id": (TEXT,), "room_code": (TEXT,), "title": (TEXT,), "description": (TEXT,), "metadata": (OBJECT,),
    "status": (TEXT,), "stage": (TEXT,), "health": (TEXT,), "source": (TEXT,), "layout": (TEXT,), "audio_only": (FLAG,), "video_codec": (TEXT, NULL),
    "audio_codec": (TEXT, NULL), "fps": (NUMBER, NULL), "bitrate": (COUNT, NULL), "width": (COUNT, NULL), "height": (COUNT, NULL), "rendition": (TEXT, NULL),
    "started_at": (TIME, NULL), "stopped_at": (TIME, NULL), "completed_at": (TIME, NULL), "created_at": (TIME,), "deleted_at": (TIME, NULL),
    "last_byte_at": (TIME, NULL), "duration_s": (NUMBER, NULL), "size_bytes": (COUNT,), "sha256": (TEXT, NULL), "mime_type": (TEXT, NULL),
    "stored_in": (TEXT, NULL), "storage_url": (TEXT, NULL), "encrypted": (FLAG,), "watermarked": (FLAG,), "playback_url": (TEXT,), "download_url": (TEXT,),
    "thumbnail_url": (TEXT, NULL), "owner_id": (TEXT,), "visibility": (TEXT,), "expires_at": (TIME, NULL), "legal_hold": (FLAG,), "warnings": (LIST,),
    "error": (OBJECT, NULL), "participants": (LIST,), "tracks": (LIST,), "gaps": (LIST,), "artifacts": (LIST,),
}  # fmt: skip
MAY_BE_LEFT_OUT = {"participants", "tracks", "gaps", "artifacts"}
TRACK = {"id", "participant_id", "kind", "source", "codec", "start_s", "end_s", "clock"}
SEGMENT = {"index", "track_id", "size_bytes", "sha256", "state", "started_at", "duration_s"}
ARTIFACT = {"id", "kind", "mime_type", "size_bytes", "sha256", "duration_s", "url", "state"}


def fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    for kind in kinds:
        if kind is NULL and value is None:
            return True
        if kind == TIME and is_time(value):
            return True
        if kind == NUMBER and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if isinstance(kind, type) and type(value) is kind:
            return True
    return False


def is_recording(view: Json, *, short: bool = False) -> None:
    assert set(RECORDING) - set(view) <= (MAY_BE_LEFT_OUT if short else set())
    assert set(view) <= set(RECORDING)
    assert {key: value for key, value in view.items() if not fits(value, RECORDING[key])} == {}
    assert view["id"] == view["recording_id"]


def test_a_finished_recording_has_exactly_the_fields_of_the_contract(admin: httpx2.Client, finished: Taken) -> None:
    view = admin.get(f"/api/v1/recordings/{finished.id}").json()
    is_recording(view)
    assert UUID(view["id"]).version == 7
    assert (view["status"], view["stage"], view["source"], view["visibility"], view["owner_id"]) == ("completed", "done", "segments", "private", finished.host)
    assert (view["video_codec"], view["audio_codec"], view["width"], view["height"]) == ("vp9", "opus", 640, 360)
    assert 29 < view["fps"] < 31
    assert 11.5 < view["duration_s"] < 12.5
    assert view["mime_type"].startswith("video/mp4;codecs=")
    assert re.fullmatch("[0-9a-f]{64}", view["sha256"])
    assert (view["stored_in"], view["rendition"], view["error"], view["title"]) == ("primary", "original", None, "Done")
    for moment in ("started_at", "stopped_at", "completed_at", "last_byte_at"):
        assert is_time(view[moment]), moment
    assert [set(person) for person in view["participants"]] == [PERSON]
    [track] = view["tracks"]
    assert set(track) == TRACK
    assert (track["id"], track["participant_id"], track["kind"], track["clock"]) == ("1", finished.host, "video", "measured")
    assert [set(artifact) for artifact in view["artifacts"]] == [ARTIFACT]
    assert view["artifacts"][0]["kind"] == "original"
    assert admin.get(f"/api/v1/recordings/{finished.id}/tracks").json()["tracks"] == view["tracks"]
    status = admin.get(f"/api/v1/recordings/{finished.id}/status").json()
    assert set(status) == {"recording_id", "status", "stage", "progress", "eta_s", "size_bytes", "duration_s", "error"}
    assert (status["status"], status["progress"], status["duration_s"]) == ("completed", 1.0, view["duration_s"])


def test_every_answer_that_is_a_recording_is_a_whole_one(admin: httpx2.Client, running: Taken) -> None:
    path, meeting = f"/api/v1/recordings/{running.id}", f"/api/v1/meetings/{running.meeting_id}"
    for method, where, body in [
        ("GET", path, None), ("PATCH", path, {"title": "x"}), ("POST", f"{meeting}/recording/pause", None), ("POST", f"{meeting}/recording/resume", None),
        ("POST", f"{path}/stop", None), ("POST", f"{meeting}/recording/stop", None), ("DELETE", path, None), ("POST", f"{path}/restore", None),
        ("POST", f"{meeting}/recording/start", {}), ("POST", f"{meeting}/recording/discard", None),
        ("POST", "/api/v1/recordings/start", {"roomId": running.meeting_id}),
    ]:  # fmt: skip
        answer = admin.request(method, where, json=body)
        assert answer.is_success, (where, answer.text)
        is_recording(answer.json())
    listed = admin.get(f"{meeting}/recordings").json()["recordings"]
    assert len(listed) == 2
    for one in listed:
        is_recording(one, short=True)


def test_while_it_runs_it_is_measured_from_what_is_there(admin: httpx2.Client, running: Taken) -> None:
    view = admin.get(f"/api/v1/recordings/{running.id}").json()
    is_recording(view)
    sizes = [len(body) for body in segments()[:3]]
    assert (view["status"], view["stage"], view["size_bytes"], view["audio_codec"], view["video_codec"]) == ("recording", "receiving", sum(sizes), "opus", None)
    assert 5 < view["duration_s"] < 7
    listed = admin.get(f"/api/v1/recordings/{running.id}/segments").json()["segments"]
    assert [one["index"] for one in listed] == [1, 2, 3]
    for one, body in zip(listed, segments(), strict=False):
        assert set(one) >= SEGMENT
        assert (one["track_id"], one["size_bytes"], one["sha256"], one["state"]) == ("1", len(body), hashlib.sha256(body).hexdigest(), "done")
        assert is_time(one["started_at"])
        assert 1.5 < one["duration_s"] < 2.5
        bytes_taken = admin.get(f"/api/v1/recordings/{running.id}/segments/{one['index']}")
        assert (bytes_taken.content, bytes_taken.headers["etag"]) == (body, f'"{one["sha256"]}"')
        assert bytes_taken.headers["content-disposition"].startswith("attachment")
    for wrong in ("0", "4", "-1", "x", str(2**31), str(2**80)):
        problem(admin.get(f"/api/v1/recordings/{running.id}/segments/{wrong}"), 404, "not_found")
    assert admin.get(f"/api/v1/recordings/{running.id}/segments", params={"track_id": "2"}).json() == {"segments": []}
    problem(admin.get(f"/api/v1/recordings/{running.id}/segments/1", params={"trackId": "2"}), 404, "not_found")


def test_lists_say_of_a_finished_one_what_was_measured(admin: httpx2.Client, finished: Taken) -> None:
    whole = admin.get(f"/api/v1/recordings/{finished.id}").json()
    for path in (f"/api/v1/meetings/{finished.meeting_id}/recordings", f"/api/v1/recordings?room_id={finished.meeting_id}"):
        [one] = admin.get(path).json()["recordings"]
        assert (one["mime_type"], one["stored_in"], one["video_codec"]) == ("video/mp4", "primary", "vp9")
        same = set(one) - {"mime_type"}
        assert {key: one[key] for key in same} == {key: whole[key] for key in same}


def test_lists_say_of_a_stopped_one_that_segments_may_still_come(admin: httpx2.Client, running: Taken) -> None:
    admin.post(f"/api/v1/recordings/{running.id}/stop")
    [one] = admin.get(f"/api/v1/meetings/{running.meeting_id}/recordings").json()["recordings"]
    assert (one["status"], one["stage"], one["stored_in"], one["mime_type"]) == ("stopped", "receiving", "primary", None)
    assert upload(admin, running, 4, segments()[3]).status_code == 201


def test_a_patch_changes_what_it_names_and_nothing_else(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/recordings/{running.id}"
    before = admin.get(path).json()
    said = {"title": "Café 🎥", "description": "about", "visibility": "tenant", "expires_at": "2031-01-02T03:04:05Z", "legal_hold": True}
    after = admin.patch(path, json=said).json()
    assert {key: after[key] for key in said} == said
    assert {key for key in before if before[key] != after[key]} == set(said)
    admin.patch(path, json={"visibility": "private"})  # other tests count what strangers see
    assert admin.patch(path, json={"expiresAt": None, "legalHold": False}).json()["expires_at"] is None
    assert admin.patch(path, json={}).json()["title"] == "Café 🎥"
    for wrong in (
        {"status": "completed"}, {"owner_id": "me"}, {"visibility": "all"}, {"title": "x" * 501}, {"title": "\x00"},
        {"expires_at": "2031-01-02T03:04:05"}, {"expires_at": "0001-01-01T00:00:00+23:59"}, {"expires_at": "9999-12-31T23:59:59-23:59"},
    ):  # fmt: skip
        problem(admin.patch(path, json=wrong), 422, "invalid")


def test_deleting_twice_and_restoring(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/recordings/{running.id}"
    problem(admin.delete(path), 409, "still_recording")
    admin.post(f"{path}/stop")
    admin.patch(path, json={"legal_hold": True})
    problem(admin.delete(path), 409, "legal_hold")
    admin.patch(path, json={"legal_hold": False})
    first, again = admin.delete(path), admin.delete(path)
    assert first.status_code == 200
    assert again.json() == first.json()
    assert is_time(first.json()["deleted_at"])
    for after in ("", "/status", "/download", "/hls/master.m3u8", "/stream.json", "/segments", "/tracks", "/participants", "/timeline", "/segments/1"):
        problem(admin.get(path + after), 404, "not_found")
    for method, after in (("POST", "/stop"), ("POST", "/playback"), ("PATCH", "")):
        problem(admin.request(method, path + after, json={} if method == "PATCH" else None), 404, "not_found")
    assert running.id not in [one["id"] for one in admin.get("/api/v1/recordings", params={"limit": 200}).json()["recordings"]]
    restored, twice = admin.post(f"{path}/restore"), admin.post(f"{path}/restore")
    assert restored.json()["deleted_at"] is None
    assert twice.json() == restored.json()
    assert admin.get(f"{path}/download").status_code == 200


def test_paging_by_cursor_misses_and_doubles_nothing_while_recordings_are_added(house: House, admin: httpx2.Client) -> None:
    user = name()
    with house.client(house.key("user", user)) as client:
        before = [begin(admin, user, title=f"old {number}").id for number in range(7)]
        page = client.get("/api/v1/recordings", params={"limit": 3})
        seen: list[str] = []
        while True:
            seen += [one["id"] for one in page.json()["recordings"]]
            assert set(page.json()) == {"recordings", "next_cursor"}
            if page.json()["next_cursor"] is None:
                break
            begin(admin, user, title="new")
            url = re.fullmatch(r'<([^>]+)>; rel="next"', page.headers["link"])
            assert url is not None
            assert page.json()["next_cursor"] in url[1]
            page = client.get(url[1])
        assert seen == before[::-1]
        by_offset = client.get("/api/v1/recordings", params={"limit": 4, "offset": 4, "q": "old"}).json()
        assert ([one["title"] for one in by_offset["recordings"]], by_offset["total"]) == (["old 2", "old 1", "old 0"], 7)
        for wrong in ("x", "🎥", "AAAA", "e30"):
            problem(client.get("/api/v1/recordings", params={"cursor": wrong}), 422, "bad_cursor")
        problem(client.get("/api/v1/recordings", params={"cursor": "x", "offset": 1}), 422, "bad_cursor")
        problem(client.get("/api/v1/recordings", params={"limit": 201}), 422, "invalid")
        problem(client.get("/api/v1/recordings", params={"q": "\x00"}), 422, "invalid")


def test_a_total_is_exact_to_ten_thousand_and_at_least_that_beyond(house: House, admin: httpx2.Client) -> None:
    user = name("many")
    meeting = admin.post("/api/v1/meetings", json={"host_id": user}).json()["id"]
    house.sql(
        "WITH made AS (INSERT INTO recordings (id, meeting_id, owner_id, prefix, source, status) SELECT gen_random_uuid(), %s, %s, 'p/', 'segments', 'completed'"
        " FROM generate_series(1, 10001) RETURNING id, tenant_id, created_at) INSERT INTO acl (recording_id, tenant_id, subject, permission, via, sort_at)"
        " SELECT id, tenant_id, 'user:' || %s, 'owner', 'owner', created_at FROM made",
        meeting, user, user,
    )  # fmt: skip
    with house.client(house.key("user", user)) as client:
        found = client.get("/api/v1/recordings", params={"offset": 0, "limit": 1}).json()
        assert ("total" in found, found["total_at_least"]) == (False, 10_000)
        house.sql("DELETE FROM recordings WHERE id IN (SELECT id FROM recordings WHERE meeting_id = %s LIMIT 1)", meeting)
        assert client.get("/api/v1/recordings", params={"offset": 0, "limit": 1}).json()["total"] == 10_000
    house.sql("DELETE FROM recordings WHERE meeting_id = %s", meeting)


def test_lists_are_filtered_by_room_status_and_words(house: House, admin: httpx2.Client) -> None:
    user, room = name(), "11111111-2222-7333-8444-" + name("")[1:].ljust(12, "0")[:12]
    with house.client(house.key("user", user)) as client:
        inside = begin(admin, user, meetingId=room, title="Inside 100%")  # a host's own ids may look like ours
        begin(admin, user, title="Elsewhere")
        for said in ({"room_id": room}, {"room_code": room}, {"room_id": inside.meeting_id}, {"q": "100%"}, {"q": "inSIDE"}, {"q": room}):
            assert [one["id"] for one in client.get("/api/v1/recordings", params=said).json()["recordings"]] == [inside.id], said
        admin.post(f"/api/v1/recordings/{inside.id}/stop")
        assert [one["id"] for one in client.get("/api/v1/recordings", params={"status": "stopped"}).json()["recordings"]] == [inside.id]
        assert len(client.get("/api/v1/recordings", params={"status": "pending|stopped"}).json()["recordings"]) == 2
        for nothing in ({"room_id": name()}, {"room_code": name()}, {"q": "_nside"}, {"status": "failed"}):
            assert client.get("/api/v1/recordings", params=nothing).json() == {"recordings": [], "next_cursor": None}


def test_playback_gives_urls_that_need_nothing_else(house: House, admin: httpx2.Client, finished: Taken) -> None:
    made = admin.post(f"/api/v1/recordings/{finished.id}/playback", json={})
    assert made.status_code == 200
    view = made.json()
    assert set(view) == {"token", "hls_url", "stream_url", "mp4_url", "webm_url", "preparing", "expires_at"}
    assert (view["preparing"], is_time(view["expires_at"])) == (None, True)
    assert made.headers["cache-control"] == "no-store"
    with house.client() as player:
        for way in ("hls_url", "stream_url", "mp4_url", "webm_url"):
            assert view["token"] in view[way].split("?")[0], "the token stands in the path"
            assert player.get(view[way]).status_code == 200
        master = player.get(view["hls_url"])
        assert master.headers["content-type"] == "application/vnd.apple.mpegurl"
        playlist = player.get(master.url.join(re.findall(r"^[^#].*m3u8.*$", master.text, re.MULTILINE)[0]))
        assert playlist.text.rstrip().endswith("#EXT-X-ENDLIST")
        first = re.findall(r'URI="([^"]+)"', playlist.text)[0], re.findall(r"^[^#].*m4s$", playlist.text, re.MULTILINE)[0]
        for piece in first:
            got = player.get(playlist.url.join(piece))
            assert (got.status_code, got.headers["content-type"]) == (200, "video/mp4")
        stream = player.get(view["stream_url"]).json()
        assert set(stream) >= {"tracks", "next"}
        [track] = stream["tracks"]
        assert set(track) == {"id", "participant_id", "kind", "source", "mime_type", "ranges"}
        assert set(track["ranges"][0]) >= {"start_us", "duration_us", "url", "offset_us"}
        assert player.get(track["ranges"][0]["url"]).content[:4] == b"\x1a\x45\xdf\xa3"
        assert player.get(view["stream_url"], params={"after": stream["next"]}).json()["tracks"][0]["ranges"] == []
        whole = player.get(view["mp4_url"])
        assert hashlib.sha256(whole.content).hexdigest() == admin.get(f"/api/v1/recordings/{finished.id}").json()["sha256"]
        for key in ("mp4_url", "webm_url"):
            assert player.get(view[key]).headers["content-disposition"].startswith("inline")


def test_what_has_to_be_transcoded_is_said_so(admin: httpx2.Client, finished: Taken) -> None:
    path = f"/api/v1/recordings/{finished.id}"
    for need in ("hls", "mp4"):
        assert admin.post(f"{path}/playback", json={"need": need}).json()[f"{need}_url"]
    taken = begin(admin, name())
    assert admin.post(f"/api/v1/recordings/{taken.id}/playback", json={"need": "hls"}).json()["hls_url"] is None, "nothing has come: nobody knows"
    fill(admin, taken, segments("B-vp8")[:2])
    path = f"/api/v1/recordings/{taken.id}"
    assert admin.post(f"{path}/playback", json={}).json()["hls_url"] is None
    for need in ("hls", "mp4"):
        problem(admin.post(f"{path}/playback", json={"need": need}), 409, "needs_transcoding")
    problem(admin.get(f"{path}/download", params={"format": "mp4"}), 409, "needs_transcoding")
    for playlist in ("hls/master.m3u8", "hls/1/media.m3u8"):
        problem(admin.get(f"{path}/{playlist}"), 409, "needs_transcoding")
    assert admin.get(f"{path}/download").headers["content-type"] == "video/webm"


def test_only_windows_that_are_listed_are_there(admin: httpx2.Client, finished: Taken) -> None:
    path = f"/api/v1/recordings/{finished.id}"
    playlist = admin.get(f"{path}/hls/1/media.m3u8").text
    listed = [tuple(map(int, found)) for found in re.findall(r"^(\d+)-(\d+)\.m4s$", playlist, re.MULTILINE)]
    (start, stop), end = listed[0], listed[-1][1]
    assert admin.get(f"{path}/stream/1/{start}-{stop}.webm").status_code == 200
    for a, b in ((0, 10**30), (-(10**30), 10**30), (start, 2**63), (stop, start), (start, start), (end, end + 1_000_000), (start, end), (10**30, 10**31)):
        for wrong in (f"hls/1/{a}-{b}.m4s", f"stream/1/{a}-{b}.webm", f"stream/1/{a}-{b}.mp4"):
            problem(admin.get(f"{path}/{wrong}"), 404, "not_found")


def test_a_playlist_tells_the_time_of_day(admin: httpx2.Client, running: Taken) -> None:
    playlist = admin.get(f"/api/v1/recordings/{running.id}/hls/1/media.m3u8").text
    [told] = re.findall("^#EXT-X-PROGRAM-DATE-TIME:(.*Z)$", playlist, re.MULTILINE)
    begun = datetime.fromisoformat(admin.get(f"/api/v1/recordings/{running.id}/segments").json()["segments"][0]["started_at"])
    assert abs((datetime.fromisoformat(told) - begun).total_seconds()) < 1


def test_bytes_that_are_gone_are_said_to_be_before_the_head(house: House, admin: httpx2.Client) -> None:
    taken = begin(admin, name())
    fill(admin, taken, segments("B-vp9")[:2])
    path = f"/api/v1/recordings/{taken.id}"
    with house.client() as player:
        url = admin.post(f"{path}/playback").json()["mp4_url"]
        assert player.get(url).status_code == 200
        for [key] in house.sql("SELECT key FROM chunks WHERE recording_id = %s", taken.id):
            (house.store / key).unlink()
        for answer in (admin.get(f"{path}/segments/1"), admin.get(f"{path}/download"), player.get(url), player.get(url)):
            assert problem(answer, 404, "not_found")


def test_a_segment_that_is_cut_short_in_the_store_ends_the_connection(house: House, admin: httpx2.Client, running: Taken) -> None:
    [[key]] = house.sql("SELECT key FROM chunks WHERE recording_id = %s AND index = 2", running.id)
    stored = house.store / key
    assert admin.get(f"/api/v1/recordings/{running.id}/segments/2", headers={"range": "bytes=10-19"}).content == stored.read_bytes()[10:20]
    stored.chmod(0o600)
    os.truncate(stored, stored.stat().st_size // 2)
    with pytest.raises(httpx2.TransportError):
        admin.get(f"/api/v1/recordings/{running.id}/segments/2")
    assert "Traceback" not in house.log.read_text()


def test_lists_have_the_duration_of_what_is_not_completed(admin: httpx2.Client, running: Taken) -> None:
    def listed() -> float | None:
        rows: list[Json] = admin.get("/api/v1/recordings", params={"limit": 200}).json()["recordings"]
        found: float | None = next(row["duration_s"] for row in rows if row["id"] == running.id)
        return found

    until(lambda: listed() == admin.get(f"/api/v1/recordings/{running.id}").json()["duration_s"], "the duration in the list")
    assert listed()


def test_what_was_over_before_anybody_judged_it_was_live(house: House, admin: httpx2.Client) -> None:
    taken = begin(admin, name())
    fill(admin, taken, segments("B-vp9")[:2])
    house.sql("UPDATE recordings SET health = 'starting' WHERE id = %s", taken.id)
    assert completed(admin, taken)["health"] == "live"


def test_a_browser_that_follows_a_link_to_nothing_gets_a_page(house: House) -> None:
    with house.client() as browser:
        for accepted, kind in (("text/html,*/*;q=0.8", "text/html; charset=utf-8"), ("*/*", "application/problem+json")):
            answer = browser.get("/nosuch", headers={"accept": accepted})
            assert (answer.status_code, answer.headers["content-type"]) == (404, kind)
        assert browser.get("/api/v1/nosuch", headers={"accept": "text/html"}).headers["content-type"] == "application/problem+json"


def test_a_stated_digest_is_that_of_the_bytes_that_come(admin: httpx2.Client, finished: Taken) -> None:
    for asked in ("", "?format=mp4", "?format=webm"):
        answer = admin.get(f"/api/v1/recordings/{finished.id}/download{asked}")
        stated = answer.headers.get("repr-digest")
        assert stated in {None, f"sha-256=:{base64.b64encode(hashlib.sha256(answer.content).digest()).decode()}:"}
        assert stated or asked


def test_ranges_of_the_fast_lane_are_counted(admin: httpx2.Client, finished: Taken) -> None:
    def counted() -> float:
        return sum(
            float(line.split()[1]) for line in admin.get("/metrics").text.splitlines() if line.startswith('roomtape_requests_total{method="GET",status="206"}')
        )

    url, before = admin.post(f"/api/v1/recordings/{finished.id}/playback").json()["mp4_url"], counted()
    for _ in range(5):
        assert admin.get(url, headers={"range": "bytes=0-99"}).status_code == 206
    assert counted() == before + 5


def test_a_participant_does_not_see_what_is_in_the_trash(house: House, admin: httpx2.Client) -> None:
    taken, guest = begin(admin, name()), name()
    fill(admin, taken, segments("B-vp9")[:1])
    assert completed(admin, taken)["status"] == "completed"
    put = admin.put(f"/api/v1/meetings/{taken.meeting_id}/participants/{guest}", json={"full_name": "Guest", "role": "PARTICIPANT"})
    patched = admin.patch(f"/api/v1/recordings/{taken.id}", json={"visibility": "participants"})
    assert (put.status_code, patched.status_code) == (200, 200), (put.text, patched.text)
    with house.client() as browser:
        assert browser.post("/login", data={"token": house.login_token(guest)}).status_code == 303
        house.sql("UPDATE sessions SET roles = '{}' WHERE user_id = %s", guest)  # login links are for administrators
        assert browser.get(f"/recordings/{taken.id}").status_code == 200
        assert admin.delete(f"/api/v1/recordings/{taken.id}").status_code == 200
        assert browser.get(f"/recordings/{taken.id}").status_code == 404


def test_what_plays_grows_while_it_is_recorded(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/recordings/{running.id}"
    first = admin.get(f"{path}/stream.json").json()
    assert first["tracks"][0]["ranges"]
    for index, body in enumerate(segments()[3:8], 4):
        assert upload(admin, running, index, body).status_code == 201
    more = admin.get(f"{path}/stream.json", params={"after": first["next"]}).json()
    assert more["next"] > first["next"]
    known = {one["url"] for one in first["tracks"][0]["ranges"]}
    assert more["tracks"][0]["ranges"]
    assert not known & {one["url"] for one in more["tracks"][0]["ranges"]}
    master = admin.get(f"{path}/hls/master.m3u8")
    assert master.status_code == 200
    playlist = admin.get(f"{path}/hls/1/media.m3u8").text
    assert "#EXT-X-PLAYLIST-TYPE:EVENT" in playlist
    assert "ENDLIST" not in playlist
    admin.post(f"{path}/stop")
    assert "#EXT-X-ENDLIST" in admin.get(f"{path}/hls/1/media.m3u8").text


def test_nothing_to_play_is_said_so(admin: httpx2.Client) -> None:
    taken = begin(admin, name())
    view = admin.post(f"/api/v1/recordings/{taken.id}/playback").json()
    assert (view["hls_url"], view["mp4_url"], view["webm_url"]) == (None, None, None)
    for after in ("/download", "/hls/master.m3u8", "/hls/1/media.m3u8"):
        assert admin.get(f"/api/v1/recordings/{taken.id}{after}").status_code == 404
    assert admin.get(f"/api/v1/recordings/{taken.id}/stream.json").json()["tracks"] == []
    assert completed(admin, taken)["status"] == "failed"
    assert admin.get(f"/api/v1/recordings/{taken.id}/status").json()["error"]["code"] == "no_media"


def test_a_token_posted_again_is_prolonged_and_the_urls_stay(house: House, admin: httpx2.Client, finished: Taken) -> None:
    path = f"/api/v1/recordings/{finished.id}/playback"
    first = admin.post(path).json()
    again = admin.post(path, json={"token": first["token"]}).json()
    assert {key: again[key] for key in again if key != "expires_at"} == {key: first[key] for key in first if key != "expires_at"}
    assert again["expires_at"] > first["expires_at"]
    assert admin.post(path).json()["token"] != first["token"]
    with house.client(house.key("user", finished.host)) as owner:
        assert owner.post(path, json={"token": first["token"]}).json()["token"] != first["token"], "bound to its subject"
    assert admin.post(path, json={"token": "mine"}).json()["token"] != "mine", "nobody chooses a token"


def test_a_token_opens_one_recording_for_reading_and_nothing_else(house: House, admin: httpx2.Client, running: Taken, finished: Taken) -> None:
    token = admin.post(f"/api/v1/recordings/{running.id}/playback").json()["token"]
    with house.client() as player:
        problem(player.get(f"/api/v1/p/{token}/recordings/{finished.id}/stream.json"), 401, "playback_ended")
        problem(player.get(f"/api/v1/p/{token[:-1]}x/recordings/{running.id}/stream.json"), 401, "playback_ended")
        assert player.get(f"/api/v1/p/{token}/recordings/{running.id}/stream.json").status_code == 200
        for after in ("", "/segments", "/segments/1", "/timeline", "/status", "/tracks"):
            assert player.get(f"/api/v1/p/{token}/recordings/{running.id}{after}").status_code == 404
        assert player.post(f"/api/v1/p/{token}/recordings/{running.id}/playback").status_code == 404
    with house.client(token) as bearer:
        problem(bearer.get(f"/api/v1/recordings/{running.id}"), 401, "bad_token")


@pytest.mark.parametrize("lost", ["visibility", "participant", "deleted", "key", "time"])
def test_a_token_ends_with_the_right(house: House, admin: httpx2.Client, running: Taken, lost: str) -> None:
    user = name()
    path, seat = f"/api/v1/recordings/{running.id}", f"/api/v1/meetings/{running.meeting_id}/participants/{user}"
    admin.put(seat, json={"full_name": "Guest", "role": "CO_HOST" if lost == "participant" else "PARTICIPANT"})
    if lost != "participant":
        admin.patch(path, json={"visibility": "participants"})
    key = house.fresh_key("user", user)
    with house.client(key["key"]) as guest, house.client() as player:
        view = guest.post(f"{path}/playback").json()
        playlist = view["hls_url"].replace("master", "1/media")
        fragment = player.get(playlist).text.split("\n")
        piece = str(player.get(playlist).url.join(next(line for line in fragment if line.endswith(".m4s"))))
        urls = [view["hls_url"], playlist, piece, view["stream_url"]]
        assert [player.get(url).status_code for url in urls] == [200] * 4
        if lost == "visibility":
            admin.patch(path, json={"visibility": "private"})
        elif lost == "participant":
            admin.put(seat, json={"full_name": "Guest", "role": "PARTICIPANT"})
        elif lost == "deleted":
            admin.post(f"{path}/stop")
            admin.delete(path)
        elif lost == "key":
            house.revoke(key["id"])
        else:
            house.sql("UPDATE playback_tokens SET expires_at = now() WHERE recording_id = %s", running.id)
        assert {player.get(url).status_code for url in urls} <= {401, 403, 404}
        until(lambda: player.get(view["mp4_url"]).status_code in {401, 403, 404}, "the end of the download too")


def test_no_token_and_no_secret_is_ever_logged(house: House, admin: httpx2.Client, finished: Taken) -> None:
    token = admin.post(f"/api/v1/recordings/{finished.id}/playback").json()["token"]
    with house.client() as player:
        player.get(f"/api/v1/p/{token}/recordings/{finished.id}/stream.json")
        player.get(f"/api/v1/p/{token}/recordings/{finished.id}/hls/nothing.m3u8")
        player.get(f"/api/v1/p/{token}x/recordings/{finished.id}/stream.json")
    said = house.log.read_text()
    assert "chunk.kept" in said, "it does log"
    for secret in (token, house.key("admin"), house.database_url):
        assert secret not in said


def test_a_download_is_a_file_with_ranges_and_a_validator(admin: httpx2.Client, finished: Taken) -> None:
    path = f"/api/v1/recordings/{finished.id}/download"
    whole = admin.get(path)
    view = admin.get(f"/api/v1/recordings/{finished.id}").json()
    assert hashlib.sha256(whole.content).hexdigest() == view["sha256"]
    assert (len(whole.content), whole.headers["accept-ranges"], whole.headers["content-type"]) == (view["size_bytes"], "bytes", "video/mp4")
    etag = whole.headers["etag"]
    assert re.fullmatch(r'"[^"]+"', etag)
    part = admin.get(path, headers={"range": "bytes=100-199", "if-range": etag})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, whole.content[100:200], f"bytes 100-199/{len(whole.content)}")
    assert admin.get(path, headers={"range": "bytes=0-0", "if-range": '"other"'}).status_code == 200
    assert admin.get(path, headers={"if-none-match": etag}).status_code == 304
    assert admin.get(path, headers={"range": f"bytes={len(whole.content)}-"}).status_code == 416
    head = admin.head(path)
    assert (head.status_code, head.content, head.headers["content-length"], head.headers["etag"]) == (200, b"", str(len(whole.content)), etag)
    webm = admin.get(path, params={"format": "webm"})
    assert (webm.headers["content-type"], webm.content[:4]) == ("video/webm", b"\x1a\x45\xdf\xa3")
    assert webm.headers["etag"] != etag
    for artifact in ("original", view["artifacts"][0]["id"]):
        assert admin.get(path, params={"artifact": artifact}).content == whole.content
    problem(admin.get(path, params={"artifact": "thumbnail"}), 404, "not_made")
    problem(admin.get(path, params={"format": "exe"}), 422, "invalid")
    for wanted in ("m4a", "mp3", "flac", "ogg", "wav"):
        problem(admin.get(path, params={"format": wanted}), 409, "needs_transcoding")
    problem(admin.get(path, params={"track_id": "9"}), 404, "nothing_to_play")


@pytest.mark.parametrize(
    "title",
    [
        "",
        "plain",
        'say "hi"; filename=x.exe',
        "a\r\nSet-Cookie: a=b",
        "..\\..\\etc/passwd",
        "Ünïcödé 会議 🎥",
        "x" * 500,
        "  . ",
        "%0d%0a",
        "a\u202egpm.exe",
        "\x85\u2028",
    ],
)
def test_a_title_makes_a_harmless_file_name(admin: httpx2.Client, finished: Taken, title: str) -> None:
    path = f"/api/v1/recordings/{finished.id}"
    assert admin.patch(path, json={"title": title}).status_code == 200
    headers = admin.head(f"{path}/download").headers
    said = headers["content-disposition"]
    found = re.fullmatch(r"attachment; filename=\"([ -~]+)\.mp4\"; filename\*=UTF-8''([A-Za-z0-9%]+)\.mp4", said)
    assert found is not None, said
    assert not set('"\\/:*?<>|%') & set(found[1])
    assert not re.search("%(0[0-9A-F]|1[0-9A-F]|7F|2F|5C|22)", found[2])
    assert "set-cookie" not in headers
    assert len(said) < 2000
    admin.patch(path, json={"title": "Done"})


def test_the_timeline_tells_what_happened_in_order(admin: httpx2.Client, running: Taken) -> None:
    path = f"/api/v1/recordings/{running.id}"
    admin.post(f"/api/v1/meetings/{running.meeting_id}/recording/pause")
    admin.post(f"/api/v1/meetings/{running.meeting_id}/recording/resume")
    assert completed(admin, running)["status"] == "completed"
    told = admin.get(f"{path}/timeline").json()["events"]
    assert [event["data"]["seq"] for event in told] == list(range(1, len(told) + 1))
    types = [event["type"] for event in told if event["type"] != "recording.health"]
    assert types == [
        "recording.started", "segment.committed", "segment.committed", "segment.committed", "recording.paused", "recording.resumed",
        "recording.stopped", "recording.playable", "recording.processing", "recording.completed",
    ]  # fmt: skip


def test_a_second_track_is_named_where_it_is_shown(admin: httpx2.Client) -> None:
    user = name()
    first = begin(admin, user)
    second = begin(admin, user, meetingId=first.meeting_id)
    assert (second.id, second.track_id) == (first.id, "2")
    fill(admin, first, segments()[:2])
    fill(admin, second, segments("B-vp9")[:1])
    assert complete(admin, first, lastSegmentIndexes={"1": 2, "2": 1}).status_code == 202
    until(lambda: admin.get(f"/api/v1/recordings/{first.id}/status").json()["status"] == "completed", "the end")
    view = admin.get(f"/api/v1/recordings/{first.id}").json()
    assert view["rendition"] == "track:2", "the first picture stands for the whole until there is a composite"
    assert [(track["id"], track["kind"]) for track in view["tracks"]] == [("1", "audio"), ("2", "video")]
    sound = admin.get(f"/api/v1/recordings/{first.id}/download", params={"trackId": "1"})
    assert sound.headers["content-type"] == "audio/mp4"
