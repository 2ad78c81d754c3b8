"""Overlaps off the packet grid: the few packets around the join are encoded anew, so that nobody hears it."""

from collections.abc import Sequence
from pathlib import Path

import structlog

from roomtape.core.rope import Literal
from roomtape.core.timeline import Mend
from roomtape.db import chunks, jobs, rows
from roomtape.db.database import Database
from roomtape.db.jobs import Ticket
from roomtape.media import door
from roomtape.media.layout import Packet, joins_wanted
from roomtape.media.mends import pack_mend
from roomtape.media.refusal import MediaError
from roomtape.media.runner import Runner, job_folder
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Tape

log = structlog.get_logger()


AT_ONCE = 128  # joins for one child: a second or two of its work, a megabyte or so of packets


async def mend(database: Database, store: SpooledStore, runner: Runner, work: Path, tape: Tape, ticket: Ticket) -> None:
    """Mends wanted joins of each track. What is found moves what follows, and may show joins that were on the grid to be off it: plan again after it."""
    for name, layout in tape.layouts.items():
        wanted = joins_wanted(tape.facts[name], tape.taken[name])[:AT_ONCE]
        if not wanted:
            continue
        sound = next((lane for lane in layout.placement.lanes if lane.kind == "audio"), None)
        channels = sound.setups[0].channels if sound and sound.setups[0].channels in {1, 2} else 2
        overlaps = [
            door.Overlap(join.file, channels, join.packet_us, join.offset_us, await _packets(store, join.old), await _packets(store, join.new))
            for join in wanted
        ]
        made = await _made(runner, work, overlaps)
        async with database.transaction() as connection:
            if not await jobs.still_mine(connection, ticket):
                return
            for one in made:
                await chunks.put_mend(connection, tape.recording.id, rows.Mend(name, one.file, one.offset_us, pack_mend(one)))


async def _made(runner: Runner, work: Path, overlaps: Sequence[door.Overlap]) -> list[Mend]:
    """A mend for each: without packets where it cannot be mended, then it is silent for less than a packet, and stays so."""
    try:
        with job_folder(work) as job:
            found = await door.mend(runner, job, overlaps)
    except MediaError as wrong:
        if len(overlaps) > 1:  # one of them takes a child down: find out which
            return [mended for one in overlaps for mended in await _made(runner, work, [one])]
        log.warning("join.unmended", file=overlaps[0].file, why=type(wrong).__name__)
        found = [None]
    return [one or Mend(asked.file, asked.offset_us, ()) for asked, one in zip(overlaps, found, strict=True)]


async def _packets(store: SpooledStore, packets: Sequence[Packet]) -> list[bytes]:
    found = []
    for packet in packets:
        parts = []
        for piece in packet.pieces:
            if isinstance(piece, Literal):
                parts.append(piece.body)
            else:
                parts += [block async for block in store.read(piece.key, piece.offset, piece.offset + piece.size)]
        found.append(b"".join(parts))
    return found
