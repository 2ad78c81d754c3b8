"""Joins of overlapping sound off the packet grid, judged by ear: one decoder over old packets, mended ones and new packets."""

import io
import random
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from roomtape.core.timeline import cut_sound
from roomtape.media import door, mend
from roomtape.media.runner import Runner, job_folder

pytestmark = pytest.mark.anyio
Sound = npt.NDArray[np.float32]
PACKET = 2880  # 60 ms, as Chromium makes them
LEVEL = 0.25


def tone(hertz: float, seconds: float) -> Sound:
    wave = LEVEL * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 48000)) / 48000)
    return np.stack([wave, wave], axis=1).astype(np.float32)


def encoded(sound: Sound) -> list[bytes]:
    """What a recorder that was started afresh makes of it: libopus, 32 kbit/s, whole packets of 60 ms."""
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = 48000, "stereo", "flt", 32000
    encoder.options = {"frame_duration": "60", "application": "audio"}
    packets: list[bytes] = []
    for at in range(0, len(sound) - PACKET + 1, PACKET):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[at : at + PACKET]).reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate, frame.pts = 48000, at
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


@dataclass
class Join:
    """`at`: where the mended packets begin in the decoded chain; `error`: what the found offset is off, in samples; `shift`: what the join moved."""

    at: int
    hole: int
    error: int
    confidence: float
    shift: int


def chained(sound: Sound, count: int, *, jitter: int, seed: int) -> tuple[list[bytes], list[Join]]:
    """Segments of 1.2 to 1.5 s, each overlapping the next by 250 ms, whose starts the clock states with jitter; joined."""
    rng, before, start, old = random.Random(seed), 0, 0, list[bytes]()
    chain: list[bytes] = []
    joins: list[Join] = []
    used = chained_samples = 0
    for _ in range(count + 1):
        length = rng.randint(57_600, 72_000)
        new = encoded(sound[start : start + length + 12_000])
        if old:
            true = start - before
            answer = mended(old[-9:], new[:8], len(old) * PACKET, true + rng.randint(-jitter, jitter))
            offset = len(old) * PACKET + round(answer["offset_us"] * 0.048)
            skip_us, hole_us = cut_sound(-answer["offset_us"], 60_000)
            skip, hole = skip_us // 60_000, round(hole_us * 0.048)
            keep = round((offset + skip * PACKET - hole) / PACKET)
            chain += old[used:keep] + [b64decode(packet) for packet in answer["packets"]]
            chained_samples += (keep - used) * PACKET
            joins.append(Join(chained_samples, hole, offset - true, answer["confidence"], keep * PACKET + hole - (offset + skip * PACKET)))
            chained_samples += hole
            used = skip
        before, start, old = start, start + length, new
    return chain + old[used:], joins


def mended(old: list[bytes], new: list[bytes], old_size: int, nominal: int) -> dict[str, Any]:
    packets = {"old": [b64encode(packet).decode() for packet in old], "new": [b64encode(packet).decode() for packet in new]}
    offset_us = round((nominal - old_size) / 0.048)
    return mend.mend({"channels": 2, "packet_us": 60_000, "offset_us": offset_us, **packets})


def dips(chain: list[bytes], joins: list[Join]) -> Iterator[tuple[Join, float]]:
    """The lowest level of any 10 ms around each join, in dB of the tone's own."""
    sound, ends = mend.decode(chain, 2)
    assert ends[-1] == sum(mend_samples(packet) for packet in chain)
    energy = np.convolve(sound[:, 0].astype(np.float64) ** 2, np.ones(480) / 480, "valid")
    for join in joins:
        around = energy[join.at - 4800 : join.at + join.hole + 9600]
        yield join, float(10 * np.log10(around.min() / (LEVEL**2 / 2)))


def mend_samples(packet: bytes) -> int:
    """The length of a packet by its first byte (RFC 6716, 3.1)."""
    configuration = packet[0] >> 3
    silk, hybrid, celt = [480, 960, 1920, 2880], [480, 960], [120, 240, 480, 960]
    size = silk[configuration % 4] if configuration < 12 else hybrid[configuration % 2] if configuration < 16 else celt[configuration % 4]
    return size * (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[packet[0] & 3]


def test_a_hundred_joins_off_the_grid_leave_a_steady_tone_steady() -> None:
    chain, joins = chained(tone(440, 155), 100, jitter=40, seed=1)
    assert len({join.hole for join in joins}) > 15
    for join, dip in dips(chain, joins):
        assert dip > -6, join
        assert abs(join.error) <= 1, join  # found to the sample
        assert abs(join.shift) <= 60, join  # 1.25 ms, half a step of Opus's grid


def test_a_run_that_begins_in_another_mode_is_met_in_its_own() -> None:
    """At 1 kHz libopus begins in hybrid and goes over to CELT after 400 ms; holes of 20 ms and more can be filled so that the change is hardly heard."""
    chain, joins = chained(tone(1000, 70), 45, jitter=20, seed=2)
    long = [(join, dip) for join, dip in dips(chain, joins) if join.hole >= 960]
    assert len(long) > 20
    assert min(dip for _, dip in long) > -10
    assert sorted(dip for _, dip in long)[len(long) // 2] > -5


def test_the_slide_keeps_a_joined_tone_free_of_steps() -> None:
    chain, joins = chained(tone(440, 40), 25, jitter=40, seed=3)
    sound, _ = mend.decode(chain, 2)
    for join in joins:
        around = sound[join.at - 480 : join.at + join.hole + 960, 0]
        assert np.abs(np.diff(around)).max() < 2.5 * LEVEL * 2 * np.pi * 440 / 48000


def words(chromium: Path) -> Sound:
    recorded = b"".join((chromium / "A-opus" / f"{n:04d}.webm").read_bytes() for n in range(12))
    with av.open(io.BytesIO(recorded), "r") as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    return mend.decode(packets, 2)[0]


def test_speech_is_aligned_to_the_sample_though_the_clock_was_20_ms_off_and_silence_keeps_the_clock(chromium: Path) -> None:
    speech = words(chromium)
    _, joins = chained(np.concatenate([speech] * 3), 48, jitter=960, seed=4)
    heard = [join for join in joins if join.confidence > 0]
    assert len(heard) >= 8
    assert max(abs(join.error) for join in heard) <= 5
    assert all(abs(join.error) <= 960 for join in joins)
    assert len({join.error for join in joins if join.confidence == 0}) > 5


def test_other_sound_is_not_taken_for_the_same() -> None:
    rng = np.random.default_rng(5)
    one, other = (0.2 * rng.standard_normal((48000, 2)).astype(np.float32) for _ in range(2))
    assert mend.align(one, other, 36_000) == (36_000, 0.0)
    assert mend.align(one, one[35_123:], 36_000)[0] == 35_123
    assert mend.align(one, one[:0], 36_000) == (36_000, 0.0)
    assert mend.align(np.zeros((48000, 2), np.float32), other, 36_000) == (36_000, 0.0)


async def test_the_child_answers_with_packets_that_fill_the_hole(tmp_path: Path) -> None:
    sound = tone(440, 6)
    old, new = encoded(sound[:96_000]), encoded(sound[85_000:140_000])
    true_us = round((85_000 - len(old) * PACKET) / 0.048)
    async with Runner() as runner:
        with job_folder(tmp_path) as job:
            (made,) = await door.mend(runner, job, [door.Overlap(7, 2, 60_000, true_us + 300, old[-9:], new)])
    assert made is not None
    _, hole_us = cut_sound(-made.offset_us, 60_000)
    assert made.file == 7
    assert abs(made.offset_us - true_us) <= 21
    assert hole_us > 0
    assert sum(mend_samples(packet) for packet in made.packets) == hole_us * 48 // 1000


async def test_a_join_on_the_grid_needs_no_packet(tmp_path: Path) -> None:
    sound = tone(440, 6)
    old, new = encoded(sound[: 40 * PACKET]), encoded(sound[36 * PACKET : 60 * PACKET])
    async with Runner() as runner:
        with job_folder(tmp_path) as job:
            (made,) = await door.mend(runner, job, [door.Overlap(2, 2, 60_000, -240_000, old[-9:], new)])
    assert made is not None
    assert (made.offset_us, made.packets) == (-240_000, ())
