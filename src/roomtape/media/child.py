"""The program inside the sandbox: locks itself in, does one job with PyAV, answers with one JSON document, dies.

argv: the parent's pid. stdin: one line that says where and how tightly, one line that is the job, then the job's feed if it has one.
The lock closes between the two lines. stdout is the answer's alone; what libraries print goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging

from roomtape.media import mend, probe, sandbox, watch
from roomtape.media.refusal import MediaError, MediaRefused, MediaTooBig, NoSandbox

Task = Callable[[dict[str, Any], BufferedReader], dict[str, Any]]
_ENOMEM = 12


def _level(_args: dict[str, Any], _feed: BufferedReader) -> dict[str, Any]:
    """Nothing but the level that comes with every answer."""
    return {}


TASKS: dict[str, Task] = {"level": _level, "probe": probe.probe, "verify": probe.verify, "watch": watch.watch, "mend": mend.mend_all}


def main() -> None:
    """Runs one job. Exit code 0 with an answer, else the parent reads the traceback in stderr."""
    parent = int(sys.argv[1])
    sandbox.die_with(parent)
    sandbox.close_all_but_standard()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    av.logging.set_level(av.logging.ERROR)
    feed = os.fdopen(0, "rb")
    line = feed.readline()
    if not line:
        return  # the pool was closed before there was a job
    place = json.loads(line)
    level = lock(place, parent)
    job = json.loads(feed.readline())
    document: dict[str, Any] = {"level": [level.landlock, level.seccomp, level.namespaces]}
    try:
        if not level.confines and not place["unsandboxed"]:
            raise NoSandbox
        document["result"] = TASKS[job["task"]](job["args"], feed)
    except MediaError as error:
        document["error"] = {"kind": type(error).__name__, "message": error.message}
    except MemoryError:
        document["error"] = {"kind": MediaTooBig.__name__, "message": MediaTooBig().message}
    except av.error.FFmpegError as error:
        kind: type[MediaError] = MediaTooBig if error.errno == _ENOMEM else MediaRefused
        document["error"] = {"kind": kind.__name__, "message": f"The media could not be read: {error.strerror}."}
    answer.write(json.dumps(document).encode())
    answer.flush()


def lock(place: dict[str, Any], parent: int) -> sandbox.Level:
    """Goes to the job's folder and closes the door behind."""
    folder = Path(place["job"])
    os.chdir(folder)
    sandbox.bound(sandbox.Bounds(**place["bounds"]))
    libraries = (Path(os.__file__).parent, Path(av.__file__).parents[1])  # PyAV and numpy import some of their parts when they are first used
    level, _ = sandbox.lock(parent=parent, job=folder, libraries=libraries, layers=frozenset(place["layers"]))
    return level
