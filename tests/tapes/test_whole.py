"""Whole files: made once for all who ask at the same time, away from the event loop, and kept by the memory they take."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.model import ClockTrust
from roomtape.media.index import index_head
from roomtape.media.layout import Layout, Taken, TrackFacts, lay_out
from roomtape.tapes.layouts import Tape
from roomtape.tapes.whole import Ropes

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data" / "chromium" / "B-vp9"


@dataclass(frozen=True)
class Watched:
    """A layout that notes in which threads its rows are read."""

    layout: Layout
    seen: list[int]

    def __getattr__(self, name: str) -> Any:
        if name == "placement":
            self.seen.append(threading.get_ident())
        return getattr(self.layout, name)


@dataclass(frozen=True)
class Row:
    id: UUID
    started_at: datetime = datetime(2026, 11, 21, tzinfo=UTC)


def layout(bodies: int = 3) -> Layout:
    taken = []
    for index, path in enumerate(sorted(DATA.glob("0*"))[:bodies], 1):
        body = path.read_bytes()
        taken.append(Taken(index, f"k/{index}", len(body), None, index_head(body)[0], index))
    facts = TrackFacts(id="1", trust=ClockTrust.NONE, origin_us=0, begin_us=0, closed=True, last_index=len(taken))
    return lay_out(facts, taken)


def tape(laid: Any, recording: UUID, mark: str) -> Tape:
    layouts: Mapping[str, Layout] = {"1": laid}
    return Tape(cast("Any", Row(recording)), (), layouts, {}, {}, {"1": mark})


async def test_of_many_who_ask_at_once_one_has_it_made_in_a_thread() -> None:
    ropes, laid, name = Ropes(), layout(), uuid7()
    seen: list[int] = []
    watched = tape(Watched(laid, seen), name, "a")
    made = await asyncio.gather(*(ropes.whole(watched, "1", "mp4") for _ in range(20)))
    assert len({id(rope) for rope, _, _ in made}) == 1
    builders = [thread for thread in seen if thread != threading.get_ident()]
    assert len(builders) == 1
    assert (await ropes.whole(watched, "1", "mp4"))[0] is made[0][0]


async def test_who_stops_asking_takes_it_from_nobody() -> None:
    ropes, there = Ropes(), tape(layout(), uuid7(), "a")
    first, second = (asyncio.create_task(ropes.whole(there, "1", "mp4")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].size > 0


async def test_what_is_kept_is_bounded_by_its_memory_and_an_older_layout_is_dropped() -> None:
    laid, names = layout(), [uuid7() for _ in range(4)]
    held = (await Ropes().whole(tape(laid, names[0], "a"), "1", "mp4"))[0].held
    ropes = Ropes(most_bytes=2 * held)
    for name in names:
        await ropes.whole(tape(laid, name, "a"), "1", "mp4")
    assert [place[0] for place in ropes._kept] == names[2:]
    await ropes.whole(tape(laid, names[3], "b"), "1", "mp4")
    assert [(place[0], mark) for place, (mark, _) in ropes._kept.items()] == [(names[2], "a"), (names[3], "b")]
    small = Ropes(most_bytes=1)
    first = await small.whole(tape(laid, names[0], "a"), "1", "mp4")
    assert (await small.whole(tape(laid, names[0], "a"), "1", "mp4"))[0] is first[0], "the newest is kept in any case"


async def test_what_would_have_to_be_transcoded_is_a_conflict_and_what_is_not_there_is_not_found() -> None:
    there = tape(layout(), uuid7(), "a")
    for wanted in ("m4a", "mp3", "flac", "ogg", "wav"):
        with pytest.raises(Conflict) as refused:
            await Ropes().whole(there, "1", wanted)
        assert refused.value.code == "needs_transcoding"
    with pytest.raises(NotFound) as missing:
        await Ropes().whole(tape(layout(0), uuid7(), "a"), "1", None)
    assert missing.value.code == "nothing_to_play"
