"""Any cutting of a file gives the same samples; any damage gives fewer, never an exception, an endless loop or a place outside the bytes."""

import io
import itertools
import random
import subprocess
import time
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roomtape.media.index import PATCH, SAMPLE, Index, index_cut, index_head, pack, resync, unpack

DATA = Path(__file__).parents[1] / "data" / "chromium"
SETS = ("A-vp8", "A-webm-h264", "A-opus", "A-mp4", "A-mp4-avc1", "B-vp9", "B-mp4")
LIMIT_S = 2.0  # for one small damaged file, on a busy machine; sound ones take a thousandth


def joined(name: str, most: int = 200_000) -> bytes:
    paths = sorted((DATA / name).glob("0*.*"))
    return (b"".join(path.read_bytes() for path in paths) if name.startswith("A") else paths[0].read_bytes())[:most]


def remuxed(name: str, form: str) -> bytes:
    """The packets of a set's first file as ffmpeg's muxer wraps them: a plain MP4 with its moov at the end, a Matroska file with cues."""
    out = io.BytesIO()
    with av.open(io.BytesIO(joined(name))) as source, av.open(out, "w", format=form) as file:
        assert isinstance(source, av.container.InputContainer)
        streams = {stream.index: file.add_stream_from_template(stream) for stream in source.streams if isinstance(stream, (av.VideoStream, av.AudioStream))}
        for packet in source.demux():
            if packet.dts is not None and packet.pts is not None and packet.pts < 60_000:
                packet.stream = streams[packet.stream_index]
                file.mux(packet)
    return out.getvalue()


FILES = {name: joined(name) for name in SETS}
MADE = {"plain mp4": remuxed("B-mp4-avc1", "mp4"), "matroska": remuxed("B-vp9", "matroska")}
TINY = {name: data[:9_000] for name, data in FILES.items()}


def rows(index: Index, at: int = 0) -> list[tuple[int, ...]]:
    samples = index.samples
    return list(zip(*((samples[name] + (at if name == "offset" else 0)).tolist() for name in ("offset", "stream", "key", "time_us", "size")), strict=True))


def patches(index: Index, at: int = 0) -> list[tuple[int, int]]:
    return [(int(place) + at, int(value)) for place, value in index.patches.tolist()]


def recut(data: bytes, cuts: list[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]], Index]:
    edges = sorted({0, *cuts, len(data)})
    index, carry = index_head(data[: edges[1]])
    found, patched = rows(index), patches(index)
    for start, end in itertools.pairwise(edges[1:]):
        index, carry = index_cut(data[start:end], carry)
        assert len(carry) < 100_000
        found += rows(index, start)
        patched += patches(index, start)
    return found, patched, index


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_cutting_gives_the_same_samples(name: str, data: st.DataObject) -> None:
    whole = FILES[name]
    cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), min_size=1, max_size=30))
    index, _ = index_head(whole)
    found, patched, last = recut(whole, cuts)
    assert found == rows(index)
    assert patched == patches(index)
    assert last.streams == index.streams
    assert last.warning == index.warning == ""


@pytest.mark.parametrize("name", SETS)
def test_cuts_of_one_byte_give_the_same_samples(name: str) -> None:
    whole = TINY[name]
    found, patched, last = recut(whole, list(range(1, len(whole))))
    index, _ = index_head(whole)
    assert found == rows(index)
    assert patched == patches(index)
    assert last.streams == index.streams


@pytest.mark.parametrize("name", SETS)
def test_empty_cuts_change_nothing(name: str) -> None:
    whole = FILES[name]
    _, carry = index_head(whole[:50_001])
    index, again = index_cut(b"", carry)
    assert (len(index.samples), again) == (0, carry)


def lies_within(index: Index, first: int, end: int) -> None:
    """Every sample and patch lies in first ≤ n < end, as places in the segment."""
    samples = index.samples
    assert samples.dtype == SAMPLE
    assert index.patches.dtype == PATCH
    assert (samples["offset"] >= first).all()
    assert (samples["offset"] + samples["size"] <= end).all()
    assert (samples["size"] > 0).all()
    assert (index.patches["offset"] >= first).all()
    assert (index.patches["offset"] + 4 + index.patches["value"] <= end).all()
    assert set(samples["stream"].tolist()) <= {stream.number for stream in index.streams}
    back = unpack(pack(index))
    assert back.samples.tobytes() == samples.tobytes()
    assert back.streams == index.streams


def survive(data: bytes, middle: int) -> None:
    started = time.monotonic()
    index, carry = index_head(data)
    lies_within(index, 0, len(data))
    half, carry = index_head(data[:middle])
    lies_within(half, 0, middle)
    rest, _ = index_cut(data[middle:], carry)
    lies_within(rest, -middle, len(data) - middle)
    taken = resync(data[middle:], carry)
    if taken:
        lies_within(taken[0], 0, len(data) - middle)
    assert time.monotonic() - started < LIMIT_S


@pytest.mark.parametrize("name", SETS)
def test_seeded_damage_is_survived(name: str) -> None:
    assault(FILES[name][:60_000], random.Random(name), 700)


@pytest.mark.parametrize("name", sorted(MADE))
def test_seeded_damage_of_other_writers_files_is_survived(name: str) -> None:
    assault(MADE[name], random.Random(name), 400)


def assault(source: bytes, rng: random.Random, times: int) -> None:
    for _ in range(times):
        data = bytearray(source)
        for _ in range(rng.choice((1, 3, 30))):
            # headers are hit more often than payload
            place = rng.randrange(rng.choice((200, 1400, len(data)))) if rng.random() < 0.7 else len(data) - rng.randrange(1, 5_000)
            data[place] = rng.choice((0, 1, 0xFF, 0x7F, rng.randrange(256), data[place] ^ 1 << rng.randrange(8)))
        if rng.random() < 0.5:
            start = rng.randrange(len(data))
            del data[start : start + rng.choice((1, 7, 900))]
        survive(bytes(data[: rng.randrange(1, len(data))] if rng.random() < 0.3 else data), rng.randrange(1, len(data)))


@pytest.mark.parametrize("name", ["A-webm-h264", "A-mp4", "B-mp4"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(st.tuples(st.integers(0, 8_999), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6), middle=st.integers(1, 8_900))
def test_found_damage_is_survived(name: str, edits: list[tuple[int, bytes]], middle: int) -> None:
    data = bytearray(TINY[name])
    for place, patch in edits:
        data[place : place + len(patch)] = patch
    survive(bytes(data), middle)


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from((b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\x14ftypisom\0\0\0\0isom", b"\0\0\0\x08ftyp")),
    tail=st.binary(max_size=600),
    middle=st.integers(0, 600),
)
def test_any_bytes_are_survived(head: bytes, tail: bytes, middle: int) -> None:
    survive(head + tail, min(middle, len(head + tail)))


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


@pytest.mark.parametrize("size", [0, 1])
def test_runs_that_claim_four_billion_samples_cost_nothing(size: int) -> None:
    """A trun without fields of its own takes 20 bytes and may claim any count; 2,000 of them follow."""
    head = FILES["B-mp4"][: FILES["B-mp4"].find(b"moof") - 4]
    trun = box(b"trun", (1).to_bytes(4, "big"), b"\xff" * 4, (0).to_bytes(4, "big"))
    tfhd = box(b"tfhd", (0x020018).to_bytes(4, "big"), (1).to_bytes(4, "big"), (1).to_bytes(4, "big"), size.to_bytes(4, "big"))
    traf = box(b"traf", tfhd, box(b"tfdt", bytes(8)), trun * 2000)
    started = time.monotonic()
    index, carry = index_head(head + box(b"moof", box(b"mfhd", bytes(8)), traf) + box(b"mdat", bytes(64)))
    assert "trun@" in index.warning
    assert time.monotonic() - started < LIMIT_S
    assert len(carry) < 1 << 24
    lies_within(index, 0, len(head) + 100_000)


def test_two_kilobytes_do_not_make_a_million_rows() -> None:
    head = FILES["B-mp4"][: FILES["B-mp4"].find(b"moof") - 4]
    trun = box(b"trun", (1).to_bytes(4, "big"), b"\xff" * 4, (0).to_bytes(4, "big"))
    tfhd = box(b"tfhd", (0x020018).to_bytes(4, "big"), (1).to_bytes(4, "big"), (1).to_bytes(4, "big"), (1).to_bytes(4, "big"))
    moof = box(b"moof", box(b"mfhd", bytes(8)), box(b"traf", tfhd, box(b"tfdt", bytes(8)), trun))
    index, carry = index_head(head + moof + box(b"mdat", bytes(1000)))
    assert "trun@" in index.warning
    assert len(carry) < 100_000  # what waits is unpacked again for each cut that follows
    assert len(index.samples) < 2000


@pytest.mark.parametrize("junk", [b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", b"hello, this is no media at all", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_junk_behind_a_whole_mp4_is_said_to_be_no_media(junk: bytes) -> None:
    _, carry = index_head((DATA / "B-mp4" / "0000.mp4").read_bytes())
    for _ in range(3):
        index, carry = index_cut(junk, carry)
        assert index.warning


def test_equal_rows_of_a_table_in_front_are_all_there_however_the_file_is_cut(tmp_path: Path) -> None:
    """A constant bit rate: 816 bytes of moov describe 90,000 packets."""
    path = tmp_path / "cbr.mp4"
    sound = ["-f", "lavfi", "-i", "sine=d=600", "-c:a", "libopus", "-vbr", "off", "-b:a", "16k", "-movflags", "faststart"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *sound, str(path)], check=True)
    data = path.read_bytes()
    index, carry = index_head(data[:5_000])
    found = len(index.samples)
    for at in range(5_000, len(data), 64_000):
        index, carry = index_cut(data[at : at + 64_000], carry)
        found += len(index.samples)
    assert found == len(index_head(data)[0].samples) == 30_001


@pytest.mark.parametrize("name", SETS)
def test_a_million_tiny_elements_are_walked_in_time(name: str) -> None:
    filler = b"\0\0\0\x08free" if "mp4" in name else b"\xec\x80"
    started = time.monotonic()
    data = FILES[name][:2_000] + filler * 200_000
    lies_within(index_head(data)[0], 0, len(data))
    assert time.monotonic() - started < LIMIT_S


@pytest.mark.parametrize("mark", [b"\x1f\x43\xb6\x75\x80\xe7\x89", b"\0\0\0\x18moof\0\0\0\x10mfhd" + bytes(8) + b"\0\0\0\1\xff\xff\xff\xff"])
def test_false_finds_close_together_are_passed_in_time(mark: bytes) -> None:
    started = time.monotonic()
    data = FILES["A-mp4" if b"moof" in mark else "A-vp8"][:1_199] + mark * 60_000
    lies_within(index_head(data)[0], 0, len(data))
    assert time.monotonic() - started < LIMIT_S


def test_what_follows_damage_is_found_again_at_the_next_cluster() -> None:
    whole = joined("A-vp8", 1 << 30)
    sound = rows(index_head(whole)[0])
    hurt = bytearray(whole)
    place = sound[200][0] - 8  # inside the header of a block, or of what stands before it
    hurt[place : place + 6] = b"\0" * 6
    index, _ = index_head(bytes(hurt))
    found = rows(index)
    assert index.warning.startswith("element@")
    assert set(found) <= set(sound)
    assert found[:199] == sound[:199]
    assert found[-400:] == sound[-400:]
    assert len(found) > len(sound) - 120


def test_what_follows_damage_is_found_again_at_the_next_moof() -> None:
    whole = joined("A-mp4", 1 << 30)
    sound = rows(index_head(whole)[0])
    hurt = bytearray(whole)
    third = [at for at in range(len(whole)) if whole.startswith(b"moof", at)][2]
    hurt[third - 4 : third + 4] = b"\0\0\0\1\xff\0\0\0"
    index, _ = index_head(bytes(hurt))
    found = rows(index)
    assert index.warning.startswith("box@")
    assert set(found) < set(sound)
    assert found[-100:] == sound[-100:]
    assert len(found) > len(sound) - 200
