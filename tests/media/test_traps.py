"""The traps of browsers' players, by the bytes: each test first shows the trap in what the browser sent, then its cure in what is served."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urljoin

import av
import pytest

from roomtape.testing import synthetic

from .studio import DATA, Part, Studio, Take, recorded

T0_MS = 1_795_247_000_000.0
TYPES = {b"moof", b"traf", b"moov", b"trak", b"mdia", b"minf", b"stbl"}


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, body from, body to) of each box, and of those inside."""
    stop = len(data) if stop is None else stop
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        yield kind, start + head, start + size
        if kind in TYPES:
            yield from boxes(data, start + head, start + size)
        start += size


@dataclass(frozen=True, slots=True)
class Sample:
    track: int
    time: int
    duration: int
    at: int
    size: int


def samples(fragment: bytes) -> list[Sample]:
    """Every sample of a fragment as its `moof` has it."""
    found: list[Sample] = []
    track = base = 0
    for kind, a, b in boxes(fragment):
        if kind == b"tfhd":
            flags, track = struct.unpack_from(">II", fragment, a)
            assert flags & 0x020000, "default-base-is-moof: offsets count from the fragment's begin"
            assert not flags & 0x38, "each sample says its own"
        elif kind == b"tfdt":
            base = struct.unpack_from(">Q" if fragment[a] else ">I", fragment, a + 4)[0]
        elif kind == b"trun":
            flags, count = struct.unpack_from(">II", fragment, a)
            assert flags & 0x301 == 0x301, "offset, durations, sizes"
            at, where = struct.unpack_from(">i", fragment, a + 8)[0], a + 12 + (4 if flags & 4 else 0)
            for _ in range(count):
                duration, size = struct.unpack_from(">II", fragment, where)
                found.append(Sample(track, base, duration, at, size))
                base, at, where = base + duration, at + size, where + 8 + (4 if flags & 0x400 else 0) + (4 if flags & 0x800 else 0)
            assert where <= b
    return found


@pytest.fixture(scope="module")
def restarted(studio: Studio) -> dict[str, Take]:
    return {name: studio.record(recorded(name)) for name in ("B-vp9", "B-mp4", "B-mp4-avc1", "B-vp8")}


def fragments(take: Take) -> list[bytes]:
    playlist = take.playlist()
    return [take.get(urljoin(playlist.url, entry.uri)).content for entry in playlist.entries]


def init(take: Take) -> bytes:
    playlist = take.playlist()
    return take.get(urljoin(playlist.url, playlist.entries[0].init)).content


def packets(path: Path, kind: str) -> list[tuple[float, float, bool]]:
    with av.open(str(path)) as media:
        stream = (media.streams.video if kind == "video" else media.streams.audio)[0]
        scale = float(stream.time_base or 0)
        return [((packet.pts or 0) * scale, (packet.duration or 0) * scale, packet.is_keyframe) for packet in media.demux(stream) if packet.size]


HLS = ["B-vp9", "B-mp4", "B-mp4-avc1"]


@pytest.mark.parametrize("name", HLS)
def test_fragment_follows_on_fragment_without_a_hole_in_either_track(name: str, restarted: dict[str, Take]) -> None:
    """Restarted recorders leave 30 to 140 ms of silence: a hole in the sound makes Media Source drop pictures up to the next key frame."""
    files = sorted((DATA / name).glob("0*"))
    first = [packets(path, "audio") for path in files[:2]]
    assert sum(length for _, length, _ in first[0]) < 3.98, "the trap: less sound than the 4.007 s from start to start"
    until: dict[int, int] = {}
    for fragment in fragments(restarted[name]):
        for sample in samples(fragment):
            assert until.setdefault(sample.track, sample.time) == sample.time
            assert sample.duration > 0
            until[sample.track] = sample.time + sample.duration
    assert len(until) == 2


@pytest.mark.parametrize("name", HLS)
def test_no_packet_of_sound_is_stretched_by_as_much_as_a_player_would_notice(name: str, restarted: dict[str, Take], folder: Path) -> None:
    heard = packets(restarted[name].hls_file(folder), "audio")
    assert max(length for _, length, _ in heard) <= 0.0625
    assert len(heard) > 6 * 66, "silent packets stand between the files"


@pytest.mark.parametrize("name", HLS)
def test_the_order_of_bytes_is_the_order_of_time(name: str, restarted: dict[str, Take]) -> None:
    """Samples of a track whose bytes are not in the order of their times: "Parsed buffers not in DTS sequence"."""
    for fragment in fragments(restarted[name]):
        for track in {sample.track for sample in samples(fragment)}:
            own = [sample for sample in samples(fragment) if sample.track == track]
            assert all(a.at + a.size <= b.at for a, b in pairwise(own))
        assert all(sample.at > 0 and sample.at + sample.size <= len(fragment) for sample in samples(fragment))


def level_of(data: bytes) -> int:
    return data[data.index(b"vpcC") + 4 + 4 + 1]


def test_the_level_of_vp9_is_said_and_the_master_names_the_codecs(restarted: dict[str, Take]) -> None:
    """Chromium says level 0; hls.js makes `vp09.00.00.08` of it, which Media Source refuses; without a master there are no CODECS at all."""
    assert level_of((DATA / "B-mp4" / "0000.mp4").read_bytes()) == 0, "the trap"
    for name in ("B-mp4", "B-vp9"):
        level = level_of(init(restarted[name]))
        assert level >= 10
        assert f'CODECS="vp09.00.{level:02d}.08,opus"' in restarted[name].playlist().master
    assert 'CODECS="avc1.42' in restarted["B-mp4-avc1"].playlist().master


def test_the_sound_begins_with_the_picture(restarted: dict[str, Take], folder: Path) -> None:
    """Chromium's sound begins 25 ms after its picture: Firefox and WebKit jump over the first 0.12 s."""
    own = DATA / "B-vp9" / "0000.webm"
    assert packets(own, "audio")[0][0] - packets(own, "video")[0][0] > 0.015, "the trap"
    for path in (restarted["B-vp9"].hls_file(folder), restarted["B-vp9"].download(folder), restarted["B-vp8"].download(folder)):
        assert packets(path, "audio")[0][0] == packets(path, "video")[0][0] == 0


def test_where_pictures_are_missing_the_next_is_a_key_frame(studio: Studio, restarted: dict[str, Take], folder: Path) -> None:
    """A hole of two frames in WebM and Chromium drops pictures up to the next key frame, 3 s later."""
    lost = synthetic.pictures(synthetic.numbered(0, 58))  # two frames short of two seconds: 67 ms more than there should be between files
    body = synthetic.webm(synthetic.opus(synthetic.sampled(synthetic.beeps(), 0.0, 2.0)), lost)
    whole = [Part(body, T0_MS), Part(synthetic.segment(2.0, 2.0), T0_MS + 2000), Part(synthetic.segment(4.0, 2.0), T0_MS + 4000)]
    for take in (studio.record(whole), restarted["B-vp8"]):
        shown = [one for _, path in take.stream_folder(folder) for one in packets(path, "video")]
        assert shown[0][2]
        for (before, _, _), (after, _, key) in pairwise(shown):
            assert after > before
            assert key or after - before < 2 / 30 - 0.001
        heard = [one for _, path in take.stream_folder(folder) for one in packets(path, "audio")]
        assert max(after - before for (before, _, _), (after, _, _) in pairwise(heard)) <= 0.063
