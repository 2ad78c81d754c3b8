"""A whole track as one file: which containers can carry it untouched, and the rope that does."""

from collections import OrderedDict

from roomtape.core.errors import NotFound
from roomtape.core.rope import Rope
from roomtape.media import clusters, mp4head
from roomtape.media.boxes import playable_as_mp4
from roomtape.media.index import Container, Stream
from roomtape.media.layout import Layout
from roomtape.tapes.layouts import Tape

_WEBM = frozenset({"vp8", "vp9", "av1", "opus"})
_KEPT = 32


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
    """Whole files of the newest asked-for layouts: an hour's head takes some ten milliseconds, a player asks for many ranges of it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Rope] = OrderedDict()

    def whole(self, tape: Tape, track: str, kind: str | None) -> tuple[Rope, str, str]:
        """The whole track as one file: the rope, its kind (mp4 or webm) and its ETag. NotFound `needs_transcoding`."""
        layout = tape.layouts[track]
        made = kind or ("mp4" if has_hls(layout) else "webm")
        if not layout.playable or (made == "mp4" and not has_hls(layout)) or not (made == "mp4" or clusters.playable_as_webm(streams_of(layout))):
            raise NotFound("This recording is not there in that format without transcoding.", code="needs_transcoding")
        place = (tape.marks[track], made)
        if place not in self._kept:
            placement = layout.placement
            self._kept[place] = mp4head.progressive(placement, created=tape.recording.started_at) if made == "mp4" else clusters.webm(placement, live=False)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place], made, f"{place[0]}-{made}"


def _rope(tape: Tape, layout: Layout, made: str) -> Rope:
    if made == "mp4":
        return mp4head.progressive(layout.placement, created=tape.recording.started_at)
    return clusters.webm(layout.placement, live=False)
