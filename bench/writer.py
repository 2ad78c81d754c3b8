"""Writes a recording's original out again and again: `python -m bench.writer DATA RECORDING OUT`, one line in for each; OUT's name with .stored lists the objects."""

import asyncio
import resource
import sys
import time
from pathlib import Path
from uuid import UUID

from roomtape.core.keys import DEFAULT_TENANT
from roomtape.core.rope import Span
from roomtape.db import ledger
from roomtape.db.database import Database
from roomtape.db.embedded import running_url
from roomtape.library.export import write_out
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.tapes.layouts import Layouts
from roomtape.tapes.whole import Ropes


def _rss_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def main(data: Path, recording_id: str, out: Path) -> None:
    url = running_url(data / "database")
    assert url is not None
    database = Database(url)
    await database.open()
    store = SpooledStore(LocalStore(data / "store"))
    async with database.transaction() as connection:
        recording = await ledger.get_recording(connection, DEFAULT_TENANT, UUID(recording_id))
    assert recording is not None
    tape = await Layouts(database, wait_s=10, now_us=lambda: time.time_ns() // 1000).tape(recording)
    track = tape.main()
    assert track is not None
    rope, _, _ = await Ropes().whole(tape, track, None)
    stored = [store.path(piece.key) for piece in rope.slice(0, rope.size) if isinstance(piece, Span)]
    out.with_suffix(".stored").write_text("".join(f"{path}\0" for path in stored))
    print(_rss_kb(), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        await write_out(rope, store, out)
        print(time.perf_counter() - start, _rss_kb(), flush=True)
    await store.close()
    await database.close()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
