"""What frames and set-ups say, against real encoders and the tables of their specifications."""

import io
import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtape.media import codecs

SPS, PPS = bytes.fromhex("6742c01f8c8d405017fcb00f08846a"), bytes.fromhex("68ce3c80")


@pytest.mark.parametrize(
    "toc,count,length_us",
    [(0x00, 0, 10_000), (0x18, 0, 60_000), (0x78, 0, 20_000), (0xF8, 0, 20_000), (0xE0, 0, 2_500), (0xF9, 0, 40_000), (0xFA, 0, 40_000), (0xFB, 3, 60_000), (0xFB, 0x86, 120_000), (0x60, 0, 10_000)],
)  # fmt: skip
def test_opus_packets_say_how_long_they_are(toc: int, count: int, length_us: int) -> None:
    assert codecs.opus_us(toc, count) == length_us


def test_an_opus_packet_of_more_than_120_ms_or_of_no_frames_has_no_length() -> None:
    assert codecs.opus_us(0xFB, 7) == 0
    assert codecs.opus_us(0xFB, 0) == 0
    assert codecs.opus_us(0x1B, 3) == 0


def test_opus_head_and_dops_are_the_same_thing_in_two_byte_orders() -> None:
    head = b"OpusHead\x01\x02\x38\x01\x80\xbb\0\0\x05\xff\0"
    assert codecs.dops(head) == b"\0\x02\x01\x38\0\0\xbb\x80\xff\x05\0"
    assert codecs.opus_head(codecs.dops(head)) == head


@given(
    channels=st.integers(1, 8), skip=st.integers(0, 65535), rate=st.integers(0, 1 << 31), gain=st.binary(min_size=2, max_size=2), table=st.binary(max_size=10)
)
def test_any_opus_head_survives_the_way_through_dops(channels: int, skip: int, rate: int, gain: bytes, table: bytes) -> None:
    head = b"OpusHead\x01" + bytes((channels,)) + skip.to_bytes(2, "little") + rate.to_bytes(4, "little") + gain + b"\x01" + table
    assert codecs.opus_head(codecs.dops(head)) == head


def test_short_opus_set_ups_become_plain_ones() -> None:
    assert codecs.opus_head(b"", 1)[:10] == b"OpusHead\x01\x01"
    assert codecs.dops(b"OpusHead") == codecs.dops(codecs.opus_head(b""))


def test_avcc_is_built_from_parameter_sets_and_gives_them_back() -> None:
    setup = codecs.avcc([SPS, PPS, b"\x65rest", SPS])
    assert setup == b"\x01\x42\xc0\x1f\xff\xe1\0\x0f" + SPS + b"\x01\0\x04" + PPS
    assert codecs.avcc_sps(setup) == SPS
    assert codecs.sps_size(SPS) == (640, 360)
    assert codecs.avcc([SPS]) == codecs.avcc([PPS]) == codecs.avcc([]) == b""


@pytest.mark.parametrize("width,height", [(320, 180), (640, 360), (1280, 720), (1920, 1080), (426, 240), (98, 34)])
@pytest.mark.parametrize("profile", ["baseline", "high", "high444"])
def test_sizes_and_set_ups_of_x264_streams_are_read(width: int, height: int, profile: str) -> None:
    packets = encoded(
        "libx264",
        width,
        height,
        "yuv444p" if profile == "high444" else "yuv420p",
        {"profile": profile, "preset": "ultrafast", "x264-params": "repeat-headers=1"},
    )
    nals = codecs.annexb_split(packets[0])
    assert codecs.sps_size(next(nal for nal in nals if nal[0] & 31 == 7)) == (width, height)
    setup = codecs.avcc(nals)
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = setup
    framed = b"".join(len(nal).to_bytes(4, "big") + nal for nal in nals if nal[0] & 31 not in (7, 8))
    pictures = decoder.decode(av.Packet(framed)) + decoder.decode(None)
    assert [(picture.width, picture.height) for picture in pictures] == [(width, height)]


def encoded(name: str, width: int, height: int, form: str = "yuv420p", options: dict[str, str] | None = None, count: int = 3) -> list[bytes]:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = width, height, form, Fraction(1, 25)
    context.framerate = Fraction(25)
    context.options = options or {}
    packets: list[bytes] = []
    for number in range(count):
        frame = av.VideoFrame(width, height, form)
        for plane in frame.planes:
            plane.update(bytes((number * 40 + 30,)) * plane.buffer_size)
        frame.pts = number
        packets += [bytes(packet) for packet in context.encode(frame)]
    packets += [bytes(packet) for packet in context.encode(None)]
    return packets


def of_the_packaged_encoder(form: str, profile: int) -> list[bytes]:
    source = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25", "-frames:v", "3", "-pix_fmt", form]
    vp9 = ["-c:v", "libvpx-vp9", "-profile:v", str(profile), "-g", "100", "-auto-alt-ref", "0", "-lag-in-frames", "0"]
    made = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *vp9, "-f", "webm", "pipe:1"], check=True, capture_output=True)
    with av.open(io.BytesIO(made.stdout), "r") as file:
        return [bytes(packet) for packet in file.demux(video=0) if packet.size]


@pytest.mark.parametrize("name,codec,options", [("libvpx", "vp8", {}), ("libvpx-vp9", "vp9", {}), ("libsvtav1", "av1", {"preset": "12"})])
@pytest.mark.parametrize("width,height", [(320, 180), (642, 362)])
def test_key_frames_are_known_and_state_their_size(name: str, codec: str, options: dict[str, str], width: int, height: int) -> None:
    packets = encoded(name, width, height, options=options)
    if codec == "av1":
        said = [codecs.av1_key(packet, 0, len(packet)) for packet in packets]
    else:
        said = [codecs.vp8_key(packet, 0) if codec == "vp8" else codecs.vp9_key(packet, 0) for packet in packets]
    assert said == [True, *[False] * (len(packets) - 1)]
    assert codecs.frame_size(codec, packets[0]) == (width, height)


@pytest.mark.parametrize("form,profile", [("yuv444p", 1), ("yuv420p10le", 2), ("yuv444p10le", 3)])
def test_the_other_profiles_of_vp9_are_read(form: str, profile: int) -> None:
    packets = of_the_packaged_encoder(form, profile)  # PyAV's libvpx has 8 bits only
    assert [codecs.vp9_key(packet, 0) for packet in packets[:2]] == [True, False]
    assert codecs.frame_size("vp9", packets[0]) == (320, 180)


@pytest.mark.parametrize(
    "frame,nals",
    [(b"\0\0\0\1abc\0\0\0\1de", [(0, 3), (7, 2)]), (b"\0\0\0\1abc\0\0\1de", None), (b"\0\0\1abc", None), (b"junk\0\0\0\1abc", None), (b"", None), (b"abc", None), (b"\0\0\0\1", None), (b"\0\0\0\1a\0\0\0\0\1b", [(0, 2), (6, 1)])],
)  # fmt: skip
def test_lengths_take_the_place_of_four_byte_start_codes_only(frame: bytes, nals: list[tuple[int, int]] | None) -> None:
    assert codecs.annexb_nals(frame) == nals


def test_idr_slices_are_found_behind_parameter_sets() -> None:
    def framed(*nals: bytes) -> bytes:
        return b"".join(len(nal).to_bytes(4, "big") + nal for nal in nals)

    for frame, key in ((framed(SPS, PPS, b"\x65x"), True), (framed(b"\x06sei", b"\x41x"), False), (framed(SPS), None), (b"", None), (b"\xff" * 9, None)):
        assert codecs.nal_key(frame, 0, len(frame), 4) is key


@pytest.mark.parametrize(
    "codec,setup,size,said",
    [
        ("vp8", b"", (640, 360), "vp8"),
        ("vp9", b"", (640, 360), "vp09.00.31.08"),
        ("vp9", b"", (1280, 720), "vp09.00.31.08"),
        ("vp9", b"", (1920, 1080), "vp09.00.41.08"),
        ("vp9", b"", (3840, 2160), "vp09.00.51.08"),
        ("vp9", b"\1\0\0\0\0\0\x80\2\2\2\0\0", (640, 360), "vp09.00.31.08"),  # Chromium writes level 0
        ("vp9", b"\1\0\0\0\2\x29\xa0\2\2\2\0\0", (640, 360), "vp09.02.41.10"),
        ("av1", b"", (0, 0), "av01.0.04M.08"),
        ("av1", b"\x81\x08\x0c\0", (0, 0), "av01.0.08M.08"),
        ("av1", b"\x81\x2d\xec\0", (0, 0), "av01.1.13H.12"),
        ("h264", b"", (0, 0), "avc1.42E01E"),
        ("h264", b"\1\x64\0\x28\xff", (0, 0), "avc1.640028"),
        ("aac", b"\x12\x10", (0, 0), "mp4a.40.2"),
        ("aac", b"\x2b\x92", (0, 0), "mp4a.40.5"),
        ("aac", b"\xf8\x40", (0, 0), "mp4a.40.34"),
        ("aac", b"", (0, 0), "mp4a.40.2"),
        ("opus", b"OpusHead", (0, 0), "opus"),
        ("A_VORBIS", b"", (0, 0), "vorbis"),
        ("V_THEORA", b"", (0, 0), "V_THEORA"),
    ],
)
def test_codec_names_are_spelled_as_players_want_them(codec: str, setup: bytes, size: tuple[int, int], said: str) -> None:
    assert codecs.rfc6381(codec, setup, *size) == said


def test_vp9_features_of_webm_become_vpcc() -> None:
    assert codecs.vpcc(b"\1\1\2\2\1\x29\3\1\x0a\4\1\1") == b"\1\0\0\0\2\x29\xa2\2\2\2\0\0"
    assert codecs.vpcc(b"") == codecs.vpcc(b"\1\2") == b""


@given(data=st.binary(max_size=300), at=st.integers(0, 200))
def test_no_bytes_break_these_readers(data: bytes, at: int) -> None:
    for codec in ("vp8", "vp9", "av1", "h264", "aac", "opus", "other"):
        codecs.frame_size(codec, data)
        assert codecs.rfc6381(codec, data, at, at)
    assert all(0 <= side <= 1 << 15 for side in codecs.sps_size(data))
    nals = codecs.annexb_split(data)
    codecs.avcc([*nals, b"\x67" + data, b"\x68" + data])
    codecs.avcc_sps(data)
    codecs.vpcc(data)
    codecs.dops(codecs.opus_head(data))
    if at < len(data):
        codecs.vp8_key(data, at), codecs.vp9_key(data, at), codecs.av1_key(data, at, len(data))
        for width in (1, 2, 3, 4):
            codecs.nal_key(data, at, len(data), width)
    for place, size in codecs.annexb_nals(data) or []:
        assert data[place : place + 4] == b"\0\0\0\1"
        assert place + 4 + size <= len(data)
