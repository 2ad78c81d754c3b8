"""Becomes a program of PostgreSQL under another user: what has to happen between fork and exec, in a process of its own instead of a forked copy of ours.

Run as `python -I launch.py OWNER_PID UID GID CAGE... -- PROGRAM ARGUMENT...`; UID -1 keeps the user. Each CAGE is `ancestor=folder`:
`folder` is to be reached although `ancestor`, a folder above it, cannot be searched by the user. Standard library only.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
_PR_SET_PDEATHSIG = 1


def _check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def _cage(libc: ctypes.CDLL, pairs: list[str]) -> None:
    """In a mount table of our own, lays an empty readable folder over each closed ancestor and shows the wanted folders in it, at their very paths.

    Nothing outside this process and its children sees it, and nothing is left when they end.
    """
    _check(libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "make the mounts private")
    wanted = [pair.split("=", 1) for pair in pairs]
    handles = [os.open(folder, os.O_PATH | os.O_DIRECTORY) for _, folder in wanted]  # before the ancestors are covered
    for ancestor in {ancestor for ancestor, _ in wanted}:
        _check(libc.mount(b"none", os.fsencode(ancestor), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=64k"), f"cover {ancestor}")
    for handle, (_, folder) in zip(handles, wanted, strict=True):
        Path(folder).mkdir(parents=True, exist_ok=True)
        _check(libc.mount(b"/proc/self/fd/%d" % handle, os.fsencode(folder), None, _MS_BIND | _MS_REC, None), f"show {folder}")
        os.close(handle)


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    owner, uid, gid = (int(argument) for argument in arguments[:3])
    cage, command = arguments[3:split], arguments[split + 1 :]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if cage:
            _cage(libc, cage)
    os.umask(0o077)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.chdir("/")
    if sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)  # after setuid, which clears it; SIGINT is PostgreSQL's fast shutdown
        if os.getppid() != owner:  # it died before the line above
            sys.exit("the owner is gone")
    os.execv(command[0], command)  # noqa: S606  # no shell: the path is the wheel's


if __name__ == "__main__":
    main(sys.argv[1:])
