"""Which of nine demuxers a file's first bytes belong to; everything else is refused before any demuxer sees it."""

import re

from roomtape.media.refusal import MediaRefused

HEAD_SIZE = 4096  # bytes that `sniff` wants to see
DEMUXERS = ("mov", "matroska", "mpegts", "ogg", "wav", "flac", "aac", "mp3", "ivf")
# By decoder: what meetings and the files people import carry. ffmpeg has hundreds more, and most of its holes are in those.
DECODERS = (
    *("vp8", "vp9", "libdav1d", "av1", "h264", "hevc", "mpeg4", "opus", "libopus", "vorbis", "aac", "mp3", "mp3float", "flac", "alac"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_u8", "pcm_alaw", "pcm_mulaw"),
)
MAX_PIXELS = 8_912_896  # 4096 x 2176
MAX_STREAMS = 8

_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"free", b"skip", b"wide", b"mdat"})
_TS_PACKET = 188
_ADTS = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]", re.DOTALL)


def sniff(head: bytes) -> str:
    """The demuxer's name for ffmpeg and PyAV. MediaRefused: playlists, pictures, archives, text, and all that is not one of the nine."""
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"DKIF":
        return "ivf"
    if head[4:8] in _BOXES and _box_is_sane(head):
        return "mov"
    if len(head) > _TS_PACKET and all(head[at] == 0x47 for at in range(0, min(len(head), 3 * _TS_PACKET), _TS_PACKET)):
        return "mpegts"
    return _elementary(head)


def _box_is_sane(head: bytes) -> bool:
    """A first box has 8 bytes or more, or one of the two special sizes (0: to the end, 1: a 64-bit size follows)."""
    size = int.from_bytes(head[:4], "big")
    return size >= 8 or size in {0, 1}


def _elementary(head: bytes) -> str:
    if head[:3] == b"ID3":
        return "mp3"
    if _ADTS.match(head) and len(head) >= 7:
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size >= 7 and (len(head) < size + 2 or _ADTS.match(head, size)):  # the next frame stands where the first says it ends
            return "aac"
    elif len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 6 and head[1] & 0x18 != 8 and head[2] >> 4 not in {0, 15}:
        return "mp3"  # MPEG audio: a layer, a version and a bit rate that exist
    raise MediaRefused
