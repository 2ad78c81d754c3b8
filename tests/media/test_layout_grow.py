"""A layout that grows with the segments is the layout of the whole; what it costs is what is new."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtape.core.model import Kind
from roomtape.media.layout import Layout, Taken, TrackFacts, grow, lay_out
from roomtape.media.sample import PATCH, SAMPLE, Container, Index, Part, Stream

S = 1_000_000
NOW = 1_795_247_000 * S
LIVE = TrackFacts("1", origin_us=NOW)
SIZE = 100_000


def streams_of(*, picture: bool, sound: bool, other: bool = False, aac: bool = False) -> tuple[Stream, ...]:
    heard = Stream(2, Kind.AUDIO, "aac", b"\x11\x90", channels=2, rate=48_000) if aac else Stream(2, Kind.AUDIO, "opus", b"OpusHead", channels=2, rate=48_000)
    seen = Stream(1, Kind.VIDEO, "h264", b"other" if other else b"avcC", 640, 360)
    return tuple(stream for stream, there in ((seen, picture), (heard, sound)) if there)


@st.composite
def recordings(draw: st.DrawFn) -> list[Taken]:
    """Files of one or more byte cuts each: overlaps, holes, jitter, the camera or the microphone off, other set-ups, clocks that lie."""
    chance = draw(st.randoms(use_true_random=False))
    found: list[Taken] = []
    at, packet = 0, draw(st.sampled_from([20_000, 60_000]))
    pitch = draw(st.sampled_from([S, 2 * S, 4 * S]))
    for _ in range(draw(st.integers(1, 9))):
        cuts = draw(st.sampled_from([1, 1, 1, 2, 6, 14]))
        has = draw(st.sampled_from(["both", "both", "both", "sound", "picture"]))
        streams = streams_of(picture=has != "sound", sound=has != "picture", other=draw(st.booleans()))
        every, lag = draw(st.sampled_from([15, 45, 100])), draw(st.sampled_from([0, 0, 25_000, 300_000]))
        quiet = draw(st.sampled_from([0, 0, 0, 3 * S]))  # the camera stands still, or the tab sleeps
        stated = draw(st.sampled_from([at, at, at, None, at + 40_000]))
        times = [n * 33_000 + chance.randrange(0, 9_000) for n in range(cuts * pitch // 33_000)]
        frames = [(time + (quiet if time > S else 0), 1, n % every == 0, 0) for n, time in enumerate(times)] if has != "sound" else []
        both = draw(st.booleans())
        packets = [
            (lag + n * packet + chance.randrange(0, 1_500) + (quiet if both and n * packet > S else 0), 2, True, packet) for n in range(cuts * pitch // packet)
        ]
        samples = sorted([*frames, *(packets if has != "picture" else [])])
        edges = [n * len(samples) // cuts for n in range(cuts)] + [len(samples)]
        for n in range(cuts):
            index = index_of(samples[edges[n] : edges[n + 1]], streams if not n else (), part=Part.CUT if n else Part.HEAD)
            found.append(Taken(len(found) + 1, f"k{len(found) + 1}", SIZE, NOW + stated if stated is not None and not n else None, index, len(found) + 1))
        at = max(0, at + cuts * pitch + quiet + draw(st.sampled_from([0, 0, 7_000, 40_000, 400_000, -60_000, -175_000, -900_000, 5 * S, -3 * S])))
    return found


def index_of(samples: Sequence[tuple[int, int, bool, int]], streams: tuple[Stream, ...], *, part: Part) -> Index:
    held, patches = np.zeros(len(samples), SAMPLE), np.zeros(len(samples), PATCH)
    for number, (time, stream, key, duration) in enumerate(samples):
        held[number] = (stream, key, time, 0, duration, 10 + 100 * number, 100)
        patches[number] = (10 + 100 * number, 96)
    return Index(Container.WEBM, part, streams, held, patches[held["stream"] == 1])


def assert_same(one: Layout, two: Layout) -> None:
    assert (one.start_us, one.end_us, one.settled_us, one.maps, one.newest) == (two.start_us, two.end_us, two.settled_us, two.maps, two.newest)
    assert one.windows == two.windows
    assert one.late == two.late
    assert one.off_grid == two.off_grid
    assert one.gaps == two.gaps
    assert one.spans == two.spans
    assert one.placement.container is two.placement.container
    assert one.placement.chunks.keys == two.placement.chunks.keys
    assert np.array_equal(one.placement.chunks.starts, two.placement.chunks.starts)
    assert np.array_equal(one.placement.chunks.patches, two.placement.chunks.patches)
    assert [(lane.kind, lane.setups, lane.literals) for lane in one.placement.lanes] == [
        (lane.kind, lane.setups, lane.literals) for lane in two.placement.lanes
    ]
    for a, b in zip(one.placement.lanes, two.placement.lanes, strict=True):
        assert np.array_equal(a.rows, b.rows)


@settings(max_examples=150, deadline=None)
@given(segments=recordings())
def test_growing_segment_by_segment_and_closing_gives_the_layout_of_the_whole(segments: list[Taken]) -> None:
    layout = None
    for count in range(1, len(segments) + 1):
        facts = replace(LIVE, close_seq=count)
        layout = grow(layout, facts, segments[:count])
        assert_same(layout, lay_out(facts, segments[:count]))
    closed = replace(LIVE, closed=True, close_seq=len(segments) + 1, last_index=len(segments))
    assert_same(grow(layout, closed, segments), lay_out(closed, segments))


@settings(max_examples=60, deadline=None)
@given(segments=recordings(), chance=st.randoms(use_true_random=False))
def test_growing_in_any_order_of_arrival_gives_the_layout_of_the_whole(segments: list[Taken], chance: random.Random) -> None:
    arrivals = sorted(segments, key=lambda one: one.index + chance.choice((0, 0, 0, 1.5, 4)))
    layout, here = None, list[Taken]()
    for commit, one in enumerate(arrivals, 1):
        here = sorted([*here, replace(one, commit_seq=commit)], key=lambda one: one.index)
        layout = grow(layout, LIVE, here)
        assert_same(layout, lay_out(LIVE, here))
    closed = replace(LIVE, closed=True, close_seq=len(segments) + 1)
    assert_same(grow(layout, closed, here), lay_out(closed, here))
