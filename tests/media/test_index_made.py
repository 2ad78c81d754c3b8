"""The index against files of other writers: ffmpeg's muxers by PyAV, and bytes made by hand where no muxer writes the form."""

import io
import itertools
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from roomtape.core.model import Kind
from roomtape.media.index import Container, Index, codec_string, index_cut, index_head, mime_type
from roomtape.media.isobmff import boxes

RATE = 48_000


def made(form: str, video: str = "", audio: str = "", seconds: float = 2.0, options: dict[str, str] | None = None, tune: dict[str, str] | None = None) -> bytes:
    """A moving grey ramp at 25 pictures a second and a tone, as ffmpeg writes them."""
    out = tempfile.NamedTemporaryFile()  # noqa: SIM115  faststart opens it a second time by its name
    with out, av.open(out.name, "w", format=form, options=options or {}) as file:
        picture = sound = None
        if video:
            picture = file.add_stream(video, rate=25, options=tune or {})
            assert isinstance(picture, av.VideoStream)
            picture.width, picture.height, picture.pix_fmt = 320, 180, "yuv420p"
        if audio:
            sound = file.add_stream(audio, rate=RATE)
            assert isinstance(sound, av.AudioStream)
            sound.layout = "stereo"
        for number in [*range(int(seconds * 25)), None]:
            if isinstance(picture, av.VideoStream):
                file.mux(picture.encode(None if number is None else picture_frame(number)))
            if isinstance(sound, av.AudioStream):
                file.mux(sound.encode(None if number is None else sound_frame(number)))
        file.close()
        return Path(out.name).read_bytes()


def picture_frame(number: int) -> av.VideoFrame:
    grey = (np.arange(320, dtype=np.uint16)[None, :] + np.arange(180, dtype=np.uint16)[:, None] + number * 9).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.repeat(grey[:, :, None], 3, 2), format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = number, Fraction(1, 25)
    return frame


def sound_frame(number: int) -> av.AudioFrame:
    at = np.arange(number * 1920, (number + 1) * 1920)
    tone = (np.sin(at * 2 * np.pi * 440 / RATE) * 9000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[None, :], format="s16", layout="stereo")
    frame.rate, frame.pts, frame.time_base = RATE, number * 1920, Fraction(1, RATE)
    return frame


def agree(data: bytes, index: Index, *, late_us: int = 0) -> None:
    """ffmpeg's demuxer has the same packets: payload, presentation time (`late_us` where it moves all pictures so that none is shown before it is decoded), decode time, key flag."""
    form = "matroska" if index.container == Container.WEBM else "mp4"
    tolerance_us = 1 if form == "mp4" else 500  # it rounds Matroska's CodecDelay to whole milliseconds
    with av.open(io.BytesIO(data), format=form, options={"fflags": "+nofillin+noparse"}) as file:
        assert isinstance(file, av.container.InputContainer)
        packets = [(packet.stream.index, packet) for packet in file.demux() if packet.size]
    for number, stream in enumerate(index.streams):
        own = index.samples[index.samples["stream"] == stream.number]
        told = [packet for where, packet in packets if where == number]
        assert len(own) == len(told) > 10
        for row, packet in zip(own, told, strict=True):
            assert data[row["offset"] : row["offset"] + row["size"]] == bytes(packet)
            assert packet.pts is not None
            assert packet.time_base is not None
            moved = late_us if stream.kind == Kind.VIDEO else 0
            assert abs(row["time_us"] + row["cts_us"] + moved - packet.pts * packet.time_base * 1_000_000) <= tolerance_us
            if form == "mp4":
                assert packet.dts is not None
                assert abs(row["time_us"] - packet.dts * packet.time_base * 1_000_000) <= tolerance_us
            assert bool(row["key"]) == packet.is_keyframe


def recut(data: bytes, step: int) -> list[tuple[int, ...]]:
    index, carry = index_head(data[:step])
    found = []
    for at in range(0, len(data), step):
        if at:
            index, carry = index_cut(data[at : at + step], carry)
        assert (index.samples["offset"] + index.samples["size"] <= len(data[at : at + step])).all()
        found += [(int(row["offset"]) + at, int(row["stream"]), int(row["key"]), int(row["time_us"]), int(row["size"])) for row in index.samples]
    return sorted(found)


def whole(index: Index) -> list[tuple[int, ...]]:
    return sorted((int(row["offset"]), int(row["stream"]), int(row["key"]), int(row["time_us"]), int(row["size"])) for row in index.samples)


X264 = {"bf": "2", "g": "12", "preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
AV1 = {"g": "10", "preset": "12", "svtav1-params": "keyint=10:lookahead=0"}


@pytest.mark.parametrize(
    "options",
    [{}, {"movflags": "faststart"}, FRAGMENTED, {"movflags": "frag_keyframe+default_base_moof"}, {"movflags": "frag_every_frame+empty_moov+omit_tfhd_offset"}, {"movflags": "frag_keyframe+delay_moov+negative_cts_offsets"}],
    ids=["moov at the end", "moov at the front", "fragments", "base is moof", "a fragment a frame", "negative cts"],
)  # fmt: skip
def test_mp4_of_b_frames_and_aac(options: dict[str, str]) -> None:
    data = made("mp4", "libx264", "aac", options=options, tune=X264)
    index, _ = index_head(data)
    assert index.warning == ""
    assert [stream.codec for stream in index.streams] == ["h264", "aac"]
    video = index.samples[index.samples["stream"] == index.streams[0].number]
    assert len(video) == 50
    assert np.count_nonzero(video["cts_us"]) > 20
    shown = sorted((video["time_us"] + video["cts_us"]).tolist())
    first = 80_000 if "empty_moov" in options.get("movflags", "") or "default_base" in options.get("movflags", "") else 0  # such files have no edit list
    assert shown == [first + number * 40_000 for number in range(50)]
    assert (index.streams[0].width, index.streams[0].height) == (320, 180)
    assert (index.streams[1].channels, index.streams[1].rate, codec_string(index.streams[1])) == (2, RATE, "mp4a.40.2")
    assert mime_type(index).startswith('video/mp4;codecs="avc1.')
    agree(data, index, late_us=40_000 if "negative" in options.get("movflags", "") else 0)
    for step in (997, 5_000, len(data) - 1):
        assert recut(data, step) == whole(index)


def test_the_edit_list_puts_the_first_picture_at_zero() -> None:
    index, _ = index_head(made("mp4", "libx264", tune=X264))
    assert index.samples["time_us"][0] < 0  # decoded before it is shown
    assert (index.samples["time_us"] + index.samples["cts_us"]).min() == 0


@pytest.mark.parametrize("form", ["webm", "matroska", "mp4"])
def test_av1(form: str) -> None:
    data = made(form, "libsvtav1", "libopus", seconds=1.2, tune=AV1, options=FRAGMENTED if form == "mp4" else {})
    index, _ = index_head(data)
    video = index.streams[0]
    assert (video.codec, video.setup[0], index.warning) == ("av1", 0x81, "")
    assert codec_string(video).startswith("av01.0.0")
    assert (video.width, video.height) == (320, 180)
    agree(data, index)
    assert recut(data, 777) == whole(index)


@pytest.mark.parametrize("form", ["webm", "mp4"])
@pytest.mark.parametrize("options", [{}, {"live": "1", "movflags": "frag_keyframe+empty_moov"}], ids=["whole", "live"])
def test_vp9_and_opus(form: str, options: dict[str, str]) -> None:
    data = made(
        form,
        "libvpx-vp9",
        "libopus",
        options={key: value for key, value in options.items() if (key == "live") == (form == "webm")},
        tune={"g": "20", "deadline": "realtime", "cpu-used": "8"},
    )
    index, _ = index_head(data)
    assert index.warning == ""
    assert [codec_string(stream) for stream in index.streams] == ["vp09.00.31.08" if form == "webm" else "vp09.00.11.08", "opus"]
    assert set(index.samples["duration_us"][index.samples["stream"] == index.streams[1].number].tolist()) == {20_000}
    agree(data, index)
    assert recut(data, 1_003) == whole(index)


def test_avcc_h264_in_matroska_keeps_its_set_up_and_needs_no_patches() -> None:
    data = made("matroska", "libx264", "aac", tune={"bf": "0", "g": "12", "preset": "ultrafast"})
    index, _ = index_head(data)
    video, sound = index.streams
    assert (video.codec, video.annexb, len(index.patches), index.warning) == ("h264", False, 0, "")
    assert video.setup[0] == 1
    assert sound.codec == "aac"
    assert set(index.samples["duration_us"][index.samples["stream"] == sound.number].tolist()) == {21_333}
    agree(data, index)


def test_matroska_in_the_order_of_decoding_says_that_time_goes_back() -> None:
    index, _ = index_head(made("matroska", "libx264", tune=X264))
    assert index.warning.startswith("time_back@")


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_flac_and_unknown_codecs_keep_the_containers_name(form: str) -> None:
    data = made(form, "mpeg4", "flac")
    index, _ = index_head(data)
    assert [stream.codec for stream in index.streams] == (["mp4v", "fLaC"] if form == "mp4" else ["V_MPEG4/ISO/ASP", "A_FLAC"])
    assert codec_string(index.streams[1]) == "flac"
    agree(data, index)


def test_pcm_in_matroska_keeps_its_name() -> None:
    data = made("matroska", "", "pcm_s16le")
    index, _ = index_head(data)
    assert (index.streams[0].codec, index.streams[0].kind) == ("A_PCM/INT/LIT", Kind.AUDIO)
    assert mime_type(index) == 'audio/x-matroska;codecs="pcm"'
    agree(data, index)


# By hand


def vint(value: int, wide: int = 8) -> bytes:
    return (value | 1 << 7 * wide).to_bytes(wide, "big")


def el(ident: int, *parts: bytes, size: int | None = None) -> bytes:
    body = b"".join(parts)
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + vint(len(body) if size is None else size) + body


def track(number: int, kind: int, codec: str, *more: bytes) -> bytes:
    return el(0xAE, el(0xD7, bytes((number,))), el(0x83, bytes((kind,))), el(0x86, codec.encode()), *more)


def mkv(*clusters: bytes, tracks: tuple[bytes, ...], scale: int = 1_000_000) -> bytes:
    return (
        el(0x1A45DFA3, el(0x4282, b"matroska"))
        + el(0x18538067, size=(1 << 56) - 1)
        + el(0x1549A966, el(0x2AD7B1, scale.to_bytes(4, "big")))
        + el(0x1654AE6B, *tracks)
        + b"".join(clusters)
    )


def block(number: int, ticks: int, flags: int, payload: bytes) -> bytes:
    return bytes((0x80 | number,)) + ticks.to_bytes(2, "big", signed=True) + bytes((flags,)) + payload


def cluster(at: int, *blocks: bytes, size: int | None = None) -> bytes:
    return el(0x1F43B675, el(0xE7, at.to_bytes(4, "big")), *blocks, size=size)


OPUS = track(1, 2, "A_OPUS", el(0xE1, el(0x9F, b"\2")))
VP8 = track(1, 1, "V_VP8", el(0xE0, el(0xB0, b"\1\x40"), el(0xBA, b"\xb4")))
PACKETS = [bytes((0x78,)) + bytes((n,)) * size for n, size in enumerate((40, 300, 7))]  # 20 ms each


def xiph(packets: list[bytes]) -> bytes:
    return bytes((len(packets) - 1,)) + b"".join(b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)) for packet in packets[:-1]) + b"".join(packets)


def ebml(packets: list[bytes]) -> bytes:
    sizes = vint(len(packets[0]), 2)
    for before, packet in itertools.pairwise(packets[:-1]):
        sizes += vint(len(packet) - len(before) + (1 << 13) - 1, 2)
    return bytes((len(packets) - 1,)) + sizes + b"".join(packets)


def fixed(packets: list[bytes]) -> bytes:
    return bytes((len(packets) - 1,)) + b"".join(packets)


@pytest.mark.parametrize(
    "flags,lace,packets",
    [(0x02, xiph, PACKETS), (0x06, ebml, PACKETS), (0x04, fixed, [packet[:30].ljust(30, b"!") for packet in PACKETS])],
    ids=["xiph", "ebml", "fixed"],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_each_frame_of_a_laced_block_is_a_sample(flags: int, lace: Callable[[list[bytes]], bytes], packets: list[bytes], *, grouped: bool) -> None:
    body = block(1, -5, flags, lace(packets))
    data = mkv(cluster(100, el(0xA0, el(0xA1, body)) if grouped else el(0xA3, body)), tracks=(OPUS,))
    index, _ = index_head(data)
    assert index.warning == ""
    assert [data[row["offset"] : row["offset"] + row["size"]] for row in index.samples] == packets
    assert index.samples["time_us"].tolist() == [95_000, 115_000, 135_000]
    assert index.samples["duration_us"].tolist() == [20_000] * 3
    assert recut(data, 1) == whole(index)
    with av.open(io.BytesIO(data), format="matroska", options={"fflags": "+nofillin+noparse"}) as file:
        assert isinstance(file, av.container.InputContainer)
        assert [bytes(packet) for packet in file.demux() if packet.size] == packets


@pytest.mark.parametrize("flags,body", [(0x02, b"\3\xff\xff"), (0x06, b"\2\x7f\xff\1"), (0x04, b"\2abcd"), (0x06, b"\2\x81\x80abc"), (0x02, b"")])
def test_a_lace_that_does_not_fit_is_left_out(flags: int, body: bytes) -> None:
    data = mkv(cluster(0, el(0xA3, block(1, 0, flags, body)), el(0xA3, block(1, 20, 0x80, PACKETS[0]))), tracks=(OPUS,))
    index, _ = index_head(data)
    assert [row["time_us"] for row in index.samples] == [20_000]
    assert index.warning.split("@")[0] in {"lacing", "empty"}


def test_block_groups_carry_durations_and_references() -> None:
    key, other = b"\x10\0\0\x9d\x01\x2a\x40\x01\xb4\0rest", b"\x11\0\0rest"
    groups = [
        el(0xA0, el(0xA1, block(1, 0, 0, key)), el(0x9B, b"\x21")),
        el(0xA0, el(0x9B, b"\x22"), el(0xFB, b"\xdf"), el(0xA1, block(1, 33, 0, other))),
        el(0xA0, el(0xA1, block(1, 67, 0, other))),  # no reference, and yet no key frame: the frame's word counts
        el(0xA3, block(1, 100, 0x80, other)),
    ]
    index, _ = index_head(mkv(cluster(1000, *groups), tracks=(VP8,)))
    assert index.samples["key"].tolist() == [1, 0, 0, 0]
    assert index.samples["duration_us"].tolist() == [33_000, 34_000, 33_000, 0]
    assert index.samples["time_us"].tolist() == [1_000_000, 1_033_000, 1_067_000, 1_100_000]


def test_a_key_frame_gives_the_size_that_the_header_left_out() -> None:
    key = b"\x10\0\0\x9d\x01\x2a\x40\x01\xb4\0rest"
    index, _ = index_head(mkv(cluster(0, el(0xA3, block(1, 0, 0x80, key))), tracks=(track(1, 1, "V_VP8"),)))
    assert (index.streams[0].width, index.streams[0].height) == (320, 180)


@pytest.mark.parametrize("known", [False, True])
def test_clusters_of_unknown_and_known_size_void_crc_and_cues_between(*, known: bool) -> None:
    inner = (el(0xBF, b"crc4"), el(0xA7, b"\1"), el(0xA3, block(1, 0, 0x80, PACKETS[0])), el(0xEC, bytes(300)), el(0xA3, block(1, 20, 0x80, PACKETS[1])))
    size = None if known else (1 << 56) - 1
    data = mkv(cluster(0, *inner, size=size), el(0x1C53BB6B, b"cues"), cluster(40, *inner, size=size), el(0x1254C367, bytes(999)), tracks=(OPUS,))
    index, _ = index_head(data)
    assert index.samples["time_us"].tolist() == [0, 20_000, 40_000, 60_000]
    assert index.warning == ""
    assert recut(data, 13) == whole(index)


def test_the_codecs_delay_is_taken_off_as_an_edit_list_does() -> None:
    delayed = track(1, 2, "A_OPUS", el(0x56AA, (6_500_000).to_bytes(4, "big")))
    index, _ = index_head(mkv(cluster(0, el(0xA3, block(1, 0, 0x80, PACKETS[0])), el(0xA3, block(1, 20, 0x80, PACKETS[1]))), tracks=(delayed,)))
    assert index.samples["time_us"].tolist() == [-6_500, 13_500]


def test_the_timestamp_scale_is_kept() -> None:
    index, _ = index_head(mkv(cluster(1000, el(0xA3, block(1, 7, 0x80, PACKETS[0]))), tracks=(OPUS,), scale=100_000))
    assert index.samples["time_us"].tolist() == [100_700]


def test_a_block_that_runs_over_its_cluster_is_damage_and_the_next_cluster_goes_on() -> None:
    lying = bytearray(cluster(0, el(0xA3, block(1, 0, 0x80, PACKETS[0]))))
    at = bytes(lying).index(b"\xa3\x01")
    lying[at + 1 : at + 9] = vint(500)
    data = mkv(bytes(lying), cluster(20, el(0xA3, block(1, 0, 0x80, PACKETS[1]))), tracks=(OPUS,)) + bytes(600)
    index, _ = index_head(data)
    assert index.samples["time_us"].tolist() == [20_000]
    assert index.warning.startswith("overrun@")


def test_compressed_headers_are_marked_so_that_nothing_plays_them() -> None:
    stripped = el(0x6D80, el(0x6240, el(0x5034, el(0x4254, b"\3"), el(0x4255, b"\x10"))))
    index, _ = index_head(mkv(cluster(0, el(0xA3, block(1, 0, 0x80, b"\0\0\x9d\x01\x2a"))), tracks=(track(1, 1, "V_VP8", stripped),)))
    assert index.streams[0].codec == "vp8+encoded"
    assert index.warning.startswith("content_encoding@")


def test_three_byte_start_codes_cannot_be_patched_and_are_named() -> None:
    sps, pps, idr = bytes.fromhex("6742c01f8c8d405017fcb00f08846a"), bytes.fromhex("68ce3c80"), b"\x65\xb8\0\4"
    frame = b"\0\0\0\1" + sps + b"\0\0\1" + pps + b"\0\0\0\1" + idr
    good = b"\0\0\0\1" + sps + b"\0\0\0\1" + pps + b"\0\0\0\1" + idr
    h264 = track(1, 1, "V_MPEG4/ISO/AVC")
    index, carry = index_head(mkv(cluster(0, el(0xA3, block(1, 0, 0x80, good)), el(0xA3, block(1, 40, 0x80, frame)), size=(1 << 56) - 1), tracks=(h264,)))
    stream = index.streams[0]
    assert (stream.codec, stream.annexb, stream.width, stream.height) == ("h264", True, 640, 360)
    assert (len(index.patches), index.samples["key"].tolist()) == (0, [1, 1])
    assert "annexb_short@" in index.warning
    later, _ = index_cut(el(0xA3, block(1, 80, 0x80, good)), carry)
    assert (len(later.samples), len(later.patches)) == (1, 0)


def test_two_files_in_one_are_indexed_up_to_the_second() -> None:
    one = mkv(cluster(0, el(0xA3, block(1, 0, 0x80, PACKETS[0]))), tracks=(OPUS,))
    index, carry = index_head(one + one)
    assert len(index.samples) == 1
    assert index.warning == f"second_header@{len(one)}"
    assert len(index_cut(one, carry)[0].samples) == 0


def test_a_block_larger_than_what_is_kept_is_passed_by() -> None:
    big = el(0xA3, block(1, 0, 0x80, b"\x78" + bytes(17 << 20)))
    data = mkv(cluster(0, big, el(0xA3, block(1, 20, 0x80, PACKETS[0]))), tracks=(OPUS,))
    index, carry = index_head(data[: 1 << 20])
    assert index.warning.startswith("block_large@")
    assert len(carry) < 512
    later, _ = index_cut(data[1 << 20 :], carry)
    assert later.samples["time_us"].tolist() == [20_000]


def test_a_missing_tfdt_goes_on_from_the_fragment_before() -> None:
    data = made("mp4", "libx264", options=FRAGMENTED, tune={"bf": "0", "g": "10", "preset": "ultrafast"})
    sound, _ = index_head(data)
    bare = data.replace(b"tfdt", b"free")
    assert index_head(bare)[0].samples["time_us"].tolist() == sound.samples["time_us"].tolist()


def test_tracks_that_are_neither_sound_nor_pictures_are_left_out_in_silence() -> None:
    subtitles = track(2, 17, "S_TEXT/UTF8")
    data = mkv(cluster(0, el(0xA3, block(2, 0, 0x80, b"hello")), el(0xA3, block(1, 0, 0x80, PACKETS[0]))), tracks=(OPUS, subtitles))
    index, _ = index_head(data)
    assert ([stream.number for stream in index.streams], len(index.samples), index.warning) == ([1], 1, "")


def test_boxes_of_size_zero_and_of_sixty_four_bits() -> None:
    data = made("mp4", "libx264", "aac", options=FRAGMENTED, tune=X264)
    sound, _ = index_head(data)
    at = next(start - 8 for kind, start, _ in reversed(list(boxes(data, 0, len(data)))) if kind == b"mdat")
    size = int.from_bytes(data[at : at + 4], "big")
    open_end = data[:at] + bytes(4) + data[at + 4 : at + size]
    assert whole(index_head(open_end)[0]) == whole(sound)
    front = int.from_bytes(data[:4], "big")
    wide = data[:front] + b"\0\0\0\1free" + (24).to_bytes(8, "big") + bytes(8) + data[front:]
    assert [row[1:] for row in whole(index_head(wide)[0])] == [row[1:] for row in whole(sound)]
