"""Who may do what, over HTTP: every route of the API for every kind of caller. A route without a row fails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from roomtape.core.access import ALLOWED, Relation, Verb

from .ear import Ear
from .house import House, Json, Taken, begin, completed, fill, name, segments, token, until
from .test_contract_meetings import problem

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "access.md"

SUBJECTS = ("anonymous", "outsider", "viewer", "participant", "co_host", "host", "owner", "service", "service_user", "admin", "foreign_admin", "token_host")
# One letter for each subject, in this order. y: done (2xx) · n: not there (404) · f: forbidden (403) · a: sign in first (401) · u: name the user (422)
#        anonymous outsider viewer participant co_host host owner service service_user admin foreign_admin token_host
VIEW_MEETING = "a n y y y y n y y y n y"
EDIT_MEETING = "a n f f y y n y y y n y"
RECORD_MEETING = "a n f f y y n f y y n y"
RECORD = "a n f f y y f f y y n y"
VIEW = "a n f f y y y f y y n y"
ORIGINALS = "a n f f f y y f y y n y"
EDIT = "a n f f y y y f y y n y"
DELETE = "a n f f f y y f y y n y"
UPLOAD = "a n f y y y n f y y n y"
COMPLETE = "a n f f y y y y y y n y"
EVERYBODY = "a y y y y y y u y y y y"
CREATE = "a y y y y y y y y y y f"
OPEN = "y y y y y y y y y y y y"

RULES: dict[str, str] = {
    "GET /clock": OPEN,
    "GET /meetings": EVERYBODY,
    "POST /meetings": CREATE,
    "GET /meetings/{meeting_id}": VIEW_MEETING,
    "PUT /meetings/{meeting_id}/metadata": EDIT_MEETING,
    "PUT /meetings/{meeting_id}/participants/{user_id}": EDIT_MEETING,
    "DELETE /meetings/{meeting_id}/participants/{user_id}": EDIT_MEETING,
    "POST /meetings/{meeting_id}/recording/start": RECORD_MEETING,
    "POST /meetings/{meeting_id}/recording/stop": RECORD_MEETING,
    "POST /meetings/{meeting_id}/recording/pause": RECORD_MEETING,
    "POST /meetings/{meeting_id}/recording/resume": RECORD_MEETING,
    "POST /meetings/{meeting_id}/recording/discard": RECORD_MEETING,
    "GET /meetings/{meeting_id}/recording": VIEW_MEETING,
    "GET /meetings/{meeting_id}/recordings": VIEW_MEETING,
    "POST /meetings/start-recording": "a n f y y y n u y y y y",  # joins the open one, as oneself; an unknown room is made
    "POST /meetings/upload-segment": UPLOAD,
    "POST /meetings/complete-recording": COMPLETE,
    "POST /recordings/start": "a n f f y y n f y y y y",
    "POST /recordings/{recording_id}/stop": RECORD,
    "GET /recordings": EVERYBODY.replace("u", "y"),
    "GET /recordings/{recording_id}": VIEW,
    "PATCH /recordings/{recording_id}": EDIT,
    "DELETE /recordings/{recording_id}": DELETE,
    "POST /recordings/{recording_id}/restore": DELETE,
    "GET /recordings/{recording_id}/status": VIEW,
    "GET /recordings/{recording_id}/participants": VIEW,
    "GET /recordings/{recording_id}/tracks": VIEW,
    "GET /recordings/{recording_id}/timeline": VIEW,
    "GET /recordings/{recording_id}/segments": VIEW,
    "GET /recordings/{recording_id}/segments/{index}": ORIGINALS,
    "POST /recordings/{recording_id}/playback": VIEW,
    "GET /recordings/{recording_id}/hls/master.m3u8": VIEW,
    "GET /recordings/{recording_id}/hls/{track}/media.m3u8": VIEW,
    "GET /recordings/{recording_id}/hls/{track}/init-{setup}.mp4": VIEW,
    "GET /recordings/{recording_id}/hls/{track}/{start_us}-{stop_us}.m4s": VIEW,
    "GET /recordings/{recording_id}/stream.json": VIEW,
    "GET /recordings/{recording_id}/stream/{track}/{start_us}-{stop_us}.{suffix}": VIEW,
    "GET /recordings/{recording_id}/download": VIEW,
    "GET /events": "a y y y y y y y y y y y",
}
STATUS = {"y": {200, 201, 202}, "n": {404}, "f": {403}, "a": {401}, "u": {422}}
CHANGES = {route for route in RULES if route.startswith(("POST", "DELETE /rec"))} - {"POST /meetings", "POST /recordings/{recording_id}/playback"}
STOPPED_FIRST = {
    "DELETE /recordings/{recording_id}",
    "POST /recordings/{recording_id}/restore",
    "POST /recordings/start",
    "POST /meetings/{meeting_id}/recording/start",
}
MAKE_ROOMS = {"POST /meetings/start-recording", "POST /recordings/start"}
PAUSED_FIRST = {"POST /meetings/{meeting_id}/recording/resume"}


@dataclass
class Stage:
    """A meeting with one recording, and everybody who may want something of it."""

    house: House
    admin: httpx2.Client
    people: dict[str, str]
    clients: dict[str, httpx2.Client]
    taken: Taken
    room: str
    pieces: dict[str, str]

    def fresh(self, route: str) -> None:
        """Another recording of the same meeting, in the state that the route wants."""
        self.admin.post(f"/api/v1/meetings/{self.taken.meeting_id}/recording/stop")
        self.taken = recorded(self.admin, self.people, self.taken.meeting_id)
        if route in STOPPED_FIRST:
            self.admin.post(f"/api/v1/recordings/{self.taken.id}/stop")
        if route in PAUSED_FIRST:
            self.admin.post(f"/api/v1/meetings/{self.taken.meeting_id}/recording/pause")

    def ask(self, route: str, subject: str, *, meeting: str = "", recording: str = "") -> httpx2.Response:
        method, template = route.split(" ")
        said = {"meeting_id": meeting or self.taken.meeting_id, "recording_id": recording or self.taken.id, "user_id": "somebody", "index": "1"}
        path = "/api/v1" + template.format(**said, **self.pieces)
        body: Json | None = {"full_name": "Some", "role": "VIEWER"} if "participants" in template and method == "PUT" else {}
        params: Json = {}
        content: bytes | None = None
        user = self.people.get(subject, "somebody")
        if route == "POST /meetings/start-recording":
            body = {"meetingId": said["meeting_id"], "userId": None if subject == "service" else user}
        elif route == "POST /meetings/complete-recording":
            body = {"meetingId": said["meeting_id"], "recordingId": said["recording_id"]}
        elif route == "POST /meetings/upload-segment":
            params = {"meetingId": said["meeting_id"], "recordingId": said["recording_id"], "segmentIndex": 1, "trackId": f"of-{subject}"}
            content, body = segments()[0], None
        elif route == "POST /recordings/start":
            body = {"roomId": said["meeting_id"]}
        elif method in {"GET", "DELETE"}:
            body = None
        if route == "GET /events":
            with self.clients[subject].stream("GET", path) as answer:
                if not answer.is_success:
                    answer.read()
                return answer
        if subject == "foreign_admin" and route in MAKE_ROOMS:  # an id of ours is a free room code elsewhere
            with self.house.client(token("boss", tenant=name("tenant"), roles=["admin"])) as client:
                return client.request(method, path, json=body)
        return self.clients[subject].request(method, path, params=params, json=body, content=content)


def recorded(admin: httpx2.Client, people: dict[str, str], meeting: str) -> Taken:
    """A recording that belongs to `owner`, who has no seat in the meeting."""
    made = admin.post(f"/api/v1/meetings/{meeting}/recording/start", json={"userId": people["owner"]})
    assert made.status_code == 201, made.text
    taken = Taken(meeting, made.json()["id"], "1", people["owner"])
    fill(admin, taken, segments()[:3])
    return taken


@pytest.fixture(scope="module")
def stage(house: House, admin: httpx2.Client, quiet: tuple[Ear, Ear]) -> Iterator[Stage]:  # the ears want to be opened early
    people = {subject: name(subject) for subject in SUBJECTS if subject not in {"anonymous", "service", "service_user", "admin"}}
    people["service_user"] = people["host"]
    meeting = admin.post("/api/v1/meetings", json={"host_id": people["host"]}).json()
    for subject, role in (("viewer", "VIEWER"), ("participant", "PARTICIPANT"), ("co_host", "CO_HOST")):
        admin.put(f"/api/v1/meetings/{meeting['id']}/participants/{people[subject]}", json={"full_name": subject, "role": role})
    taken = recorded(admin, people, meeting["id"])
    made = {subject: house.client(house.key("user", people[subject])) for subject in ("outsider", "viewer", "participant", "co_host", "host", "owner")}
    made |= {
        "anonymous": house.client(),
        "service": house.client(house.key("service")),
        "service_user": house.client(house.key("service"), user=people["host"]),
        "admin": house.client(house.key("admin"), user="ignored"),
        "foreign_admin": house.client(token(people["foreign_admin"], tenant="other", roles=["admin"])),
        "token_host": house.client(token(people["token_host"], meetings={meeting["room_code"]: "HOST"})),
    }
    people["admin"] = name("admin")
    listed = admin.get(f"/api/v1/recordings/{taken.id}/hls/1/media.m3u8").text
    fragment = next(line for line in listed.splitlines() if line.endswith(".m4s")).removesuffix(".m4s").split("-")
    pieces = {"track": "1", "setup": "0", "start_us": fragment[0], "stop_us": fragment[1], "suffix": "webm"}
    with ExitStack() as stack:
        clients = {subject: stack.enter_context(client) for subject, client in made.items()}
        yield Stage(house, admin, people, clients, taken, meeting["room_code"], pieces)


def routes(house: House) -> set[str]:
    with house.client() as client:
        document = client.get("/api/v1/openapi.json").json()
    found = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    return {route.replace("/api/v1", "", 1) for route in found if " /api/v1" in route}


def test_every_route_has_its_row(house: House) -> None:
    assert routes(house) == set(RULES)


@pytest.mark.parametrize("route", RULES)
def test_the_rule_of_a_route_holds_for_everybody(stage: Stage, route: str) -> None:
    wrong = {}
    dirty = True
    rule = RULES[route].split()
    assert len(rule) == len(SUBJECTS)
    for subject, expected in zip(SUBJECTS, rule, strict=True):
        if dirty:
            stage.fresh(route)
        answer = stage.ask(route, subject)
        dirty = route in CHANGES and answer.is_success
        if answer.status_code not in STATUS[expected]:
            wrong[subject] = (expected, answer.status_code, answer.text[:200] if not answer.is_stream_consumed or route != "GET /events" else "")
        elif not answer.is_success:
            assert answer.headers["content-type"] == "application/problem+json"
    assert wrong == {}


@pytest.mark.parametrize("route", [route for route in RULES if "{" in route or "POST /meetings/" in route or route == "POST /recordings/start"])
def test_what_one_may_not_know_of_answers_as_what_is_not_there(stage: Stage, route: str) -> None:
    """Same status, same body, same headers but for what every answer has of its own."""
    joining = route in {"POST /meetings/start-recording", "POST /recordings/start"}  # an unknown room would be made
    for subject in ("outsider", "foreign_admin", "anonymous"):
        if joining and subject != "anonymous":
            continue
        foreign = stage.ask(route, subject)
        unknown = stage.ask(route, subject, meeting=str(uuid4()), recording=str(uuid4()))
        assert foreign.status_code == unknown.status_code
        assert foreign.status_code in {401, 404}
        assert foreign.text == unknown.text
        varying = {"date", "x-request-id"}
        assert [header for header in foreign.headers.items() if header[0] not in varying] == [
            header for header in unknown.headers.items() if header[0] not in varying
        ]


@pytest.mark.parametrize(
    ("visibility", "seen_by"),
    [
        ("private", {"co_host", "host", "owner", "service_user", "admin", "token_host"}),
        ("participants", {"participant", "co_host", "host", "owner", "service_user", "admin", "token_host"}),
        ("tenant", set(SUBJECTS) - {"anonymous", "foreign_admin", "service"}),
        ("public", set(SUBJECTS) - {"foreign_admin"}),
    ],
)
def test_visibility_opens_to_whom_it_names_and_lists_agree(stage: Stage, visibility: str, seen_by: set[str]) -> None:
    stage.fresh("")
    path = f"/api/v1/recordings/{stage.taken.id}"
    assert stage.admin.patch(path, json={"visibility": visibility}).status_code == 200
    seen = {subject for subject in SUBJECTS if stage.clients[subject].get(path).status_code == 200}
    assert seen == seen_by
    listed = {subject for subject in SUBJECTS if stage.taken.id in stage.clients[subject].get("/api/v1/recordings", params={"limit": 200}).text}
    assert listed == seen_by - {"anonymous"}
    originals = {subject for subject in SUBJECTS if stage.clients[subject].get(f"{path}/segments/1").status_code == 200}
    assert originals == {"host", "owner", "service_user", "admin", "token_host"}
    changed = {subject for subject in SUBJECTS if stage.clients[subject].patch(path, json={"title": "x"}).status_code == 200}
    assert changed == {"co_host", "host", "owner", "service_user", "admin", "token_host"}
    stage.admin.patch(path, json={"visibility": "private"})


@pytest.mark.parametrize("field", [{"visibility": "public"}, {"legal_hold": True}, {"expires_at": "2040-01-01T00:00:00Z"}])
def test_a_co_host_names_it_but_neither_opens_nor_ends_it(stage: Stage, field: Json) -> None:
    problem(stage.clients["co_host"].patch(f"/api/v1/recordings/{stage.taken.id}", json=field), 403, "forbidden")


def test_a_co_host_discards_what_runs_but_not_what_is_finished(house: House, admin: httpx2.Client) -> None:
    user = name()
    taken = begin(admin, name())
    path = f"/api/v1/meetings/{taken.meeting_id}"
    admin.put(f"{path}/participants/{user}", json={"full_name": "U", "role": "CO_HOST"})
    fill(admin, taken, segments()[:1])
    assert completed(admin, taken)["status"] == "completed"
    with house.client(house.key("user", user)) as co_host:
        problem(co_host.post(f"{path}/recording/discard"), 403, "forbidden")
        assert admin.get(f"/api/v1/recordings/{taken.id}").json()["deleted_at"] is None
        again = begin(admin, taken.host, meetingId=taken.meeting_id)
        assert co_host.post(f"{path}/recording/discard").json()["id"] == again.id
        assert co_host.post(f"{path}/recording/discard").json()["id"] == again.id
    assert admin.delete(f"/api/v1/recordings/{taken.id}").status_code == 200


@pytest.mark.parametrize("role", ["CO_HOST", "HOST"])
def test_who_is_demoted_between_start_and_stop_may_not_stop(house: House, admin: httpx2.Client, role: str) -> None:
    user, chair = name(), name()
    meeting = admin.post("/api/v1/meetings", json={"host_id": user if role == "HOST" else chair}).json()["id"]
    seat = f"/api/v1/meetings/{meeting}/participants/{user}"
    admin.put(seat, json={"full_name": "U", "role": role})
    with house.client(house.key("user", user)) as client:
        assert client.post(f"/api/v1/meetings/{meeting}/recording/start", json={}).status_code == 201
        recording = admin.get(f"/api/v1/meetings/{meeting}/recording").json()["recording_id"]
        admin.put(seat, json={"full_name": "U", "role": "PARTICIPANT"})
        for order in ("stop", "pause", "discard"):
            problem(client.post(f"/api/v1/meetings/{meeting}/recording/{order}"), 403, "forbidden")
        problem(client.post(f"/api/v1/recordings/{recording}/stop"), 403, "forbidden")
        problem(client.put(seat, json={"full_name": "U", "role": "HOST"}), 403, "forbidden")
        assert admin.get(f"/api/v1/meetings/{meeting}/recording").json()["status"] == "pending"


def test_after_a_demotion_is_answered_no_race_stops_anything(house: House, admin: httpx2.Client) -> None:
    user = name()
    meeting = begin(admin, name()).meeting_id
    seat, stop = f"/api/v1/meetings/{meeting}/participants/{user}", f"/api/v1/meetings/{meeting}/recording/pause"
    with house.client(house.key("user", user)) as client, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            admin.put(seat, json={"full_name": "U", "role": "CO_HOST"})
            demoting = pool.submit(lambda: admin.put(seat, json={"full_name": "U", "role": "PARTICIPANT"}))
            list(pool.map(lambda _: client.post(stop), range(8)))
            until(demoting.done, "the demotion")
            assert {answer.status_code for answer in pool.map(lambda _: client.post(stop), range(8))} == {403}


def test_the_reference_prints_the_table() -> None:
    """docs/reference/access.md is this very table: who, and what each may."""
    verbs = list(Verb)
    head = ["| | " + " | ".join(f"`{relation}`" for relation in Relation) + " |", "|---|" + "---|" * len(Relation)]
    rows = [f"| `{verb}` | " + " | ".join("x" if relation in ALLOWED[verb] else " " for relation in Relation) + " |" for verb in verbs]
    subjects = "| route | " + " | ".join(subject.replace("_", " ") for subject in SUBJECTS) + " |"
    words = {"y": "yes", "n": "404", "f": "403", "a": "401", "u": "422"}
    answers = [f"| `{route}` | " + " | ".join(words[letter] for letter in rule.split()) + " |" for route, rule in RULES.items()]
    table = [subjects, "|---|" + "---|" * len(SUBJECTS), *answers]
    text = REFERENCE.read_text()
    missing = [line for line in (*head, *rows, *table) if line not in text.splitlines()]
    assert missing == [], "\n".join((*head, *rows, "", *table))
