"""What stands around the answers: the description of the API, its errors, its headers; nothing undocumented, nothing that tells of our insides."""

import ast
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import roomtape
from roomtape.pipeline import advance

from .house import House, Json, Taken, routes
from .test_contract_meetings import problem

SRC = Path(roomtape.__file__).parent
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
HIDDEN = re.compile(r"/api/v1/p/\{token\}/.*|/login|/logout|/|/record|/recordings/\{recording_id\}|/docs")


@pytest.fixture(scope="module")
def document(house: House) -> Json:
    with house.client() as client:
        found: Json = client.get("/api/v1/openapi.json").json()
        return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_description_is_openapi_3_1_with_stable_operation_ids(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[a-z][a-z0-9_]+", one) for one in ids), "a name of ours, not one made of path and method"
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)
        if path.startswith("/api/v1"):
            assert "application/problem+json" in operation["responses"]["default"]["content"], (method, path)
            assert "422" not in operation["responses"]
            assert operation["security"]
        declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert declared == set(re.findall(r"\{([a-z_]+)\}", path))


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: Json) -> None:
    kinds = {"object", "array", "string", "number", "integer", "boolean", "null"}

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(target := value.get("$ref"), str):
                at: Any = document
                for step in target.removeprefix("#/").split("/"):
                    at = at[step]
            if isinstance(value.get("type"), str) and "in" not in value and "scheme" not in value and value["type"] not in {"apiKey", "http"}:
                assert value["type"] in kinds
            for inner in value.values():
                look(inner)
        if isinstance(value, list):
            for inner in value:
                look(inner)

    look(document)


def test_no_route_is_undocumented(document: Json) -> None:
    described = {(method, path) for method, path, _ in operations(document)}

    there = {(method, re.sub(r":path\}", "}", route.path)) for route in routes() for method in route.methods - {"HEAD"}}
    assert len(there) > 50
    assert {(method, path) for method, path in there if not HIDDEN.fullmatch(path)} == described - {("HEAD", "/api/v1/recordings/{recording_id}/download")}
    for path in ("/docs", "/redoc", "/openapi.json", "/api/v1/meetings/x/transcript", "/api/v1/ws", "/api/v1/recordings/x/shares", "/metricsx"):
        assert path not in document["paths"]


def test_routes_of_later_are_absent_and_not_half_there(admin: httpx2.Client, running: Taken) -> None:
    recording, meeting = f"/api/v1/recordings/{running.id}", f"/api/v1/meetings/{running.meeting_id}"
    for method, path in [
        ("PUT", f"{meeting}/transcript"), ("PUT", f"{meeting}/analysis"), ("POST", "/api/v1/meetings/segment-upload-url"), ("POST", "/api/v1/meetings/commit-segment"),
        ("POST", f"{meeting}/uploads"), ("POST", f"{meeting}/recording-complete-callback"), ("POST", f"{meeting}/rtp/tracks"), ("POST", f"{recording}/render"),
        ("GET", f"{recording}/shares"), ("GET", f"{recording}/links"), ("GET", f"{recording}/access-log"), ("GET", f"{recording}/thumbnail.jpg"),
        ("GET", f"{recording}/receipt"), ("GET", f"{recording}/sync"), ("GET", "/api/v1/webhook-endpoints"), ("POST", "/api/v1/webhooks/livekit"),
    ]:  # fmt: skip
        answer = admin.request(method, path, json=None if method == "GET" else {})
        assert answer.json()["code"] in {"not_found", "method_not_allowed"}, (path, answer.text)


def test_every_answer_says_that_it_is_what_it_says(house: House, admin: httpx2.Client, finished: Taken) -> None:
    recording = f"/api/v1/recordings/{finished.id}"
    with house.client() as nobody:
        answers = [admin.get(path) for path in ("/api/v1/meetings", recording, f"{recording}/download", f"{recording}/hls/master.m3u8", "/nowhere", "/healthz")]
        answers += [
            admin.get(f"{recording}/segments/1"),
            admin.put("/api/v1/meetings"),
            nobody.get(recording),
            nobody.get("/login"),
            nobody.get("/static/api.js"),
        ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff", answer.url
        assert "server" not in answer.headers
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json"
    named = [answer.headers["x-request-id"] for answer in answers if answer.url.path.startswith("/api/")]
    assert len(set(named)) == len(named)
    assert problem(admin.put("/api/v1/meetings"), 405, "method_not_allowed")["title"] == "Method Not Allowed"
    assert problem(admin.get("/nowhere"), 404, "not_found")["type"] == "about:blank"


INSIDES = re.compile(
    r"Traceback|File \"|/usr/|/home/|/root/|/tmp/|site-packages|psycopg|postgresql|SELECT |INSERT |UPDATE |relation \"|roomtape\.(db|web|core)|0x[0-9a-f]{6}"
)


def test_fuzzed_requests_never_hear_of_our_insides(house: House, admin: httpx2.Client, document: Json, running: Taken) -> None:
    """500 requests of nonsense: no 5xx, no stack, no SQL, no path."""
    chance = random.Random(20260131)
    junk: list[Any] = [
        None, True, -1, 2**63, 1e308, "", "x", "\x00", "\ud800", "é🎥", "../../etc/passwd", "' OR 1=1 --", "%s%n", "{{7*7}}", "x" * 3000, [], {}, [[]], {"a": {"b": []}},
        running.id, running.meeting_id, "9999-12-31T23:59:59.999999999Z", "0", "NaN", "\u202e", "\r\nX: y",
    ]  # fmt: skip
    everything = [entry for entry in operations(document) if entry[1] != "/api/v1/events" and "upload-segment" not in entry[1]]
    schemas = document["components"]["schemas"]
    for _ in range(500):
        method, path, operation = chance.choice(everything)

        def piece(found: re.Match[str]) -> str:
            known = {"recording_id": running.id, "meeting_id": running.meeting_id}
            if found[1] in known and chance.random() < 0.6:
                return known[found[1]]
            text = str(chance.choice(junk)).encode(errors="replace") or b"-"
            return "".join(f"%{byte:02X}" for byte in text[:200])

        url = re.sub(r"\{([a-z_]+)\}", piece, path)
        params = {
            one["name"]: str(chance.choice(junk)).encode(errors="replace").decode()
            for one in operation.get("parameters", [])
            if one["in"] == "query" and chance.random() < 0.5
        }
        content: bytes | None = None
        if "requestBody" in operation:
            names = sorted({key for schema in schemas.values() for key in schema.get("properties", {})})
            said = {key: chance.choice(junk) for key in chance.sample(names, 3)} if chance.random() < 0.8 else chance.choice(junk)
            content = httpx2.Request("POST", "http://x", json=_plain(said)).read() if chance.random() < 0.9 else bytes(chance.choices(range(256), k=40))
        headers = {"content-type": "application/json"} | (
            {"idempotency-key": "".join(chance.choices(string.printable[:90], k=9)).strip() or "k"} if chance.random() < 0.2 else {}
        )
        answer = admin.request(method, url, params=params, content=content, headers=headers)
        assert answer.status_code < 500, (method, url, params, content, answer.text)
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json", (method, url)
            assert not INSIDES.search(re.sub("/tmp/passwd", "", answer.json()["detail"])), answer.text
            assert set(answer.json()) >= {"type", "title", "status", "code", "detail"}
    assert '"request.crashed"' not in house.log.read_text()


def _plain(value: Any) -> Any:
    """Half a surrogate pair cannot be sent as UTF-8 by a client; an escape in the JSON can."""
    if isinstance(value, str) and "\ud800" in value:
        return value.replace("\ud800", "\x00")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def codes_raised() -> set[str]:
    """Every code in the source: of errors, of problems, of warnings."""
    found: set[str] = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= {value for place in _places(node) for value in _strings(place)}
    return found | set(advance._FAILURES) | {"not_indexed", "partly_indexed"}


def _places(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        more = {"problem": node.args[1:2], "_warn": node.args[2:3]}.get(called, [])
        return [keyword.value for keyword in node.keywords if keyword.arg == "code"] + more
    if isinstance(node, ast.Dict):
        return [value for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant) and key.value == "code"]
    if isinstance(node, ast.Assign):
        [target] = node.targets[:1]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            return [value for at, value in zip(target.elts, node.value.elts, strict=True) if getattr(at, "id", "") == "default_code"]
        if getattr(target, "id", "") in {"default_code", "codes"}:
            return [*node.value.values] if isinstance(node.value, ast.Dict) else [node.value]
    if isinstance(node, ast.AnnAssign) and node.value is not None and getattr(node.target, "id", "") == "default_code":
        return [node.value]
    return []


def _strings(node: ast.expr) -> set[str]:
    if isinstance(node, ast.Dict):  # a schema's
        return set()
    if isinstance(node, ast.Call | ast.Attribute | ast.Subscript | ast.JoinedStr):
        return {one.value for arg in getattr(node, "args", [])[1:] for one in ast.walk(arg) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value}


def test_the_reference_lists_every_code_and_no_other() -> None:
    listed = re.findall(r"^\| `([a-z_0-9]+)` \|", REFERENCE.read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed)), "each once"
    raised = codes_raised()
    assert raised - set(listed) == set(), "raised and not in docs/reference/errors.md"
    assert set(listed) - raised == set(), "in docs/reference/errors.md and never raised"


def test_a_code_that_is_planted_is_seen() -> None:
    planted = ast.parse('raise Conflict("No.", code="planted")')
    assert {value for node in ast.walk(planted) for place in _places(node) for value in _strings(place)} == {"planted"}
