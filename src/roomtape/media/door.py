"""What the rest of the house asks of decoders: four questions and their answers, checked, because the one who answers read strangers' bytes."""

from base64 import b64decode, b64encode
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from roomtape.core.health import Picture, Sound
from roomtape.core.timeline import Mend
from roomtape.media.refusal import MediaCrashed
from roomtape.media.runner import Limits, Runner

FEED = "-"  # the file name that means: the bytes of `feed`
Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True)
class Counted:
    """A stream as its packets showed it. Times in µs of the file's clock, None without packets; frames and samples only where it was decoded."""

    kind: str
    codec: str
    width: int
    height: int
    rate: int
    channels: int
    packets: int
    keys: int
    size_bytes: int
    first_us: int | None
    end_us: int | None
    frames: int
    samples: int
    errors: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A whole file. `complete`: the demuxer came to its end; `words`: what demuxer and decoders complained of."""

    container: str
    streams: tuple[Counted, ...]
    complete: bool
    words: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Something is in it, all of it was read, and what was decoded came out without error."""
        return self.complete and any(stream.packets for stream in self.streams) and not any(stream.errors for stream in self.streams)


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest seconds in numbers, for core.health."""

    pictures: tuple[Picture, ...]
    sounds: tuple[Sound, ...]


@dataclass(frozen=True, slots=True)
class Elementary:
    """Packets without a container: (bytes, time in µs, key frame). `codec` and `setup` are those of media.index.Stream."""

    kind: Literal["audio", "video"]
    codec: str
    setup: bytes
    packets: Sequence[tuple[bytes, int, bool]]
    channels: int = 0
    rate: int = 0


@dataclass(frozen=True, slots=True)
class Overlap:
    """An off-grid join (layout.Join): `old` to the older file's last packet, `new` from the newer's first, `offset_us` by the clocks."""

    file: int
    channels: int
    packet_us: int
    offset_us: int
    old: Sequence[bytes]
    new: Sequence[bytes]


async def probe(runner: Runner, job: Path, file: str, *, feed: AsyncIterable[bytes] | None = None, limits: Limits | None = None) -> Seen:
    """Counts what a file of the job's folder (or `feed`) really holds, by demuxing the whole."""
    return _shaped(Seen, await runner.run("probe", job, {"file": file}, limits=limits, feed=feed))


async def verify(runner: Runner, job: Path, file: str, *, full: bool = False, feed: AsyncIterable[bytes] | None = None, limits: Limits | None = None) -> Seen:
    """As probe, and decodes all sound and the key frames, `full`: every frame. An exit code of 0 is not success; `Seen.sound` is."""
    return _shaped(Seen, await runner.run("verify", job, {"file": file, "full": full}, limits=limits, feed=feed))


async def watch(runner: Runner, job: Path, *, files: Sequence[str] = (), streams: Sequence[Elementary] = ()) -> Heard:
    """Looks at the key frames and listens to the sound of the newest seconds."""
    wire = [
        {
            "kind": stream.kind,
            "codec": stream.codec,
            "setup": b64encode(stream.setup).decode(),
            "channels": stream.channels,
            "rate": stream.rate,
            "packets": [(b64encode(body).decode(), time_us, key) for body, time_us, key in stream.packets],
        }
        for stream in streams
    ]
    answer = await runner.run("watch", job, {"files": list(files), "streams": wire})
    pictures = [{**picture, "points": _bytes(picture.get("points"))} for picture in _shaped(list[dict[str, Any]], answer.get("pictures"))]
    return _shaped(Heard, {"pictures": pictures, "sounds": answer.get("sounds")})


async def mend(runner: Runner, job: Path, overlaps: Sequence[Overlap]) -> list[Mend | None]:
    """Makes the packets of off-grid joins, all in one child: it starts in the time in which it mends a dozen. None: that one cannot be mended."""
    wire = [
        {
            "channels": one.channels,
            "packet_us": one.packet_us,
            "offset_us": one.offset_us,
            "old": [b64encode(packet).decode() for packet in one.old],
            "new": [b64encode(packet).decode() for packet in one.new],
        }
        for one in overlaps
    ]
    answer = await runner.run("mend", job, {"joins": wire})
    found = _shaped(list[dict[str, Any] | None], answer.get("mends"))
    if len(found) != len(overlaps):
        raise MediaCrashed("The decoder's answer makes no sense.")
    return [None if one is None else Mend(asked.file, _shaped(int, one.get("offset_us")), _packets(one)) for asked, one in zip(overlaps, found, strict=True)]


def _packets(answer: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(_bytes(packet) for packet in _shaped(list[str], answer.get("packets")))


def _shaped(shape: type[Shape], value: object) -> Shape:
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as wrong:
        raise MediaCrashed("The decoder's answer makes no sense.") from wrong


def _bytes(value: object) -> bytes:
    try:
        return b64decode(str(value), validate=True)
    except ValueError as wrong:
        raise MediaCrashed("The decoder's answer makes no sense.") from wrong
