"""Browser segments with known content, made as Chromium makes them: a fresh encoder each, Opus in packets of 60 ms, times of a millisecond, no duration.

The sound and the pictures are cut from one endless source on the wall's clock (seconds, as floats), so that what was recorded can be told from what came out:
`known` reads the numbers of the pictures and the seconds of the beeps.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Literal

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from roomtape.testing import known

RATE_HZ = 48_000
PACKET_MS = 60
_PACKET = RATE_HZ * PACKET_MS // 1000

Sound = NDArray[np.float64]
Source = Callable[[NDArray[np.float64]], Sound]  # seconds on the wall's clock -> samples from -1 to 1
Codec = Literal["vp8", "vp9"]
_LIBRARY = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def tone(hz: float = 440.0, level: float = 0.5) -> Source:
    """A steady tone, the same at all times."""
    return lambda at: level * np.sin(2 * np.pi * hz * at)


def voice(pitch_hz: float = 130.0) -> Source:
    """Somebody who never pauses: harmonics of a pitch that wanders, louder and softer four times a second. No two moments are alike."""

    def said(at: NDArray[np.float64]) -> Sound:
        phase = 2 * np.pi * pitch_hz * (at + 0.06 * np.sin(1.7 * at) + 0.04 * np.sin(2.9 * at + 1))
        loud = 0.65 + 0.3 * np.sin(2 * np.pi * 4.1 * at + 2 * np.sin(0.9 * at))
        whole: Sound = loud * sum(np.sin(n * phase) / n**1.2 for n in range(1, 20)) * 0.12
        return whole

    return said


def quiet() -> Source:
    """Digital silence."""
    return np.zeros_like


def marks(every_s: float, length_s: float = 0.05, hz: float = 1000.0) -> Source:
    """A short tone at each multiple of `every_s`, silence between."""
    return lambda at: np.where(np.mod(at, every_s) < length_s, 0.5 * np.sin(2 * np.pi * hz * at), 0.0)


def beeps(seconds: int = 64) -> Source:
    """The beeps that `known.read_beeps` reads, from second 0 on; silence outside."""
    whole = known.beeps(seconds)
    return lambda at: np.interp(at * RATE_HZ, np.arange(len(whole)), whole, left=0.0, right=0.0)


def sampled(source: Source, start_s: float, seconds: float, *, ppm: float = 0.0) -> Sound:
    """What a device hears from start_s on while it counts `seconds`; its clock is `ppm` fast (it counts a second before one is over)."""
    return source(start_s + np.arange(round(seconds * RATE_HZ)) / (RATE_HZ * (1 + ppm / 1e6)))


def opus(sound: Sound, *, bit_rate: int = 64_000) -> list[bytes]:
    """Opus packets of 60 ms by a fresh encoder; what does not fill the last one is not kept, as Chromium does it."""
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = RATE_HZ, "mono", "s16", bit_rate
    encoder.options = {"frame_duration": str(PACKET_MS), "application": "audio", "compression_level": "4"}
    packets: list[bytes] = []
    for at in range(0, len(sound) - _PACKET + 1, _PACKET):
        frame = av.AudioFrame.from_ndarray((sound[at : at + _PACKET] * 32767).astype("<i2")[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, at, Fraction(1, RATE_HZ)
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


def numbered(first: int, count: int, *, size: tuple[int, int] = (320, 180)) -> Iterator[av.VideoFrame]:
    """Pictures `known.read_frame_numbers` reads."""
    for number in range(first, first + count):
        yield known.picture(number).reformat(*size)


def plain(count: int, luma: int, *, size: tuple[int, int] = (320, 180)) -> Iterator[av.VideoFrame]:
    """The same picture again and again: grey, or with luma 16 black."""
    width, height = size
    points = np.full((height * 3 // 2, width), 128, np.uint8)
    points[:height] = luma
    if luma > 16:  # something to see
        points[height // 3 : height // 2, width // 3 : width // 2] = 255 - luma
    for _ in range(count):
        yield av.VideoFrame.from_ndarray(points, format="yuv420p")


def pictures(frames: Iterator[av.VideoFrame], *, codec: Codec = "vp8", key_every: int = 100, bit_rate: int = 300_000) -> list[tuple[bool, bytes]]:
    """(key frame, bytes) of each picture, by a fresh encoder in its real-time mode."""
    first = next(frames)
    encoder = av.CodecContext.create(_LIBRARY[codec], "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = first.width, first.height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, known.FPS), Fraction(known.FPS)
    encoder.bit_rate, encoder.gop_size = bit_rate, key_every
    encoder.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "keyint_min": str(key_every)}
    found: list[tuple[bool, bytes]] = []
    for at, frame in enumerate([first, *frames]):
        frame.pts, frame.time_base = at, Fraction(1, known.FPS)
        found += [(packet.is_keyframe, bytes(packet)) for packet in encoder.encode(frame)]
    return found + [(packet.is_keyframe, bytes(packet)) for packet in encoder.encode(None)]


@cache
def _sources() -> Source:
    return beeps()


def segment(
    start_s: float, seconds: float, *, source: Source | None = None, codec: Codec | None = "vp8", size: tuple[int, int] = (320, 180), key_every: int = 100
) -> bytes:
    """A whole recorder: numbered pictures (none with codec None) and beeps, or another source, from start_s on. Its first sample is at start_s."""
    first = round(start_s * known.FPS)
    shown = pictures(numbered(first, round(seconds * known.FPS), size=size), codec=codec, key_every=key_every) if codec else []
    return webm(opus(sampled(source or _sources(), start_s, seconds)), shown, codec=codec or "vp8", size=size)


def webm(
    packets: Sequence[bytes] = (),
    shown: Sequence[tuple[bool, bytes]] = (),
    *,
    codec: str = "vp8",
    size: tuple[int, int] = (320, 180),
    sound_at_ms: int = 0,
) -> bytes:
    """A WebM file as MediaRecorder writes it: no duration, no cues, a cluster from each key frame on, SimpleBlocks in milliseconds.

    `sound_at_ms`: how much later than the first picture the sound begins.
    """
    streams = ([_video(codec, size)] if shown else []) + ([_audio(2 if shown else 1)] if packets else [])
    head = _element(0x1A45DFA3, b"\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82\x84webm\x42\x87\x81\x04\x42\x85\x81\x02")
    info = _element(0x1549A966, _element(0x2AD7B1, b"\x0f\x42\x40") + _element(0x4D80, b"Chrome") + _element(0x5741, b"Chrome"))
    parts = [head, _id(0x18538067), _UNKNOWN, info, _element(0x1654AE6B, b"".join(streams))]
    samples = [(at * 1000 // known.FPS, 1, key, body) for at, (key, body) in enumerate(shown)]
    samples += [(sound_at_ms + at * PACKET_MS, 2 if shown else 1, True, body) for at, body in enumerate(packets)]
    zero = None
    for at_ms, track, key, body in sorted(samples, key=lambda one: one[:2]):
        if zero is None or (track == 1 and key and shown) or at_ms - zero > 30_000:
            parts += [_id(0x1F43B675), _UNKNOWN, _element(0xE7, at_ms.to_bytes(4, "big"))]
            zero = at_ms
        parts.append(_element(0xA3, bytes([0x80 | track]) + (at_ms - zero).to_bytes(2, "big", signed=True) + (b"\x80" if key else b"\0") + body))
    return b"".join(parts)


def _video(codec: str, size: tuple[int, int]) -> bytes:
    width, height = size
    settings = _element(0xE0, _element(0xB0, width.to_bytes(2, "big")) + _element(0xBA, height.to_bytes(2, "big")))
    return _element(0xAE, b"\xd7\x81\x01\x73\xc5\x81\x01\x83\x81\x01" + _element(0x86, f"V_{codec.upper()}".encode()) + settings)


def _audio(number: int) -> bytes:
    head = b"OpusHead\x01\x01\x00\x00\x80\xbb\x00\x00\x00\x00\x00"
    settings = _element(0xE1, _element(0xB5, b"\x47\x3b\x80\x00") + _element(0x9F, b"\x01"))
    names = b"\xd7\x81" + bytes([number]) + b"\x73\xc5\x81" + bytes([number]) + b"\x83\x81\x02"
    return _element(0xAE, names + _element(0x86, b"A_OPUS") + _element(0x63A2, head) + settings)


_UNKNOWN = b"\x01\xff\xff\xff\xff\xff\xff\xff"


def _id(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _element(number: int, body: bytes) -> bytes:
    return _id(number) + (len(body) | 1 << 56).to_bytes(8, "big") + body
