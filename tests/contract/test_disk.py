"""The local store when the disk says no, when its owner dies, and when somebody has planted links below it."""

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roomtape.core.errors import BadInput, Conflict, NotFound, Refused, StorageFull, TooLarge, Unavailable
from roomtape.storage.folder import TEMPORARY
from roomtape.storage.local import LocalStore
from roomtape.storage.store import open_folder
from roomtape.testing.servers import require

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
KEY = "user/meeting/recording/chunks/cam/0000000000-abc"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = LocalStore(tmp_path / "store")
    yield opened
    await opened.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    require(os.geteuid() == 0 or None, "only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False, capture_output=True, text=True)
    require(mounted.returncode == 0 or None, f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def temporaries(store: LocalStore) -> list[Path]:
    return list((store.folder.root / TEMPORARY).iterdir())


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def read(store: LocalStore, key: str) -> bytes:
    return b"".join([piece async for piece in store.read(key)])


async def test_a_file_system_that_is_mounted_over_the_store_later_takes_nothing(store: LocalStore, small_disk: Path) -> None:
    source = small_disk / TEMPORARY / "came"  # where an upload would now be written
    source.parent.mkdir()
    source.write_bytes(b"acknowledged")
    subprocess.run(["mount", "--bind", small_disk, store.folder.root], check=True)
    try:
        with pytest.raises(Unavailable):
            await store.adopt(KEY, source, size=12, sha256=digest(b"acknowledged"))
        assert source.read_bytes() == b"acknowledged"
    finally:
        subprocess.run(["umount", "--lazy", store.folder.root], check=True)
    with pytest.raises(NotFound):
        await read(store, KEY)


async def test_an_upload_becomes_an_object_by_commit(store: LocalStore) -> None:
    with store.intake.begin() as upload:
        upload.write(b"abc")
        upload.write(b"def", b"")
        assert upload.size == 6
        kept = await asyncio.to_thread(upload.commit, KEY)
    assert (kept.key, kept.size) == (KEY, 6)
    assert upload.sha256 == digest(b"abcdef")
    assert await read(store, KEY) == b"abcdef"
    assert temporaries(store) == []


async def test_an_upload_that_is_given_up_leaves_nothing_and_takes_no_more(store: LocalStore) -> None:
    upload = store.intake.begin()
    upload.write(b"abc")
    assert len(temporaries(store)) == 1
    upload.close()
    assert temporaries(store) == []
    with pytest.raises(Unavailable):
        upload.write(b"d")
    with pytest.raises(Unavailable):
        upload.seal()


async def test_a_body_over_the_limit_is_refused_at_the_limit(store: LocalStore) -> None:
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        while True:
            seen += 65536
            yield bytes(65536)

    with pytest.raises(TooLarge):
        await store.intake.take(endless(), limit=2 * MIB)
    assert seen == 2 * MIB + 65536
    await _until(lambda: not temporaries(store))


async def test_a_thousand_aborted_uploads_leave_no_bytes_and_no_descriptors(store: LocalStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1000)
        raise ConnectionResetError

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        with pytest.raises(ConnectionResetError):
            await store.intake.take(broken(), limit=MIB)
    await _until(lambda: not temporaries(store))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


async def test_files_are_for_their_owner_only(store: LocalStore, tmp_path: Path) -> None:
    await store.put(KEY, pieces(b"abc"), size=3, sha256=digest(b"abc"))
    loose = tmp_path / "loose"
    loose.write_bytes(b"abc")
    loose.chmod(0o666)
    await store.adopt("user/loose", loose, size=3, sha256=digest(b"abc"))
    for path in store.folder.root.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert store.folder.root.stat().st_mode & 0o777 == 0o700


async def test_a_full_disk_is_said_to_be_full_and_nothing_is_left(small_disk: Path) -> None:
    store = LocalStore(small_disk / "store")
    body = os.urandom(3 * MIB)
    await store.put("a/kept", pieces(body), size=len(body), sha256=digest(body))
    assert store.free_bytes() <= MIB
    with pytest.raises(StorageFull):
        await store.put(KEY, pieces(body), size=len(body), sha256=digest(body))
    with pytest.raises(StorageFull), store.intake.begin() as upload:
        upload.write(body)
    await _until(lambda: not temporaries(store))
    assert [found.key async for found in store.list("")] == ["a/kept"]
    await store.delete("a/kept")
    await store.put(KEY, pieces(body), size=len(body), sha256=digest(body))  # room again: taken again
    assert await read(store, KEY) == body
    await store.close()


async def test_twenty_clients_on_a_full_disk_lose_nothing_that_was_taken(small_disk: Path) -> None:
    store = LocalStore(small_disk / "store")
    bodies = {f"u/{n}": os.urandom(400_000) for n in range(20)}
    results = await asyncio.gather(*(store.put(key, pieces(body), size=len(body), sha256=digest(body)) for key, body in bodies.items()), return_exceptions=True)
    taken = [key for key, result in zip(bodies, results, strict=True) if result is None]
    assert 0 < len(taken) < 20
    assert all(isinstance(result, StorageFull) for result in results if result is not None)
    assert {found.key async for found in store.list("")} == set(taken)
    for key in taken:
        assert await read(store, key) == bodies[key]
    await store.close()


async def test_a_file_from_another_file_system_is_copied_checked_and_removed(small_disk: Path, store: LocalStore) -> None:
    body = os.urandom(2 * MIB)
    source = small_disk / "work"
    source.write_bytes(body)
    with pytest.raises(BadInput):
        await store.adopt(KEY, source, size=len(body), sha256=digest(b"other"))
    assert source.exists()
    await store.adopt(KEY, source, size=len(body), sha256=digest(body))
    assert not source.exists()
    assert await read(store, KEY) == body
    assert temporaries(store) == []


async def test_a_write_that_fails_in_the_middle_is_unavailable_and_leaves_nothing(store: LocalStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))  # the third MiB gets EFBIG
    try:
        with pytest.raises(Unavailable) as caught:
            await store.put(KEY, pieces(bytes(3 * MIB)), size=3 * MIB, sha256=digest(bytes(3 * MIB)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "storage_error"
    await _until(lambda: not temporaries(store))
    assert [found async for found in store.list("")] == []


ONE_UPLOAD = """
import sys
from pathlib import Path
from roomtape.core.errors import RoomtapeError
from roomtape.storage.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
with store.intake.begin() as upload:
    upload.write(b"abc" * 100_000)
    try:
        upload.commit(sys.argv[2])
        print("taken")
    except RoomtapeError as exc:
        print(type(exc).__name__, exc.code)
"""


@pytest.mark.parametrize(
    ("call", "error", "answer"),
    [("fsync", "EIO", "Unavailable storage_error"), ("fsync", "ENOSPC", "StorageFull storage_full"), ("rename", "EIO", "Unavailable storage_error")],
)
async def test_no_upload_is_taken_when_any_one_call_for_its_durability_fails(tmp_path: Path, call: str, error: str, answer: str) -> None:
    strace = require(shutil.which("strace"), "strace is not installed: it makes the Nth system call fail")
    calls = {"fsync": "fsync,fdatasync", "rename": "/^rename"}[call]
    for nth in range(1, 20):
        root = tmp_path / f"store-{nth}"
        await LocalStore(root).close()  # its own folders are there
        log = tmp_path / "strace.log"
        injected = f"inject={calls}:error={error}:when={nth}"
        command: list[str | Path] = [strace, "-f", "-o", log, "-e", f"trace={calls}", "-e", injected, sys.executable, "-c", ONE_UPLOAD, root, KEY]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        require(None if "ptrace" in done.stderr and not done.stdout else True, "strace may not trace here")
        store = LocalStore(root)
        assert temporaries(store) == []
        if "INJECTED" not in log.read_text():
            assert done.stdout.strip() == "taken"
            assert nth > {"fsync": 6, "rename": 1}[call]  # the file, its folder, and five new ones were each reached
            return
        assert done.stdout.strip() == answer, (nth, done.stderr)
        assert len([line for line in log.read_text().splitlines() if "INJECTED" in line]) == 1
        body = b"abc" * 100_000  # the client tries again, and is taken
        await store.put(KEY, pieces(body), size=len(body), sha256=digest(body))
        assert await read(store, KEY) == body
        await store.close()
    pytest.fail("the sweep did not come to its end")


async def test_what_a_killed_process_has_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    root = tmp_path / "store"
    script = "import sys,time;from pathlib import Path;from roomtape.storage.local import LocalStore;u=LocalStore(Path(sys.argv[1])).intake.begin();u.write(b'x');print(u.path,flush=True);time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        left = Path(child.stdout.readline().strip())
        old = time.time() - 3600
        os.utime(left, (old, old))
        store = LocalStore(root)
        assert left.exists()  # its owner lives, however old it is
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert store.folder.sweep() == 1
    assert temporaries(store) == []
    await store.close()


async def test_links_below_the_root_are_not_followed(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (store.folder.root / "linked").symlink_to(outside)
    (store.folder.root / "user").mkdir()
    (store.folder.root / "user" / "file").symlink_to(outside / "secret")
    for key in ("linked/secret", "user/file"):
        with pytest.raises(NotFound):
            await read(store, key)
        with pytest.raises(NotFound):
            await store.head(key)
    with pytest.raises(Conflict):
        await store.put("linked/new", pieces(b"x"), size=1, sha256=digest(b"x"))
    await store.delete("linked/secret")
    assert [found async for found in store.list("")] == []
    source = tmp_path / "source"
    source.symlink_to(outside / "secret")
    with pytest.raises(BadInput):
        await store.adopt("user/taken", source, size=6, sha256=digest(b"secret"))
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert temporaries(store) == []


async def test_a_fifo_in_place_of_an_object_hangs_nobody(store: LocalStore) -> None:
    os.mkfifo(store.folder.root / "pipe")
    async with asyncio.timeout(5):
        with pytest.raises(NotFound):
            await store.head("pipe")


async def test_a_folder_and_an_object_cannot_have_one_name(store: LocalStore) -> None:
    await store.put("a/b", pieces(b"x"), size=1, sha256=digest(b"x"))
    for key in ("a", "a/b/c"):
        with pytest.raises(Conflict):
            await store.put(key, pieces(b"x"), size=1, sha256=digest(b"x"))


async def test_keeping_and_deleting_in_one_folder_at_once_loses_nothing(store: LocalStore) -> None:
    async def keep(n: int) -> None:
        await store.put(f"u/m/{n}", pieces(b"x"), size=1, sha256=digest(b"x"))

    async def come_and_go() -> None:
        for _ in range(40):
            await store.put("u/m/passing", pieces(b"y"), size=1, sha256=digest(b"y"))
            await store.delete("u/m/passing")

    await asyncio.gather(come_and_go(), *(keep(n) for n in range(40)))
    assert {found.key async for found in store.list("")} == {f"u/m/{n}" for n in range(40)}


@pytest.mark.parametrize("url", ["file:///proc/roomtape", "file://host/folder", "file:relative", "file:///"])
def test_a_folder_that_cannot_be_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(Refused, match=r"\.$"):
        open_folder(url)


async def _until(done: object) -> None:
    assert callable(done)
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came")


async def test_a_folder_has_one_name_that_goes_with_it(store: LocalStore, tmp_path: Path) -> None:
    others = [LocalStore(store.folder.root) for _ in range(4)]
    names = await asyncio.gather(*(asyncio.to_thread(one.folder.name) for one in others))
    assert set(names) == {store.folder.name()}
    assert [stored.key async for stored in store.list("")] == []
    assert temporaries(store) == []
    for one in others:
        await one.close()
    shutil.copytree(store.folder.root, tmp_path / "moved")
    moved, fresh = LocalStore(tmp_path / "moved"), LocalStore(tmp_path / "fresh")
    assert moved.folder.name() == names[0]
    assert fresh.folder.name() != names[0], "the mount point of a disk that is not there is another place"
    await moved.close()
    await fresh.close()
