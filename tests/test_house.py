"""The house stands as ARCHITECTURE.md draws it: floors, file lengths, imports. A planted breach is seen."""

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "roomtape"
BANNED_IN_CORE = {"os", "io", "socket", "time", "random", "logging", "subprocess", "asyncio", "threading"}
ROOMS = {
    "core": set(),
    "db": {"core"},
    "storage": {"core"},
    "media": {"core"},
    "tapes": {"core", "db", "storage", "media"},
    "capture": {"core", "db", "storage", "media", "tapes"},
    "pipeline": {"core", "db", "storage", "media", "tapes"},
    "library": {"core", "db", "storage", "media", "tapes"},
}
SUPERVISORS = {"worker.py", "recorder.py"}  # the web's is Starlette's own, see web/problems.py
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def breaches(place: str, source: str) -> list[str]:
    """What a file at `place` (relative to src/roomtape) does that its floor forbids."""
    tree = ast.parse(source)
    room = place.split("/", maxsplit=1)[0]
    found = [f"{place}: {source.count(chr(10))} lines"] if source.count("\n") > LONGEST_FILE else []
    for node in ast.walk(tree):
        names = imported(node)
        found += [f"{place}:{node.lineno} imports {name}" for name in names if not allowed(room, name)]  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            if size > LONGEST_FUNCTION:
                found.append(f"{place}:{node.lineno} {node.name} has {size} lines")
            found += [f"{place}:{inner.lineno} imports inside {node.name}" for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
        if isinstance(node, ast.ExceptHandler) and place not in SUPERVISORS and is_broad(node):
            found.append(f"{place}:{node.lineno} catches everything")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and place.split("/", maxsplit=1)[0] != "db" and looks_like_sql(node.value):
            found.append(f"{place}:{node.lineno} has SQL outside db")
    return found


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def allowed(room: str, name: str) -> bool:
    top = name.split(".")
    if room == "core" and top[0] in BANNED_IN_CORE:
        return False
    if top[0] != "roomtape" or room not in ROOMS:
        return room != "core" or top[0] == "roomtape" or is_stdlib(top[0])
    return len(top) > 1 and (top[1] == room or top[1] in ROOMS[room])


def is_stdlib(name: str) -> bool:
    return name in sys.stdlib_module_names


def is_broad(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False  # it only cleans up: nothing is swallowed
    names = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(name is None or (isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"}) for name in names)


def looks_like_sql(text: str) -> bool:
    words = text.split()
    return (
        len(words) > 3
        and words[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "select", "insert", "update", "delete"}
        and any(word.lower() in {"from", "into", "set"} for word in words[1:6])
    )


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_every_file_keeps_to_its_floor(path: Path) -> None:
    assert breaches(str(path.relative_to(SRC)), path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("core/x.py", "import time"),
        ("core/x.py", "from roomtape.db import ledger"),
        ("core/x.py", "import numpy"),
        ("db/x.py", "from roomtape.storage import local"),
        ("media/x.py", "import roomtape.db.ledger"),
        ("tapes/x.py", "from roomtape.library import catalog"),
        ("capture/x.py", "from roomtape.pipeline import runner"),
        ("library/x.py", "from roomtape.web import app"),
        ("web/x.py", "def f():\n    import json"),
        ("web/x.py", "try:\n    pass\nexcept Exception:\n    pass"),
        ("web/x.py", "try:\n    pass\nexcept (ValueError, BaseException):\n    pass"),
        ("web/x.py", "QUERY = 'select id, name from recordings'"),
        ("web/x.py", "\n" * 401),
        ("web/x.py", "def f():\n" + "    pass\n" * 61),
    ],
)
def test_a_planted_breach_is_seen(place: str, source: str) -> None:
    assert breaches(place, source)


def test_only_one_module_starts_processes() -> None:
    starters = {
        str(path.relative_to(SRC))
        for path in SRC.rglob("*.py")
        if "create_subprocess" in path.read_text() or "subprocess.Popen" in path.read_text() or "subprocess.run" in path.read_text()
    }
    assert starters <= {"media/runner.py", "db/embedded.py", "supervisor.py", "testing/s3.py", "testing/postgres.py"}
