"""Playlists as they are read on the wire, and silence as decoders hear it."""

import io
from datetime import UTC, datetime
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.model import Kind
from roomtape.core.rope import Literal, Rope, Span, Woven, woven
from roomtape.media import playlist
from roomtape.media.codecs import opus_us
from roomtape.media.placed import PLACED_PATCH, Chunks
from roomtape.media.playlist import Audio, Variant, Window
from roomtape.media.sample import Stream
from roomtape.media.silence import silence

OPUS = Stream(2, Kind.AUDIO, "opus", channels=2, rate=48_000)
WINDOWS = [
    Window("0.m4s", 0, 3_367_000, "a.mp4"),
    Window("1.m4s", 3_367_000, 6_734_001, "a.mp4"),
    Window("2.m4s", 6_734_001, 10_100_000, "a.mp4", lost=True),
    Window("3.m4s", 12_000_000, 16_000_000, "a.mp4"),
    Window("4.m4s", 16_000_000, 18_500_000, "b.mp4"),
]


def test_a_running_recordings_playlist() -> None:
    begun = datetime(2026, 11, 21, 9, 30, 0, 250_000, UTC)
    assert playlist.media(WINDOWS, ended=False, target_us=4_000_000, begun=begun) == (
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:EVENT\n#EXT-X-INDEPENDENT-SEGMENTS\n"
        '#EXT-X-MAP:URI="a.mp4"\n#EXT-X-PROGRAM-DATE-TIME:2026-11-21T09:30:00.250Z\n#EXTINF:3.367000,\n0.m4s\n'
        "#EXTINF:3.367001,\n1.m4s\n"
        "#EXT-X-GAP\n#EXTINF:3.365999,\n2.m4s\n"
        "#EXT-X-PROGRAM-DATE-TIME:2026-11-21T09:30:12.250Z\n#EXTINF:4.000000,\n3.m4s\n"
        '#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI="b.mp4"\n#EXT-X-PROGRAM-DATE-TIME:2026-11-21T09:30:16.250Z\n#EXTINF:2.500000,\n4.m4s\n'
    )


def test_the_end_says_vod_adds_one_line_and_changes_no_window() -> None:
    running = playlist.media(WINDOWS, ended=False, target_us=4_000_000)
    assert playlist.media(WINDOWS, ended=True, target_us=4_000_000) == running.replace("TYPE:EVENT", "TYPE:VOD") + "#EXT-X-ENDLIST\n"


def test_a_playlist_only_grows_while_a_recording_runs() -> None:
    texts = [playlist.media(WINDOWS[:count], ended=False, target_us=4_000_000) for count in range(len(WINDOWS) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_the_target_is_never_less_than_a_window() -> None:
    long = [Window("0.m4s", 0, 7_600_000, "a.mp4")]
    assert "#EXT-X-TARGETDURATION:8\n" in playlist.media(long, ended=True, target_us=4_000_000)


def test_a_master_names_codecs_size_and_measured_bandwidth() -> None:
    peak = playlist.bandwidth([400_000, 300_000, 0, 500_000, 100_000], WINDOWS)
    assert peak == 1_000_000
    variants = [Variant("v.m3u8", ("vp09.00.31.08", "opus"), peak, 640, 360, audio_group="aac"), Variant("a.m3u8", ("opus",), 40_000)]
    assert playlist.master(variants, [Audio("aac", "Sound", "aac.m3u8", language="en", default=True)]) == (
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n"
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="aac",NAME="Sound",LANGUAGE="en",DEFAULT=YES,AUTOSELECT=YES,URI="aac.m3u8"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=1000000,CODECS="vp09.00.31.08,opus",RESOLUTION=640x360,AUDIO="aac"\nv.m3u8\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=40000,CODECS="opus"\na.m3u8\n'
    )


@given(st.integers(0, 10_000_000))
def test_opus_silence_fills_a_hole_to_within_half_a_packet_of_two_and_a_half_milliseconds(hole_us: int) -> None:
    packets = silence(OPUS, hole_us)
    assert abs(sum(length for _, length in packets) - hole_us) <= 1_250
    assert all(opus_us(packet[0], packet[1]) == length for packet, length in packets)


def _voice() -> list[bytes]:
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo", "flt"
    tone = (np.sin(np.arange(48_000) * 0.06).astype(np.float32) * 0.5).repeat(2).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(tone, "flt", "stereo")
    frame.rate = 48_000
    return [bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]]


@pytest.mark.parametrize("decoder", ["libopus", "opus"])
@pytest.mark.parametrize("length_us", [20_000, 10_000, 5_000, 2_500])
def test_each_silent_packet_is_digital_silence_of_its_length_inside_a_stereo_stream(decoder: str, length_us: int) -> None:
    context = av.CodecContext.create(decoder, "r")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate, context.layout = 48_000, "stereo"
    (packet, _), *more = silence(OPUS, length_us)
    assert not more

    def hear(body: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        frames = context.decode(av.Packet(body))
        return np.concatenate([frame.to_ndarray().astype(np.float64).reshape(-1) for frame in frames]) if frames else np.zeros(0)

    voice = _voice()
    loud = [hear(body) for body in voice[:20]]
    quiet = [hear(packet) for _ in range(40)]
    again = [hear(body) for body in voice[20:40]]
    assert np.abs(loud[-1]).max() > 0.1
    assert {len(heard) for heard in quiet[1:]} == {2 * length_us * 48 // 1000}
    assert sum(length_us for _ in quiet) >= 100_000
    scale = 32_768 if np.abs(loud[-1]).max() > 2 else 1
    assert np.abs(np.concatenate(quiet[len(quiet) // 2 :])).max() / scale < 1e-4
    assert np.abs(again[-1]).max() > 0.1


@pytest.mark.parametrize(("channels", "config"), [(1, b"\x12\x08"), (2, b"\x12\x10")])
def test_each_silent_aac_frame_is_1024_samples_of_silence(channels: int, config: bytes) -> None:
    packets = silence(Stream(1, Kind.AUDIO, "aac", config, channels=channels, rate=44_100), 500_000)
    assert abs(sum(length for _, length in packets) - 500_000) <= 11_610
    context = av.CodecContext.create("aac", "r")
    assert isinstance(context, av.AudioCodecContext)
    context.extradata = config
    frames = [frame for packet, _ in packets for frame in context.decode(av.Packet(packet))]
    assert len(frames) == len(packets)
    assert all(frame.samples == 1024 and frame.layout.nb_channels == channels and not np.abs(frame.to_ndarray()).any() for frame in frames)


def test_there_is_no_silence_for_codecs_that_are_not_known() -> None:
    assert silence(Stream(1, Kind.AUDIO, "vorbis", channels=2, rate=48_000), 100_000) == []
    assert silence(Stream(1, Kind.AUDIO, "aac", b"\x12\x30", channels=6, rate=48_000), 100_000) == []


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    patches=st.sets(st.integers(0, 40), max_size=8),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_a_range_of_chunks_is_that_range_of_their_patched_bytes(sizes: list[int], patches: set[int], cut: tuple[int, int]) -> None:
    total = sum(sizes)
    stored = bytes(n % 251 for n in range(total))
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    keys = tuple(str(number) for number in range(len(sizes)))
    ats = sorted(at * 5 for at in patches if at * 5 + 4 <= total)
    chunks = Chunks(keys, starts, np.array([(at, 0xFFFFFF00 + n) for n, at in enumerate(ats)], PLACED_PATCH))
    patched = bytearray(stored)
    for number, at in enumerate(ats):
        patched[at : at + 4] = (0xFFFFFF00 + number).to_bytes(4, "big")
    start, stop = min(cut[0], total), min(cut[1], total)
    made = io.BytesIO()
    for piece in chunks.pieces(start, stop):
        base = 0 if isinstance(piece, Literal) else int(starts[int(piece.key)]) + piece.offset
        made.write(piece.body if isinstance(piece, Literal) else stored[base : base + piece.size])
    assert made.getvalue() == bytes(patched[start:stop])


PIECE = st.one_of(
    st.binary(max_size=9).map(Literal),
    st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.integers(0, 60)).map(lambda each: Span(*each)),
)


@given(pieces=st.lists(PIECE, max_size=30), small=st.integers(1, 64), most=st.integers(64, 200), cut=st.tuples(st.integers(0, 400), st.integers(0, 400)))
def test_woven_reads_give_what_the_pieces_give(pieces: list[Literal | Span], small: int, most: int, cut: tuple[int, int]) -> None:
    objects = {"a": bytes(range(256)) * 2, "b": bytes(range(255, -1, -1)) * 2}

    def fetch(span: Span) -> bytes:
        return objects[span.key][span.offset : span.offset + span.size]

    whole = b"".join(piece.body if isinstance(piece, Literal) else fetch(piece) for piece in pieces)
    rope = Rope.of(pieces)
    made, size = [], 0
    for piece in woven(rope.slice(*cut), small=small, most=most):
        assert not isinstance(piece, Woven) or piece.read.size <= most
        made.append(piece.weave(fetch(piece.read)) if isinstance(piece, Woven) else piece.body if isinstance(piece, Literal) else fetch(piece))
        size += piece.size
    assert b"".join(made) == whole[cut[0] : cut[1]]
    assert size == len(b"".join(made))
