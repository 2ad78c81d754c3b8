"""Pictures and sound with known content, and their readers: what a recorder kept is told from the file it made, frame by frame and beep by beep.

The picture carries its number as twenty black and white cells, the sound says each second in two tones; both survive a lossy codec and scaling.
Chromium plays them as camera and microphone: `--use-fake-device-for-media-stream --use-file-for-fake-video-capture=numbers.mjpeg
--use-file-for-fake-audio-capture=beeps.wav` (`.y4m` is taken too, at 10 MB a second). It starts both files anew at their end.
"""

import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import numpy as np
from numpy.typing import NDArray

FPS = 30
WIDTH, HEIGHT = 640, 360
NUMBERS = 1 << 16
SECONDS = 32 * 32
RATE_HZ = 48_000
BEEP_S = 0.12  # two Opus packets of 60 ms
UNREADABLE = -1

_COLUMNS, _ROWS = 5, 4  # white, black, sixteen bits, parity and its opposite
_BLACK, _WHITE = 24, 224  # luma; far enough from the ends that no range conversion clips
_RAMP_S = 0.005
_LOW_HZ, _HIGH_HZ, _STEP_HZ = 600, 3000, 60  # 32 tones each: units of a second, thirty-twos of a second

Seen = tuple[float, int]
Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a row of numbers. `missing`, `doubled`: numbers; `disordered`: numbers that come after a higher one; `unreadable`: how many.

    `offset_s`: where number 0 would lie (median); `jitter_s`: how far the times stray from an even pace, greatest less least.
    """

    missing: tuple[int, ...]
    doubled: tuple[int, ...]
    disordered: tuple[int, ...]
    unreadable: int
    offset_s: float
    jitter_s: float

    @property
    def whole(self) -> bool:
        """Nothing missing, doubled, out of order or unreadable."""
        return not (self.missing or self.doubled or self.disordered or self.unreadable)


def write_numbers(path: Path, seconds: float, *, first: int = 0) -> Path:
    """A camera's file: frame n carries `first + n`. The suffix decides: `.mjpeg` (small) or `.y4m` (raw). ValueError: more numbers than fit."""
    count = round(seconds * FPS)
    if first < 0 or first + count > NUMBERS:
        raise ValueError(f"numbers go from 0 to {NUMBERS - 1}")
    with av.open(str(path), "w") as out:
        if path.suffix == ".mjpeg":
            stream = out.add_stream("mjpeg", FPS, options={"qmin": "2", "qmax": "2"})
            stream.pix_fmt = "yuvj420p"
        else:
            stream = out.add_stream("wrapped_avframe", FPS)
            stream.pix_fmt = "yuv420p"
        stream.width, stream.height = WIDTH, HEIGHT
        for at in range(count):
            frame = picture(first + at, stream.pix_fmt)
            frame.pts, frame.time_base = at, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def picture(number: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """One numbered frame, 640x360. The number stands in Gray code: from frame to frame one cell changes, and the parity with it."""
    gray = number ^ (number >> 1)
    bits = [gray >> bit & 1 for bit in range(15, -1, -1)]
    odd = sum(bits) & 1
    cells = np.array([1, 0, *bits, odd, 1 - odd], np.uint8).reshape(_ROWS, _COLUMNS) * (_WHITE - _BLACK) + _BLACK
    luma = np.kron(cells, np.ones((HEIGHT // _ROWS, WIDTH // _COLUMNS), np.uint8))
    chroma = np.full((HEIGHT // 2, WIDTH), 128, np.uint8)
    return av.VideoFrame.from_ndarray(np.vstack([luma, chroma]), format=pix_fmt)


def write_beeps(path: Path, seconds: int, *, first: int = 0) -> Path:
    """A microphone's file (WAV, 48 kHz mono): see `beeps`."""
    sound = beeps(seconds, first=first)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def beeps(seconds: int, *, first: int = 0) -> NDArray[np.float64]:
    """Samples at 48 kHz: at each full second n a beep that says `first + n`. ValueError: more seconds than fit."""
    if first < 0 or first + seconds > SECONDS:
        raise ValueError(f"seconds go from 0 to {SECONDS - 1}")
    return np.concatenate([_second(first + at) for at in range(seconds)])


def _second(number: int) -> NDArray[np.float64]:
    at = np.arange(round(BEEP_S * RATE_HZ)) / RATE_HZ
    ramp = np.clip(np.minimum(at, BEEP_S - at) / _RAMP_S, 0, 1)
    low, high = _LOW_HZ + _STEP_HZ * (number % 32), _HIGH_HZ + _STEP_HZ * (number // 32)
    second = np.zeros(RATE_HZ)
    second[: at.size] = ramp * (0.3 * np.sin(2 * np.pi * low * at) + 0.3 * np.sin(2 * np.pi * high * at))
    return second


def read_frame_numbers(path: Path | str, *, region: Region = WHOLE) -> list[Seen]:
    """Every decoded frame's time in the file (seconds) and number, in the order of the file; `UNREADABLE` where no number can be told.

    `path` may be anything that FFmpeg opens, an HLS address too. `region`: where the picture lies, as left, top, width, height of the frame (0 to 1).
    """
    with av.open(str(path)) as media:
        return [(float(frame.time or 0.0), read_picture(luma_of(frame), region)) for frame in media.decode(video=0)]


def luma_of(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame's brightness, rows of bytes."""
    return frame.to_ndarray(format="gray").astype(np.uint8, copy=False)


def read_picture(luma: NDArray[np.uint8], region: Region = WHOLE) -> int:
    """The number in a picture of any size, given as rows of luma; `UNREADABLE` where a cell is neither black nor white or the parity lies."""
    left, top, width, height = region
    rows, columns = luma.shape
    cells = np.empty(_ROWS * _COLUMNS)
    for at in range(cells.size):
        row, column = divmod(at, _COLUMNS)
        y = [round(rows * (top + height * (row + part) / _ROWS)) for part in (0.3, 0.7)]  # the middle: edges smear
        x = [round(columns * (left + width * (column + part) / _COLUMNS)) for part in (0.3, 0.7)]
        cells[at] = luma[y[0] : y[1], x[0] : x[1]].mean()
    white, black = cells[:2]
    if white - black < 60:
        return UNREADABLE
    level = (cells - black) / (white - black)
    if np.any(np.abs(level - 0.5) < 0.2):
        return UNREADABLE
    bits = [int(one) for one in level[2:] > 0.5]
    if sum(bits[:16]) & 1 != bits[16] or bits[16] == bits[17]:
        return UNREADABLE
    number = 0
    for bit in bits[:16]:
        number = number << 1 | (bit ^ number & 1)  # out of Gray code
    return number


def read_beeps(path: Path | str) -> list[Seen]:
    """Every beep's time in the file (seconds, within 3 ms) and second, in the order of time; `UNREADABLE` where a sound is too short or says nothing."""
    sound, rate = read_sound(path)
    if not sound.size:
        return []
    hop = rate // 1000
    level = np.sqrt(np.mean(sound[: sound.size // hop * hop].reshape(-1, hop) ** 2, axis=1))
    smooth = np.convolve(level, np.ones(5) / 5, "same")
    loud = np.concatenate([[False], smooth > max(0.25 * np.percentile(smooth, 99), 0.01), [False]])
    edges = np.flatnonzero(np.diff(loud.astype(np.int8)))
    beeps = []
    for start, end in edges.reshape(-1, 2):
        heard = UNREADABLE if end - start < 60 else _which(sound[(start + 15) * hop : (end - 10) * hop], rate)
        beeps.append((float(start) * hop / rate, heard))
    return beeps


def _which(sound: NDArray[np.float32], rate: int) -> int:
    size = 1 << 16
    power = np.abs(np.fft.rfft(sound * np.hanning(sound.size), size))
    tones = []
    for base in (_LOW_HZ, _HIGH_HZ):
        at = np.round((base + _STEP_HZ * np.arange(32)) * size / rate).astype(int)
        tones.append(power[at])
    for tone in tones:
        best, second = np.argmax(tone), np.partition(tone, -2)[-2]
        if tone[best] < 2 * second or tone[best] < 0.2 * power.max():
            return UNREADABLE
    return int(np.argmax(tones[0]) + 32 * np.argmax(tones[1]))


def read_sound(path: Path | str) -> tuple[NDArray[np.float32], int]:
    """The sound mixed to one channel on the file's clock, holes as silence, and its rate in Hz. Sample 0 is time 0."""
    pieces: list[tuple[int, NDArray[np.float32]]] = []
    rate = RATE_HZ
    with av.open(str(path)) as media:
        for frame in media.decode(audio=0):
            rate = frame.sample_rate
            pieces.append((round((frame.time or 0.0) * rate), _mono(frame)))
    sound = np.zeros(max((at + piece.size for at, piece in pieces), default=0), np.float32)
    for at, piece in pieces:
        begin = max(at, 0)
        sound[begin : at + piece.size] = piece[begin - at :]
    return sound, rate


def _mono(frame: av.AudioFrame) -> NDArray[np.float32]:
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    by_channel = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    scale = float(1 << (8 * samples.itemsize - 1)) if samples.dtype.kind == "i" else 1.0
    mixed: NDArray[np.float32] = (by_channel.mean(axis=0) / scale).astype(np.float32)
    return mixed


def judge(seen: Sequence[Seen], expected: Iterable[int] | None = None, *, rate: float = FPS) -> Verdict:
    """Compares what was read with what was to be there: every number of `expected`, else all from the least to the greatest seen.

    `rate`: numbers a second (30 for frames, 1 for beeps). Nothing readable at all: everything expected is missing.
    """
    numbers = [number for _, number in seen if number != UNREADABLE]
    wanted = set(expected) if expected is not None else set(range(min(numbers, default=0), max(numbers, default=-1) + 1))
    once: set[int] = set()
    twice: set[int] = set()
    late: list[int] = []
    highest = -1
    for number in numbers:
        (twice if number in once else once).add(number)
        if number < highest:
            late.append(number)
        highest = max(highest, number)
    strays = [time_s - number / rate for time_s, number in seen if number != UNREADABLE]
    return Verdict(
        missing=tuple(sorted(wanted - once)),
        doubled=tuple(sorted(twice)),
        disordered=tuple(late),
        unreadable=len(seen) - len(numbers),
        offset_s=median(strays) if strays else 0.0,
        jitter_s=max(strays) - min(strays) if strays else 0.0,
    )
