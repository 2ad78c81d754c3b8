"""An ack stands on: bytes written, fsynced, renamed, the name fsynced, the row committed; only then 201 goes out."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from .client import Client, Ledger
from .order import Call, _commits, _created, _folders, _rename, _sent, _synced, faults, parsed
from .stage import staged
from .strike import attached, strace

TRACED = "trace=write,writev,pwrite64,fsync,fdatasync,?rename,?renameat,renameat2,mkdirat,sendto,sendmsg,recvfrom"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The system calls of one upload, the first of its recording, so that its folders are made on the way."""
    program, log = strace(), tmp_path_factory.mktemp("order") / "strace.log"
    body = (Path(__file__).parents[1] / "data" / "chromium" / "B-vp9" / "0000.webm").read_bytes()
    with staged(("serve",)) as stage, Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as client:
        meeting, recording = client.start("order")
        with attached(program, stage.victims("serve"), log, "-e", TRACED, "-s", "400") as trace:
            ack = stage.during(lambda: client.upload(meeting, recording, 1, body))
            text = trace.text()
    assert ack.sha256 == hashlib.sha256(body).hexdigest()
    assert ack.status == 201
    return parsed(text)


def test_an_upload_is_durable_and_committed_before_it_is_acknowledged(calls: list[Call]) -> None:
    assert faults(calls) == []
    assert len(_folders(calls)) >= 2, "the folders of the recording were made, and theirs is the fsync above"


def steps(calls: list[Call]) -> list[Call]:
    """The calls whose order is the promise: the fsync of the bytes, the rename, the fsync of the folder, COMMIT, 201."""
    renamed = next(call for call in calls if ".tmp/" in _rename(call)[0])
    sealed = next(call for call in calls if _synced(call, _rename(renamed)[0]))
    folder = next(call for call in calls if call.begin > renamed.end and _synced(call, _rename(renamed)[1]))
    row = next(call for call in calls if _sent(call) and "INSERT INTO chunks" in call.arguments)
    commit = next(call for call in calls if call.begin > row.end and _commits(call, row))
    return [sealed, renamed, folder, commit, next(call for call in calls if _created(call))]


def test_each_step_that_is_missing_is_seen(calls: list[Call]) -> None:
    for step in steps(calls):
        assert faults([call for call in calls if call is not step]), step


def test_each_step_that_failed_is_seen(calls: list[Call]) -> None:
    for step in steps(calls)[:3]:
        assert faults([replace(call, result=-1) if call is step else call for call in calls]), step


def test_each_two_steps_that_are_swapped_are_seen(calls: list[Call]) -> None:
    for early, late in pairwise(steps(calls)):
        moved = {id(early): replace(early, begin=late.begin, end=late.end), id(late): replace(late, begin=early.begin, end=early.end)}
        swapped = sorted((moved.get(id(call), call) for call in calls), key=lambda call: call.begin)
        assert faults(swapped), (early, late)


def test_the_fsync_above_a_new_folder_is_missed(calls: list[Call]) -> None:
    for parent, name, made in _folders(calls):
        left = [call for call in calls if not (call.begin > made and _synced(call, parent))]
        assert faults(left), (parent, name)


_DELETION = """
import asyncio, sys
from pathlib import Path
from roomtape.storage.local import LocalStore
asyncio.run(LocalStore(Path(sys.argv[1])).delete("a/b/1.webm"))
"""


def test_what_was_deleted_does_not_come_back_with_the_power(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "1.webm").write_bytes(b"x")
    log = tmp_path / "log"
    command = [strace(), "-f", "-y", "-o", str(log), "-e", "trace=unlinkat,unlink,fsync,fdatasync", sys.executable, "-c", _DELETION, str(tmp_path / "store")]
    subprocess.run(command, check=True, capture_output=True)
    assert not folder.exists()
    calls = parsed(log.read_text())
    gone = next(call for call in calls if call.name.startswith("unlink") and "1.webm" in call.arguments)
    assert any(_synced(call, str(folder)) for call in calls if call.begin > gone.end)


_AGAIN = """
import asyncio, hashlib, sys
from pathlib import Path
from roomtape.storage.local import LocalStore
async def body():
    yield b"x"
async def main():
    serve, work = LocalStore(Path(sys.argv[1])), LocalStore(Path(sys.argv[1]))
    for _ in range(3):
        await serve.put("alice/meeting/1.webm", body(), size=1, sha256=hashlib.sha256(b"x").hexdigest())
        await work.delete("alice/meeting/1.webm")
asyncio.run(main())
"""


def test_a_folder_that_another_process_removed_and_we_make_again_is_made_durable_again(tmp_path: Path) -> None:
    """The file system likes to give it the same inode, so that it looks as if nothing had happened."""
    log = tmp_path / "log"
    command = [strace(), "-f", "-y", "-o", str(log), "-e", "trace=mkdirat,fsync", sys.executable, "-c", _AGAIN, str(tmp_path / "store")]
    subprocess.run(command, check=True, capture_output=True)
    calls = parsed(log.read_text())
    made = _folders([call for call in calls if call.result == 0])
    assert len(made) == 6
    for parent, name, when in made:
        later = [other for _, other_name, other in made if other_name == name and other > when]
        until = min(later, default=len(log.read_text()))
        assert any(_synced(call, parent) and when < call.begin < until for call in calls), (parent, name)


def test_calls_that_threads_interleave_are_put_together() -> None:
    text = '7 fsync(3</s/.tmp/x> <unfinished ...>\n8 write(4</s/.tmp/y>, "b", 1) = 1\n7 <... fsync resumed>) = 0\n7 rename("/s/.tmp/x", "/s/k/x") = 0\n'
    assert parsed(text) == [
        Call(0, 2, "fsync", "3</s/.tmp/x> ) = 0", 0),
        Call(1, 1, "write", '4</s/.tmp/y>, "b", 1) = 1', 1),
        Call(3, 3, "rename", '"/s/.tmp/x", "/s/k/x") = 0', 0),
    ]
    assert _rename(parsed(text)[2]) == ("/s/.tmp/x", "/s/k")
