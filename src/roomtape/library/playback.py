"""What players are given: playlists and ropes, generated from a tape's layouts over bytes that stay as they are."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import numpy as np

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.model import Kind
from roomtape.core.rope import Literal, Rope
from roomtape.media import clusters, cmaf, playlist
from roomtape.media.index import Stream, codec_string
from roomtape.media.layout import Layout, Window
from roomtape.media.placed import Placement
from roomtape.tapes.layouts import Tape
from roomtape.tapes.whole import has_hls, has_webm

TARGET_US = 6_000_000
_SAMPLE_OVERHEAD = 20  # bytes of moof a sample costs, about


def track_of(tape: Tape, track_id: str | None) -> str:
    """The track that is asked for, else the one that stands for the whole. NotFound when there is nothing to play."""
    name = track_id if track_id is not None else tape.main()
    if name is None or name not in tape.layouts:
        raise NotFound("There is nothing to play yet.", code="nothing_to_play")
    return name


def urls(tape: Tape, base: str, track_id: str | None) -> dict[str, str | None]:
    """The URLs below `base`; None while the codec does not allow it, or nothing has come."""
    asked = f"?track_id={quote(track_id)}" if track_id is not None else ""
    name = track_id if track_id is not None else tape.main()
    layout = tape.layouts.get(name) if name is not None else None
    mp4, webm = layout is not None and has_hls(layout), layout is not None and has_webm(layout)
    more = asked.replace("?", "&")
    return {
        "hls_url": f"{base}/hls/master.m3u8{asked}" if mp4 else None,
        "stream_url": f"{base}/stream.json",
        "mp4_url": f"{base}/download?format=mp4&inline=1{more}" if mp4 else None,
        "webm_url": f"{base}/download?format=webm&inline=1{more}" if webm else None,
    }


def master(tape: Tape, track: str) -> str:
    """The master playlist of a track. NotFound `nothing_to_play`; Conflict `needs_transcoding` where HLS cannot carry its codec."""
    layout = _for_hls(tape, track)
    picture = next((stream for stream in layout.newest if stream.kind is Kind.VIDEO), None)
    windows = [playlist.Window("", window.start_us, window.stop_us, "", window.gap) for window in layout.windows]
    variant = playlist.Variant(
        uri=f"{quote(track, safe='')}/media.m3u8",
        codecs=[codec_string(stream) for stream in layout.newest],
        bandwidth=max(playlist.bandwidth(sizes(layout), windows), 1),
        width=picture.width if picture else 0,
        height=picture.height if picture else 0,
    )
    return playlist.master([variant])


def _for_hls(tape: Tape, track: str) -> Layout:
    layout = tape.layouts[track]
    if not layout.playable:
        raise NotFound("There is nothing to play yet.", code="nothing_to_play")
    if not has_hls(layout):
        raise Conflict("This recording's codec has no place in HLS without transcoding.", code="needs_transcoding")
    return layout


def sizes(layout: Layout) -> list[int]:
    """Bytes of each window, as they will be sent but for junk between samples."""
    total = np.zeros(len(layout.windows), np.int64)
    starts = np.array([window.start_us for window in layout.windows], np.int64)
    stops = np.array([window.stop_us for window in layout.windows], np.int64)
    for lane in layout.placement.lanes:
        sums = np.concatenate(([0], np.cumsum(lane.rows["size"].astype(np.int64) + _SAMPLE_OVERHEAD)))
        times = lane.rows["time_us"]
        total += sums[np.searchsorted(times, stops)] - sums[np.searchsorted(times, starts)]
    return [int(size) for size in total]


def media_playlist(tape: Tape, track: str) -> str:
    """The media playlist: it grows while the recording runs and ends with it."""
    layout = _for_hls(tape, track)
    windows = [
        playlist.Window(f"{window.start_us}-{window.stop_us}.m4s", window.start_us, window.stop_us, f"init-{window.setup}.mp4", window.gap)
        for window in layout.windows
    ]
    origin_us = tape.facts[track].origin_us
    begun = datetime.fromtimestamp(origin_us // 1_000_000, UTC) + timedelta(microseconds=origin_us % 1_000_000) if origin_us else None
    return playlist.media(windows, ended=tape.ended, target_us=TARGET_US, begun=begun)


def init(tape: Tape, track: str, setup: int) -> bytes:
    """The set-up of a kind of window. NotFound."""
    maps = tape.layouts[track].maps
    if not 0 <= setup < len(maps):
        raise NotFound
    return cmaf.init([stream for stream in maps[setup] if stream is not None])


def fragment(tape: Tape, track: str, start_us: int, stop_us: int) -> Rope:
    """An HLS fragment: the window from start to stop. NotFound when no sample is in it."""
    layout = tape.layouts[track]
    window = _window(layout, start_us, stop_us)
    rope = cmaf.fragment(_lanes_of(layout, window), start_us, stop_us, start_us // 1000 + 1)
    if not rope.size:
        raise NotFound
    return rope


def _window(layout: Layout, start_us: int, stop_us: int) -> Window:
    """A window that is listed, or was a moment ago: when segments still come after stop the tail is cut anew, and who has the end of a playlist never asks again.

    Those lie inside of what is listed and are no longer than its longest. NotFound for anything else.
    """
    listed = [window for window in (*layout.windows, *layout.late) if not window.gap]
    longest_us = max([TARGET_US, *(window.stop_us - window.start_us for window in listed)])
    if start_us < stop_us <= min(start_us + longest_us, layout.end_us):
        for window in listed:
            if window.start_us <= start_us < window.stop_us:
                return replace(window, start_us=start_us, stop_us=stop_us)
    raise NotFound


def _lanes_of(layout: Layout, window: Window) -> Placement:
    """Only the lanes that the window's set-up has: a player waits for ever for a track that an init promises."""
    kinds = {stream.kind for stream in layout.maps[window.setup] if stream is not None}
    return replace(layout.placement, lanes=tuple(lane for lane in layout.placement.lanes if lane.kind in kinds))


def piece(tape: Tape, track: str, start_us: int, stop_us: int) -> tuple[Rope, str]:
    """A window that Media Source takes on its own, and its type."""
    layout = tape.layouts[track]
    window = _window(layout, start_us, stop_us)
    placement = _lanes_of(layout, window)
    if has_webm(layout):
        rope, kind = clusters.webm(placement, start_us, stop_us, live=True), "webm"
    else:
        head = init(tape, track, window.setup)
        body = cmaf.fragment(placement, start_us, stop_us, start_us // 1000 + 1)
        rope, kind = Rope.of([Literal(head), *body.pieces]) if body.size else body, "mp4"
    if not rope.size:
        raise NotFound
    return rope, kind


def stream(tape: Tape, base: str, after: int) -> dict[str, Any]:
    """stream.json: the windows that became settled after `after`, in the order of time within a track."""
    tracks, newest = [], after
    for track in tape.tracks:
        layout = tape.layouts[track.id]
        if not (has_webm(layout) or has_hls(layout)):
            continue
        suffix = "webm" if has_webm(layout) else "mp4"
        windows = [window for window in (*layout.windows, *layout.late) if not window.gap]
        newest = max([newest, *(window.seq for window in windows)])
        ranges = [
            {
                "start_us": window.start_us,
                "duration_us": window.stop_us - window.start_us,
                "url": f"{base}/stream/{quote(track.id, safe='')}/{window.start_us}-{window.stop_us}.{suffix}",
                "offset_us": 0,
                "mime_type": _mime(suffix, layout.maps[window.setup]),
            }
            for window in windows
            if window.seq > after
        ]
        kind = Kind.VIDEO if layout.has_picture else Kind.AUDIO
        tracks.append(
            {
                "id": track.id,
                "participant_id": track.participant_id,
                "kind": kind.value,
                "source": track.source,
                "mime_type": _mime(suffix, layout.newest),
                "ranges": ranges,
            }
        )
    return {"tracks": tracks, "next": newest, "ended": tape.ended}


def _mime(suffix: str, streams: Sequence[Stream | None]) -> str:
    there = [stream for stream in streams if stream is not None]
    kind = "video" if any(stream.kind is Kind.VIDEO for stream in there) else "audio"
    return f'{kind}/{suffix};codecs="{",".join(codec_string(stream) for stream in there)}"'


def media_type(made: str, layout: Layout) -> str:
    """Content-Type of a whole file."""
    return f"{'video' if layout.has_picture else 'audio'}/{made}"
