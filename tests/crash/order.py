"""Reads a strace of one upload and says what is out of order: the promise of an ack is the order of these calls."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TEMPORARY = "/.tmp/"
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")
_RESULT = re.compile(r"\) += (-?\d+)")
_FD = re.compile(r"^-?\d+<([^>]*)>")
_RENAMED = re.compile(r'(?:^|[ ,])(?:AT_FDCWD(?:<[^>]*>)?, )?"([^"]+)", (?:-?\d+<([^>]*)>|AT_FDCWD(?:<[^>]*>)?)?(?:, )?"([^"]+)"')
_MADE = re.compile(r'^-?\d+<([^>]*)>, "([^"]+)"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: its lines of beginning and end in the trace, its arguments as strace writes them, its result."""

    begin: int
    end: int
    name: str
    arguments: str
    result: int

    @property
    def file(self) -> str:
        """The path or socket behind the first argument."""
        found = _FD.match(self.arguments)
        return found[1] if found else ""


def parsed(text: str) -> list[Call]:
    """The calls that came back, by the line of their beginning; a call that another thread's line interrupts is put together."""
    calls, open_calls = [], {}
    for at, line in enumerate(text.splitlines()):
        found = _LINE.match(line)
        if found is None:
            continue
        pid, resumed, name, rest = found.groups()
        if rest.endswith("<unfinished ...>"):
            open_calls[pid] = (at, rest.removesuffix("<unfinished ...>"))
            continue
        begin, head = open_calls.pop(pid, (at, "")) if resumed else (at, "")
        if result := _RESULT.search(rest):
            calls.append(Call(begin, at, resumed or name, head + rest, int(result[1])))
    return sorted(calls, key=lambda call: call.begin)


def faults(calls: Sequence[Call]) -> list[str]:
    """What is missing or too early on the way of one segment from the wire to its 201."""
    good = [call for call in calls if call.result >= 0]

    def first(what: str, test: Callable[[Call], bool], after: int) -> Call:
        found = next((call for call in good if call.begin > after and test(call)), None)
        if found is None:
            raise LookupError(what)
        return found

    try:
        writes = [call for call in good if call.name in {"write", "writev", "pwrite64"} and TEMPORARY in call.file]
        if not writes:
            return ["the bytes are not written to a temporary file"]
        temporary = writes[-1].file
        sealed = first("fsync of the temporary file after its last write", lambda call: _synced(call, temporary), writes[-1].end)
        renamed = first("rename of the temporary file after its fsync", lambda call: _rename(call)[0] == temporary, sealed.end)
        folder = first("fsync of the folder after the rename", lambda call: _synced(call, _rename(renamed)[1]), renamed.end)
        durable = [folder, *(first(f"fsync above the new folder {name}", _syncs(parent), made) for parent, name, made in _folders(good))]
        row = first("INSERT of the row", lambda call: _sent(call) and "INSERT INTO chunks" in call.arguments, 0)
        commit = first("COMMIT after every fsync", lambda call: _commits(call, row), max(row.end, *(call.end for call in durable)))
        if any(_sent(call) and call.file == row.file and "BEGIN" in call.arguments and row.end < call.begin < commit.begin for call in good):
            return ["missing: COMMIT of the row's own transaction; the one that follows belongs to another"]
        agreed = first("the database's word", lambda call: call.name == "recvfrom" and call.file == row.file and "COMMIT" in call.arguments, commit.begin)
        answer = first("the answer 201", _created, 0)
    except LookupError as missing:
        return [f"missing: {missing}"]
    return [] if answer.begin > agreed.end else ["201 is sent before the database has said that the row is committed"]


def _synced(call: Call, path: str) -> bool:
    return call.name in {"fsync", "fdatasync"} and call.file == path and call.result == 0


def _syncs(path: str) -> Callable[[Call], bool]:
    return lambda call: _synced(call, path)


def _rename(call: Call) -> tuple[str, str]:
    """(from, folder into which) of a rename, else empty."""
    found = _RENAMED.search(call.arguments) if call.name.startswith("rename") else None
    return (found[1], found[2] or found[3].rpartition("/")[0]) if found else ("", "")


def _folders(calls: Sequence[Call]) -> list[tuple[str, str, int]]:
    """(parent, name, when) of the folders that were made."""
    made = [(call, _MADE.match(call.arguments)) for call in calls if call.name == "mkdirat"]
    return [(found[1], found[2], call.end) for call, found in made if found]


def _sent(call: Call) -> bool:
    return call.name in {"sendto", "sendmsg"}


def _commits(call: Call, row: Call) -> bool:
    return _sent(call) and call.file == row.file and "COMMIT" in call.arguments


def _created(call: Call) -> bool:
    return _sent(call) and "HTTP/1.1 201" in call.arguments
