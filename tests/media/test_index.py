"""The index against real Chromium recordings: every frame is found, however the bytes were cut."""

import io
import itertools
import json
import mmap
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from roomtape.core.model import Kind
from roomtape.media.index import Container, Index, Part, codec_string, index_cut, index_head, mime_type, pack, resync, sniff, unpack

DATA = Path(__file__).parents[1] / "data" / "chromium"
TRUTH: dict[str, dict[str, dict[str, Any]]] = json.loads((DATA / "truth.json").read_text())
CUT_SETS = ("A-vp8", "A-vp9", "A-webm-h264", "A-opus", "A-mp4", "A-mp4-avc1")
WHOLE_SETS = ("B-vp8", "B-vp9", "B-opus", "B-mp4", "B-mp4-avc1", "C-vp8-overlap")


def blobs(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / name).glob("0*.*"))]


def rows(index: Index, at: int = 0) -> list[tuple[int, ...]]:
    """(place in the file, stream, key, time, size): what must not depend on cutting."""
    samples = index.samples
    return list(zip(*((samples[name] + (at if name == "offset" else 0)).tolist() for name in ("offset", "stream", "key", "time_us", "size")), strict=True))


def by_cuts(parts: list[bytes]) -> tuple[list[tuple[int, ...]], list[Index]]:
    index, carry = index_head(parts[0])
    found, indexes, at = rows(index), [index], len(parts[0])
    for part in parts[1:]:
        index, carry = index_cut(part, carry)
        assert (index.samples["offset"] + index.samples["size"] <= len(part)).all()
        found += rows(index, at)
        indexes.append(index)
        at += len(part)
    return found, indexes


def frames(index: Index) -> int:
    video = [stream.number for stream in index.streams if stream.kind == Kind.VIDEO]
    return int(np.isin(index.samples["stream"], video).sum())


@pytest.mark.parametrize("name", CUT_SETS[:3] + CUT_SETS[4:])
def test_all_720_frames_of_a_cut_recording_are_found(name: str) -> None:
    index, _ = index_head(b"".join(blobs(name)))
    assert frames(index) == TRUTH[name]["joined"]["frames"] == 720
    assert index.samples["key"][index.samples["stream"] == 1].sum() == 8
    assert index.warning == ""


@pytest.mark.parametrize("name", [name for name in WHOLE_SETS if name != "B-opus"])
def test_each_restarted_file_has_the_frames_it_really_holds(name: str) -> None:
    for file, truth in TRUTH[name].items():
        index, _ = index_head((DATA / name / file).read_bytes())
        assert (frames(index), index.warning) == (truth["frames"], ""), file


def test_sound_alone_comes_in_whole_packets_of_sixty_milliseconds() -> None:
    for blob in blobs("B-opus"):
        index, _ = index_head(blob)
        assert len(index.samples) in (66, 67)
        assert set(index.samples["duration_us"].tolist()) == {60_000}
        assert mime_type(index) == 'audio/webm;codecs="opus"'


@pytest.mark.parametrize("name", CUT_SETS)
def test_byte_cuts_say_the_same_as_the_joined_bytes(name: str) -> None:
    parts = blobs(name)
    whole, _ = index_head(b"".join(parts))
    found, indexes = by_cuts(parts)
    assert found == rows(whole)
    assert [index.part for index in indexes] == [Part.HEAD, *[Part.CUT] * (len(parts) - 1)]
    assert indexes[-1].streams == whole.streams
    patches = np.concatenate([index.patches["offset"] + at for index, at in zip(indexes, itertools.accumulate(map(len, parts), initial=0), strict=False)])
    assert patches.tolist() == whole.patches["offset"].tolist()


def test_the_first_blob_of_a_chromium_mp4_has_streams_and_no_samples() -> None:
    index, _ = index_head(blobs("A-mp4")[0])
    assert len(index.samples) == 0
    assert [stream.codec for stream in index.streams] == ["vp9", "opus"]


@pytest.mark.parametrize("name", CUT_SETS)
def test_the_carry_of_a_real_cut_is_the_setup_and_an_unfinished_element(name: str) -> None:
    parts = blobs(name)
    _, carry = index_head(parts[0])
    for part in parts[1:]:
        again = index_cut(part, carry)
        _, carry = index_cut(part, carry)
        assert carry == again[1]  # the same bytes leave the same carry
        assert len(carry) < 512


def judged(data: bytes, form: str) -> dict[int, list[tuple[int, bool, bytes]]]:
    """What ffmpeg's demuxer says: per stream (pts, key, payload)."""
    found: dict[int, list[tuple[int, bool, bytes]]] = {}
    with av.open(io.BytesIO(data), format=form, options={"fflags": "+nofillin+noparse"}) as file:
        assert isinstance(file, av.container.InputContainer)
        for packet in file.demux():
            if packet.size and packet.pts is not None and packet.time_base is not None:
                at_us = round(packet.pts * packet.time_base * 1_000_000)
                found.setdefault(packet.stream.index, []).append((at_us, packet.is_keyframe, bytes(packet)))
    return found


@pytest.mark.parametrize("name", CUT_SETS + WHOLE_SETS)
def test_ffmpegs_demuxer_agrees_on_times_keys_and_payload_bytes(name: str) -> None:
    parts = blobs(name)
    for data in [b"".join(parts)] if name.startswith("A") else parts[:2]:
        index, _ = index_head(data)
        told = judged(data, "matroska" if index.container == Container.WEBM else "mp4")
        for number, stream in enumerate(index.streams):
            own = index.samples[index.samples["stream"] == stream.number]
            expected = told[number]
            assert len(own) == len(expected)
            for row, (at_us, key, payload) in zip(own, expected, strict=True):
                assert data[row["offset"] : row["offset"] + row["size"]] == payload
                assert bool(row["key"]) == key
                assert abs(int(row["time_us"]) + int(row["cts_us"]) - at_us) <= 1


@pytest.mark.parametrize("name", CUT_SETS)
@pytest.mark.parametrize("lost", [1, 3, 5])
def test_after_a_lost_cut_all_is_found_from_the_next_cluster_on(name: str, lost: int) -> None:
    parts = blobs(name)
    whole = rows(index_head(b"".join(parts))[0])
    _, carry = index_head(parts[0])
    for part in parts[1:lost]:
        _, carry = index_cut(part, carry)
    at, took = sum(map(len, parts[: lost + 1])), None
    found: list[tuple[int, ...]] = []
    for part in parts[lost + 1 :]:
        took = resync(part, carry) if took is None else index_cut(part, took[1])
        if took is not None:
            assert took[0].warning == ""
            found += rows(took[0], at)
        at += len(part)
    assert found == whole[-len(found) :]
    begins = sum(map(len, parts[: lost + 1]))
    marks = (b"\x1f\x43\xb6\x75",) if name.find("mp4") < 0 else (b"moof",)
    first = min(b"".join(parts).find(mark, begins) for mark in marks)
    assert found == [row for row in whole if row[0] > first]


def test_without_its_first_cut_a_file_has_no_samples_and_says_so() -> None:
    for name in CUT_SETS:
        index, carry = index_head(blobs(name)[1])
        assert len(index.samples) == 0
        if name != "A-mp4" and name != "A-mp4-avc1":
            assert index.warning
        assert resync(blobs(name)[2], carry) is None
        assert len(index_cut(blobs(name)[2], carry)[0].samples) == 0


def test_a_hole_without_any_cluster_in_it_is_nothing_found() -> None:
    parts = blobs("A-vp8")
    _, carry = index_head(parts[0])
    assert resync(parts[4][:5000].replace(b"\x1f\x43\xb6\x75", b"\0\0\0\0"), carry) is None
    assert resync(b"", carry) is None


def test_chromiums_matroska_h264_becomes_avc_in_place() -> None:
    data = b"".join(blobs("A-webm-h264"))
    index, _ = index_head(data)
    video = index.streams[0]
    assert (video.codec, video.annexb, video.width, video.height, codec_string(video)) == ("h264", True, 640, 360, "avc1.42C01F")
    patched = bytearray(data)
    for at, value in index.patches.tolist():
        assert patched[at : at + 4] == b"\0\0\0\1"
        patched[at : at + 4] = value.to_bytes(4, "big")
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = video.setup
    pictures = 0
    for row in index.samples[index.samples["stream"] == video.number]:
        at, end = int(row["offset"]), int(row["offset"]) + int(row["size"])
        while at < end:  # the lengths fill each frame to its last byte
            at += 4 + int.from_bytes(patched[at : at + 4], "big")
        assert at == end
        pictures += len(decoder.decode(av.Packet(bytes(patched[int(row["offset"]) : end]))))
    assert pictures + len(decoder.decode(None)) == 720


def test_set_up_is_in_one_form_whatever_the_container() -> None:
    webm, mp4 = index_head(blobs("B-vp9")[0])[0], index_head(blobs("B-mp4")[0])[0]
    assert [codec_string(stream) for stream in webm.streams] == [codec_string(stream) for stream in mp4.streams] == ["vp09.00.31.08", "opus"]
    assert webm.streams[1].setup[:10] == mp4.streams[1].setup[:10] == b"OpusHead\x01\x02"
    assert mime_type(mp4) == 'video/mp4;codecs="vp09.00.31.08,opus"'
    assert mime_type(index_head(blobs("B-vp8")[0])[0]) == 'video/webm;codecs="vp8,opus"'
    assert mime_type(index_head(blobs("B-mp4-avc1")[0])[0]) == 'video/mp4;codecs="avc1.42C01F,opus"'
    assert mime_type(index_head(blobs("A-webm-h264")[0])[0]) == 'video/x-matroska;codecs="avc1.42C01F,opus"'


@pytest.mark.parametrize("name", CUT_SETS + WHOLE_SETS)
def test_a_packed_index_comes_back_equal_and_is_small(name: str) -> None:
    index, carry = index_head(blobs(name)[0])
    for one in (index, index_cut(blobs(name)[1], carry)[0]):
        blob = pack(one)
        back = unpack(blob)
        assert (back.container, back.part, back.streams, back.warning) == (one.container, one.part, one.streams, one.warning)
        assert back.samples.tobytes() == one.samples.tobytes()
        assert back.patches.tobytes() == one.patches.tobytes()
        assert len(blob) <= 2048


def test_bytes_that_are_no_packed_index_are_refused() -> None:
    blob = pack(index_head(blobs("B-vp8")[0])[0])
    for bad in (b"", b"\x07" + blob[1:], blob[:-20], blob[:30], bytes(64)):
        with pytest.raises(ValueError, match="not a packed index"):
            unpack(bad)


def test_mmap_memoryview_and_bytes_give_the_same() -> None:
    for name in ("B-vp8", "B-mp4", "A-webm-h264"):
        path = min((DATA / name).glob("0*.*"))
        plain = index_head(path.read_bytes())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for data in (mapped, memoryview(path.read_bytes()), bytearray(path.read_bytes())):
                index, carry = index_head(data)
                assert carry == plain[1]
                assert pack(index) == pack(plain[0])


def test_sniffing_knows_heads_from_cuts() -> None:
    assert sniff(blobs("A-vp8")[0][:64]) == Container.WEBM
    assert sniff(blobs("A-mp4")[0][:64]) == Container.MP4
    assert [sniff(blob[:64]) for blob in (*blobs("A-vp8")[1:], *blobs("A-mp4")[1:])] == [None] * 18
    assert sniff(b"") is None


def test_a_foreign_carry_is_refused_with_a_warning() -> None:
    _, carry = index_head(blobs("A-vp8")[0])
    for bad in (b"", b"x" * 40, carry[:-1], carry[:20] + b"!" + carry[21:]):
        index, left = index_cut(blobs("A-vp8")[1], bad)
        assert (len(index.samples), index.warning, left) == (0, "carry@0", bad)
        assert resync(blobs("A-vp8")[1], bad) is None


def test_a_sparse_file_is_walked_without_reading_it_into_memory() -> None:
    """A Void of 4 GiB in front of the clusters: passed by its size."""
    blob = blobs("B-vp8")[0]
    at = blob.find(b"\x1f\x43\xb6\x75", 300)
    with tempfile.TemporaryFile() as file:
        file.write(blob[:at] + b"\xec\x04" + (1 << 32).to_bytes(5, "big"))
        file.seek((1 << 32) + at + 7)
        file.write(blob[at:])
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            index, _ = index_head(mapped)
    assert (frames(index), index.warning) == (120, "")
    assert index.samples["offset"].min() > 1 << 32
