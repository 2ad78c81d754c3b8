"""Segments get their index here: at upload, or when what they waited for has come, or will never come."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from roomtape.core.model import StoredIn
from roomtape.db import chunks
from roomtape.db.database import Connection
from roomtape.db.rows import Chunk
from roomtape.media import index as media
from roomtape.storage.failover import SpooledStore

NOT_INDEXED = "not_indexed"
_IN_LOOP_BYTES = 4 << 20  # parsing this much takes a millisecond or two; more goes to a thread


@dataclass(frozen=True, slots=True)
class Indexed:
    """What parsing one segment gave. `carry` is what the next byte cut needs; times are the file's own, in microseconds."""

    blob: bytes | None
    carry: bytes | None
    starts_file: bool
    start_us: int | None = None
    end_us: int | None = None
    warning: str | None = None


def index_head(data: Any) -> Indexed:
    """A segment that begins with a header."""
    return _indexed(*media.index_head(data), starts_file=True)


def index_cut(data: Any, carry: bytes | None) -> Indexed:
    """A byte cut after the one that left `carry`; None: its file cannot be read."""
    if carry is None:
        return Indexed(None, None, starts_file=False, warning=NOT_INDEXED)
    return _indexed(*media.index_cut(data, carry), starts_file=False)


def index_after_hole(data: Any, carry: bytes | None) -> Indexed:
    """A cut whose predecessor will never come: taken up at the next Cluster or moof, by the set-up of any earlier carry of its file."""
    found = media.resync(data, carry) if carry is not None else None
    if found is None:
        return Indexed(None, carry, starts_file=False, warning=NOT_INDEXED)
    return _indexed(*found, starts_file=False)


def _indexed(index: media.Index, carry: bytes, *, starts_file: bool) -> Indexed:
    samples = index.samples
    warning = (NOT_INDEXED if starts_file and not index.streams and index.warning else index.warning) or None
    if not len(samples):
        return Indexed(media.pack(index), carry, starts_file, warning=warning)
    ends = samples["time_us"] + samples["duration_us"]
    return Indexed(media.pack(index), carry, starts_file, int(samples["time_us"].min()), int(ends.max()), warning)


async def off_loop(size: int, work: Callable[..., Indexed], *args: Any) -> Indexed:
    """Parses small segments at once and large ones in a thread."""
    return work(*args) if size <= _IN_LOOP_BYTES else await asyncio.to_thread(work, *args)


async def set_indexed(connection: Connection, waiting: Chunk, indexed: Indexed) -> Chunk:
    """Writes what parsing a waiting chunk gave."""
    return await chunks.set_parsed(
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


async def read_whole(store: SpooledStore, chunk: Chunk) -> bytes:
    """A segment's bytes; segments are bounded, recordings are not."""
    return b"".join([piece async for piece in store.read(chunk.key, where=StoredIn(chunk.stored_in))])


async def take_up(connection: Connection, store: SpooledStore, row: Chunk, carry: bytes | None) -> None:
    """Parses all that waited behind `row`, up to the next hole."""
    for waiting in await chunks.unparsed_after(connection, row.recording_id, row.track_id, row.index):
        body = await read_whole(store, waiting)
        indexed = await off_loop(len(body), index_cut, body, carry)
        await set_indexed(connection, waiting, indexed)
        await chunks.drop_carry(connection, row.recording_id, row.track_id, waiting.index - 1)
        carry = indexed.carry
