"""A whole track as one file: which containers can carry it untouched, and the rope that does."""

import asyncio
from collections import OrderedDict
from uuid import UUID

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.rope import Rope
from roomtape.media import clusters, mp4head
from roomtape.media.boxes import playable_as_mp4
from roomtape.media.index import Container, Stream
from roomtape.media.layout import Layout
from roomtape.tapes.layouts import Tape

_WEBM = frozenset({"vp8", "vp9", "av1", "opus"})
_KEPT = 32

FORMATS = ("mp4", "webm", "m4a", "mp3", "flac", "ogg", "wav")  # of the API; mp4 and webm can be there without transcoding
_Place = tuple[UUID, str, str]  # recording, track, format: the file of an older layout is of no more use


def streams_of(layout: Layout) -> list[Stream]:
    """Every set-up of every lane."""
    return [stream for lane in layout.placement.lanes if len(lane) for stream in lane.setups]


def has_hls(layout: Layout) -> bool:
    """Whether HLS and MP4 can be given without transcoding."""
    return layout.playable and playable_as_mp4(streams_of(layout))


def has_webm(layout: Layout) -> bool:
    """Whether the original is WebM of codecs that WebM players take."""
    return layout.playable and layout.placement.container is Container.WEBM and all(stream.codec in _WEBM for stream in streams_of(layout))


def fps(layout: Layout) -> float | None:
    """Pictures per second over the time in which there were any; held pictures count once."""
    for lane in layout.placement.lanes:
        if lane.kind == "video" and len(lane) > 1:
            span = int(lane.last["time_us"][0] - lane.blocks[0]["time_us"][0])
            return round((len(lane) - 1) * 1_000_000 / span, 3) if span > 0 else None
    return None


class Ropes:
    """Whole files of the layouts that were asked for last: an hour's head takes some ten milliseconds, a day's seconds, and a player asks for many ranges."""

    def __init__(self, *, most_bytes: int = 64 << 20) -> None:
        """`most_bytes`: of memory for what is kept; the newest is kept in any case."""
        self._most = most_bytes
        self._kept: OrderedDict[_Place, tuple[str, Rope]] = OrderedDict()
        self._making: dict[tuple[_Place, str], asyncio.Task[Rope]] = {}

    async def whole(self, tape: Tape, track: str, kind: str | None) -> tuple[Rope, str, str]:
        """The whole track as one file: the rope, its kind (mp4 or webm) and its ETag. NotFound `nothing_to_play`, Conflict `needs_transcoding`.

        It is made in a thread, once for all who ask at the same time.
        """
        layout = tape.layouts[track]
        made = kind or ("mp4" if has_hls(layout) else "webm")
        if not layout.playable:
            raise NotFound("There is nothing to play yet.", code="nothing_to_play")
        if not {"mp4": has_hls(layout), "webm": clusters.playable_as_webm(streams_of(layout))}.get(made):
            raise Conflict("This recording has to be transcoded for that, which this version does not do: take the format it has.", code="needs_transcoding")
        place, mark = (tape.recording.id, track, made), tape.marks[track]
        kept = self._kept.get(place)
        if kept is None or kept[0] != mark:
            kept = mark, await self._made(place, mark, tape, layout)
            self._keep(place, kept)
        else:
            self._kept.move_to_end(place)
        return kept[1], made, f"{mark}-{made}"

    async def _made(self, place: _Place, mark: str, tape: Tape, layout: Layout) -> Rope:
        task = self._making.get((place, mark))
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(_rope, tape, layout, place[2]))
            self._making[place, mark] = task
            task.add_done_callback(lambda _: self._making.pop((place, mark)))
        return await asyncio.shield(task)  # who goes away takes it from nobody

    def _keep(self, place: _Place, made: tuple[str, Rope]) -> None:
        self._kept[place] = made
        self._kept.move_to_end(place)
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or sum(rope.held for _, rope in self._kept.values()) > self._most):
            self._kept.popitem(last=False)


def _rope(tape: Tape, layout: Layout, made: str) -> Rope:
    if made == "mp4":
        return mp4head.progressive(layout.placement, created=tape.recording.started_at)
    return clusters.webm(layout.placement, live=False)
