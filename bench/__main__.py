"""`make bench`: all benchmarks, a table, and bench-results.json. Name some (`python -m bench P1`) to run only those."""

import shutil
import sys
from pathlib import Path

from bench import clock, ranges, stop
from bench.stage import Result, ffmpeg, roomtape, write

PARTS = {"P1": stop.run, "P2": ranges.run, "P3": ranges.run, "P15": clock.run}


def main(wanted: list[str]) -> None:
    missing = [name for name, path in (("ffmpeg", ffmpeg()), ("nginx", shutil.which("nginx")), ("wrk", shutil.which("wrk"))) if not path]
    if missing:
        sys.exit(f"These are needed for the references and are not here: {', '.join(missing)} (apt install ffmpeg nginx-light wrk).")
    folder = Path("/var/tmp/roomtape-bench")
    folder.mkdir(parents=True, exist_ok=True)
    runs = dict.fromkeys(PARTS[name] for name in (wanted or PARTS))
    results: list[Result] = []
    for run in runs:
        with roomtape(folder / "data") as running:  # one for each: what the last part has left would fill the page cache
            results += run(folder, running)
    write(results)


main(sys.argv[1:])
