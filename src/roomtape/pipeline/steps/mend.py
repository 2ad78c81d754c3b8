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
from roomtape.media.layout import Join, Packet, joins_wanted
from roomtape.media.mends import pack_mend
from roomtape.media.refusal import MediaError
from roomtape.media.runner import Runner, job_folder
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Tape

log = structlog.get_logger()


async def mend(database: Database, store: SpooledStore, runner: Runner, work: Path, tape: Tape, ticket: Ticket) -> None:
    """Mends the first wanted join of each track: what it finds moves what follows, so plan again after it."""
    for name, layout in tape.layouts.items():
        wanted = joins_wanted(tape.facts[name], tape.taken[name])
        if not wanted:
            continue
        sound = next((lane for lane in layout.placement.lanes if lane.kind == "audio"), None)
        channels = sound.setups[0].channels if sound and sound.setups[0].channels in {1, 2} else 2
        made = await _made(store, runner, work, wanted[0], channels)
        async with database.transaction() as connection:
            if not await jobs.still_mine(connection, ticket):
                return
            await chunks.put_mend(connection, tape.recording.id, rows.Mend(name, made.file, made.offset_us, pack_mend(made)))


async def _made(store: SpooledStore, runner: Runner, work: Path, join: Join, channels: int) -> Mend:
    old, new = await _packets(store, join.old), await _packets(store, join.new)
    try:
        with job_folder(work) as job:
            return await door.mend(runner, job, file=join.file, channels=channels, packet_us=join.packet_us, offset_us=join.offset_us, old=old, new=new)
    except MediaError as wrong:  # a join that cannot be mended is silent for less than a packet, and stays so
        log.warning("join.unmended", file=join.file, why=type(wrong).__name__)
        return Mend(join.file, join.offset_us, ())


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
