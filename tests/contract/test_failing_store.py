"""What happens to uploads while the object store fails: each fault is made by a proxy before a real S3 server."""

import asyncio
import hashlib
import os
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import obstore
import pytest

from roomtape.core.errors import BadInput, Conflict, NotFound, Refused, RoomtapeError, StorageFull, Unavailable
from roomtape.core.model import StoredIn
from roomtape.storage.breaker import Breaker
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.storage.s3 import Bucket, S3Store
from roomtape.storage.store import check, open_store
from roomtape.testing.faultproxy import FaultProxy, Mode, Rule
from roomtape.testing.s3 import S3Server
from roomtape.testing.servers import free_port, require

pytestmark = pytest.mark.anyio

SIZE = 200_000


def remote(s3: S3Server, bucket: str, port: int, *, retry_s: float = 1.0) -> S3Store:
    where = Bucket(bucket, "pre", f"http://127.0.0.1:{port}", path_style=True, allow_http=True, **s3.credentials)
    return S3Store(where, retry_s=retry_s)


def segment(n: int, size: int = SIZE) -> tuple[str, bytes]:
    body = random.Random(n).randbytes(size)
    return f"user/meeting/rec/chunks/cam/{n:010d}-{digest(body)[:32]}", body


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


async def upload(store: SpooledStore, n: int, size: int = SIZE) -> StoredIn:
    """One segment through the road of the web layer."""
    key, body = segment(n, size)
    with await store.intake.take(pieces(body), limit=size) as taken:
        return await store.keep(taken.path, key, size=taken.size, sha256=taken.sha256)


async def moved(store: SpooledStore, n: int, size: int = SIZE, *, within_s: float = 20) -> None:
    """Moves a segment as its job would: again after the wait that was told."""
    key, body = segment(n, size)
    async with asyncio.timeout(within_s):
        while True:
            try:
                await store.move(key, size=size, sha256=digest(body))
            except (Unavailable, StorageFull):
                await asyncio.sleep(0.05)
            else:
                break
    await store.drop(key)


async def body_of(store: SpooledStore, n: int, where: StoredIn) -> bytes:
    return b"".join([piece async for piece in store.read(segment(n)[0], where=where)])


def objects(s3: S3Server, bucket: str) -> dict[str, str]:
    """Keys and digests of what the server has on its disk, asked behind its back; parts of unfinished uploads are not objects."""
    top = s3.objects / bucket / "pre"
    return {str(path.relative_to(top)): digest(path.read_bytes()) for path in top.rglob("*") if path.is_file()}


@pytest.fixture
async def proxy(s3: S3Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(s3.port) as running:
        yield running


@pytest.fixture
async def store(s3: S3Server, bucket: str, proxy: FaultProxy, tmp_path: Path) -> AsyncIterator[SpooledStore]:
    opened = SpooledStore(remote(s3, bucket, proxy.port), LocalStore(tmp_path / "spool"), patience_s=0.5)
    yield opened
    await opened.close()


FAULTS = {
    **{f"{code}": Rule(Mode.STATUS, status=code) for code in (500, 502, 429, 403, 404, 507)},
    "503": Rule(Mode.STATUS, status=503, retry_after_s=1),
    "every second": Rule(Mode.STATUS, status=503, every=2),
    "the first ten": Rule(Mode.STATUS, status=500, times=10),
    "only PUT": Rule(Mode.STATUS, status=500, match="PUT "),
    "only HEAD": Rule(Mode.STATUS, status=500, match="HEAD "),
    "refused": Rule(Mode.REFUSE),
    "hanging": Rule(Mode.BLACKHOLE),
    "slow": Rule(Mode.SLOW, bytes_per_s=20_000),
    "late": Rule(Mode.DELAY, delay_s=2),
    "answers lost": Rule(Mode.LOST_ACK),
    "cut": Rule(Mode.CUT_UP, at=SIZE // 2),
    "changed": Rule(Mode.FLIP, at=1000),
    "twice": Rule(Mode.TWICE),
}


async def test_no_upload_is_lost_whatever_the_store_does(s3: S3Server, tmp_path: Path) -> None:
    outcomes = await asyncio.gather(
        *(_survives(s3, name, rule, tmp_path / f"spool-{n}") for n, (name, rule) in enumerate(FAULTS.items())), return_exceptions=True
    )
    assert {name: outcome for name, outcome in zip(FAULTS, outcomes, strict=True) if outcome is not None} == {}


async def _survives(s3: S3Server, fault: str, rule: Rule, spool: Path) -> None:
    """One kind of fault, with a bucket, a proxy and a spool of its own."""
    bucket = f"faults-{uuid4().hex[:12]}"
    s3.make_bucket(bucket)
    async with FaultProxy(s3.port, rule) as proxy:
        disk = LocalStore(spool)
        store = SpooledStore(remote(s3, bucket, proxy.port), disk, patience_s=1)
        places = await asyncio.gather(*(upload(store, n) for n in range(6)))
        assert fault in {"every second", "the first ten", "twice"} or set(places) == {StoredIn.SPOOL}, (fault, places)
        for n, where in enumerate(places):  # served at once from where the row says it is
            if where is StoredIn.SPOOL:
                assert await body_of(store, n, where) == segment(n)[1], fault
        whole = {segment(n)[0]: digest(segment(n)[1]) for n in range(6)}
        assert objects(s3, bucket).items() <= whole.items(), fault  # each is whole, or absent
        proxy.rule = Rule()
        for n, where in enumerate(places):
            if where is StoredIn.SPOOL:
                await moved(store, n)
        assert objects(s3, bucket) == whole, fault
        assert [found async for found in disk.list("")] == [], fault
        assert store.trouble == "", fault
        assert await upload(store, 7) is StoredIn.PRIMARY, fault
        await store.close()


@pytest.mark.parametrize(("status", "trouble"), [(403, "storage_auth"), (404, "storage_missing")])
async def test_what_is_wrong_with_the_store_is_named(proxy: FaultProxy, store: SpooledStore, status: int, trouble: str) -> None:
    proxy.rule = Rule(Mode.STATUS, status=status)
    assert await upload(store, 1) is StoredIn.SPOOL
    assert store.trouble == trouble


async def test_a_hanging_store_holds_up_one_upload_and_not_each(proxy: FaultProxy, store: SpooledStore) -> None:
    proxy.rule = Rule(Mode.BLACKHOLE)
    began = time.monotonic()
    assert await upload(store, 0) is StoredIn.SPOOL
    assert time.monotonic() - began < 2.5
    asked, began = len(proxy.seen), time.monotonic()
    for n in range(1, 11):
        assert await upload(store, n) is StoredIn.SPOOL
    assert time.monotonic() - began < 1.5
    assert len(proxy.seen) <= asked + 1  # a probe may fall due


async def test_a_hundred_segments_wait_in_the_spool_and_are_moved_when_the_store_is_back(
    s3: S3Server, bucket: str, proxy: FaultProxy, store: SpooledStore, tmp_path: Path
) -> None:
    proxy.rule = Rule(Mode.REFUSE)
    assert set(await asyncio.gather(*(upload(store, n, 1000) for n in range(100)))) == {StoredIn.SPOOL}
    await store.close()
    again = SpooledStore(remote(s3, bucket, proxy.port), LocalStore(tmp_path / "spool"), patience_s=0.5)  # another process takes it up
    proxy.rule = Rule()
    for n in range(100):
        await moved(again, n, 1000)
    assert objects(s3, bucket) == {segment(n, 1000)[0]: digest(segment(n, 1000)[1]) for n in range(100)}
    assert again.spool is not None
    assert [found async for found in again.spool.list("")] == []
    await again.close()


async def test_moving_may_be_repeated_at_any_line(s3: S3Server, bucket: str, proxy: FaultProxy, store: SpooledStore) -> None:
    proxy.rule = Rule(Mode.REFUSE)
    await upload(store, 1)
    proxy.rule = Rule(Mode.LOST_ACK, match="PUT ", times=1)
    await moved(store, 1)
    await moved(store, 1)  # the job runs again after its row was written and the spool emptied
    assert objects(s3, bucket) == {segment(1)[0]: digest(segment(1)[1])}
    with pytest.raises(NotFound):
        await store.move(segment(2)[0], size=SIZE, sha256=digest(segment(2)[1]))
    proxy.rule = Rule(Mode.REFUSE)
    with pytest.raises(Unavailable):
        await store.move(segment(1)[0], size=SIZE, sha256=digest(segment(1)[1]))
    with pytest.raises(Unavailable) as caught:
        await store.move(segment(1)[0], size=SIZE, sha256=digest(segment(1)[1]))
    assert caught.value.retry_after_s is not None


async def test_a_spooled_segment_that_rots_is_found_and_not_moved(s3: S3Server, bucket: str, proxy: FaultProxy, store: SpooledStore) -> None:
    proxy.rule = Rule(Mode.REFUSE)
    await upload(store, 1)
    key, body = segment(1)
    path = store.path(key, where=StoredIn.SPOOL)
    assert path is not None
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    proxy.rule = Rule()
    with pytest.raises(BadInput):
        await moved(store, 1)
    assert objects(s3, bucket) == {}


async def test_a_read_finds_a_segment_that_has_just_been_moved_or_whose_store_is_away(proxy: FaultProxy, store: SpooledStore) -> None:
    proxy.rule = Rule(Mode.REFUSE)
    await upload(store, 1)
    key, body = segment(1)
    assert await body_of(store, 1, StoredIn.PRIMARY) == body  # away, not yet dropped
    assert (await store.head(key)).size == SIZE
    proxy.rule = Rule()
    await moved(store, 1)
    assert await body_of(store, 1, StoredIn.SPOOL) == body  # the row was read before the move
    assert (await store.head(key, where=StoredIn.SPOOL)).size == SIZE
    assert store.path(key, where=StoredIn.SPOOL) is None
    with pytest.raises(Unavailable) as caught:
        await body_of(store, 2, StoredIn.SPOOL)
    assert caught.value.code == "spooled_elsewhere"
    with pytest.raises(NotFound):
        await body_of(store, 2, StoredIn.PRIMARY)


async def test_a_store_that_does_not_answer_is_asked_once_and_not_for_each_piece(s3: S3Server, proxy: FaultProxy, store: SpooledStore) -> None:
    assert await upload(store, 1) is StoredIn.PRIMARY
    proxy.rule = Rule(Mode.STATUS, status=503)
    with pytest.raises(Unavailable):
        await body_of(store, 1, StoredIn.PRIMARY)
    reached = 0
    for _ in range(20):
        before = len(proxy.seen)
        with pytest.raises(Unavailable):
            await body_of(store, 1, StoredIn.PRIMARY)
        reached += len(proxy.seen) > before
    assert reached < 10, "a probe now and then, no more"
    proxy.rule = Rule(Mode.STATUS, match="PUT")
    async with asyncio.timeout(20):
        while True:
            try:
                assert await body_of(store, 1, StoredIn.PRIMARY) == segment(1)[1]
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                break
    for number in range(2, 5):
        assert await upload(store, number) is StoredIn.SPOOL
        assert await body_of(store, 1, StoredIn.PRIMARY) == segment(1)[1], "a store that takes nothing still gives"


async def test_a_client_that_goes_away_during_a_probe_does_not_keep_the_store_out(proxy: FaultProxy, store: SpooledStore) -> None:
    proxy.rule = Rule(Mode.REFUSE)
    await upload(store, 0)
    proxy.rule = Rule(Mode.BLACKHOLE)
    for n in range(1, 200):
        asked = len(proxy.seen)
        probing = asyncio.create_task(upload(store, n, 1000))
        await asyncio.wait({probing}, timeout=0.1)
        probing.cancel()
        if len(proxy.seen) > asked:
            break
    proxy.rule = Rule()
    async with asyncio.timeout(20):
        n = 1000
        while await upload(store, n, 1000) is not StoredIn.PRIMARY:
            n += 1
            await asyncio.sleep(0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    require(os.geteuid() == 0 or None, "only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True, text=True)
    require(mounted.returncode == 0 or None, f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_full_spool_refuses_what_it_cannot_keep(s3: S3Server, bucket: str, proxy: FaultProxy, small_disk: Path) -> None:
    store = SpooledStore(remote(s3, bucket, proxy.port), LocalStore(small_disk / "spool"), patience_s=0.5)
    proxy.rule = Rule(Mode.REFUSE)
    results = [await asyncio.gather(upload(store, n), return_exceptions=True) for n in range(15)]
    kept = [n for n, (result,) in enumerate(results) if result is StoredIn.SPOOL]
    assert 0 < len(kept) < 15
    assert all(isinstance(result, StorageFull) for (result,) in results if not isinstance(result, StoredIn))
    for n in kept:
        assert await body_of(store, n, StoredIn.SPOOL) == segment(n)[1]
    proxy.rule = Rule()
    for n in kept:
        await moved(store, n)
    assert objects(s3, bucket) == {segment(n)[0]: digest(segment(n)[1]) for n in kept}
    await store.close()


async def test_a_local_store_is_its_own_spool(tmp_path: Path) -> None:
    store = SpooledStore(LocalStore(tmp_path / "store"))
    assert await upload(store, 1) is StoredIn.PRIMARY
    key, body = segment(1)
    await store.move(key, size=len(body), sha256=digest(body))
    await store.drop(key)
    assert await body_of(store, 1, StoredIn.PRIMARY) == body
    assert store.path(key) == tmp_path / "store" / key
    await store.delete(key)
    assert [found async for found in store.list("")] == []
    await store.close()


def test_a_remote_store_must_have_a_spool() -> None:
    with pytest.raises(TypeError):
        SpooledStore(S3Store(Bucket("bucket")))


@pytest.mark.parametrize("at", [0, 1, 4096, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("mode", [Mode.CUT_UP, Mode.CUT_DOWN])
async def test_a_connection_cut_anywhere_leaves_a_whole_object_or_none(s3: S3Server, bucket: str, proxy: FaultProxy, mode: Mode, at: int) -> None:
    store = remote(s3, bucket, proxy.port)
    key, body = segment(1)
    proxy.rule = Rule(mode, at=at if mode is Mode.CUT_UP else at % 50, times=1)
    try:
        await store.put(key, pieces(body), size=SIZE, sha256=digest(body))
    except Unavailable:
        assert objects(s3, bucket) in ({}, {key: digest(body)})
        await store.put(key, pieces(body), size=SIZE, sha256=digest(body))
    assert objects(s3, bucket) == {key: digest(body)}
    proxy.rule = Rule(Mode.CUT_DOWN, at=at, match="GET ", times=1)
    try:
        got = b"".join([piece async for piece in store.read(key)])
    except Unavailable:
        got = b"".join([piece async for piece in store.read(key)])
    assert got == body


async def test_a_multipart_upload_that_fails_in_any_request_leaves_no_object(s3: S3Server, bucket: str, proxy: FaultProxy) -> None:
    store = remote(s3, bucket, proxy.port, retry_s=0.1)
    key, body = segment(1, 20 * 1024 * 1024)
    for match in ("?uploads", "partNumber=2", "POST "):
        proxy.rule = Rule(Mode.STATUS, status=500, match=match)
        with pytest.raises(Unavailable):
            await store.put(key, pieces(body), size=len(body), sha256=digest(body))
        assert objects(s3, bucket) == {}
    proxy.rule = Rule(Mode.FLIP, match="partNumber=2", at=5_000_000)
    with pytest.raises(Unavailable):
        await store.put(key, pieces(body), size=len(body), sha256=digest(body))
    assert objects(s3, bucket) == {}
    proxy.rule = Rule(Mode.LOST_ACK, match="POST ", skip=1, times=1)  # the one that completes
    try:
        await store.put(key, pieces(body), size=len(body), sha256=digest(body))
    except Unavailable:
        await store.put(key, pieces(body), size=len(body), sha256=digest(body))
    assert objects(s3, bucket) == {key: digest(body)}


async def test_a_full_store_says_so_and_wrong_credentials_are_named(s3: S3Server, bucket: str, proxy: FaultProxy) -> None:
    store = remote(s3, bucket, proxy.port, retry_s=0.2)
    key, body = segment(1)
    for status, error, code in [
        (507, StorageFull, "storage_full"),
        (401, Unavailable, "storage_auth"),
        (403, Unavailable, "storage_auth"),
        (503, Unavailable, "storage_error"),
    ]:
        proxy.rule = Rule(Mode.STATUS, status=status)
        with pytest.raises(error) as caught:
            await store.put(key, pieces(body), size=SIZE, sha256=digest(body))
        assert caught.value.code == code


async def test_no_call_waits_for_ever_on_a_store_that_hangs(s3: S3Server, bucket: str, proxy: FaultProxy) -> None:
    store = remote(s3, bucket, proxy.port, retry_s=0.1)
    key, body = segment(1)
    proxy.rule = Rule(Mode.BLACKHOLE)

    async def read() -> None:
        async for _ in store.read(key, 0, 1000):
            pass

    async def listed() -> None:
        async for _ in store.list("user"):
            pass

    began = time.monotonic()
    calls = (store.put(key, pieces(body), size=SIZE, sha256=digest(body)), store.head(key), store.delete(key), read(), listed())
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began < 15
    assert [type(result) for result in results] == [Unavailable] * 5
    assert {result.code for result in results if isinstance(result, RoomtapeError)} == {"storage_timeout"}


async def test_an_object_of_others_is_told_apart_by_its_bytes(s3: S3Server, bucket: str) -> None:
    store = remote(s3, bucket, s3.port)
    key, body = segment(1)
    other_tool = store._remote  # puts no digest beside what it writes
    await obstore.put_async(other_tool, key, body)
    await store.put(key, pieces(body), size=SIZE, sha256=digest(body))
    await obstore.put_async(other_tool, key, body[::-1])
    with pytest.raises(Conflict):
        await store.put(key, pieces(body), size=SIZE, sha256=digest(body))


async def test_what_the_environment_says_of_aws_changes_nothing_of_what_was_given(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "ENDPOINT_URL": "http://127.0.0.1:1",
        "ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "SKIP_SIGNATURE": "true",
        "SESSION_TOKEN": "others",
        "UNSIGNED_PAYLOAD": "true",
    }
    for name, value in others.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = open_store(s3.url(bucket), **s3.credentials)
    await check(store)
    assert "Token" not in (await store.presign("a", ttl_s=5) or "")


async def test_a_presigned_url_gives_the_object_and_its_ranges_to_whoever_holds_it(s3: S3Server, bucket: str) -> None:
    store = remote(s3, bucket, s3.port)
    key, body = segment(1)
    await store.put(key, pieces(body), size=SIZE, sha256=digest(body))
    url = await store.presign(key, ttl_s=60)
    assert url is not None

    def get(address: str, **headers: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return bytes(answer.read())

    assert await asyncio.to_thread(get, url) == body
    assert await asyncio.to_thread(get, url, Range="bytes=10-19") == body[10:20]
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(get, url.replace("Expires=60", "Expires=600"))
    assert caught.value.code == 403
    caught.value.close()
    assert await store.presign(key, ttl_s=60, disposition="attachment") is None


async def test_check_names_a_missing_bucket_wrong_credentials_and_a_store_that_is_away(s3: S3Server, bucket: str) -> None:
    with pytest.raises(Refused, match="bucket does not exist"):
        await check(open_store(s3.url("no-such-bucket"), **s3.credentials))
    with pytest.raises(Refused, match="credentials"):
        await check(open_store(s3.url(bucket), access_key_id=s3.access_key_id, secret_access_key="wrong"))
    with pytest.raises(Unavailable):
        await check(remote(s3, bucket, free_port()))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "bucket",
            "ftp://bucket",
            "S3//bucket",
            "s3://",
            "s3:///prefix",
            "s3://key:secret@bucket",
            "s3://bucket?colour=red",
            "s3://bucket/../x",
            "s3://bucket/a%b",
        ),
        *(
            "s3://bucket?path_style=maybe",
            "s3://bucket?endpoint=ht!tp:/x",
            "s3://bucket?endpoint=localhost:9000",
            "s3://bucket?endpoint=https://",
            "s3://bucket?endpoint=https://h:port",
        ),
        *(
            "s3://bucket?endpoint=http://127.0.0.1:9000",
            "s3://bucket?endpoint=https://host:99999",
            "s3://bucket?endpoint=https://a%20b",
            "s3://bucket?endpoint=https://h?x=1",
            "s3://[::1",
        ),
    ],
)
def test_a_storage_url_that_cannot_work_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(Refused, match=r"\.$"):
        open_store(url)


def test_half_of_the_credentials_is_refused_and_none_of_them_is_ever_shown() -> None:
    with pytest.raises(Refused):
        open_store("s3://bucket", access_key_id="key")
    store = open_store("s3://bucket", access_key_id="key", secret_access_key="hush")
    assert isinstance(store, S3Store)
    assert "hush" not in f"{store.bucket!r} {store.bucket} {store!r}"


def test_a_failing_store_is_probed_by_one_call_at_a_time_and_later_each_time() -> None:
    now = 0.0
    breaker = Breaker(lambda: now, spread=lambda low, high: (low + high) / 2)
    waits = []
    ticket = breaker.enter()
    for _ in range(8):
        assert ticket
        assert not breaker.enter() or breaker.closed  # one at a time
        breaker.failed(ticket)
        breaker.left(ticket)
        waits.append(breaker.wait_s)
        assert not breaker.enter()
        now += breaker.wait_s
        ticket = breaker.enter()
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    breaker.worked()
    breaker.left(ticket)
    assert breaker.closed
    assert breaker.enter()
    assert breaker.enter()


def test_calls_that_fail_together_count_once_and_waits_are_spread() -> None:
    breaker = Breaker(lambda: 0.0)
    tickets = [breaker.enter() for _ in range(10)]
    for ticket in tickets:
        breaker.failed(ticket)
        breaker.left(ticket)
    assert 0.8 <= breaker.wait_s <= 1.2


def test_a_probe_that_ends_without_an_answer_makes_room_for_the_next() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    first = breaker.enter()
    breaker.failed(first)
    breaker.left(first)
    now = 100.0
    probe = breaker.enter()
    assert probe
    breaker.left(first)  # an old call ends late
    assert not breaker.enter()
    breaker.left(probe)
    assert breaker.enter()
