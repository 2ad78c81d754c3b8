"""Recorders that follow on one another, heard by one decoder: no join dips, nothing drifts, tracks keep together. Starts are stated, no time passes."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from roomtape.testing import known, synthetic

from .studio import DATA, Part, Studio, levels, recorded, sound_of

T0_MS = 1_795_247_000_000.0
OVERLAP_S = 0.25
DIP_DB = 6.0
SKEW_S = 0.04
CODEC_S = 0.0065  # what an Opus encoder and decoder delay sound; Chromium's files do not say it either


def stated(at_s: float, dice: random.Random, *, jitter_s: float = 0.01) -> float:
    """What a page says of a recorder that began at `at_s`: it hears of it late, or early."""
    return T0_MS + (at_s + dice.uniform(-jitter_s, jitter_s)) * 1000


def restarts(starts: Sequence[float], dice: random.Random, source: synthetic.Source, *, codec: synthetic.Codec | None = None) -> list[Part]:
    """Recorders, each stopped a quarter of a second after the next one has begun."""
    parts = []
    ends = [after + OVERLAP_S for after in starts[1:]] + [starts[-1] + 4]
    for at, until in zip(starts, ends, strict=True):
        body = synthetic.segment(at, until - at + synthetic.PACKET_MS / 1000, source=source, codec=codec, size=(160, 90))
        parts.append(Part(body, stated(at, dice)))
    return parts


def dips(heard: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Windows of 10 ms that are 6 dB or more below the sound's level: (seconds, dB). The first encoder's start and the last one's end are left out."""
    level = 20 * np.log10(np.maximum(heard, 1e-6) / np.median(heard))
    where = np.flatnonzero(level[10:-10] < -DIP_DB) + 10
    return [(float(at) / 100, float(level[at])) for at in where]


STARTS: dict[str, Callable[[random.Random, int], list[float]]] = {
    "on the packet grid": lambda _, count: [n * 3.96 for n in range(count)],
    "off it": lambda _, count: [n * 4.0 for n in range(count)],
    "at odd times": lambda dice, count: [n * 4.0 + dice.uniform(0, 0.06) for n in range(count)],
}


@pytest.mark.parametrize("when", ["on the packet grid", pytest.param("off it", marks=pytest.mark.long), "at odd times"])
def test_a_steady_tone_over_a_hundred_restarts_with_overlap_never_dips(when: str, studio: Studio, folder: Path) -> None:
    dice = random.Random(when)
    starts = STARTS[when](dice, 101)
    take = studio.record(restarts(starts, dice, synthetic.tone()))
    view = take.view()
    assert (view["status"], view["warnings"], view["gaps"]) == ("completed", [], [])
    heard = levels(take.download(folder))
    assert dips(heard) == []
    assert abs(view["duration_s"] - (starts[-1] - starts[0] + 67 * 0.06)) <= SKEW_S


def test_pictures_over_restarts_with_overlap_are_each_there_once(studio: Studio, folder: Path) -> None:
    dice = random.Random(3)
    starts = [n * 4.0 for n in range(8)]
    path = studio.record(restarts(starts, dice, synthetic.voice(), codec="vp8")).download(folder)
    verdict = known.judge(known.read_frame_numbers(path), range(round((starts[-1] + 4) * known.FPS)))
    assert verdict.whole, verdict
    assert verdict.jitter_s <= 1.1 / known.FPS


def likeness(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How alike two sounds are, from -1 to 1."""
    return float(np.dot(one, other) / np.sqrt(max(np.dot(one, one) * np.dot(other, other), 1e-9)))


def lag_of(part: NDArray[np.float64], whole: NDArray[np.float64]) -> int:
    """Where the whole is most like the part."""
    size = 1 << (len(whole) + len(part)).bit_length()
    product = np.fft.irfft(np.fft.rfft(whole, size) * np.conj(np.fft.rfft(part, size)), size)[: len(whole) - len(part) + 1]
    energy = np.concatenate([[0.0], np.cumsum(whole**2)])
    return int((product / np.sqrt(energy[len(part) :] - energy[: -len(part)] + 1e-3)).argmax())


@pytest.mark.parametrize("pitch_s", [3.96, 4.0])
def test_a_voice_over_restarts_with_overlap_is_the_voice_at_each_moment(pitch_s: float, studio: Studio, folder: Path) -> None:
    dice, source = random.Random(11), synthetic.voice()
    starts = [n * pitch_s for n in range(16)]
    heard = sound_of(studio.record(restarts(starts, dice, source)).download(folder)).astype(np.float64)
    rate, reach, size = known.RATE_HZ, known.RATE_HZ // 24, known.RATE_HZ // 10
    said = synthetic.sampled(source, 0.0, starts[-1] + 4)
    for at in range(reach, len(said) - size - 2 * reach, size):
        field = heard[at - reach : at + size + reach]
        lag = lag_of(said[at : at + size], field)
        assert abs(lag - reach) <= SKEW_S * rate, f"at {at / rate:.1f} s"
        assert likeness(said[at : at + size], field[lag : lag + size]) > 0.8, f"at {at / rate:.1f} s"


def test_chromiums_own_overlaps_keep_every_word(studio: Studio, folder: Path) -> None:
    name = "C-vp8-overlap"
    heard = sound_of(studio.record(recorded(name)).download(folder)).astype(np.float64)
    rate = known.RATE_HZ
    for number, path in enumerate(sorted((DATA / name).glob("0*"))):
        own = sound_of(path).astype(np.float64)[rate // 4 : 4 * rate]  # the rest is the join's
        first = max(number * 4 * rate, 0)
        field = heard[first : first + len(own) + rate // 2]
        lag = lag_of(own, field)
        assert abs((first + lag) / rate - 0.25 - number * 4.0) <= SKEW_S
        assert likeness(own, field[lag : lag + len(own)]) > 0.97


HOUR_S = 3600
DRIFT_PPM = 100.0


def hour(dice: random.Random, packets: int) -> tuple[list[Part], list[tuple[float, float]]]:
    """Recorders stopped and started again all the time, on a device whose clock is fast; also (start, end) of what each of them heard."""
    parts, heard, at = [], [], 0.0
    silent = synthetic.opus(np.zeros(packets * 2880))
    length = packets * 0.06 / (1 + DRIFT_PPM / 1e6)
    source = synthetic.marks(10.0, 0.1)
    while at < HOUR_S:
        own = list(silent)
        for mark in (at // 10 * 10, at // 10 * 10 + 10):  # only what is heard is encoded
            first = max(int((mark - at) / 0.06) - 2, 0)
            if at - 0.1 < mark < at + length and first < packets:
                sound = synthetic.sampled(source, at, packets * 0.06, ppm=DRIFT_PPM)[first * 2880 : (first + 8) * 2880]
                own[first : first + 8] = synthetic.opus(sound)
        parts.append(Part(synthetic.webm(own), stated(at, dice)))
        heard.append((at, at + length))
        at += length + dice.choice([0.0, 0.005, 0.04, 0.05])
    return parts, heard


@pytest.mark.parametrize("packets", [pytest.param(66, marks=pytest.mark.long), 166])
def test_marks_of_a_whole_hour_stand_where_the_clock_had_them_though_the_device_drifts_and_starts_jitter(packets: int, studio: Studio, folder: Path) -> None:
    parts, heard = hour(random.Random(5), packets)
    take = studio.record(parts)
    level = levels(take.download(folder), hop_ms=2)
    loud = level > 0.1
    onsets = np.flatnonzero(loud[1:] & ~loud[:-1]) * 0.002 + 0.002
    judged, worst = 0, 0.0
    for mark in np.arange(10.0, HOUR_S, 10.0):
        if not any(a <= mark - 0.02 and mark + 0.05 <= b for a, b in heard):
            continue  # it was lost between two recorders
        worst = max(worst, float(np.abs(onsets - CODEC_S - mark).min()))
        judged += 1
    assert judged >= 340
    assert worst <= SKEW_S, "by counting samples, as many players do"
    assert abs(take.view()["duration_s"] - heard[-1][1]) <= SKEW_S


def beeping(starts: Sequence[float], off_s: float) -> list[Part]:
    """Four seconds of beeps from each start, on a page whose clock is `off_s` fast."""
    return [Part(synthetic.segment(at, 4.02, codec=None), T0_MS + (at + off_s) * 1000) for at in starts]


def heard_at(path: Path) -> dict[int, float]:
    return {number: at for at, number in known.read_beeps(path) if number != known.UNREADABLE}


def test_two_pages_with_wrong_clocks_that_measured_them_keep_together(studio: Studio, folder: Path) -> None:
    take = studio.start()
    for track, off_s, starts in (("1", 3.0, [0.5, 4.5, 8.5]), ("2", -5.0, [2.2, 6.2])):
        for number, part in enumerate(beeping(starts, off_s)):
            take.upload(number + 1, part, trackId=track, clockOffsetUs=round(-off_s * 1e6))
    take.finish()
    assert {track["clock"] for track in take.view()["tracks"]} == {"measured"}
    one, two = (heard_at(take.download(folder, track=track)) for track in ("1", "2"))
    assert set(two) == {3, 4, 5, 6, 7, 8, 9, 10}
    assert all(abs(one[second] - (second - 0.5)) <= SKEW_S for second in one)
    assert all(abs(one[second] - two[second]) <= SKEW_S for second in two)


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
def test_a_clock_that_is_an_hour_off_is_not_believed_but_its_differences_are(off_s: float, studio: Studio, folder: Path) -> None:
    take = studio.start()
    now_s = time.time()
    right = [Part(synthetic.segment(n * 4.0, 4.02, codec=None), (now_s - 8 + n * 4) * 1000) for n in range(2)]
    wrong = [Part(part.body, (part.start_ms or 0) + off_s * 1000) for part in right]
    for number, (good, bad) in enumerate(zip(right, wrong, strict=True)):
        more: dict[str, Any] = {"durationMs": 4000, "measured": False}
        take.upload(number + 1, good, **more)
        take.upload(number + 1, bad, trackId="2", **more)
    late_s = time.time() - now_s
    take.finish()
    view = take.view()
    assert [warning["code"] for warning in view["warnings"]] == ["clock_untrusted"]
    assert view["duration_s"] < 60
    beeps = heard_at(take.download(folder, track="2"))
    assert set(beeps) == set(range(8))
    assert np.ptp([at - second for second, at in beeps.items()]) <= SKEW_S
    start = beeps[0]  # by arrival: its first segment ended when it came; the other track's ended four seconds before that
    assert 4 - SKEW_S <= start <= 4 + late_s + SKEW_S
