"""Who asks: one-time links and sessions, API keys, tokens of the host application; and nothing else."""

import asyncio
import base64
import contextlib
import hmac
import http.server
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from pydantic import SecretStr

from roomtape import app
from roomtape.core.errors import Refused
from roomtape.settings import Settings, load

from .house import AUDIENCE, ISSUER, SECRET, House, Taken, begin, name, serving, token, until
from .test_contract_meetings import problem

ME = "/api/v1/meetings"


@contextlib.contextmanager
def sign_in(house: House, user: str) -> Iterator[httpx2.Client]:
    with house.client() as client:
        answer = client.post("/login", data={"token": house.login_token(user)})
        assert answer.status_code == 303, answer.text
        yield client


def csrf_of(house: House, client: httpx2.Client) -> str:
    return str(house.sql("SELECT csrf FROM sessions WHERE token_hash = %s", sha256(client.cookies["roomtape_session"].encode()).digest())[0][0])


# ---- links and sessions ----


def test_a_login_link_signs_in_once(house: House) -> None:
    link = house.login_token(name())
    with house.client() as client:
        assert client.get("/login", params={"token": link}).status_code == 200, "looking at it uses nothing up"
        first = client.post("/login", data={"token": link, "next": "/record"})
        assert (first.status_code, first.headers["location"]) == (303, "/record")
        cookie = first.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "path=/" in cookie
        assert "secure" not in cookie, "plain http on the own machine"
        assert client.get(ME).status_code == 200
    with house.client() as other:
        again = other.post("/login", data={"token": link})
        assert (again.status_code, "set-cookie" in again.headers) == (401, False)
        assert other.get(ME).status_code == 401


def test_behind_a_tls_proxy_the_session_travels_over_tls_only(house: House, tmp_path: Path) -> None:
    with serving(tmp_path, house.database_url, worker=False, ROOMTAPE_URL="https://rec.example.org") as running, running.client() as client:
        answer = client.post("/login", data={"token": running.login_token(name())})
        assert (answer.status_code, "secure" in answer.headers["set-cookie"].lower()) == (303, True)


def test_of_many_who_use_a_link_at_once_one_gets_in(house: House) -> None:
    link = house.login_token(name())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx2.post(f"{house.url}/login", data={"token": link}, trust_env=False).status_code, range(8)))
    assert sorted(answers) == [303] + [401] * 7


def test_a_link_ends_with_its_time_and_a_wrong_one_opens_nothing(house: House) -> None:
    link = house.login_token(name())
    house.sql("UPDATE login_links SET expires_at = now() WHERE token_hash = %s", sha256(link.encode()).digest())
    for wrong in (link, "", "x", "x" * 10_000, "\x00"):
        with house.client() as client:
            answer = client.post("/login", data={"token": wrong})
            assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


@pytest.mark.parametrize("target", ["https://evil.test/", "//evil.test/", "/\\evil.test", "javascript:alert(1)", "/%0d%0aX: y", ""])
def test_signing_in_leads_only_to_our_own_pages(house: House, target: str) -> None:
    with house.client() as client:
        answer = client.post("/login", data={"token": house.login_token(name()), "next": target})
        assert answer.headers["location"].startswith("/")
        assert not answer.headers["location"].startswith(("//", "/\\"))
        assert "x" not in answer.headers


def test_the_cookie_is_secure_where_the_connection_is(house: House) -> None:
    async def signed_in() -> str:
        settings = Settings(database_url=SecretStr(house.database_url), storage_url=house.store.as_uri(), data=house.data, reserve_bytes=0)
        site = app._application(settings, lambda: None)
        async with site.router.lifespan_context(site), httpx2.AsyncClient(transport=httpx2.ASGITransport(site), base_url="https://roomtape.test") as client:
            link = await app.login_link(settings, "jo")
            return str((await client.post("/login", data={"token": link})).headers["set-cookie"])

    assert "secure" in asyncio.run(signed_in()).lower()


def test_a_session_writes_only_with_its_csrf_token(house: House, running: Taken) -> None:
    with sign_in(house, running.host) as client, sign_in(house, running.host) as other:
        path = f"/api/v1/recordings/{running.id}"
        good = csrf_of(house, client)
        for wrong in (None, "", "x", good[:-1], csrf_of(house, other)):
            headers = {"x-csrf-token": wrong} if wrong is not None else {}
            problem(client.patch(path, json={"title": "stolen"}, headers=headers), 403, "csrf")
            problem(client.post(f"{path}/stop", headers={**headers, "idempotency-key": name()}), 403, "csrf")
            problem(client.delete(path, headers=headers), 403, "csrf")
            problem(client.post("/api/v1/meetings/upload-segment", content=b"x", headers=headers), 403, "csrf")
        assert client.get(path).json()["status"] == "recording"
        assert client.patch(path, json={"title": "mine"}, headers={"x-csrf-token": good}).json()["title"] == "mine"


def test_no_page_of_another_origin_is_answered_or_signs_anybody_in(house: House, running: Taken) -> None:
    with sign_in(house, running.host) as client:
        for method, path in (("GET", ME), ("OPTIONS", ME), ("POST", ME), ("OPTIONS", f"/api/v1/recordings/{running.id}/stop")):
            answer = client.request(method, path, headers={"origin": "https://evil.test", "access-control-request-method": "POST"})
            assert not [header for header in answer.headers if header.startswith("access-control-")]
    with house.client() as victim:
        answer = victim.post("/login", data={"token": house.login_token("mallory")}, headers={"origin": "https://evil.test", "sec-fetch-site": "cross-site"})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


def test_signing_out_ends_the_session_for_good(house: House) -> None:
    with sign_in(house, name()) as client:
        cookie, csrf = client.cookies["roomtape_session"], csrf_of(house, client)
        assert client.post("/logout", data={"csrf_token": "x"}).status_code == 403
        assert client.get(ME).status_code == 200
        assert client.post("/logout", data={"csrf_token": csrf}).status_code == 303
    with house.client() as thief:
        assert thief.get(ME, headers={"cookie": f"roomtape_session={cookie}"}).status_code == 401
    with sign_in(house, name()) as late:
        house.sql("UPDATE sessions SET expires_at = now() WHERE token_hash = %s", sha256(late.cookies["roomtape_session"].encode()).digest())
        assert late.get(ME).status_code == 401


# ---- keys ----


def test_a_key_is_stored_as_a_hash_and_ends_at_once(house: House) -> None:
    key = house.fresh_key("admin")
    assert key["key"].startswith("rt_")
    assert house.sql("SELECT count(*) FROM api_keys k WHERE k::text LIKE %s", f"%{key['key'][3:]}%") == [(0,)]
    with house.client(key["key"]) as client:
        assert client.get(ME).status_code == 200
        house.revoke(key["id"])
        problem(client.get(ME), 401, "bad_key")


@pytest.mark.parametrize("header", ["Bearer rt_x", "Bearer", "Basic YTpi", "rt_{}", "Bearer rt_\xff", "Token {}", "Bearer {}x", "Bearer x{}", "Bearer {} {}"])
def test_what_is_no_key_is_401_even_beside_a_session(house: House, header: str) -> None:
    with sign_in(house, name()) as client:
        answer = client.get(ME, headers={b"authorization": header.format(house.key("admin"), house.key("admin")).encode("latin-1")})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["code"] in {"bad_key", "not_signed_in", "bad_token"}


def test_a_service_acts_for_the_user_it_names(house: House) -> None:
    user, other = name("a/b é"), name()
    with house.client(house.key("service")) as service:
        made = service.post(ME, json={"host_id": user}).json()
        assert made["participants"][0]["role"] == "HOST"
        path = f"{ME}/{made['id']}/recording/start"
        problem(service.post(path, json={}), 403, "forbidden")
        header = {b"roomtape-user": user.encode()}
        assert service.post(path, json={"userId": user}).status_code == 201
        assert service.post(f"{ME}/{made['id']}/recording/stop", headers=header).status_code == 200
        assert [one["id"] for one in service.get(ME, headers=header).json()["meetings"]] == [made["id"]]
        assert service.get(ME, headers={"roomtape-user": other}).json()["total"] == 0
        problem(service.get(ME), 422, "user_wanted")
        problem(service.get(ME, headers={"roomtape-user": ""}), 422, "user_wanted")
        problem(service.get(ME, headers={b"roomtape-user": b"\xff\xfe"}), 422, "user_wanted")
        problem(service.get(ME, headers={"roomtape-user": "x" * 201}), 422, "user_wanted")
        path = f"/api/v1/recordings/{begin(service, user).id}"
        assert [service.get(path, headers=one).status_code for one in (header, {"roomtape-user": other}, {})] == [200, 403, 403]


def test_a_user_key_is_its_user_and_nobody_else(house: House, host: httpx2.Client) -> None:
    me, other = host.headers["x-test-user"], name()
    assert host.post(ME, json={}).json()["host_id"] == me
    assert host.post(ME, json={"userId": me}).status_code == 201
    problem(host.post(ME, json={"host_id": other}), 403, "other_user")
    problem(host.post("/api/v1/meetings/start-recording", json={"userId": other}), 403, "other_user")
    problem(host.post("/api/v1/recordings/start", json={"room_code": name(), "userId": other}), 403, "other_user")
    problem(host.get(ME, headers={"roomtape-user": other}), 403, "other_user")


@pytest.mark.parametrize("header", ["X-User-ID", "X-Forwarded-User", "X-Remote-User", "Roomtape-User", "X-Roomtape-User", "Forwarded"])
def test_a_header_is_nobodys_identity(house: House, running: Taken, header: str) -> None:
    with house.client() as nobody, house.client(house.key("user", name())) as stranger:
        assert nobody.get(f"/api/v1/recordings/{running.id}", headers={header: running.host}).status_code == 401
        assert stranger.get(f"/api/v1/recordings/{running.id}", headers={header: running.host}).status_code in {403, 404}
        assert nobody.post(ME, json={}, headers={header: "admin"}).status_code == 401


# ---- tokens of the host application ----

RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
KEYS: dict[str, Key] = {
    "RS256": RSA,
    "ES256": ECKey.generate_key("P-256", {"kid": "ec"}),
    "Ed25519": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
}
OTHER_RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
ROTATED = ECKey.generate_key("P-256", {"kid": "next"})


class Jwks:
    """The host application's keys, over HTTP."""

    def __init__(self) -> None:
        self.keys: list[Key] = list(KEYS.values())
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = json.dumps({"keys": [key.as_dict(private=False) for key in outer.keys]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"


@pytest.fixture(scope="module")
def jwks() -> Iterator[Jwks]:
    jwks = Jwks()
    thread = threading.Thread(target=jwks.server.serve_forever)
    thread.start()
    yield jwks
    jwks.server.shutdown()
    thread.join()
    jwks.server.server_close()


@pytest.fixture(scope="module")
def public(house: House, jwks: Jwks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Another `serve` on the same database, that knows public keys only."""
    with serving(tmp_path_factory.mktemp("public"), house.database_url, worker=False, ROOMTAPE_JWT_JWKS_URL=jwks.url) as running:
        yield running


@pytest.fixture(scope="module")
def pem(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """And one that has a single public key by its setting."""
    text = RSA.as_pem(private=False).decode()
    with serving(tmp_path_factory.mktemp("pem"), house.database_url, worker=False, ROOMTAPE_JWT_KEY=text) as running:
        yield running


def b64(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def claims(**changed: Any) -> dict[str, Any]:
    whole = {"sub": "jo", "aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 86_400, "roles": ["admin"], **changed}
    return {key: value for key, value in whole.items() if value is not ...}


def by_hand(header: Any, payload: Any, secret: bytes = SECRET.encode(), sign: bool = True) -> str:
    """A token with whatever header, signed with HMAC-SHA256."""
    body = f"{b64(header)}.{b64(payload)}"
    return f"{body}.{b64(hmac.digest(secret, body.encode(), 'sha256')) if sign else ''}"


HS = {"alg": "HS256", "typ": "JWT"}
PUBLIC_PEM = RSA.as_pem(private=False)
GOOD = by_hand(HS, claims())
MUTATIONS: dict[str, Callable[[], str]] = {
    "alg none": lambda: by_hand({"alg": "none"}, claims(), sign=False),
    "alg None with a signature": lambda: by_hand({"alg": "None"}, claims()),
    "alg NONE": lambda: by_hand({"alg": "NONE"}, claims(), sign=False),
    "alg nOnE without its last dot": lambda: by_hand({"alg": "nOnE"}, claims(), sign=False)[:-1],
    "no alg": lambda: by_hand({"typ": "JWT"}, claims()),
    "alg a number": lambda: by_hand({"alg": 256}, claims()),
    "alg a list": lambda: by_hand({"alg": ["HS256", "none"]}, claims()),
    "HS512": lambda: jwt.encode({"alg": "HS512"}, claims(), OctKey.import_key(SECRET), algorithms=["HS512"]),
    "the public key as a secret, PEM": lambda: by_hand(HS, claims(), PUBLIC_PEM),
    "the public key as a secret, stripped": lambda: by_hand(HS, claims(), PUBLIC_PEM.strip()),
    "the public key as a secret, with its kid": lambda: by_hand({**HS, "kid": "rsa"}, claims(), PUBLIC_PEM),
    "an empty secret": lambda: by_hand(HS, claims(), b""),
    "kid as a path": lambda: by_hand({**HS, "kid": "../../../../dev/null"}, claims(), b""),
    "kid as SQL": lambda: by_hand({**HS, "kid": "x' UNION SELECT 'secret"}, claims(), b"secret"),
    "kid a list": lambda: by_hand({**HS, "kid": ["a"]}, claims(), b"x"),
    "a key in the header": lambda: by_hand({**HS, "jwk": {"kty": "oct", "k": b64(b"mine")}}, claims(), b"mine"),
    "a key's URL in the header": lambda: by_hand({**HS, "jku": "http://127.0.0.1:9/x", "x5u": "http://127.0.0.1:9/x"}, claims(), b"mine"),
    "wrong secret": lambda: by_hand(HS, claims(), b"y" * 40),
    "wrong RSA key": lambda: jwt.encode({"alg": "RS256", "kid": "rsa"}, claims(), OTHER_RSA, algorithms=["RS256"]),
    "key of another kid": lambda: jwt.encode({"alg": "ES256", "kid": "rsa"}, claims(), KEYS["ES256"], algorithms=["ES256"]),
    "Ed25519 said to be ES256": lambda: ".".join([b64({"alg": "ES256", "kid": "ec"}), *_signed("Ed25519").split(".")[1:]]),
    "ES256 said to be EdDSA": lambda: ".".join([b64({"alg": "EdDSA", "kid": "ed"}), *_signed("ES256").split(".")[1:]]),
    "an ES256 signature of zeros": lambda: _signed("ES256").rsplit(".", 1)[0] + "." + b64(bytes(64)),
    "wrong audience": lambda: by_hand(HS, claims(aud="https://other.test")),
    "audience a part of ours": lambda: by_hand(HS, claims(aud=AUDIENCE[:-1])),
    "no audience": lambda: by_hand(HS, claims(aud=...)),
    "empty audience": lambda: by_hand(HS, claims(aud=[])),
    "wrong issuer": lambda: by_hand(HS, claims(iss="https://evil.test")),
    "no issuer": lambda: by_hand(HS, claims(iss=...)),
    "issuer a list": lambda: by_hand(HS, claims(iss=[ISSUER])),
    "expired": lambda: by_hand(HS, claims(exp=int(time.time()) - 60)),
    "no expiry": lambda: by_hand(HS, claims(exp=...)),
    "expiry a word": lambda: by_hand(HS, claims(exp="never")),
    "expiry null": lambda: by_hand(HS, claims(exp=None)),
    "expiry infinite": lambda: by_hand(HS, b'{"sub":"jo","aud":"%s","iss":"%s","exp":1e999}' % (AUDIENCE.encode(), ISSUER.encode())),
    "expiry not a number": lambda: by_hand(HS, b'{"sub":"jo","aud":"%s","iss":"%s","exp":NaN}' % (AUDIENCE.encode(), ISSUER.encode())),
    "expiry true": lambda: by_hand(HS, claims(exp=True)),
    "not before tomorrow": lambda: by_hand(HS, claims(nbf=int(time.time()) + 86_400)),
    "issued tomorrow": lambda: by_hand(HS, claims(iat=int(time.time()) + 86_400)),
    "no subject": lambda: by_hand(HS, claims(sub=...)),
    "empty subject": lambda: by_hand(HS, claims(sub="")),
    "subject a number": lambda: by_hand(HS, claims(sub=7)),
    "subject with NUL": lambda: by_hand(HS, claims(sub="a\x00b")),
    "subject half a surrogate pair": lambda: by_hand(HS, claims(sub="\ud800")),
    "huge subject": lambda: by_hand(HS, claims(sub="x" * 201)),
    "tenant a list": lambda: by_hand(HS, claims(tenant=["default"])),
    "tenant with NUL": lambda: by_hand(HS, claims(tenant="a\x00")),
    "typ of a logout token": lambda: by_hand({"alg": "HS256", "typ": "logout+jwt"}, claims()),
    "typ of a refresh token": lambda: by_hand({"alg": "HS256", "typ": "Refresh"}, claims()),
    "typ a list": lambda: by_hand({"alg": "HS256", "typ": ["JWT"]}, claims()),
    "crit": lambda: by_hand({**HS, "crit": ["exp"], "exp": 1}, claims()),
    "crit of something unknown": lambda: by_hand({**HS, "crit": ["b64x"], "b64x": False}, claims()),
    "unencoded payload": lambda: by_hand({**HS, "crit": ["b64"], "b64": False}, claims()),
    "truncated": lambda: GOOD[:-5],
    "one bit of the signature": lambda: GOOD[:-2] + ("A" if GOOD[-2] != "A" else "B") + GOOD[-1],
    "another payload": lambda: ".".join([GOOD.split(".")[0], b64(claims(sub="boss")), GOOD.split(".")[2]]),
    "another header": lambda: ".".join([b64({**HS, "x": 1}), *GOOD.split(".")[1:]]),
    "an extra part": lambda: GOOD + ".x",
    "five parts": lambda: GOOD + "..",
    "two parts": lambda: GOOD.rsplit(".", 1)[0],
    "dots": lambda: "..",
    "header a list": lambda: by_hand([], claims()),
    "payload a list": lambda: by_hand(HS, ["jo"]),
    "payload a number": lambda: by_hand(HS, 7),
    "payload no JSON": lambda: by_hand(HS, b"\xff\xfe"),
    "deep payload": lambda: by_hand(HS, b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"),
    "huge": lambda: by_hand(HS, claims(junk="x" * 9000)),
    "no base64": lambda: "é!.x.y".encode().decode("latin-1"),
}


def _signed(alg: str, **changed: Any) -> str:
    return jwt.encode({"alg": alg, "kid": KEYS[alg].kid}, claims(**changed), KEYS[alg], algorithms=[alg])


def test_good_tokens_are_taken(house: House, public: House, pem: House) -> None:
    good = [(house, GOOD), (house, token()), (pem, _signed("RS256"))] + [(public, _signed(alg)) for alg in KEYS]
    good += [(house, by_hand({"alg": "HS256", "typ": typ}, claims(aud=["other", AUDIENCE]))) for typ in ("JWT", "at+jwt")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its name is out of use, tokens with it are not
        good.append((public, jwt.encode({"alg": "EdDSA", "kid": "ed"}, claims(), KEYS["Ed25519"], algorithms=["EdDSA"])))
    for where, said in good:
        with where.client(said) as client:
            assert client.get(ME).status_code == 200, said


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_token_that_is_not_wholly_right_is_401(house: House, public: House, pem: House, mutation: str) -> None:
    said = MUTATIONS[mutation]()
    for where in (house, public, pem):
        with where.client() as client:
            answer = client.get(ME, headers={b"authorization": f"Bearer {said}".encode("latin-1")})
            assert answer.status_code == 401, (where.url, answer.text)
            assert answer.json()["code"] in {"bad_token", "not_signed_in"}
            assert SECRET not in answer.text


def test_there_are_enough_mutations() -> None:
    assert len(MUTATIONS) >= 24


def test_keys_rotate_without_a_restart(public: House, jwks: Jwks) -> None:
    fresh = jwt.encode({"alg": "ES256", "kid": "next"}, claims(), ROTATED, algorithms=["ES256"])
    with public.client(fresh) as new, public.client(_signed("RS256")) as old:
        assert old.get(ME).status_code == 200
        jwks.keys = [ROTATED]
        until(lambda: new.get(ME).status_code == 200, "the new key")
        problem(old.get(ME), 401, "bad_token")
        asked = jwks.asked
        assert [new.get(ME).status_code for _ in range(5)] == [200] * 5
        for _ in range(5):
            new.get(ME, headers={"authorization": "Bearer " + _signed("ES256")})
        assert jwks.asked <= asked + 1, "an unknown key does not make us ask each time"
        jwks.keys = list(KEYS.values())


def test_a_token_brings_roles_by_id_and_by_room_code(house: House, running: Taken) -> None:
    room = httpx2.get(f"{house.url}{ME}/{running.meeting_id}", headers={"authorization": f"Bearer {house.key('admin')}"}, trust_env=False).json()["room_code"]
    order = f"{ME}/{running.meeting_id}/recording/pause"
    for where in (running.meeting_id, room):
        for role, status in (("HOST", 200), ("CO_HOST", 200), ("PARTICIPANT", 403), ("VIEWER", 403), ("BOSS", 404), (["HOST"], 404)):
            with house.client(token(name(), meetings={where: role})) as client:
                assert client.post(order).status_code == status, (where, role)
    with house.client(token(name(), meetings={name(): "HOST"})) as client:
        assert client.post(order).status_code == 404
    with house.client(token(running.host, meetings={running.meeting_id: "VIEWER"})) as client:
        assert client.post(order).status_code == 403, "the token's word stands above the seat"


def test_a_token_sees_in_lists_what_it_may_see(house: House, admin: httpx2.Client, running: Taken) -> None:
    room = admin.get(f"{ME}/{running.meeting_id}").json()["room_code"]
    for where in (running.meeting_id, room):
        for role, visibility, seen in (
            ("HOST", "private", True), ("CO_HOST", "private", True), ("PARTICIPANT", "private", False), ("PARTICIPANT", "participants", True),
        ):  # fmt: skip
            admin.patch(f"/api/v1/recordings/{running.id}", json={"visibility": visibility})
            with house.client(token(name(), meetings={where: role})) as client:
                assert (client.get(f"/api/v1/recordings/{running.id}").status_code == 200) is seen
                listed = [one["id"] for one in client.get("/api/v1/recordings").json()["recordings"]]
                assert (running.id in listed) is seen, (where, role, visibility)
                assert client.get(f"{ME}/{running.meeting_id}/recordings").json()["total"] == int(seen)


def test_a_token_makes_only_rooms_that_it_names_as_host(house: House) -> None:
    mine, other = name("room"), name("room")
    with house.client(token(name(), meetings={mine: "HOST", other: "PARTICIPANT"})) as client:
        for refused in (other, name("room")):
            problem(client.post(ME, json={"room_code": refused}), 403, "room_not_named")
            problem(client.post("/api/v1/recordings/start", json={"room_code": refused}), 403, "room_not_named")
            problem(client.post("/api/v1/meetings/start-recording", json={"meetingId": refused}), 403, "room_not_named")
        problem(client.post(ME, json={}), 403, "room_not_named")
        assert client.post("/api/v1/recordings/start", json={"room_code": mine}).status_code == 201


def test_a_tenant_is_a_world_of_its_own(house: House, running: Taken) -> None:
    room = name("room")
    with house.client(token("boss", tenant="other", roles=["admin"])) as boss, house.client(token("boss", roles=["admin"])) as ours:
        assert boss.get(f"/api/v1/recordings/{running.id}").status_code == 404
        assert running.id not in boss.get("/api/v1/recordings", params={"limit": 200}).text
        assert ours.post(ME, json={"room_code": room}).status_code == 201
        theirs = boss.post(ME, json={"room_code": room, "host_id": "x"})
        assert theirs.status_code == 201, "a room code is unique in its tenant"
        assert boss.get(f"{ME}/{room}").json()["id"] == theirs.json()["id"]
        assert ours.get(f"{ME}/{theirs.json()['id']}").status_code == 404


@pytest.mark.parametrize(("key", "audience"), [("changeme", AUDIENCE), ("x" * 31, AUDIENCE), (SECRET, "")])
def test_a_weak_or_missing_secret_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, key: str, audience: str) -> None:
    monkeypatch.setenv("ROOMTAPE_JWT_KEY", key)
    monkeypatch.setenv("ROOMTAPE_JWT_AUDIENCE", audience)
    with pytest.raises(Refused, match=r"too weak|AUDIENCE is missing") as told:
        load()
    assert key not in told.value.message
