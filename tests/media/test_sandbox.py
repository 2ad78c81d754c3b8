"""What a decoder that was taken over can do inside the sandbox: nothing. Each layer is proved alone, as kernels without the other have it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roomtape.media.refusal import NoSandbox
from roomtape.media.runner import Limits, Runner, give, job_folder
from roomtape.media.sandbox import ENVIRONMENT, Level, landlock_abi
from roomtape.media.syscalls import MACHINES, program
from roomtape.testing.servers import require

pytestmark = pytest.mark.anyio
SOURCE = Path(__file__).parents[2] / "src"

# Runs inside, after the lock: what the code of an attacker would try. Prints {name: "yes" or the error}.
ATTACK = """
import sys; sys.path.insert(0, {source!r})
import json, os, socket, threading, ctypes, resource, signal
from pathlib import Path
from roomtape.media import sandbox
{imports}
sandbox.die_with(os.getppid()); sandbox.close_all_but_standard()
job = Path({job!r}); os.chdir(job)
sandbox.bound(sandbox.Bounds(file_bytes=1 << 20))
level, _ = sandbox.lock(parent=os.getppid(), job=job, libraries=(Path(os.__file__).parent,), layers=frozenset({layers!r}))
said = {{"level": [level.landlock, level.seccomp, level.namespaces]}}
def attempt(name, what):
    try: what(); said[name] = "yes"
    except BaseException as error: said[name] = type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    if libc.syscall(*args) < 0: raise OSError(ctypes.get_errno(), "no")
def in_thread(what):
    caught = []
    def run():
        try: what()
        except OSError as error: caught.append(error)
    thread = threading.Thread(target=run); thread.start(); thread.join()
    if caught: raise caught[0]
attempt("read own input", lambda: (job / "in").read_bytes())
attempt("write own output", lambda: (job / "out" / "x").write_bytes(b"x"))
attempt("thread", lambda: in_thread(lambda: None))
attempt("read /etc/shadow", lambda: Path("/etc/shadow").read_bytes())
attempt("read /etc/shadow in a thread", lambda: in_thread(lambda: Path("/etc/shadow").read_bytes()))
attempt("read /proc/1/environ", lambda: Path("/proc/1/environ").read_bytes())
attempt("read the parent's environ", lambda: Path(f"/proc/{{os.getppid()}}/environ").read_bytes())
attempt("read another job", lambda: Path({other!r}).read_bytes())
attempt("list the jobs", lambda: os.listdir(job.parent))
attempt("write own input", lambda: (job / "in").write_bytes(b""))
attempt("truncate own input by reading", lambda: os.open(job / "in", os.O_RDONLY | os.O_TRUNC))
attempt("truncate own input", lambda: os.truncate(job / "in", 0))
attempt("chmod own input", lambda: os.chmod(job / "in", 0o777))
attempt("move own input out", lambda: os.rename(job / "in", job / "out" / "in"))
attempt("link another job", lambda: os.link({other!r}, job / "out" / "stolen"))
attempt("symlink", lambda: os.symlink("/etc/shadow", job / "out" / "link"))
attempt("device", lambda: os.mknod(job / "out" / "node", 0o20600, os.makedev(1, 1)))
attempt("write beside", lambda: (job / "y").write_bytes(b"y"))
attempt("write elsewhere", lambda: Path({escape!r}).write_bytes(b"y"))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", {port}), timeout=1))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("unix socket", lambda: socket.socketpair())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
attempt("fork", os.fork)
attempt("vfork", lambda: call(58))
attempt("clone3", lambda: call(435, None, 0))
attempt("execute", lambda: os.execv("/bin/true", ["true"]))
attempt("kill the parent", lambda: os.kill(os.getppid(), 0))
attempt("tgkill the parent", lambda: call(234, os.getppid(), os.getppid(), 0))
attempt("ptrace", lambda: call(101, 16, os.getppid(), 0, 0))
attempt("limits of the parent", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE))
attempt("limits back", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
attempt("unshare", lambda: call(272, 0x10000000))
attempt("mount", lambda: call(165, 0, 0, 0, 0, 0))
attempt("bpf", lambda: call(321, 0, 0, 0))
attempt("io_uring", lambda: call(425, 1, 0))
attempt("keyctl", lambda: call(250, 0, 0))
attempt("userfaultfd", lambda: call(323, 0))
attempt("setsid", os.setsid)
attempt("unknown new call", lambda: call(460, 0))
attempt("x32 call", lambda: call(0x40000000 + 41, 2, 1, 0))
said["environment"] = dict(os.environ)
print(json.dumps(said), flush=True)
"""
MAY = {"read own input", "write own output", "thread"}


def attack(tmp_path: Path, layers: list[str], *, port: int, imports: str = "") -> dict[str, object]:
    job, other, escape = tmp_path / "job", tmp_path / "other", tmp_path / "escape"
    for folder in (job / "out", other):
        folder.mkdir(parents=True, exist_ok=True)
    (job / "in").write_bytes(b"media")
    (other / "in").write_bytes(b"CANARY")
    code = ATTACK.format(source=str(SOURCE), job=str(job), other=str(other / "in"), layers=layers, port=port, imports=imports, escape=str(escape))
    argv = [sys.executable, "-I", "-c", code]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, start_new_session=True, check=False)
    assert done.stdout, done.stderr
    if layers:
        assert (job / "in").read_bytes() == b"media"
        assert not (job / "y").exists()
        assert not escape.exists()
    said: dict[str, object] = json.loads(done.stdout)
    return said


@pytest.fixture
def canary() -> Iterator[tuple[int, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1], server
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody ever came


x86 = pytest.mark.usefixtures("on_x86")


@pytest.fixture
def on_x86() -> None:
    require(os.uname().machine == "x86_64" or None, "the attacks name system calls by x86_64's numbers")


def has_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, check=False).returncode == 0


@x86
@pytest.mark.parametrize("layers", [["landlock", "namespaces"], ["landlock"], ["namespaces"]], ids="+".join)
def test_a_decoder_that_was_taken_over_reaches_nothing(tmp_path: Path, canary: tuple[int, socket.socket], layers: list[str]) -> None:
    require(layers != ["namespaces"] or has_namespaces() or None, "no user namespaces here")
    require(layers != ["landlock"] or landlock_abi() or None, "no Landlock here")
    said = attack(tmp_path, layers, port=canary[0])
    level, environment = said.pop("level"), said.pop("environment")
    assert isinstance(level, list)
    assert Level(*level).confines
    assert environment == ENVIRONMENT
    allowed = {name for name, answer in said.items() if answer == "yes"}
    # with a root of its own, the folder above can be listed: the job alone is in it
    assert allowed - {"list the jobs"} == MAY
    assert len(said) > 35


@x86
def test_without_either_layer_a_file_is_within_reach_so_the_test_above_can_fail(tmp_path: Path, canary: tuple[int, socket.socket]) -> None:
    said = attack(tmp_path, [], port=canary[0])
    assert said["read another job"] == "yes"
    assert said["level"] == [0, True, False]
    assert said["connect"] == "PermissionError"  # seccomp alone still holds the network


@x86
def test_a_thread_from_before_the_lock_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="threads were started before the sandbox"):
        attack(tmp_path, ["landlock"], port=1, imports="threading.Thread(target=lambda: threading.Event().wait(9), daemon=True).start()")


def test_root_inside_has_no_capability(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\nimport os\nfrom pathlib import Path\nfrom roomtape.media import sandbox\n"
        f"status = open('/proc/self/status')\nsandbox.lock(parent=os.getppid(), job=Path({str(tmp_path)!r}), layers=frozenset({{'landlock'}}))\nprint(status.read())"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=True)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert (lines["NoNewPrivs"].strip(), lines["Seccomp"].strip()) == ("1", "2")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_is_well_formed_on_each_processor(machine: str) -> None:
    code = program(MACHINES[machine], pid=1234, exec_at=0x7F0012345678)
    count = len(code) // 8
    assert len(code) % 8 == 0
    assert count < 4096  # BPF_MAXINSNS
    for at in range(count):
        op, jt, jf, _ = (int.from_bytes(code[8 * at : 8 * at + 2], "little"), code[8 * at + 2], code[8 * at + 3], code[8 * at + 4 :])
        if op & 7 == 5:  # a jump stays inside
            assert at + 1 + max(jt, jf) < count
    assert int.from_bytes(code[-8:-6], "little") == 6


async def test_the_runner_says_the_level_it_reached() -> None:
    async with Runner() as runner:
        level = await runner.level()
    assert level.confines
    assert level.landlock == landlock_abi()


async def test_media_is_refused_where_nothing_confines_unless_it_is_allowed(tmp_path: Path, chromium: Path) -> None:
    nothing: frozenset[str] = frozenset()
    with job_folder(tmp_path) as job:
        give(job, "a.webm", chromium / "B-opus" / "0000.webm")
        async with Runner(layers=nothing) as runner:
            with pytest.raises(NoSandbox, match="ROOMTAPE_ALLOW_UNSANDBOXED"):
                await runner.run("probe", job, {"file": "a.webm"})
            with pytest.raises(NoSandbox):
                await runner.ffmpeg(["-f", "matroska", "-i", "a.webm", "-f", "null", "-"], job, limits=Limits())
        async with Runner(layers=nothing, allow_unsandboxed=True) as runner:
            assert (await runner.run("probe", job, {"file": "a.webm"}))["complete"]


PARENT = """
import sys; sys.path.insert(0, {source!r})
import asyncio
from pathlib import Path
from roomtape.media.runner import Bounds, Limits, Runner, job_folder
async def main():
    async with Runner(warm=1) as runner:
        with job_folder(Path({base!r})) as job:
            endless = ["-f", "lavfi", "-i", "testsrc=size=64x64", "-f", "null", "-"]
            work = asyncio.ensure_future(runner.ffmpeg(endless, job, limits=Limits(bounds=Bounds(cpu_s=300)), progress=lambda _: print("busy", flush=True)))
            await work
asyncio.run(main())
"""


def test_no_child_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = PARENT.format(source=str(SOURCE), base=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "busy\n"
    children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(children) == 2  # ffmpeg, and the one that waits warm
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while left := [pid for pid in children if alive(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_nothing_of_our_environment_or_secrets_is_with_a_waiting_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOMTAPE_DATABASE_URL", "postgresql://canary-7f3a@db/")
    async with Runner(warm=1) as runner:
        pid = runner._waiting[0].pid
        wait_for(lambda: b"roomtape.media.child" in Path(f"/proc/{pid}/cmdline").read_bytes())
        assert b"canary-7f3a" not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        assert os.getsid(pid) == pid
    assert not alive(pid)


def wait_for(ready: object) -> None:
    deadline = time.monotonic() + 5
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
