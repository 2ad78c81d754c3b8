"""Joins two overlapping runs of Opus packets off the grid: finds how they lie to each other and re-encodes the few packets around the join. In the sandbox.

All positions are samples at 48 kHz of *decoded* sound, counted from the first old packet. The new run's content is matched to the old's by
correlation; a packet grid of 2.5 ms cannot meet it exactly, so the literals slide by up to 1.25 ms over their whole length: heard as nothing,
where a step would cancel a tone. The literals come from encoders that were fed the sound before, so that they have settled where they begin.

A decoder forgets its state where packets change between Opus's two inner codecs (SILK, alone or in hybrid, and CELT), and then needs 50 ms to come up
again: a new encoder begins in hybrid and changes to CELT when it has heard that this is music. So the literals end in the mode of the new run's
packets. Which of a few such plans sounds best is not predicted but tried: the whole chain is decoded, and the one with the smallest dip is taken.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BufferedReader
from typing import Any, Literal, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext

from roomtape.core.timeline import cut_sound
from roomtape.media.refusal import MediaRefused

Sound = npt.NDArray[np.float32]  # (samples, channels)

RATE = 48_000
GRID = 120  # 2.5 ms, the shortest Opus frame
_FRAMES = (960, 480, 240, 120)  # 20, 10, 5, 2.5 ms
_SEARCH = 2880  # ±60 ms
_SETTLE = 960  # what a new encoder and decoder need before they are to be trusted
_FADE = 480  # 10 ms
_PREROLL = 4800  # 100 ms of sound before a literal: the encoder's energies have settled
_LOOKAHEAD = 120  # of libopus with restricted low delay (always CELT): what goes in at m comes out at m + 120
_SPEECH_LOOKAHEAD = 312  # with its other applications
_BIT_RATE = 128_000  # per channel, CELT; a few packets only, so spend bits
_SPEECH_RATE = 40_000  # libopus takes SILK or hybrid below some 45 kbit/s
_CUTOFFS = (4_000, 4_000, 4_000, 6_000, 8_000, 8_000, 12_000, 20_000)  # Hz, by configuration / 2: SILK narrow to wide (4 each), hybrid (2 each)
_AFTER = 4800  # 100 ms of the new run that a plan is judged by
_QUIET = 1e-3  # -60 dBFS: nothing to hold on to
_TIE = 0.01  # peaks this near to the best are as good: a periodic sound; then the nearest to the nominal offset is right
_LIKE = 0.5  # below this the runs do not resemble each other


class Run(NamedTuple):
    """One encoder's work: up to which frequency (None: CELT, which has no such bound), samples a frame, how many frames, how many it is fed before."""

    cutoff: int | None
    size: int
    number: int
    fed: int


def mend_all(args: dict[str, Any], _feed: BufferedReader) -> dict[str, Any]:
    """args: {"joins": [what `mend` takes]}. Answer: {"mends": [what it answers, or null where a decoder gave up]}."""
    found: list[dict[str, Any] | None] = []
    for join in args["joins"]:
        try:
            found.append(mend(join))
        except (MediaRefused, av.error.FFmpegError):
            found.append(None)
    return {"mends": found}


def mend(args: dict[str, Any]) -> dict[str, Any]:
    """args: {"channels", "packet_us", "offset_us", "old": [base64], "new": [base64]}, as media.layout.Join has them.

    `old`: the older file's packets from some before the join to its very last, `new`: the newer file's from its very first. `offset_us`: where `new`
    begins by the clock, from the end of `old` (negative: they overlap). Answer: {"offset_us" by the sound, "confidence" 0..1 (0: the clock's was
    kept), "hole_us", "packets": [base64]}; the packets fill the hole that core.timeline.cut_sound finds for this offset, none where it finds none.
    """
    channels, packet_us = int(args["channels"]), int(args["packet_us"])
    if channels not in {1, 2}:
        raise MediaRefused("Only mono and stereo sound can be mended.")
    old, ends = decode([b64decode(packet) for packet in args["old"]], channels)
    new, _ = decode([b64decode(packet) for packet in args["new"]], channels)
    offset, confidence = align(old, new, len(old) + _samples(int(args["offset_us"])))
    offset_us = round((offset - len(old)) * 1_000_000 / RATE)
    skip_us, hole_us = cut_sound(-offset_us, packet_us)
    length, there = _samples(hole_us), offset + _samples(skip_us)
    here = max((end for end in (0, *ends) if end <= there - length + GRID // 2 + 1), default=0)
    packets: list[bytes] = []
    if length:
        sound = bridge(old, new, here=here, there=there, offset=offset, length=length)
        kept = sum(end <= here for end in ends)
        before, after = args["old"][max(0, kept - 4) : kept], args["new"][skip_us // packet_us :][:4]
        packets = best(sound, length, [b64decode(packet) for packet in before], [b64decode(packet) for packet in after])
    return {"offset_us": offset_us, "confidence": round(confidence, 4), "hole_us": hole_us, "packets": [b64encode(packet).decode() for packet in packets]}


def decode(packets: list[bytes], channels: int) -> tuple[Sound, list[int]]:
    """One decoder over all packets; also where each packet's sound ends. A packet that does not decode is as long as the one before it, in silence."""
    context = _codec("r", channels)
    context.options = {"request_sample_fmt": "flt"}
    parts: list[Sound] = []
    ends: list[int] = []
    for packet in packets:
        try:
            frames = context.decode(av.Packet(packet))
        except av.error.InvalidDataError:
            frames = []
        got = [interleaved(frame.to_ndarray(), channels) for frame in frames]
        parts += got or [np.zeros((len(parts[-1]) if parts else 960, channels), np.float32)]
        ends.append(sum(map(len, parts)))
    return np.concatenate(parts) if parts else np.zeros((0, channels), np.float32), ends


def _samples(us: int) -> int:
    return round(us * RATE / 1_000_000)


def align(old: Sound, new: Sound, nominal: int) -> tuple[int, float]:
    """Where `new` begins in `old`, within ±60 ms of `nominal`, and how alike they are; (nominal, 0.0) where the sound says nothing."""
    a, b = old.mean(axis=1, dtype=np.float64), new.mean(axis=1, dtype=np.float64)
    first = nominal - _SEARCH
    settle = max(_SETTLE, -first)
    size = min(len(a) - (nominal + _SEARCH) - settle, len(b) - settle)
    if size < _SETTLE:
        return nominal, 0.0
    template, field = b[settle : settle + size], a[first + settle : first + settle + size + 2 * _SEARCH]
    padded = 1 << (len(field) + size).bit_length()
    product = np.fft.irfft(np.fft.rfft(field, padded) * np.conj(np.fft.rfft(template, padded)), padded)[: 2 * _SEARCH + 1]
    energy = np.concatenate(([0.0], np.cumsum(field**2)))
    there = energy[size : size + 2 * _SEARCH + 1] - energy[: 2 * _SEARCH + 1]
    here = float(np.sum(template**2))
    if here < size * _QUIET**2 or float(there.max()) < size * _QUIET**2:
        return nominal, 0.0
    likeness = product / np.sqrt(np.maximum(there, size * _QUIET**2 / 16) * here)
    if float(likeness.max()) < _LIKE:
        return nominal, 0.0
    best = np.flatnonzero(likeness >= likeness.max() - _TIE)
    peaks = [lag for lag in best if likeness[lag] >= likeness[max(lag - 1, 0)] and likeness[lag] >= likeness[min(lag + 1, 2 * _SEARCH)]]
    lag = min(peaks, key=lambda lag: abs(lag - _SEARCH))
    return first + int(lag), float(likeness[lag])


def bridge(old: Sound, new: Sound, *, here: int, there: int, offset: int, length: int) -> Sound:
    """The sound from _PREROLL before `here` to _AFTER behind its end: old, a cross-fade in the middle, new, which is met at here + length."""
    at = np.arange(here - _PREROLL, here + length + _AFTER)
    slide = np.clip((at - here) / length, 0.0, 1.0) * (there - here - length)
    source = at + slide
    middle = min((here + there) / 2, len(old) - _FADE / 2)
    fade = np.clip((source - middle) / min(_FADE, length) + 0.5, 0.0, 1.0)[:, None]
    return (_read(old, source) * (1 - fade) + _read(new, source - offset) * fade).astype(np.float32)


def best(sound: Sound, length: int, before: list[bytes], after: list[bytes]) -> list[bytes]:
    """The packets for `length` samples of `sound` from _PREROLL on that sound best between the packets `before` and `after`."""
    found: list[tuple[float, list[bytes]]] = []
    for plan in plans(length, after[0][0] >> 3 if after else 31):
        at, packets = _PREROLL, list[bytes]()
        for run in plan:
            packets += encode(sound, at, run)
            at += run.size * run.number
        found.append((flaw(sound, length, before, packets, after), packets))
    return min(found, key=lambda one: one[0])[1]


def plans(length: int, configuration: int) -> Iterator[list[Run]]:
    """Ways to fill `length` before a packet of this configuration (the first five bits of an Opus packet; 16 and more are CELT)."""
    yield _celt(length)
    if configuration >= 16:
        return
    ten, cutoff = _FRAMES[1], _CUTOFFS[configuration // 2]
    for number in {1, 2, 4, length // ten}:
        if ten * number <= length and number:
            yield from ([*_celt(length - ten * number), Run(cutoff, ten, number, fed)] for fed in (10, 1, 0))


def _celt(length: int) -> list[Run]:
    """Short frames first: the decoder of the new run then comes from long ones."""
    runs: list[Run] = []
    for size in _FRAMES:
        number, length = divmod(length, size)
        if number:
            runs.insert(0, Run(None, size, number, _PREROLL // size))
    return runs


def flaw(sound: Sound, length: int, before: list[bytes], packets: list[bytes], after: list[bytes]) -> float:
    """How far the level of any 10 ms around the join is off, in dB, when one decoder decodes the whole chain."""
    decoded, ends = decode([*before, *packets, *after], sound.shape[1])
    here = ends[len(before) - 1] if before else 0
    size = min(len(decoded) - here, length + _AFTER)
    got, wanted = _levels(decoded[here : here + size]), _levels(sound[_PREROLL : _PREROLL + size])
    loud = wanted > _QUIET
    return float(np.abs(20 * np.log10(np.maximum(got[loud], 1e-6) / wanted[loud])).max()) if loud.any() else 0.0


def encode(sound: Sound, at: int, run: Run) -> list[bytes]:
    """Packets whose decoded sound begins at `at`."""
    channels = sound.shape[1]
    context = _codec("w", channels)
    context.format = "flt"
    context.options = {"frame_duration": f"{run.size / 48:g}", "vbr": "off", "packet_loss": "100"}  # expecting loss: frames lean less on those before
    if run.cutoff is None:
        context.bit_rate, lookahead = _BIT_RATE * channels, _LOOKAHEAD
        context.options |= {"application": "lowdelay"}
    else:
        context.bit_rate, lookahead = _SPEECH_RATE, _SPEECH_LOOKAHEAD
        context.options |= {"application": "voip", "compression_level": "5", "cutoff": str(run.cutoff)}  # below 7 it does not listen for music
    start = at + lookahead - run.fed * run.size
    packets: list[bytes] = []
    for number in range(run.fed + run.number):
        piece = np.ascontiguousarray(sound[start + number * run.size : start + (number + 1) * run.size])
        frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="flt", layout="mono" if channels == 1 else "stereo")
        frame.sample_rate, frame.pts = RATE, number * run.size
        packets += [bytes(packet) for packet in context.encode(frame)]
    packets += [bytes(packet) for packet in context.encode(None)]
    return packets[run.fed : run.fed + run.number]


def _levels(sound: Sound) -> npt.NDArray[np.float64]:
    """The level of each 10 ms, every 2.5 ms."""
    energy = np.concatenate(([0.0], np.cumsum(np.mean(sound.astype(np.float64) ** 2, axis=1))))
    starts = np.arange(0, max(1, len(sound) - _FADE + 1), GRID)
    levels: npt.NDArray[np.float64] = np.sqrt(np.maximum(energy[np.minimum(starts + _FADE, len(sound))] - energy[starts], 0.0) / _FADE)
    return levels


def _codec(mode: Literal["r", "w"], channels: int) -> AudioCodecContext:
    context: Any = av.Codec("libopus", mode).create()
    context.sample_rate, context.layout = RATE, "mono" if channels == 1 else "stereo"
    return context  # type: ignore[no-any-return]


def interleaved(samples: npt.NDArray[Any], channels: int) -> Sound:
    """(samples, channels) as floats, from whatever layout and format the decoder gives."""
    if samples.dtype.kind == "i":
        samples = samples / np.float32(1 << (8 * samples.dtype.itemsize - 1))
    return samples.reshape(-1, channels).astype(np.float32) if samples.shape[0] == 1 else samples.T.astype(np.float32)


def _read(sound: Sound, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sound at fractional positions; silence outside."""
    places = np.arange(len(sound))
    return np.stack([np.interp(at, places, sound[:, channel], left=0.0, right=0.0) for channel in range(sound.shape[1])], axis=1)
