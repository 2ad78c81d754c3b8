"""Real recordings of Chromium through the API: what comes out of every door is what the source had, in its order, at its time."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from roomtape.testing import known

from .studio import DATA, SETS, Studio, Take, recorded, sound_of

TRUTH: dict[str, dict[str, dict[str, Any]]] = json.loads((DATA / "truth.json").read_text())
FRAME_S = 1 / 30
PACKET_S = 0.06
SKEW_S = 0.04
HLS = [name for name in SETS if "vp8" not in name]
PICTURED = [name for name in SETS if "opus" not in name]
SMALL = (64, 36)
NEAR = 12  # frames: further than this from the one before it nothing can be


@cache
def source() -> NDArray[np.float32]:
    """The pictures that the camera showed, small and grey: FFmpeg's testsrc2. (Its drawn words vanish at this size.)"""
    graph = av.filter.Graph()
    chain = [graph.add("testsrc2", "size=640x360:rate=30"), graph.add("scale", f"{SMALL[0]}:{SMALL[1]}"), graph.add("format", "gray"), graph.add("buffersink")]
    for one, other in pairwise(chain):
        one.link_to(other)
    graph.configure()
    return np.array([pulled(graph) for _ in range(800)])


def pulled(graph: av.filter.Graph) -> NDArray[np.float32]:
    frame = graph.pull()
    assert isinstance(frame, av.VideoFrame)
    return frame.to_ndarray().astype(np.float32)


def number_of(frame: av.VideoFrame, near: int | None) -> int:
    image = frame.reformat(*SMALL, "gray").to_ndarray().astype(np.float32)
    first = 0 if near is None else max(near - NEAR, 0)
    some = source()[first:] if near is None else source()[first : near + NEAR + 1]
    return first + int(np.abs(some - image).mean(axis=(1, 2)).argmin())


@dataclass(slots=True)
class Reading:
    """What a door gave: pictures as (time, number of the source's frame), sound on the recording's clock."""

    pictures: list[tuple[float, int]] = field(default_factory=list)
    sound: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def add(self, path: Path) -> "Reading":
        with av.open(str(path)) as media:
            has_picture, has_sound = bool(media.streams.video), bool(media.streams.audio)
            for frame in media.decode(video=0) if has_picture else ():
                near = self.pictures[-1][1] if self.pictures else None
                self.pictures.append((float(frame.time or 0.0), number_of(frame, near)))
        if has_sound:
            heard = sound_of(path)
            held = np.zeros(max(len(self.sound), len(heard)), np.float32)
            held[: len(self.sound)] = self.sound
            np.copyto(held[: len(heard)], heard, where=heard != 0)  # a piece is silent before its own part
            self.sound = held
        return self


def expected(name: str) -> tuple[set[int], int]:
    """The numbers that the recorder took, and how many of them its encoder left out (which, is not told)."""
    files = TRUTH[name].values()
    numbers = {number for one in files for number in range(one["first_frame"], one["last_frame"] + 1)}
    return numbers, sum(one["last_frame"] - one["first_frame"] + 1 - one["frames"] for one in files)


def judge_pictures(name: str, pictures: list[tuple[float, int]]) -> None:
    numbers = [number for _, number in pictures]
    wanted, left_out = expected(name)
    assert all(b > a for a, b in pairwise(numbers)), "in order, nothing doubled"
    assert set(numbers) <= wanted
    assert len(wanted) - len(numbers) <= left_out
    strays = np.array([time_s - number * FRAME_S for time_s, number in pictures])
    assert np.abs(strays - np.median(strays)).max() <= FRAME_S + 0.001, "WebM counts in milliseconds"


def files_of(name: str, folder: Path) -> list[Path]:
    """The recorder's own files, each whole: byte cuts are joined."""
    parts = sorted((DATA / name).glob("0*"))
    if not name.startswith("A-"):
        return parts
    whole = folder / f"{name}-whole{parts[0].suffix}"
    whole.write_bytes(b"".join(path.read_bytes() for path in parts))
    return [whole]


def zero_by_sound(part: NDArray[np.float32], sound: NDArray[np.float32], near_s: float) -> float:
    """Where a recorder's own sound lies in the whole: the time of its sample 0, by correlation within a quarter of a second."""
    rate, margin = known.RATE_HZ, known.RATE_HZ // 4
    inner = part[rate // 3 : len(part) - rate // 3]
    at = round(near_s * rate) + rate // 3
    first = max(at - margin, 0)
    field_ = sound[first : at + len(inner) + margin].astype(np.float64)
    size = 1 << (len(field_) + len(inner)).bit_length()
    product = np.fft.irfft(np.fft.rfft(field_, size) * np.conj(np.fft.rfft(inner.astype(np.float64), size)), size)[: len(field_) - len(inner) + 1]
    lag = int(product.argmax())
    there = field_[lag : lag + len(inner)]
    assert product[lag] / np.sqrt(np.sum(there**2) * np.sum(inner.astype(np.float64) ** 2)) > 0.8, (
        "it is that sound, but for a step of a millisecond or two where silence was filled in"
    )
    return (first + lag) / rate - 1 / 3


def judge_sound(name: str, reading: Reading, folder: Path) -> None:
    """Each file's sound stands within a packet of where the source had it, and within 40 ms of its own pictures."""
    files = files_of(name, folder)
    facts = list(TRUTH[name].values()) if name in TRUTH else [{}]
    offsets = [fact.get("audio_source_offset_s", 0.0) for fact in facts]
    zeros = []
    for path, fact, offset in zip(files, facts, offsets, strict=True):
        part = sound_of(path)
        zero = zero_by_sound(part, reading.sound, offset - offsets[0])
        zeros.append(zero)
        if reading.pictures:
            with av.open(str(path)) as media:
                first = next(frame for frame in media.decode(video=0))
            shown = next(time_s for time_s, number in reading.pictures if number >= fact["first_frame"])
            assert abs(zero - (shown - float(first.time or 0.0))) <= SKEW_S, "sound and picture of a file keep together"
    errors = np.array(zeros) - (np.array(offsets) - offsets[0])
    assert np.abs(errors - errors[0]).max() <= PACKET_S


def judge(name: str, reading: Reading, folder: Path) -> None:
    if name in PICTURED:
        judge_pictures(name, reading.pictures)
    judge_sound(name, reading, folder)


@dataclass(slots=True)
class Watched:
    """A take and what a player saw while it ran."""

    take: Take
    playlists: list[str]
    listed: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def watched(studio: Studio) -> dict[str, Watched]:
    """Each set uploaded as it was recorded, polled after each segment and after the stop, and completed."""
    found = {}
    for name in SETS:
        seen = Watched(studio.start(name), [], [])
        parts = recorded(name)
        for number, part in enumerate(parts):
            seen.take.upload(number + 1, part)
            poll(name, seen)
        seen.take.stop()
        poll(name, seen)
        seen.take.complete(last=len(parts))
        poll(name, seen)
        found[name] = seen
    return found


def poll(name: str, seen: Watched) -> None:
    if name in HLS and seen.take.urls()["hls_url"] is not None:
        seen.playlists.append(seen.take.playlist().text)
    tracks = seen.take.stream()["tracks"]
    seen.listed.append(tracks[0]["ranges"] if tracks else [])


@pytest.mark.parametrize("name", SETS)
def test_the_downloaded_file_is_the_source(name: str, watched: dict[str, Watched], folder: Path) -> None:
    take = watched[name].take
    view = take.view()
    assert (view["status"], view["warnings"], view["gaps"], view["error"]) == ("completed", [], [], None)
    path = take.download(folder)
    assert path.suffix == (".mp4" if name in HLS else ".webm")
    assert path.stat().st_size == view["size_bytes"]
    judge(name, Reading().add(path), folder)


@pytest.mark.parametrize("name", HLS)
def test_hls_is_the_source(name: str, watched: dict[str, Watched], folder: Path) -> None:
    judge(name, Reading().add(watched[name].take.hls_file(folder)), folder)


@pytest.mark.parametrize("name", SETS)
def test_the_pieces_for_media_source_are_the_source(name: str, watched: dict[str, Watched], folder: Path) -> None:
    reading = Reading()
    until_us = None
    for entry, body in watched[name].take.pieces():
        assert until_us in (None, entry["start_us"]), "piece follows on piece"
        until_us = entry["start_us"] + entry["duration_us"]
        path = folder / f"{name}-{entry['start_us']}"
        path.write_bytes(body)
        assert entry["offset_us"] == 0
        reading.add(path)
    judge(name, reading, folder)


@pytest.mark.parametrize("name", HLS)
def test_a_live_playlist_only_grows_and_ends_with_the_stop(name: str, watched: dict[str, Watched]) -> None:
    *live, stopped, completed = watched[name].playlists
    assert len(live) >= 3
    for before, after in pairwise([*live, stopped.replace("TYPE:VOD", "TYPE:EVENT")]):
        assert after.startswith(before)
    assert all("#EXT-X-PLAYLIST-TYPE:EVENT" in text for text in live)
    assert "#EXT-X-PLAYLIST-TYPE:VOD" in stopped
    assert not any("DISCONTINUITY" in text for text in (*live, stopped, completed))
    assert not any("ENDLIST" in text for text in live)
    assert stopped.endswith("#EXT-X-ENDLIST\n")
    assert completed == stopped, "restarts without overlap have no join to mend"


@pytest.mark.parametrize("name", HLS)
def test_the_final_playlist_covers_everything(name: str, watched: dict[str, Watched]) -> None:
    take = watched[name].take
    length = sum(entry.length_s for entry in take.playlist().entries)
    assert abs(length - take.view()["duration_s"]) <= 0.04


@pytest.mark.parametrize("name", SETS)
def test_media_source_is_told_more_and_never_otherwise(name: str, watched: dict[str, Watched]) -> None:
    *live, _, _ = watched[name].listed
    listed = [entry for entry in live[-1] if entry]
    assert listed
    for before, after in pairwise(live):
        assert after[: len(before)] == before


def spots_of(path: Path, times: Iterable[float]) -> list[tuple[float, float, int]]:
    """For each wished time what a player shows after a seek: (wished, time of the frame, its number)."""
    found = []
    with av.open(str(path)) as media:
        stream = media.streams.video[0]
        for wished in times:
            media.seek(int(wished / stream.time_base), stream=stream)  # type: ignore[operator]
            shown = None
            for frame in media.decode(stream):
                if float(frame.time or 0.0) > wished and shown is not None:
                    break
                shown = frame
            assert shown is not None
            found.append((wished, float(shown.time or 0.0), number_of(shown, None)))
    return found


@pytest.mark.parametrize("name", [name for name in PICTURED if name in HLS])
def test_a_seek_anywhere_shows_the_frame_of_that_moment(name: str, watched: dict[str, Watched], folder: Path) -> None:
    path = watched[name].take.download(folder)
    dice = random.Random(name)  # the same moments each time: what fails can be looked at
    first = next(iter(TRUTH[name].values()))["first_frame"]
    for wished, at, number in spots_of(path, [dice.uniform(0.1, 23.5) for _ in range(20)]):
        assert abs(number - (first + wished / FRAME_S)) <= 2.0, "a frame of rounding, a frame of jitter"
        assert abs(at - wished) <= 2.5 * FRAME_S
