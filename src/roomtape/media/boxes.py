"""Boxes of ISO base media files (ISO/IEC 14496-12, -14, -15, Opus and VP9 bindings): what a progressive head and fragments have in common."""

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.media.codecs import dops, opus_head, rfc6381
from roomtape.media.sample import Stream

VIDEO_SCALE = 90_000
MOVIE_SCALE = 90_000  # exact for pictures, and fine enough that a sound's start at ≤ 48 kHz rounds back to its own sample
MP4_CODECS = frozenset({"vp9", "av1", "h264", "opus", "aac"})  # VP8 has a sample entry, but no browser's Media Source takes it
_VISUAL = {"vp9": (b"vp09", b"vpcC"), "av1": (b"av01", b"av1C"), "h264": (b"avc1", b"avcC")}
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_UNDETERMINED = 0x55C4  # language "und"


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of four-letter name `name`."""
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, name) + body


def full(name: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A full box: with version and flags."""
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def wrap(name: bytes, *parts: bytes) -> list[bytes]:
    """A box as its parts, for boxes of megabytes: nested six deep, each level would copy them once more."""
    return [struct.pack(">I4s", sum(map(len, parts)) + 8, name), *parts]


def runs(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Run lengths: where each run of equal values begins, and how long it is. `values` is not empty."""
    first = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    return first, np.diff(first, append=len(values))


def table(*columns: npt.NDArray[np.int64]) -> bytes:
    """Columns as the rows of big-endian 32 bit words that sample tables are made of; negative values in two's complement."""
    return np.stack(columns, axis=1).astype(">u4").tobytes()


def timescale(stream: Stream) -> int:
    """Ticks a second of a stream's track: 90 000 for pictures, the sampling rate for sound (Opus always counts in 48 kHz)."""
    if stream.kind is Kind.VIDEO:
        return VIDEO_SCALE
    return stream.rate if stream.codec != "opus" and stream.rate else 48_000


def playable_as_mp4(setups: Sequence[Stream]) -> bool:
    """Whether players take these streams in an MP4 or in CMAF."""
    return all(stream.codec in MP4_CODECS for stream in setups)


def sample_entry(stream: Stream) -> bytes:
    """The entry of `stsd` for a stream; ValueError for a codec that MP4 does not carry (see playable_as_mp4)."""
    if stream.codec not in MP4_CODECS:
        raise ValueError(f"{stream.codec} has no place in an MP4")
    if stream.kind is Kind.VIDEO:
        visual = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HHIIIH", stream.width, stream.height, 0x480000, 0x480000, 0, 1)
        name, setup = _VISUAL[stream.codec]
        body = vp9_setup(stream) if stream.codec == "vp9" else stream.setup
        return box(name, visual, bytes(32), struct.pack(">Hh", 24, -1), box(setup, body))
    rate = stream.rate or 48_000
    audio = bytes(6) + struct.pack(">H8xHHIHH", 1, stream.channels or 2, 16, 0, rate if rate < 1 << 16 else 0, 0)
    return box(b"Opus", audio, box(b"dOps", dops(opus_setup(stream)))) if stream.codec == "opus" else box(b"mp4a", audio, _esds(stream.setup))


def vp9_setup(stream: Stream) -> bytes:
    """The body of vpcC (its version and flags first) with the level that rfc6381 tells players: Chromium's recorder writes 0, which Media Source refuses."""
    # without one: profile 0, 8 bit, 4:2:0, colours unspecified
    known = stream.setup if len(stream.setup) >= 12 else bytes([1, 0, 0, 0, 0, 0, 8 << 4 | 1 << 1, 2, 2, 2, 0, 0])
    level = int(rfc6381("vp9", known, stream.width, stream.height).split(".")[2])
    return known[:5] + bytes([level]) + known[6:]


def opus_setup(stream: Stream) -> bytes:
    """OpusHead with no pre-skip. Packets stand where the clock puts them, so nothing is cut at the start of a track that may begin anywhere in a stream;
    Chromium's MP4 recorder even says 3840 (80 ms) and ffmpeg then drops real sound. What is heard instead are 6.5 ms of an encoder's near silence.
    """
    head = stream.setup if len(stream.setup) >= 19 else opus_head(b"", stream.channels or 2)
    return head[:10] + b"\0\0" + head[12:]


def _esds(config: bytes) -> bytes:
    def descriptor(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return bytes([tag, 0x80, 0x80, 0x80, len(body)]) + body

    # object type 0x40 = MPEG-4 audio, stream type 5 = audio; buffer size and bit rates unknown
    decoder = descriptor(4, bytes([0x40, 5 << 2 | 1]), bytes(11), descriptor(5, config))
    return full(b"esds", 0, 0, descriptor(3, bytes(3), decoder, descriptor(6, b"\2")))


def movie_header(duration: int, next_track: int, created: int = 0) -> bytes:
    """mvhd; `duration` in MOVIE_SCALE, `created` in seconds since 1904."""
    times = struct.pack(">QQIQ", created, created, MOVIE_SCALE, duration)
    return full(b"mvhd", 1, 0, times, struct.pack(">IH", 0x10000, 0x100), bytes(10), _MATRIX, bytes(24), struct.pack(">I", next_track))


def track(
    number: int,
    setups: Sequence[Stream],
    tables: Sequence[bytes],
    *,
    media_duration: int = 0,
    duration: int = 0,
    edits: bytes = b"",
    created: int = 0,
) -> list[bytes]:
    """A trak as its parts, number `number`, with the sample tables `tables` (all of stbl after stsd); durations in ticks of the track and in MOVIE_SCALE."""
    lead = setups[0]
    video = lead.kind is Kind.VIDEO
    width, height = max(stream.width for stream in setups), max(stream.height for stream in setups)
    header = full(
        b"tkhd",
        1,
        3,  # enabled, in the movie
        struct.pack(">QQIIQ", created, created, number, 0, duration),
        bytes(8),
        struct.pack(">HHHH", 0, 0, 0 if video else 0x100, 0),
        _MATRIX,
        struct.pack(">II", width << 16, height << 16),
    )
    entries = full(b"stsd", 0, 0, struct.pack(">I", len(setups)), *map(sample_entry, setups))
    information = wrap(
        b"minf",
        full(b"vmhd", 0, 1, bytes(8)) if video else full(b"smhd", 0, 0, bytes(4)),
        box(b"dinf", full(b"dref", 0, 0, struct.pack(">I", 1), full(b"url ", 0, 1))),
        *wrap(b"stbl", entries, *tables),
    )
    media = wrap(
        b"mdia",
        full(b"mdhd", 1, 0, struct.pack(">QQIQHH", created, created, timescale(lead), media_duration, _UNDETERMINED, 0)),
        full(b"hdlr", 0, 0, struct.pack(">I4s", 0, b"vide" if video else b"soun"), bytes(12), b"\0"),
        *information,
    )
    return wrap(b"trak", header, edits, *media)
