"""What the newest seconds of a recording look and sound like, in numbers. Runs in the sandbox; core.health judges.

Only key frames are decoded, shrunk to 32 x 18 points of brightness: enough to tell black, frozen and moving apart, at 1 to 3 ms a picture.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.packet import Packet

from roomtape.media.mend import interleaved
from roomtape.media.probe import limit, opened

WIDTH, HEIGHT = 32, 18
_RATE = 48_000


def watch(args: dict[str, Any], feed: BufferedReader) -> dict[str, Any]:
    """args: {"files": [name], "streams": [{"kind", "codec", "setup": base64, "channels", "rate", "packets": [[base64, time_us, key]]}]}; either may be missing.

    Answer: {"pictures": [{"at_us", "luma" 0..255, "spread", "points": base64 of 32 x 18 bytes}], "sounds": [{"start_us", "end_us", "peak_dbfs", "rms_dbfs"}],
    "errors"}; dBFS is null for digital silence. Times are those of the file, or those given with the packets.
    """
    seen: dict[str, Any] = {"pictures": [], "sounds": [], "errors": 0}
    for name in args.get("files", []):
        with opened(name, feed) as container:
            _watch(_of_file(container), seen)
    for stream in args.get("streams", []):
        _watch(_of_packets(stream), seen)
    return seen


def _of_file(container: Any) -> Iterator[tuple[int, Any, Any]]:
    """(start of the packet in µs, its decoder, the packet); a packet None at the end of each decoder."""
    try:
        for packet in container.demux():
            wanted = packet.size and packet.stream.type in {"audio", "video"} and (packet.stream.type == "audio" or packet.is_keyframe)
            if wanted and packet.pts is not None:
                yield round(packet.pts * packet.time_base * 1_000_000), packet.stream.codec_context, packet
    except av.error.InvalidDataError:
        pass  # a file that is still being written ends anywhere
    for stream in container.streams.video:
        yield 0, stream.codec_context, None


def _of_packets(stream: dict[str, Any]) -> Iterator[tuple[int, Any, Any]]:
    names = {"opus": "libopus", "av1": "libdav1d"}
    context: Any = av.CodecContext.create(names.get(stream["codec"], stream["codec"]), "r")
    if stream["kind"] == "audio":
        context.sample_rate, context.layout = stream.get("rate") or _RATE, "mono" if stream.get("channels") == 1 else "stereo"
    if setup := b64decode(stream.get("setup", "")):
        context.extradata = setup
    limit(context)
    for body, time_us, key in stream["packets"]:
        if key or stream["kind"] == "audio":
            packet = Packet(b64decode(body))
            packet.pts = packet.dts = time_us
            yield time_us, context, packet
    yield 0, context, None


def _watch(packets: Iterator[tuple[int, Any, Any]], seen: dict[str, Any]) -> None:
    pending: list[int] = []  # times of pictures that the decoder still holds
    for time_us, context, packet in packets:
        video = context.type == "video"
        if video and packet is not None:
            pending.append(time_us)
        try:
            frames = context.decode(packet)
        except av.error.EOFError:
            continue  # nothing was ever put in
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            seen["errors"] += 1
            continue
        for frame in frames:
            if video:
                seen["pictures"].append(_picture(frame, pending.pop(0) if pending else time_us))
            else:
                _sound(frame, time_us, seen["sounds"])


def _picture(frame: Any, at_us: int) -> dict[str, Any]:
    points = frame.reformat(WIDTH, HEIGHT, "gray", interpolation="AREA").to_ndarray()
    return {"at_us": at_us, "luma": round(float(points.mean()), 2), "spread": round(float(points.std()), 2), "points": b64encode(points.tobytes()).decode()}


def _sound(frame: Any, start_us: int, sounds: list[dict[str, Any]]) -> None:
    """Joins what follows on without a hole and is shorter than a second to the reading before."""
    samples: npt.NDArray[np.float32] = interleaved(frame.to_ndarray(), frame.layout.nb_channels)
    if not len(samples):
        return
    end_us = start_us + len(samples) * 1_000_000 // frame.sample_rate
    peak, power = float(np.abs(samples).max()), float(np.mean(samples.astype(np.float64) ** 2))
    last = sounds[-1] if sounds else None
    if last and 0 <= start_us - last["end_us"] < 5_000 and start_us - last["start_us"] < 1_000_000:
        long, more = last["end_us"] - last["start_us"], end_us - last["end_us"]
        power = (_linear(last["rms_dbfs"]) ** 2 * long + power * more) / (long + more)
        peak, start_us = max(_linear(last["peak_dbfs"]), peak), last["start_us"]
        sounds.pop()
    sounds.append({"start_us": start_us, "end_us": end_us, "peak_dbfs": _dbfs(peak), "rms_dbfs": _dbfs(math.sqrt(power))})


def _dbfs(value: float) -> float | None:
    return round(20 * math.log10(value), 2) if value > 0 else None


def _linear(dbfs: float | None) -> float:
    return 0.0 if dbfs is None else 10 ** (dbfs / 20)
