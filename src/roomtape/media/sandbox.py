"""Locks the running process in before it sees a hostile byte: no root, no helper program, only Linux by ctypes.

What is left to a locked process: the memory and CPU it was given, the files it was named, the pipes it was started with. No network,
no other process, no other file, no new program. Landlock bounds the files, seccomp the system calls, rlimits the appetite; user, mount,
network and IPC namespaces come on top where the kernel lets us have them, and stand in for Landlock where it is missing.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from roomtape.media.syscalls import MACHINES, program

_libc: Final = ctypes.CDLL(None, use_errno=True)
NOT_CONFINED: Final = 125  # exit code: no sandbox here, and nobody said to go without
ENVIRONMENT: Final = {
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
}  # arenas count as address space; a thread made by an import would stay outside

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAP_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every processor
_LANDLOCK_VERSION_QUERY, _LANDLOCK_RULE_PATH = 1, 1
_O_PATH = 0o10000000
_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_ST_KEPT = 1 | 2 | 4 | 8 | 1024 | 2048 | 4096  # ro nosuid nodev noexec noatime nodiratime relatime: a user namespace may not take these off

# linux/landlock.h, access rights of files in the order of their bits
_EXECUTE, _WRITE, _READ, _READ_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _TRUNCATE = (1 << n for n in (0, 1, 2, 3, 5, 7, 8, 14))
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many bits an ABI knows


LAYERS: Final = frozenset({"landlock", "namespaces"})  # what is tried; a kernel without one of them is played by leaving it out


class NotConfinedError(OSError):
    """The kernel refused a part of the sandbox that it had said it has."""


@dataclass(frozen=True, slots=True)
class Level:
    """How well this machine locks decoders in: Landlock's ABI (0: none), seccomp, and whether namespaces came on top."""

    landlock: int
    seccomp: bool
    namespaces: bool

    @property
    def confines(self) -> bool:
        """Files out of reach and no network: what opening strangers' media needs."""
        return self.seccomp and (self.landlock > 0 or self.namespaces)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Appetite: CPU seconds, bytes of address space, bytes of one written file."""

    cpu_s: int = 60
    memory_bytes: int = 1536 << 20
    file_bytes: int = 0


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise NotConfinedError(number, f"{what}: {os.strerror(number)}")
    return result


def die_with(parent: int) -> None:
    """SIGKILL comes when the parent dies; leaves at once if it died before this was asked for (the new parent is another)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    if os.getppid() != parent:
        os._exit(1)


def bound(bounds: Bounds) -> None:
    """Sets the rlimits; soft and hard are one, so nothing raises them again."""
    for kind, value in (
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (bounds.cpu_s, bounds.cpu_s + 1))  # SIGXCPU, which says why; a second later SIGKILL


def landlock_abi() -> int:
    """The kernel's Landlock ABI; 0 where it is missing or switched off."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION_QUERY))))


def lock(
    *, parent: int, job: Path, libraries: tuple[Path, ...] = (), execute: Path | None = None, layers: frozenset[str] = LAYERS
) -> tuple[Level, ctypes.c_char_p | None]:
    """Locks this process in for good; `job` is readable, `job/out` writable where it exists, `libraries` readable, `execute` may be started once.

    Returns the level reached and, with `execute`, the very pointer that must be given to `start`. To be called with one thread only:
    Landlock and namespaces bind the calling thread and those it starts later, not those it has.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise NotConfinedError(0, "threads were started before the sandbox")
    readable, writable = (job, *libraries), tuple(path for path in (job / "out",) if path.is_dir())
    namespaces = "namespaces" in layers and _namespaces(job, readable, writable, execute)
    die_with(parent)
    _drop_capabilities()
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    abi = landlock_abi() if "landlock" in layers else 0
    if abi:
        _landlock(abi, readable, writable, execute)
    path = None if execute is None else ctypes.c_char_p(os.fsencode(execute))
    seccomp = _seccomp(0 if path is None else ctypes.cast(path, ctypes.c_void_p).value or 0)
    return Level(abi, seccomp, namespaces), path


def start(path: ctypes.c_char_p, argv: list[str]) -> None:
    """Becomes the one program that `lock` left executable; `path` is what it returned. Its environment is ENVIRONMENT."""
    for number in (signal.SIGXFSZ, signal.SIGPIPE):  # Python ignores these, and what is ignored stays so in the program
        signal.signal(number, signal.SIG_DFL)
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*[os.fsencode(argument) for argument in argv], None)
    environment = (ctypes.c_char_p * (len(ENVIRONMENT) + 1))(*[f"{name}={value}".encode() for name, value in ENVIRONMENT.items()], None)
    _check(_libc.execve(path, arguments, environment), "starting the program")


def _seccomp(exec_at: int) -> bool:
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = ctypes.create_string_buffer(program(machine, pid=os.getpid(), exec_at=exec_at))
    size = (len(code) - 1) // 8

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(Program(size, ctypes.addressof(code))), 0, 0) == 0)


def _drop_capabilities() -> None:
    """Root inside is nobody: empties the bounding set (as far as we may) and all three sets of the process."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    header, sets = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "dropping capabilities")


def _landlock(abi: int, readable: tuple[Path, ...], writable: tuple[Path, ...], execute: Path | None) -> None:
    files = (1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1
    handled = (ctypes.c_uint64 * 3)(files, 0b11, 0b11)  # files; TCP bind and connect (ABI 4); abstract sockets and signals (ABI 6)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock ruleset")
    for path in readable:
        _allow(ruleset, path, _READ | _READ_DIR)
    for path in writable:
        _allow(ruleset, path, files & (_WRITE | _READ | _READ_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _TRUNCATE))
    for path in () if execute is None else (execute, *_loaders()):
        _allow(ruleset, path, _EXECUTE | _READ)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))

    with suppress(FileNotFoundError):  # a library folder this distribution does not have
        handle = os.open(path, _O_PATH | os.O_CLOEXEC)
        rule = Beneath(rights if path.is_dir() else rights & ~_READ_DIR, handle)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_RULE_PATH, ctypes.byref(rule), ctypes.c_uint32(0)), f"landlock rule for {path}")
        os.close(handle)


def _loaders() -> list[Path]:
    """The dynamic loaders: the kernel executes them for a program that is linked dynamically."""
    return [loader.resolve() for folder in ("/lib64", "/lib") for loader in Path(folder).glob("ld-*.so*")]


def system_libraries() -> tuple[Path, ...]:
    """Where a dynamically linked program finds its libraries; nothing below them is anyone's secret."""
    return tuple(Path(name) for name in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/alternatives", "/nix/store"))


def _namespaces(job: Path, readable: tuple[Path, ...], writable: tuple[Path, ...], execute: Path | None) -> bool:
    """A root of its own with nothing but the named paths, a network without interfaces; False where the kernel or its policy says no."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_NEWUSER | _NEWNS | _NEWNET | _NEWIPC) < 0:
        return False
    for name, line in (("uid_map", f"{uid} {uid} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1")):
        with suppress(OSError):  # without a map all the rest works too, names of owners apart
            Path("/proc/self", name).write_text(line, encoding="ascii")
    if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) < 0:
        return False  # a policy (AppArmor, SELinux) gave us a namespace without powers
    wanted = [*readable, *writable]
    if execute and not any(execute.is_relative_to(folder) for folder in readable):
        wanted.append(execute)
    sources = {path: os.open(path, _O_PATH) for path in wanted if path.exists()}
    if _libc.mount(b"tmpfs", os.fsencode(job), b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), b"size=64k,mode=700") < 0:
        return False
    for path, handle in sources.items():  # the job's own without what is mounted below: that is the tmpfs itself
        _bind(handle, Path(f"{job}{path}"), flags=_MS_BIND if path.is_relative_to(job) else _MS_BIND | _MS_REC, writable=path in writable)
        os.close(handle)
    os.chdir(job)
    _check(_libc.syscall(155 if platform.machine() == "x86_64" else 41, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "leaving the old root")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV), None), "read-only root")
    os.chdir(job)
    return True


def _bind(source: int, target: Path, *, flags: int, writable: bool) -> None:
    folder = stat.S_ISDIR(os.fstat(source).st_mode)
    (target if folder else target.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not folder:
        target.touch(0o600)
    _check(_libc.mount(b"/proc/self/fd/%d" % source, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount {target}")
    if not writable:
        kept = os.statvfs(target).f_flag & _ST_KEPT
        _check(_libc.mount(None, os.fsencode(target), None, ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept), None), f"read-only {target}")


def close_all_but_standard() -> None:
    """Closes whatever was inherited above 0, 1 and 2."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def main() -> None:
    """Locks this process in and becomes the program: argv is the parent's pid, a JSON plan, the program's arguments. Its stdin and stdout are ours."""
    parent, plan = int(sys.argv[1]), json.loads(sys.argv[2])
    die_with(parent)
    close_all_but_standard()
    job, program_path = Path(plan["job"]), Path(plan["program"])
    os.chdir(job)
    bound(Bounds(**plan["bounds"]))
    level, path = lock(parent=parent, job=job, libraries=system_libraries(), execute=program_path, layers=frozenset(plan["layers"]))
    if not level.confines and not plan["unsandboxed"]:
        sys.exit(NOT_CONFINED)
    if path is not None:
        start(path, [program_path.name, *sys.argv[3:]])
