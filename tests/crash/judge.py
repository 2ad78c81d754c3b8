"""What must hold after every fault. Each rule answers with the sentences of what is wrong; none is a pass."""

import asyncio
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import psycopg

from roomtape.core.lifecycle import NEXT, Status
from roomtape.db.database import Database
from roomtape.library.janitor import MARKS, Janitor
from roomtape.media.runner import sweep_jobs
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore

from .client import CUT, OVERLONG, Ack, Answer, Client, Played

SILENCE_BYTES = 3  # an Opus packet that fills a hole between two files
_ENDED = frozenset({Status.COMPLETED, Status.FAILED})
_OLD_S = 3600.0
_SETTLE_S = 60.0
_LEASE_S = 30

Faults = list[str]


def j1(client: Client, acks: Sequence[Ack]) -> Faults:
    """Every acknowledged segment is there, byte for byte."""
    faults = []
    for ack in acks:
        path = f"/api/v1/recordings/{ack.recording}/segments/{ack.index}"
        got = client.ask("GET", path, HTTPStatus.OK, HTTPStatus.NOT_FOUND, params={"track_id": ack.track})
        if got.status_code != HTTPStatus.OK:
            faults.append(f"J1: segment {ack.index} of {ack.recording} was acknowledged and is gone")
        elif hashlib.sha256(got.content).hexdigest() != ack.sha256:
            faults.append(f"J1: segment {ack.index} of {ack.recording} has other bytes than were acknowledged")
    return faults


def j2(client: Client, played: Played, acks: Sequence[Ack]) -> Faults:
    """One original of a completed recording; it holds all that was acknowledged, in order, each packet once, and is the file whose digest is stated."""
    base = f"/api/v1/recordings/{played.recording}"
    view = client.ask("GET", base, HTTPStatus.OK).json()
    if view["status"] != Status.COMPLETED:
        return [f"J2: {played.meeting} ended as {view['status']}: {view['error']}"]
    faults = originals(view["artifacts"])
    listed = [(one["index"], one["sha256"]) for one in client.ask("GET", f"{base}/segments", HTTPStatus.OK).json()["segments"]]
    faults += compared("segments", sorted({(ack.index, ack.sha256) for ack in acks}), listed)
    whole = client.ask("GET", f"{base}/download", HTTPStatus.OK).content
    if hashlib.sha256(whole).hexdigest() != view["sha256"]:
        faults.append("J2: the download is not the file whose sha256 is stated")
    bodies = [path.read_bytes() for path in played.script.files]
    files = [b"".join(bodies)] if played.script.cuts else bodies
    there = packets([whole])
    for kind, wanted in packets(files).items():
        faults += compared(f"{kind} packets", wanted, there.pop(kind, []))
    return faults + [f"J2: {kind} came from nowhere" for kind in there]


def originals(artifacts: Iterable[dict[str, Any]]) -> Faults:
    """Exactly one ready original."""
    ready = [one for one in artifacts if one["kind"] == "original" and one["state"] == "ready"]
    return [] if len(ready) == 1 else [f"J2: {len(ready)} originals instead of 1"]


def packets(files: Sequence[bytes]) -> dict[str, list[str]]:
    """By kind of stream, the digest of each packet in order; fill for holes is left out."""
    found: dict[str, list[str]] = {}
    for body in files:
        with av.open(io.BytesIO(body), "r") as media:
            for packet in media.demux():
                content = bytes(packet)
                if content and not (packet.stream.type == "audio" and len(content) <= SILENCE_BYTES):
                    found.setdefault(packet.stream.type, []).append(hashlib.sha256(content).hexdigest())
    return found


def compared(what: str, wanted: Sequence[Any], there: Sequence[Any]) -> Faults:
    """The same things, once each and in order."""
    if list(wanted) == list(there):
        return []
    missing, more = Counter(wanted) - Counter(there), Counter(there) - Counter(wanted)
    doubled = sum(count for one, count in more.items() if one in set(wanted))
    sentence = f"J2: of {len(wanted)} {what} {missing.total()} are missing, {doubled} are doubled, {more.total() - doubled} are others'"
    return [sentence if missing or more else f"J2: the order of {len(wanted)} {what} is wrong"]


def j3(events: Sequence[dict[str, Any]]) -> Faults:
    """The history goes along the table of states only, ends for good, and has no holes."""
    faults = []
    numbers = [event["data"]["seq"] for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        faults.append(f"J3: the numbers of events have holes or doubles: {numbers}")
    states = [Status(event["data"]["status"]) for event in events if "status" in event["data"]]
    for before, after in pairwise([Status.PENDING, *states]):
        if after is not before and after not in NEXT[before]:
            faults.append(f"J3: {before} became {after}")
    return faults + [f"J3: it was {ended} {states.count(ended)} times" for ended in _ENDED if states.count(ended) > 1]


@dataclass(frozen=True, slots=True)
class Place:
    """Where things may be left lying. `pids`: the processes whose children must have died with them."""

    url: str
    store: Path
    work: Path
    pids: frozenset[int]


def j4(place: Place) -> Faults:
    """After a round of cleaning nothing is left over: no object without a row, no row without its object, no temporary file, orphaned child, job or lease.

    Nobody may be uploading meanwhile: an object that waits for its row would be taken for an orphan.
    """
    for leftover in (*(place.store / ".tmp").glob("*"), *place.work.glob("job-*")):
        os.utime(leftover, (time.time() - _OLD_S,) * 2)  # as if the sweep came later
    faults = asyncio.run(_tidied(place))
    sweep_jobs(place.work)
    left = [path.name for path in (*(place.store / ".tmp").glob("*"), *place.work.glob("job-*"))]
    faults += [f"J4: {len(left)} temporary files are left: {left[:3]}"] if left else []
    orphans = orphaned(place.pids)
    faults += [f"J4: children {orphans} have outlived their parents"] if orphans else []
    return faults + settled(place.url)


async def _tidied(place: Place) -> Faults:
    database, store = Database(place.url), SpooledStore(LocalStore(place.store))
    await database.open()
    try:
        janitor = Janitor(database, store, trash_days=7, orphan_s=0)
        await janitor.sweep()
        await janitor.collect_orphans()
        await store.sweep()
        there = {stored.key: stored.size async for stored in store.list("") if not stored.key.startswith(MARKS)}
        async with database.transaction() as connection:
            query = "SELECT key, size_bytes FROM chunks UNION ALL SELECT key, size_bytes FROM artifacts WHERE key IS NOT NULL"
            rows: dict[str, int] = dict(await (await connection.execute(query)).fetchall())
    finally:
        await store.close()
        await database.close()
    faults = [f"J4: the object {key} has no row" for key in there.keys() - rows.keys()]
    faults += [f"J4: the row of {key} has no object" for key in rows.keys() - there.keys()]
    return faults + [f"J4: the object {key} has {there[key]} bytes, its row says {rows[key]}" for key in there.keys() & rows.keys() if there[key] != rows[key]]


def settled(url: str) -> Faults:
    """Jobs end; then no lease stands that would not end by itself. Waits, because the work of the dead is taken over only after their silence."""
    doing = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'"
    held = f"SELECT count(*) FROM leases WHERE until > now() + interval '{2 * _LEASE_S} seconds'"
    deadline = time.monotonic() + _SETTLE_S
    with psycopg.connect(url, autocommit=True) as connection:
        while (jobs := _count(connection, doing)) and time.monotonic() < deadline:
            time.sleep(0.05)
        leases = _count(connection, held)
    faults = [f"J4: {jobs} jobs are still being done by nobody"] if jobs else []
    return faults + ([f"J4: {leases} leases stand for ever"] if leases else [])


def _count(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def orphaned(pids: frozenset[int]) -> list[int]:
    """Children of decoding whose parent, named in their arguments, is one of `pids` and dead."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        parent = next((int(word) for word in words if word.isdigit()), 0)
        if any(b"roomtape.media." in word for word in words) and parent in pids and not Path(f"/proc/{parent}").exists():
            found.append(int(entry.name))
    return found


def j7(answers: Sequence[Answer], limit_s: float) -> Faults:
    """No request longer than its limit, no 500, and whoever is sent away is told when to come back."""
    faults = []
    for one in answers:
        name = f"{one.method} {one.path}"
        if one.status == OVERLONG or one.took_s > limit_s:
            faults.append(f"J7: {name} took {one.took_s:.1f} s")
        elif one.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            faults.append(f"J7: {name} was answered with 500")
        elif one.status in {429, 503, 507} and not (one.retry_after or "").isdigit():
            faults.append(f"J7: {name} was answered with {one.status} and no Retry-After")
        elif one.status not in {CUT, 429, 503, 507} and one.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            faults.append(f"J7: {name} was answered with {one.status}")
    return faults


def judge_meeting(client: Client, played: Played) -> Faults:
    """J1 to J3 of one meeting, by the client's ledger."""
    acks = client.ledger.of(played.recording)
    faults = [] if {ack.index for ack in acks} == set(range(1, len(played.script.files) + 1)) else ["J1: the client has not got all its acks"]
    timeline = client.ask("GET", f"/api/v1/recordings/{played.recording}/timeline", HTTPStatus.OK).json()["events"]
    faults += j1(client, acks) + j2(client, played, acks) + j3(timeline)
    ended = sum(event["type"] == "recording.completed" for event in timeline)
    return faults if ended == 1 else [*faults, f"J2: {ended} events recording.completed instead of 1"]
