"""What the first bytes of frames and codec set-ups say, so that key frames, sizes and codec names never rest on a container's word."""

from collections.abc import Iterable, Sequence
from typing import Protocol

LOOK = 4096  # bytes of a frame that are looked at to tell a key frame: parameter sets and SEI lie before the first slice


class Buffer(Protocol):
    """bytes, bytearray, mmap: an index gives an int, a slice gives bytes-likes."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> int: ...


class Bits:
    """A bit reader, most significant first; past the end it reads zeros, so every parser over it is total."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def u(self, count: int) -> int:
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left if self._left > -count else 0
        return shifted & ((1 << count) - 1)

    def ue(self) -> int:
        """Exp-Golomb, at most 32 leading zeros."""
        zeros = 0
        while zeros < 32 and not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros) if zeros else 0

    def se(self) -> int:
        value = self.ue()
        return (value + 1) // 2 if value & 1 else -(value // 2)


def _opus_frames_us() -> tuple[int, ...]:
    silk, hybrid, celt = (10_000, 20_000, 40_000, 60_000), (10_000, 20_000), (2_500, 5_000, 10_000, 20_000)
    return tuple(silk[c & 3] if c < 12 else hybrid[c & 1] if c < 16 else celt[c & 3] for c in range(32))


_OPUS_FRAME_US = _opus_frames_us()
_OPUS_MAX_US = 120_000
# duration by the first byte; 0 where the second byte must say how many frames there are (code 3)
OPUS_US = tuple(_OPUS_FRAME_US[toc >> 3] * (1, 2, 2, 0)[toc & 3] for toc in range(256))


def opus_us(toc: int, count: int) -> int:
    """Duration of an Opus packet from its first two bytes (RFC 6716, 3.1 and 3.2.5); 0: the packet breaks the rules."""
    length = OPUS_US[toc] or _OPUS_FRAME_US[toc >> 3] * (count & 63)
    return length if length <= _OPUS_MAX_US else 0


def opus_head(dops: bytes, channels: int = 2) -> bytes:
    """The body of MP4's dOps as WebM's OpusHead (big-endian becomes little-endian); of an empty or short one a plain head with `channels`."""
    if len(dops) < 11:
        dops = bytes((0, min(max(channels, 1), 2))) + (312).to_bytes(2, "big") + (48000).to_bytes(4, "big") + bytes(3)
    return b"OpusHead\x01" + dops[1:2] + dops[3:1:-1] + dops[7:3:-1] + dops[9:7:-1] + dops[10:]


def dops(head: bytes) -> bytes:
    """OpusHead as the body of dOps."""
    return bytes((0, head[9])) + head[11:9:-1] + head[15:11:-1] + head[17:15:-1] + head[18:] if len(head) >= 19 else dops(opus_head(b""))


def vp8_key(buf: Buffer, at: int) -> bool:
    return not buf[at] & 1


def vp9_key(buf: Buffer, at: int) -> bool:
    first = buf[at]
    if first & 0x30 == 0x30:  # profile 3 has one more bit before show_existing_frame
        return not first & 0x06
    return not first & 0x0C


def av1_key(buf: Buffer, at: int, end: int) -> bool | None:
    """Whether a temporal unit begins with a shown key frame; None: not to be seen within LOOK bytes (AV1 specification 5.3, 5.9.2)."""
    end = min(end, at + LOOK)
    for kind, start, _ in _obus(buf, at, end):
        if kind in (3, 6):  # frame header, frame
            return buf[start] & 0xF0 == 0x10  # show_existing_frame 0, frame_type 0, show_frame 1
    return None


def _obus(buf: Buffer, at: int, end: int) -> Iterable[tuple[int, int, int]]:
    """(type, first byte, end) of each OBU that begins and holds at least a byte before `end`."""
    while at < end:
        head = buf[at]
        at += 2 if head & 4 else 1
        size, shift = end - at, 0
        if head & 2:
            size = 0
            while at < end and shift < 56:
                byte = buf[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if not byte & 128:
                    break
        if at < end and size:
            yield (head >> 3) & 15, at, at + size
        at += size


def nal_key(buf: Buffer, at: int, end: int, width: int) -> bool | None:
    """Whether the first slice of a frame of NAL units with lengths of `width` bytes is IDR; None: not to be seen within LOOK bytes."""
    stop = min(end, at + LOOK) - width
    while at < stop:
        kind = buf[at + width] & 31
        if 1 <= kind <= 5:
            return kind == 5
        size = 0
        for byte in range(at, at + width):
            size = size << 8 | buf[byte]
        at += width + size
    return None


def annexb_nals(frame: bytes) -> list[tuple[int, int]] | None:
    """(offset of the four bytes of start code, NAL length) of each NAL; None where a length cannot take a start code's place (a three-byte one, or junk before)."""
    codes, at = [], frame.find(b"\0\0\1")
    while at >= 0:
        if not at or frame[at - 1]:
            return None
        codes.append(at - 1)
        at = frame.find(b"\0\0\1", at + 3)
    if not codes or codes[0]:
        return None
    sizes = [(code, follower - code - 4) for code, follower in zip(codes, [*codes[1:], len(frame)], strict=True)]
    return sizes if all(size > 0 for _, size in sizes) else None


def annexb_split(data: bytes) -> list[bytes]:
    """The NAL units of Annex B bytes, whatever their start codes."""
    return [nal.rstrip(b"\0") for nal in data.split(b"\0\0\1")[1:] if nal.rstrip(b"\0")]


def avcc(nals: Sequence[bytes]) -> bytes:
    """The body of avcC out of a key frame's NAL units, with lengths of four bytes; b"" without SPS and PPS (ISO 14496-15, 5.3.3)."""
    sps = list(dict.fromkeys(n for n in nals if n[0] & 31 == 7 and 4 <= len(n) < 1 << 16))[:31]
    pps = list(dict.fromkeys(n for n in nals if n[0] & 31 == 8 and len(n) < 1 << 16))[:255]
    if not sps or not pps:
        return b""
    body = b"\1" + sps[0][1:4] + bytes((0xFF, 0xE0 | len(sps))) + b"".join(len(n).to_bytes(2, "big") + n for n in sps)
    body += bytes((len(pps),)) + b"".join(len(n).to_bytes(2, "big") + n for n in pps)
    if sps[0][1] not in (66, 77, 88):
        chroma, luma_bits, chroma_bits = _sps(sps[0])[2:]
        body += bytes((0xFC | chroma & 3, 0xF8 | luma_bits & 7, 0xF8 | chroma_bits & 7, 0))
    return body


def avcc_sps(setup: bytes) -> bytes:
    """The first SPS of an avcC body."""
    return setup[8 : 8 + int.from_bytes(setup[6:8], "big")] if len(setup) > 8 and setup[5] & 31 else b""


def sps_size(sps: bytes) -> tuple[int, int]:
    """Width and height of the picture that an H.264 SPS describes, cropping applied; (0, 0): nonsense."""
    width, height = _sps(sps)[:2]
    return (width, height) if 0 < width <= 1 << 15 and 0 < height <= 1 << 15 else (0, 0)


def _sps(sps: bytes) -> tuple[int, int, int, int, int]:
    """(width, height, chroma_format_idc, bit depth of luma - 8, of chroma - 8) (H.264, 7.3.2.1.1)."""
    bits = Bits(sps[1:1024].replace(b"\0\0\3", b"\0\0"))
    profile = bits.u(8)
    bits.u(16)
    bits.ue()
    chroma, luma_bits, chroma_bits, planes = 1, 0, 0, 0
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.ue()
        planes = bits.u(1) if chroma == 3 else 0
        luma_bits, chroma_bits = bits.ue(), bits.ue()
        bits.u(1)
        if bits.u(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling(bits, 16 if number < 6 else 64)
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue(), bits.u(1)
    wide, high, frames_only = bits.ue() + 1, bits.ue() + 1, bits.u(1)
    if not frames_only:
        bits.u(1)
    bits.u(1)
    left, right, top, bottom = (bits.ue(), bits.ue(), bits.ue(), bits.ue()) if bits.u(1) else (0, 0, 0, 0)
    x = 2 if chroma in (1, 2) and not planes else 1
    y = (2 if chroma == 1 and not planes else 1) * (2 - frames_only)
    return wide * 16 - (left + right) * x, high * 16 * (2 - frames_only) - (top + bottom) * y, chroma, luma_bits, chroma_bits


def _skip_scaling(bits: Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def frame_size(codec: str, frame: bytes) -> tuple[int, int]:
    """Width and height that a key frame of VP8, VP9 or AV1 states; (0, 0): it states none."""
    if codec == "vp8" and len(frame) >= 10 and frame[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(frame[6:8], "little") & 0x3FFF, int.from_bytes(frame[8:10], "little") & 0x3FFF
    if codec == "vp9":
        return _vp9_size(frame[:32])
    if codec == "av1":
        found = next((frame[start:end] for kind, start, end in _obus(frame, 0, min(len(frame), LOOK)) if kind == 1), b"")
        return _av1_size(found[:256]) if found else (0, 0)
    return 0, 0


def _vp9_size(frame: bytes) -> tuple[int, int]:
    """Uncompressed header of a key frame (VP9 bitstream specification 6.2)."""
    bits = Bits(frame)
    bits.u(2)
    profile = bits.u(1) | bits.u(1) << 1
    if profile == 3:
        bits.u(1)
    if bits.u(2):  # shows an existing frame, or is no key frame
        return 0, 0
    bits.u(2)
    if bits.u(24) != 0x498342:
        return 0, 0
    if profile >= 2:
        bits.u(1)
    if bits.u(3) != 7:
        bits.u(1)
        bits.u(3 if profile & 1 else 0)
    else:
        bits.u(1 if profile & 1 else 0)
    return bits.u(16) + 1, bits.u(16) + 1


def _av1_size(sequence: bytes) -> tuple[int, int]:
    """Sequence header (AV1 specification 5.5.1)."""
    bits = Bits(sequence)
    bits.u(4)
    if bits.u(1):  # reduced still picture header
        bits.u(5)
    else:
        model = 0
        if timing := bits.u(1):
            bits.u(64)
            if bits.u(1):
                bits.ue()
            if model := bits.u(1):
                model = bits.u(5) + 1
                bits.u(42)
        delays = bits.u(1)
        for _ in range(bits.u(5) + 1):
            bits.u(12)
            if bits.u(5) > 7:
                bits.u(1)
            if timing and model and bits.u(1):
                bits.u(model * 2 + 1)
            if delays and bits.u(1):
                bits.u(4)
    wide, high = bits.u(4) + 1, bits.u(4) + 1
    return bits.u(wide) + 1, bits.u(high) + 1


def vpcc(private: bytes) -> bytes:
    """The body of vpcC out of WebM's CodecPrivate for VP9 (features: 1 profile, 2 level, 3 bit depth, 4 chroma subsampling); b"" without any."""
    feature = {private[at]: private[at + 2] for at in range(0, len(private) - 2, 3) if private[at + 1] == 1}
    if not feature:
        return b""
    depth, chroma = feature.get(3, 8), feature.get(4, 1)
    return bytes((1, 0, 0, 0, feature.get(1, 0), feature.get(2, 0), (depth & 15) << 4 | (chroma & 7) << 1, 2, 2, 2, 0, 0))


def rfc6381(codec: str, setup: bytes, width: int = 0, height: int = 0) -> str:
    """The codec as Media Source and playlists spell it. A VP9 level of 0 (Chromium writes it) is computed from the size: players refuse 0."""
    if codec == "vp9":
        profile, level, depth = (setup[4], setup[5], setup[6] >> 4) if len(setup) >= 7 else (0, 0, 8)
        return f"vp09.{profile:02d}.{level or _vp9_level(width * height):02d}.{depth or 8:02d}"
    if codec == "h264":
        return "avc1." + (setup[1:4] if len(setup) >= 4 else b"\x42\xe0\x1e").hex().upper()
    if codec == "av1":
        if len(setup) < 3:
            return "av01.0.04M.08"
        depth = (12 if setup[2] & 0x20 else 10) if setup[2] & 0x40 else 8
        return f"av01.{setup[1] >> 5}.{setup[1] & 31:02d}{'H' if setup[2] & 0x80 else 'M'}.{depth:02d}"
    if codec == "aac":
        kind = setup[0] >> 3 if setup else 2
        return f"mp4a.40.{32 + (int.from_bytes(setup[:2], 'big') >> 5 & 63) if kind == 31 else kind or 2}"
    return {"A_VORBIS": "vorbis", "A_FLAC": "flac", "fLaC": "flac", "A_PCM/INT/LIT": "pcm", "A_PCM/FLOAT/IEEE": "pcm"}.get(codec, codec)


def _vp9_level(pixels: int) -> int:
    return 31 if pixels <= 983_040 else 41 if pixels <= 2_228_224 else 51 if pixels <= 8_912_896 else 61
