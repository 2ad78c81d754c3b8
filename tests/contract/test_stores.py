"""What every Store keeps to, whatever is behind it."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtape.core.errors import BadInput, Conflict, NotFound, RoomtapeError
from roomtape.core.ports import Store, Stored
from roomtape.storage import key as keys
from roomtape.storage.store import check

pytestmark = pytest.mark.anyio

KEY = "user-1/0f8e1d5e-6b1b-4b1f-9c56-1d1f3a1b2c3d/rec/chunks/cam/0000000000-abcdef"
MIB = 1024 * 1024

TRAVERSALS = [
    *(
        "",
        "/",
        "//",
        ".",
        "..",
        "...",
        "./a",
        "../a",
        "a/..",
        "a/../b",
        "a/./b",
        "a//b",
        "a/",
        "/a",
        "/etc/passwd",
        "//etc/passwd",
        "a/../../b",
        "../../../../tmp/x",
    ),
    *("..\\a", "a\\..\\b", "\\\\host\\share", "C:\\x", "a\\b", "%2e%2e/a", "%2e%2e%2fa", "a/%2e%2e/b", "..%2fa", "..%5ca", "%00", "a%00b", "..;/a", "....//a"),
    *(
        "a\0b",
        "\0",
        "a/\0/b",
        "a\r\nb",
        "a\nX-Evil: 1",
        "a\n",
        "a\tb",
        "a\x7fb",
        "a\x1bb",
        " a",
        "a ",
        "a/ /b",
        "a\u00a0b",
        "~/a",
        "a|b",
        "a*b",
        "a?b=c",
        "a#b",
        'a"b',
        "a<b",
        "`a`",
    ),
    *(
        ".tmp/a",
        "a/.tmp",
        ".htaccess",
        "x" * 256,
        "a/" * 300 + "a",
        "x" * 5000,
        "\u2025/a",
        "\uff0e\uff0e/a",
        "\u2024\u2024/a",
        "u\u0308",
        "\U0001f600",
        "a/\u202e/b",
        "-/../a",
    ),
]


async def pieces(body: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def put(store: Store, key: str, body: bytes) -> None:
    await store.put(key, pieces(body), size=len(body), sha256=digest(body))


async def read(store: Store, key: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(key, start, stop)])


async def keys_of(store: Store, prefix: str = "") -> set[str]:
    return {found.key async for found in store.list(prefix)}


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def sealed(path: Path, body: bytes) -> Path:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    return path


def bodies_below(folder: Path) -> list[int]:
    """Sizes of all files of a store that are not the server's own notes."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


async def nothing_is_left(folder: Path) -> None:
    """An upload that failed is closed in its thread, a moment after its request has ended."""
    for _ in range(500):
        if not bodies_below(folder):
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"left behind: {bodies_below(folder)}")


@pytest.mark.parametrize("size", [0, 1, 65536, MIB, MIB + 1, 3_000_000])
async def test_what_was_put_is_read_back(store: Store, size: int) -> None:
    body = random.Random(size).randbytes(size)
    await put(store, KEY, body)
    assert await read(store, KEY) == body
    assert await store.head(KEY) == Stored(KEY, size)


async def test_large_bodies_go_in_parts_and_come_back_whole(store: Store) -> None:
    body = random.Random(1).randbytes(21 * MIB + 17)
    await put(store, KEY, body)
    got = [piece async for piece in store.read(KEY)]
    assert max(map(len, got)) <= MIB
    assert digest(b"".join(got)) == digest(body)
    assert await store.head(KEY) == Stored(KEY, len(body))
    assert await read(store, KEY, 8 * MIB - 3, 8 * MIB + 3) == body[8 * MIB - 3 : 8 * MIB + 3]


async def test_ranges_are_cut_like_slices(store: Store) -> None:
    body = random.Random(2).randbytes(5 * MIB)
    await put(store, KEY, body)
    for start, stop in [
        (0, 1),
        (0, 0),
        (5, 5),
        (7, 3),
        (MIB - 1, MIB + 1),
        (4 * MIB, None),
        (len(body) - 1, None),
        (len(body) - 1, len(body) + 9),
        (len(body), None),
        (len(body) + 5, None),
    ]:
        assert await read(store, KEY, start, stop) == body[start:stop], (start, stop)


async def test_what_is_not_there_is_not_found_and_may_be_deleted(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.head(KEY)
    with pytest.raises(NotFound):
        await read(store, KEY)
    with pytest.raises(NotFound):
        await read(store, KEY, 5, 10)
    await store.delete(KEY)
    await put(store, KEY, b"abc")
    await store.delete(KEY)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.head(KEY)


async def test_a_prefix_lists_whole_folders_only(store: Store) -> None:
    for key in ["u/m/a/1", "u/m/a/2", "u/m/b/1", "u/m-2/a/1", "v"]:
        await put(store, key, key.encode())
    assert await keys_of(store, "u/m") == await keys_of(store, "u/m/") == {"u/m/a/1", "u/m/a/2", "u/m/b/1"}
    assert await keys_of(store) == {"u/m/a/1", "u/m/a/2", "u/m/b/1", "u/m-2/a/1", "v"}
    assert await keys_of(store, "nothing/here/") == set()
    assert {found.size async for found in store.list("u/m-2/")} == {9}


async def test_deleting_the_last_object_leaves_no_folders(store: Store, everything: Path) -> None:
    await put(store, "u/m/a/1", b"x")
    await put(store, "u/other", b"x")
    await store.delete("u/m/a/1")
    assert not list(everything.rglob("m"))
    assert await keys_of(store) == {"u/other"}


@pytest.mark.parametrize("size", [1000, 9 * MIB])
async def test_the_same_bytes_again_are_fine_and_others_are_a_conflict(store: Store, size: int) -> None:
    body = random.Random(3).randbytes(size)
    await put(store, KEY, body)
    await put(store, KEY, body)
    for other in (body[:-1], body[:-1] + bytes([body[-1] ^ 1]), body + b"x"):
        with pytest.raises(Conflict):
            await put(store, KEY, other)
    assert digest(await read(store, KEY)) == digest(body)


@pytest.mark.parametrize("size", [1000, 3 * MIB, 12 * MIB])
async def test_a_body_that_differs_from_what_was_announced_leaves_nothing(store: Store, everything: Path, size: int) -> None:
    body = random.Random(4).randbytes(size)
    for told_size, told_digest in [(size, digest(b"other")), (size + 1, digest(body)), (size - 1, digest(body)), (size - 1, digest(body[:-1]))]:
        with pytest.raises(BadInput):
            await store.put(KEY, pieces(body), size=told_size, sha256=told_digest)
    assert await keys_of(store) == set()
    await nothing_is_left(everything)


@pytest.mark.parametrize("size", [1000, 3 * MIB, 12 * MIB])
async def test_a_body_that_breaks_off_leaves_nothing(store: Store, everything: Path, size: int) -> None:
    body = random.Random(5).randbytes(size)

    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(body[: size // 2]):
            yield piece
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(KEY, broken(), size=size, sha256=digest(body))
    assert await keys_of(store) == set()
    await nothing_is_left(everything)


async def test_a_cancelled_put_leaves_nothing(store: Store, everything: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await store.put(KEY, endless(), size=1 << 40, sha256="0" * 64)
    await nothing_is_left(everything)


async def test_a_file_is_adopted_and_gone_from_where_it_was(store: Store, tmp_path: Path) -> None:
    for size in (1000, 9 * MIB):
        body = random.Random(size).randbytes(size)
        for _ in range(2):  # the second time the store has it
            path = sealed(tmp_path / "work", body)
            await store.adopt(f"{KEY}-{size}", path, size=size, sha256=digest(body))
            assert not path.exists()
        assert digest(await read(store, f"{KEY}-{size}")) == digest(body)


async def test_a_file_of_another_size_is_not_adopted_and_stays(store: Store, tmp_path: Path) -> None:
    path = sealed(tmp_path / "work", b"12345")
    with pytest.raises(BadInput):
        await store.adopt(KEY, path, size=4, sha256=digest(b"12345"))
    assert path.read_bytes() == b"12345"
    assert await keys_of(store) == set()


async def test_one_of_many_writers_of_a_key_wins_and_the_others_are_told(store: Store) -> None:
    bodies = [bytes([n % 4]) * 100_000 for n in range(16)]
    results = await asyncio.gather(*(put(store, KEY, body) for body in bodies), return_exceptions=True)
    kept = await read(store, KEY)
    for body, result in zip(bodies, results, strict=True):
        assert result is None if body == kept else isinstance(result, RoomtapeError), result
    assert any(result is None for result in results)
    await put(store, KEY, kept)


@pytest.mark.parametrize("key", TRAVERSALS)
async def test_a_key_that_is_none_of_ours_is_refused_everywhere(store: Store, tmp_path: Path, everything: Path, key: str) -> None:
    with pytest.raises(BadInput):
        await put(store, key, b"evil")
    with pytest.raises(BadInput):
        await store.adopt(key, sealed(tmp_path / "work", b"evil"), size=4, sha256=digest(b"evil"))
    for call in (store.head, store.delete):
        with pytest.raises(BadInput):
            await call(key)
    with pytest.raises(BadInput):
        await read(store, key)
    with pytest.raises(BadInput):
        await store.presign(key, ttl_s=60) if store.path("a") is None else store.path(key)
    assert bodies_below(everything) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["work"]


@pytest.mark.parametrize("key", ["-rf", "--", "_", "A" * 200, "a/b.mp4", "room 1/x (2).m3u8", "sid_chan:1,2;=@+&$!'()/uid.ts", "/".join(["a" * 99] * 8)])
async def test_harmless_names_of_others_are_kept_as_they_are(store: Store, key: str) -> None:
    await put(store, key, b"abc")
    assert await read(store, key) == b"abc"
    assert await keys_of(store) == {key}
    await store.delete(key)
    assert await keys_of(store) == set()


async def test_check_finds_a_sound_store_sound_and_leaves_nothing(store: Store) -> None:
    await check(store)
    assert await keys_of(store) == set()


@given(st.text(max_size=40))
@settings(max_examples=500)
def test_a_key_is_refused_or_has_only_parts_that_stay_below(text: str) -> None:
    try:
        names = keys.parts(text)
    except BadInput:
        return
    assert text.isascii()
    assert text.isprintable()
    assert "/".join(names) == text
    assert all(name and not name.startswith(".") for name in names)
    assert os.path.normpath(text) == text
