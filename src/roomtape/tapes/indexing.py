"""Segments get their index here: at upload, or when what they waited for has come, or will never come.

Parsing holds no lock and no transaction: what a segment's bytes and the carry before them give is always the same, so only writing it down is guarded.
"""

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from roomtape.core.model import StoredIn
from roomtape.db import chunks
from roomtape.db.database import Connection, Database
from roomtape.db.rows import Chunk
from roomtape.media import index as media
from roomtape.storage.failover import SpooledStore

NOT_INDEXED = "not_indexed"
_IN_LOOP_BYTES = 4 << 10  # of a segment and its carry: a hostile one can ask for 10 ms (isobmff.rows_of); larger ones go to a thread, and most are larger
_MOST_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Indexed:
    """What parsing one segment gave. `carry` is what the next byte cut needs; times are the file's own, in microseconds."""

    blob: bytes | None
    carry: bytes | None
    starts_file: bool
    start_us: int | None = None
    end_us: int | None = None
    warning: str | None = None


def begins(index: int, first: bytes) -> bool:
    """Whether a segment is the head of a file: the first one always is asked, however few bytes it has."""
    return index == 1 or media.sniff(first) is not None


def index_head(data: Any) -> Indexed:
    """A segment that begins with a header."""
    index, carry = media.index_head(data)
    found = _indexed(index, carry, starts_file=media.sniff(bytes(data[:16])) is not None or not index.warning)
    return found if found.starts_file else Indexed(None, None, starts_file=False, warning=NOT_INDEXED)


def index_cut(data: Any, carry: bytes | None) -> Indexed:
    """A byte cut after the one that left `carry`; None: its file cannot be read."""
    if carry is None:
        return Indexed(None, None, starts_file=False, warning=NOT_INDEXED)
    return _indexed(*media.index_cut(data, carry), starts_file=False)


def index_after_hole(data: Any, carry: bytes | None) -> Indexed:
    """A cut whose predecessor will never come: taken up at the next Cluster or moof, by the set-up of any earlier carry of its file; without one it has no index."""
    found = media.resync(data, carry) if carry is not None else None
    if found is None:
        return Indexed(None, None, starts_file=False, warning=NOT_INDEXED)
    return _indexed(*found, starts_file=False)


def _indexed(index: media.Index, carry: bytes, *, starts_file: bool) -> Indexed:
    samples = index.samples
    nothing = not index.streams if starts_file else not len(samples)
    warning = (NOT_INDEXED if nothing and index.warning else index.warning) or None
    if not len(samples):
        return Indexed(media.pack(index), carry, starts_file, warning=warning)
    ends = samples["time_us"] + samples["duration_us"]
    return Indexed(media.pack(index), carry, starts_file, int(samples["time_us"].min()), int(ends.max()), warning)


async def off_loop(size: int, work: Callable[..., Indexed], *args: Any) -> Indexed:
    """Parses small segments at once and large ones in a thread."""
    return work(*args) if size <= _IN_LOOP_BYTES else await asyncio.to_thread(work, *args)


def mapped(path: Path) -> mmap.mmap:
    """A file's bytes without reading them into memory; they stay when the file's name goes."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@asynccontextmanager
async def opened(store: SpooledStore, chunk: Chunk) -> AsyncIterator[mmap.mmap]:
    """A stored segment's bytes, mapped: from this machine's disk, else through a temporary file on it."""
    where = StoredIn(chunk.stored_in)
    path = store.path(chunk.key, where=where)
    if path is not None and path.is_file():
        with mapped(path) as data:
            yield data
        return
    fetched = await store.intake.take(store.read(chunk.key, where=where), limit=_MOST_BYTES)
    try:
        with mapped(fetched.path) as data:
            yield data
    finally:
        await asyncio.to_thread(fetched.close)


async def parse_waiting(database: Database, store: SpooledStore, recording_id: UUID, track_id: str) -> int:
    """Parses every segment whose predecessor is parsed by now, one after another; returns how many. May run in several places at once, and be killed anywhere."""
    done = 0
    while True:
        async with database.transaction() as connection:
            waiting = await chunks.next_waiting(connection, recording_id, track_id)
            before = await chunks.get_chunk(connection, recording_id, track_id, waiting.index - 1) if waiting else None
        if waiting is None or before is None:
            return done
        async with opened(store, waiting) as data:
            indexed = await off_loop(len(data) + len(before.carry or b""), index_cut, data, before.carry)
        await write_down(database, waiting, indexed)
        done += 1


async def write_down(database: Database, waiting: Chunk, indexed: Indexed) -> None:
    """What parsing a waiting segment gave; one that somebody else has parsed meanwhile stays as it is."""
    async with database.transaction() as connection:
        await chunks.lock_track(connection, waiting.recording_id, waiting.track_id)
        now = await chunks.get_chunk(connection, waiting.recording_id, waiting.track_id, waiting.index)
        if now is None or now.parsed:
            return
        await _set(connection, waiting, indexed)
        if indexed.carry is not None:  # else the carry before it is still the only one that knows the set-up
            await chunks.drop_carry(connection, waiting.recording_id, waiting.track_id, waiting.index - 1)


async def _set(connection: Connection, waiting: Chunk, indexed: Indexed) -> None:
    await chunks.set_parsed(
        connection,
        waiting.recording_id,
        waiting.track_id,
        waiting.index,
        index_blob=indexed.blob,
        carry=indexed.carry,
        starts_file=indexed.starts_file,
        media_start_us=indexed.start_us,
        media_end_us=indexed.end_us,
        warning=indexed.warning,
    )
