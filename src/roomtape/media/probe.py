"""What a file really holds, counted by demuxing it; what its header claims is not asked. Runs in the sandbox."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from io import BufferedReader
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer

from roomtape.media.refusal import MediaTooBig
from roomtape.media.sniff import DECODERS, DEMUXERS, HEAD_SIZE, MAX_PIXELS, MAX_STREAMS, sniff

_CODEC_OPTIONS = {"max_pixels": str(MAX_PIXELS), "codec_whitelist": ",".join(DECODERS)}
_OPTIONS = {
    "protocol_whitelist": "file,pipe",
    "format_whitelist": ",".join(DEMUXERS),
    "max_streams": str(MAX_STREAMS + 1),  # one more than is taken: some demuxers leave out the rest without a word
    "probesize": "5000000",
    "analyzeduration": "10000000",
} | _CODEC_OPTIONS
FEED = "-"  # the name that means: the job's feed
_MAX_WORDS = 10


@dataclass(slots=True)
class _Count:
    """What was seen of one stream; times in microseconds of the file's own clock, None where no packet carried one."""

    kind: str
    codec: str
    width: int = 0
    height: int = 0
    rate: int = 0
    channels: int = 0
    packets: int = 0
    keys: int = 0
    size_bytes: int = 0
    first_us: int | None = None
    end_us: int | None = None
    frames: int = 0
    samples: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Seen:
    """A whole file; `complete` is false when the demuxer gave up before the end."""

    container: str
    streams: list[_Count] = field(default_factory=list)
    complete: bool = True
    words: list[str] = field(default_factory=list)

    def note(self, error: av.error.FFmpegError) -> None:
        if len(self.words) < _MAX_WORDS:
            self.words.append(str(error.strerror))


def opened(name: str, feed: BufferedReader) -> InputContainer:
    """Opens a file of the job's folder, or its feed, with the demuxer that its first bytes call for, and with capped decoders."""
    if name == FEED:
        container = av.open(feed, "r", format=sniff(feed.peek(HEAD_SIZE)), options=_OPTIONS)
    else:
        with Path(name).open("rb") as file:
            demuxer = sniff(file.read(HEAD_SIZE))
        container = av.open(f"file:{name}", "r", format=demuxer, options=_OPTIONS)
    if len(container.streams) > MAX_STREAMS:
        raise MediaTooBig(f"The file has more than {MAX_STREAMS} streams.")
    for stream in container.streams:
        if stream.type in {"audio", "video"}:
            guard(stream.codec_context)
    return container


def limit(context: Any) -> None:
    """Puts the caps on a decoder that is not open yet."""
    context.options = dict(_CODEC_OPTIONS)


def guard(context: Any) -> None:
    """Caps a decoder of a file; one whose pictures are out of bounds is not opened at all."""
    limit(context)
    if context.type == "video" and not 0 < context.width * context.height <= MAX_PIXELS:  # 0: the decoder would not even say it
        raise MediaTooBig(f"The pictures have {context.width} x {context.height} pixels; up to {MAX_PIXELS} are taken.")


def probe(args: dict[str, Any], feed: BufferedReader) -> dict[str, Any]:
    """args: {"file": name, or "-" for the feed}. Demuxes the whole file; nothing is decoded beyond what finding the streams takes."""
    with opened(args["file"], feed) as container:
        seen = _look(container)
        for _packet in _packets(container, seen):
            pass
    return asdict(seen)


def verify(args: dict[str, Any], feed: BufferedReader) -> dict[str, Any]:
    """args: {"file", "full"}. As probe, and decodes all sound and the key frames, with `full` every frame. A file is good if complete and without errors."""
    with opened(args["file"], feed) as container:
        seen = _look(container)
        for packet in _packets(container, seen):
            count = seen.streams[packet.stream.index]
            if count.kind == "audio" or (count.kind == "video" and (args.get("full") or packet.is_keyframe)):
                _decode(packet, count, seen)
        for stream in container.streams:
            if stream.type in {"audio", "video"}:
                _decode(None, seen.streams[stream.index], seen, stream=stream)
    return asdict(seen)


def _look(container: InputContainer) -> _Seen:
    seen = _Seen(container.format.name)
    for stream in container.streams:
        context: Any = stream.codec_context
        count = _Count(stream.type, context.name if context else "")
        if stream.type == "video":
            count.width, count.height = context.width, context.height
        elif stream.type == "audio":
            count.rate, count.channels = context.rate or 0, context.channels or 0
        seen.streams.append(count)
    return seen


def _packets(container: InputContainer, seen: _Seen) -> Iterator[Any]:
    """Every packet with bytes, counted."""
    try:
        for packet in container.demux():
            if not packet.size:
                continue  # the flush packets PyAV makes at the end
            count = seen.streams[packet.stream.index]
            count.packets += 1
            count.keys += packet.is_keyframe
            count.size_bytes += packet.size
            start = packet.pts if packet.pts is not None else packet.dts
            if start is not None:
                start_us, end_us = _us(start, packet.time_base), _us(start + (packet.duration or 0), packet.time_base)
                count.first_us = start_us if count.first_us is None else min(count.first_us, start_us)
                count.end_us = end_us if count.end_us is None else max(count.end_us, end_us)
            yield packet
    except av.error.FFmpegError as error:
        seen.complete = False
        seen.note(error)


def _us(value: int, time_base: Fraction | None) -> int:
    return round(value * 1_000_000 * (time_base or Fraction(1, 1_000_000)))


def _decode(packet: Any, count: _Count, seen: _Seen, stream: Any = None) -> None:
    try:
        for frame in (packet.stream if packet else stream).codec_context.decode(packet):
            count.frames += 1
            count.samples += getattr(frame, "samples", 0)
    except av.error.EOFError:
        return  # flushing a decoder that never got a packet
    except av.error.FFmpegError as error:
        if error.errno == 12:  # out of memory is no fault of the packet: the child answers for it
            raise
        count.errors += 1
        seen.note(error)
