"""The house stands as ARCHITECTURE.md draws it: floors, owners, file lengths, imports. A planted breach is seen."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "roomtape"
CORE_MAY_IMPORT = {"abc", "bisect", "collections", "dataclasses", "datetime", "enum", "fractions", "functools", "hashlib", "itertools", "math"} | {
    "operator", "pathlib", "re", "struct", "types", "typing", "uuid",
}  # fmt: skip
CORE_MAY_NOT_CALL = {"open", "now", "utcnow", "today", "input", "print", "uuid1", "uuid4", "read_text", "read_bytes", "write_text", "write_bytes"} | {
    "exists", "stat", "lstat", "is_file", "is_dir", "is_symlink", "is_mount", "iterdir", "glob", "rglob", "walk", "mkdir", "rmdir", "touch", "unlink",
    "rename", "chmod", "symlink_to", "hardlink_to", "readlink", "resolve", "absolute", "expanduser", "cwd", "home", "samefile",
}  # fmt: skip
FLOORS_BELOW_DOORS = {"core", "db", "storage", "media", "tapes", "capture", "pipeline", "library"}
ROOMS: Mapping[str, set[str]] = {
    "core": set(),
    "db": {"core"},
    "storage": {"core"},
    "media": {"core"},
    "tapes": {"core", "db", "storage", "media"},
    "capture": {"core", "db", "storage", "media", "tapes"},
    "pipeline": {"core", "db", "storage", "media", "tapes"},
    "library": {"core", "db", "storage", "media", "tapes"},
    "testing": {"core", "db", "storage", "media"},
    "web": FLOORS_BELOW_DOORS | {"settings"},
    "worker": FLOORS_BELOW_DOORS,
    "recorder": FLOORS_BELOW_DOORS,
    "settings": {"core"},
    "logs": set(),
    "supervisor": {"core", "db", "settings"},
    "app": FLOORS_BELOW_DOORS | {"web", "worker", "recorder", "supervisor", "settings"},
    "cli": {"app", "core", "db", "logs", "settings", "supervisor"},
    "__main__": {"cli"},
    "__init__": set(),
}
OWNERS: Mapping[str, set[str]] = {  # each outside technology has one room that knows it; `testing` brings servers and media of its own
    "psycopg": {"db"}, "psycopg_pool": {"db"}, "sqlalchemy": {"db"}, "alembic": {"db"},
    "obstore": {"storage"}, "av": {"media"}, "imageio_ffmpeg": {"media"},
    "procrastinate": {"db", "capture", "pipeline", "web", "worker"},  # above db only QUEUE_TYPES
    "fastapi": {"web", "app"}, "uvicorn": {"web", "app"}, "starlette": {"web"}, "joserfc": {"web"}, "httpx2": {"web"},
    "prometheus_client": {"web"}, "python_multipart": {"web"}, "typer": {"cli"}, "pydantic_settings": {"settings"},
}  # fmt: skip
QUEUE_TYPES = {"procrastinate.App", "procrastinate.JobContext"}
SUPERVISORS = {  # functions that may catch everything: they say what went wrong and go on; the web's is Starlette's own, see web/problems.py
    ("worker.py", "_jobs"), ("worker.py", "every"), ("recorder.py", "_look_at"),
}  # fmt: skip
STARTERS = {"media/runner.py", "db/embedded.py", "db/launch.py", "supervisor.py", "testing/s3.py"}
MOVERS = {("db/ledger.py", "move"), ("db/ledger.py", "set_fields")}  # the second refuses `status`; a trigger stands behind both
WAITING = {  # what only tests call, and stays
    "presign",  # of the contract of stores, for downloads that go past us
    "artifact_key",  # the janitor knows its form; no artifact is an object yet
    "give",  # puts a file into a decoder's folder, as whoever makes an artifact will
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

_SQL = re.compile(
    r"\s*(with\s+(recursive\s+)?\w+\s+as\s+(materialized\s+)?\(|select\b.+\bfrom\b|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|truncate\s+\S"
    r"|merge\s+into\b|copy\s+\S+\s+(from|to)\b|lock\s+table\b|(create|alter|drop)\s+(or\s+replace\s+)?(unique\s+)?(table|index|view|function|trigger|sequence|type)\b)",
    re.IGNORECASE | re.DOTALL,
)
_STATUS = re.compile(r"\bupdate\s+(recordings\s+(\w+\s+)?)?set\b((?!\bwhere\b).)*(\bstatus\s*=|\{)", re.IGNORECASE | re.DOTALL)
_STARTS = re.compile(
    r"(os|posix|pty)\.(system|popen|fork\w*|exec[lv]\w*|spawn\w*|posix_spawn\w*|startfile)|multiprocessing\b.*"
    r"|subprocess\.(run|call|check_call|check_output|getoutput|getstatusoutput)|(.+\.)?(Popen|create_subprocess\w*|subprocess_exec|subprocess_shell|ProcessPoolExecutor)"
)


def breaches(place: str, source: str) -> list[str]:
    """What a file at `place` (relative to src/roomtape) does that its floor forbids."""
    tree = ast.parse(source)
    found = [f"{place}: {source.count(chr(10))} lines"] if source.count("\n") > LONGEST_FILE else []
    typing_only = [inner for node in tree.body if isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING" for inner in node.body]
    top = {id(node) for node in (*tree.body, *typing_only)}
    docstrings, names = set(_docstrings(tree)), names_of(tree)
    for node, inside in _walk(tree, ""):
        line = f"{place}:{getattr(node, 'lineno', 0)}"
        found += [f"{line} imports {name}" for name in imported(place, node) if not allowed(place, name)]
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top:
            found.append(f"{line} imports inside something")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION:
            found.append(f"{line} {node.name} has {size} lines")
        if (isinstance(node, ast.ExceptHandler) and (place, inside) not in SUPERVISORS and is_broad(node)) or (
            isinstance(node, ast.Call) and suppresses_all(node)
        ):
            found.append(f"{line} catches everything")
        text = _text(node) if id(node) not in docstrings else ""
        if room_of(place) not in {"db", "testing"} and _SQL.match(text):
            found.append(f"{line} has SQL outside db")
        if _STATUS.search(text) and (place, inside) not in MOVERS:
            found.append(f"{line} moves a status beside db/ledger.move")
        if place not in STARTERS and _STARTS.fullmatch(full_name(node, names)):
            found.append(f"{line} starts a process")
        if isinstance(node, ast.Call) and last_name(node.func) == "__import__":
            found.append(f"{line} imports by name")
        if isinstance(node, ast.Call) and room_of(place) == "core" and last_name(node.func) in CORE_MAY_NOT_CALL:
            found.append(f"{line} core looks at the world: {last_name(node.func)}()")
    return found


def _walk(node: ast.AST, inside: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node, and the name of the function around it; pieces of an f-string come as one."""
    for child in ast.iter_child_nodes(node):
        yield child, inside
        if not isinstance(child, ast.JoinedStr):
            yield from _walk(child, child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else inside)
        else:
            yield from ((inner, inside) for value in child.values if isinstance(value, ast.FormattedValue) for inner in ast.walk(value))


def _docstrings(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def _text(node: ast.AST) -> str:
    """The text of a literal, of an f-string with `x` where values stand."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else "x" for value in node.values)
    return ""


def room_of(place: str) -> str:
    return place.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(place: str, node: ast.AST) -> list[str]:
    """Modules by their full names; of `from a import b` both a and a.b, for b may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = ["roomtape", *place.removesuffix(".py").split("/")]
    base = ".".join([*package[: len(package) - node.level], *([node.module] if node.module else [])]) if node.level else node.module or ""
    return [f"{base}.{alias.name}" for alias in node.names]


def allowed(place: str, name: str) -> bool:
    room, parts = room_of(place), name.split(".")
    if name == "importlib" or name.startswith("importlib.import_module"):
        return False
    if parts[0] == "roomtape":
        return len(parts) > 1 and (parts[1] == room or parts[1] in ROOMS[room] or parts[1] == "__version__")
    if room == "core":
        return parts[0] in CORE_MAY_IMPORT
    if parts[0] == "procrastinate" and room not in {"db", "testing"}:
        return room in OWNERS["procrastinate"] and name in QUEUE_TYPES
    return room == "testing" or room in OWNERS.get(parts[0], {room})


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_broad(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False  # it only cleans up: nothing is swallowed
    names = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(name is None or last_name(name) in {"Exception", "BaseException"} for name in names)


def suppresses_all(node: ast.Call) -> bool:
    return last_name(node.func) == "suppress" and any(last_name(name) in {"Exception", "BaseException"} for name in node.args)


def names_of(tree: ast.Module) -> dict[str, str]:
    """What the names that were imported stand for: `from os import system as s` gives {"s": "os.system"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.AST, names: Mapping[str, str]) -> str:
    """`os.system` for whatever means it, called or handed on; what stands before the last dot may be unknown."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if not isinstance(node, ast.Attribute):
        return ""
    before = full_name(node.value, names) or (node.value.id if isinstance(node.value, ast.Name) else "?")
    return f"{before}.{node.attr}"


def uncalled(sources: Mapping[str, str]) -> set[str]:
    """Functions, classes, constants and methods of classes without a base that no code means, outside of themselves; routes and commands are called by their decorators."""
    trees = {place: ast.parse(source) for place, source in sources.items()}
    used = sum((_means(tree) for tree in trees.values()), Counter[str]())
    idle = set()
    for place, tree in trees.items():
        methods = [inner for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases for inner in node.body]
        for node in (*tree.body, *methods) if not place.startswith(("testing/", "db/migrations/")) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (isinstance(node, ast.ClassDef) or not node.decorator_list):
                idle |= {node.name} if used[node.name] == _means(node)[node.name] else set()
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node in tree.body:
                idle |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and not used[name.id]}
    return {name for name in idle if not name.startswith("__")}


def _means(tree: ast.AST) -> Counter[str]:
    return Counter(last_name(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load))


def cycles(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other, by way of others or at once; `sources` by place."""
    modules = {".".join(["roomtape", *place.removesuffix(".py").removesuffix("/__init__").split("/")]): place for place in sources}
    edges = {name: set(_edges(name, place, sources[place], modules)) for name, place in modules.items()}
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    return sorted(name for name in edges if name in _reach(name, edges))


def _reach(name: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = list(edges[name])
    while ahead:
        if (one := ahead.pop()) not in seen and one in edges:
            seen.add(one)
            ahead += edges[one]
    return seen


def _edges(name: str, place: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        for target in imported(place, node):
            found = target if target in modules else target.rpartition(".")[0]
            if found in modules and found != name:
                yield found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_every_file_keeps_to_its_floor(path: Path) -> None:
    assert breaches(str(path.relative_to(SRC)), path.read_text()) == []


def test_no_modules_import_each_other() -> None:
    assert cycles({str(path.relative_to(SRC)): path.read_text() for path in SRC.rglob("*.py")}) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("core/x.py", "import time"),
        ("core/x.py", "import ssl"),
        ("core/x.py", "from roomtape.db import ledger"),
        ("core/x.py", "import numpy"),
        ("core/x.py", "def f(path):\n    return open(path)"),
        ("core/x.py", "from datetime import datetime\nNOW = datetime.now()"),
        ("core/x.py", "def f(path):\n    return path.read_text()"),
        *[("core/x.py", f"def f(path):\n    return path.{verb}()") for verb in ("iterdir", "is_file", "is_dir", "unlink", "mkdir", "touch", "rglob", "open")],
        ("core/x.py", "def f(path, to):\n    path.rename(to)"),
        ("core/x.py", "from pathlib import Path\ndef f():\n    return list(Path('.').glob('*'))"),
        ("db/x.py", "from roomtape.storage import local"),
        ("db/x.py", "from ..storage import local"),
        ("db/x.py", "from .. import storage"),
        ("db/x.py", "from roomtape import storage"),
        ("media/x.py", "import roomtape.db.ledger"),
        ("tapes/x.py", "from roomtape.library import catalog"),
        ("capture/x.py", "from roomtape.pipeline import runner"),
        ("pipeline/steps/x.py", "from ...library import catalog"),
        ("library/x.py", "from roomtape.web import app"),
        ("library/x.py", "import psycopg"),
        ("web/x.py", "from psycopg_pool import AsyncConnectionPool"),
        ("tapes/x.py", "import obstore"),
        ("pipeline/x.py", "import av"),
        ("library/x.py", "from fastapi import Request"),
        ("web/x.py", "from roomtape.app import serve"),
        ("web/x.py", "from roomtape import app"),
        ("web/x.py", "from roomtape.worker import register"),
        ("web/x.py", "from roomtape.testing import known"),
        ("pipeline/x.py", "from procrastinate import worker"),
        ("pipeline/x.py", "import procrastinate"),
        ("pipeline/x.py", "from procrastinate.jobs import Job"),
        ("library/x.py", "from procrastinate import App"),
        ("worker.py", "from roomtape.web.site import site"),
        ("recorder.py", "from roomtape.app import serve"),
        ("web/x.py", "import importlib"),
        ("web/x.py", "from importlib import import_module"),
        ("web/x.py", "json = __import__('json')"),
        ("web/x.py", "def f():\n    import json"),
        ("web/x.py", "class A:\n    import json"),
        ("web/x.py", "if True:\n    import json"),
        ("web/x.py", "try:\n    pass\nexcept Exception:\n    pass"),
        ("web/x.py", "try:\n    pass\nexcept (ValueError, BaseException):\n    pass"),
        ("worker.py", "async def reconcile():\n    try:\n        pass\n    except Exception:\n        pass"),
        ("recorder.py", "try:\n    pass\nexcept Exception:\n    pass"),
        ("app.py", "async def record():\n    try:\n        pass\n    except:\n        pass"),
        ("web/x.py", "import builtins\ntry:\n    pass\nexcept builtins.Exception:\n    pass"),
        ("web/x.py", "from contextlib import suppress\nwith suppress(Exception):\n    pass"),
        ("worker.py", "import contextlib\nwith contextlib.suppress(ValueError, BaseException):\n    pass"),
        ("web/x.py", "QUERY = 'select id, name from recordings'"),
        ("web/x.py", "QUERY = f'SELECT {1} FROM recordings'"),
        ("web/x.py", "QUERY = '''\n    WITH a AS (DELETE FROM sessions RETURNING 1) SELECT count(*) FROM a'''"),
        ("web/x.py", "QUERY = 'TRUNCATE recordings'"),
        ("web/x.py", "QUERY = 'UPDATE recordings SET title = 1'"),
        ("db/x.py", "QUERY = 'UPDATE recordings SET title = %s, status = %s WHERE id = %s'"),
        ("db/x.py", "QUERY = 'INSERT INTO recordings (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET status = excluded.status'"),
        ("db/x.py", "def move():\n    return f'UPDATE recordings r SET status = {1}'"),
        ("db/ledger.py", "def stop():\n    return sql('UPDATE recordings SET {} WHERE id = {}')"),
        ("library/x.py", "import os\nos.system('ls')"),
        ("library/x.py", "import os\nos.posix_spawn('/bin/ls', [], {})"),
        ("library/x.py", "import os\nos.execv('/bin/ls', [])"),
        ("library/x.py", "import subprocess\nsubprocess.check_output(['ls'])"),
        ("library/x.py", "import asyncio\nasync def f():\n    await asyncio.create_subprocess_exec('ls')"),
        ("library/x.py", "from os import system\nsystem('ls')"),
        ("library/x.py", "from os import execvp as go\ngo('ls', [])"),
        ("library/x.py", "from subprocess import run\nrun(['ls'])"),
        ("library/x.py", "import subprocess as x\nx.run(['ls'])"),
        ("library/x.py", "import asyncio, subprocess\nasync def f():\n    await asyncio.to_thread(subprocess.run, ['ls'])"),
        ("library/x.py", "from asyncio import create_subprocess_shell as sh\nasync def f():\n    await sh('ls')"),
        ("library/x.py", "import asyncio\nasync def f():\n    await asyncio.get_running_loop().subprocess_exec(None, 'ls')"),
        ("library/x.py", "from multiprocessing import Pool\nPool(2)"),
        ("library/x.py", "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()"),
        ("web/x.py", "\n" * 401),
        ("web/x.py", "def f():\n" + "    pass\n" * 61),
    ],
)
def test_a_planted_breach_is_seen(place: str, source: str) -> None:
    assert breaches(place, source)


def test_a_planted_cycle_is_seen() -> None:
    ring = {
        "media/a.py": "from roomtape.media import b",
        "media/b.py": "from .c import x",
        "media/c.py": "import roomtape.media.a",
        "media/d.py": "from . import a",
    }
    assert cycles(ring) == ["roomtape.media.a", "roomtape.media.b", "roomtape.media.c"]
    assert cycles({**ring, "media/c.py": "import sys"}) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("web/x.py", '"""With a glance at what comes from select rooms."""'),
        ("db/x.py", "QUERY = 'UPDATE idempotency SET status = %s WHERE key = %s'"),
        ("db/x.py", "QUERY = 'UPDATE recordings SET title = %s WHERE status = %s'"),
        ("db/x.py", "try:\n    pass\nexcept BaseException:\n    raise"),
        ("core/x.py", "from datetime import UTC, datetime\nfrom roomtape.core.errors import NotFound"),
        ("web/x.py", "from importlib.resources import files"),
        ("pipeline/x.py", "from procrastinate import App"),
        ("worker.py", "async def every():\n    try:\n        pass\n    except Exception:\n        pass"),
        ("library/x.py", "import os\ndef run():\n    os.getpid()\nrun()"),
    ],
)
def test_what_is_no_breach_is_none(place: str, source: str) -> None:
    assert breaches(place, source) == []


def test_every_room_and_every_technology_has_its_rule() -> None:
    rooms = {room_of(str(path.relative_to(SRC))) for path in SRC.rglob("*.py")}
    assert rooms == set(ROOMS)
    used = {
        target.split(".")[0]
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for target in imported(str(path.relative_to(SRC)), node)
    }
    everywhere = {"roomtape", "numpy", "structlog", "uuid_utils", "pydantic", "pytest"}
    assert used - set(sys.stdlib_module_names) - everywhere == set(OWNERS)


def test_no_permit_is_left_over() -> None:
    trees = {str(path.relative_to(SRC)): ast.parse(path.read_text()) for path in SRC.rglob("*.py")}
    nodes = [(place, node, inside) for place, tree in trees.items() for node, inside in _walk(tree, "")]
    assert {(place, inside) for place, node, inside in nodes if isinstance(node, ast.ExceptHandler) and is_broad(node)} == SUPERVISORS
    names = {place: names_of(tree) for place, tree in trees.items()}
    assert {place for place, node, _ in nodes if _STARTS.fullmatch(full_name(node, names[place]))} == STARTERS


def test_nothing_is_written_that_nobody_calls() -> None:
    assert uncalled({str(path.relative_to(SRC)): path.read_text() for path in SRC.rglob("*.py")}) == WAITING


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    pass",
        "def f():\n    return f()",
        "def f():\n    pass\nTEXT = 'f'\nprint(TEXT)",
        "class f:\n    pass",
        "f = 1",
        "class A:\n    def f(self):\n        pass\nA()",
    ],
)
def test_what_nobody_calls_is_seen(source: str) -> None:
    imported_only = {"web/a.py": "from roomtape.core.b import f"}
    assert uncalled({"core/b.py": source, **imported_only}) == {"f"}
    assert uncalled({"core/b.py": source, "web/a.py": "from roomtape.core import b\nb.f()"}) == set()


def test_the_map_names_what_is_there() -> None:
    """Each `room/file.py` and `.js`, and the function behind `room/file.py: name`."""
    for document in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        said = re.findall(r"`(?:src/roomtape/)?(\w[\w/]*\.(?:py|js))(?:: (\w+))?`", (SRC.parents[1] / document).read_text())
        assert said
        for file, name in said:
            own = file.startswith(("tests/", "bench/"))
            paths = [SRC.parents[1] / file] if own else list(SRC.rglob(file))  # after `media/index.py` its neighbours stand without their room
            assert paths, f"{document} names {file}"
            assert paths[0].is_file(), f"{document} names {file}"
            assert not name or re.search(rf"\b(def|class|function) {name}\b", paths[0].read_text()), f"{document} names {name} in {file}"
