"""Ropes over real recordings, judged by other people's demuxers and decoders: every frame, every tick, every byte."""

import io
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtape.core.model import Kind
from roomtape.core.rope import Lazy, Literal, Rope, Span, Woven, woven
from roomtape.media import boxes, clusters, cmaf, codecs, mp4head, playlist, probe
from roomtape.media.placed import PLACED, PLACED_PATCH, Chunks, Lane, Placement
from roomtape.media.sample import Container, Stream
from roomtape.media.silence import silence

CHROMIUM = Path(__file__).parent.parent / "data" / "chromium"
FRAME_US = 33_333
Row = tuple[int, int, int, int, int, int, int, int]  # as PLACED


@dataclass(frozen=True)
class Tape:
    """A placement and the bytes it lies over."""

    placement: Placement
    objects: dict[str, bytes]

    def bytes_of(self, rope: Rope, start: int = 0, stop: int | None = None) -> bytes:
        pieces = rope.slice(start, rope.size if stop is None else stop)
        return b"".join(piece.body if isinstance(piece, Literal) else self.objects[piece.key][piece.offset : piece.offset + piece.size] for piece in pieces)


@dataclass
class Found:
    """What one file holds: streams by kind, and per kind rows of (time µs, cts µs, duration µs, key, offset, size)."""

    streams: dict[Kind, Stream]
    rows: dict[Kind, list[tuple[int, int, int, int, int, int]]]


def find(data: bytes) -> Found:
    """PyAV tells the packets; where they lie in the file is found by their bytes, so that nothing of ours is trusted."""
    found = Found({}, {})
    after: dict[str, int] = {}
    with av.open(io.BytesIO(data), "r") as file:
        for stream in file.streams:
            codec = stream.codec_context
            kind = Kind(stream.type)
            setup = codec.extradata or b""
            if isinstance(codec, av.VideoCodecContext):
                found.streams[kind] = Stream(stream.index, kind, codec.name, setup if codec.name != "vp9" else b"", codec.width, codec.height)
            else:
                assert isinstance(codec, av.AudioCodecContext)
                found.streams[kind] = Stream(stream.index, kind, codec.name, setup, channels=codec.channels, rate=codec.sample_rate)
            found.rows[kind] = []
        for packet in file.demux():
            if packet.dts is None or packet.pts is None:
                continue
            body, base = bytes(packet), packet.time_base * 1_000_000
            name = packet.stream.type if file.format.name.startswith("mov") else ""  # MP4 interleaves by time, WebM comes in byte order
            offset = data.index(body, after.get(name, 0))
            after[name] = offset + len(body)
            row = (round(packet.dts * base), round((packet.pts - packet.dts) * base), round((packet.duration or 0) * base))
            found.rows[Kind(packet.stream.type)].append((*row, int(packet.is_keyframe), offset, len(body)))
    return found


def place(bodies: list[bytes], begins_us: list[int], *, cuts: list[list[bytes]] | None = None) -> Tape:
    """A plain layout: the files at their times, a file's tail cut where the next one begins, holes filled. `cuts`: the objects each file is stored in."""
    stored = [body for file in (cuts or [[body] for body in bodies]) for body in file]
    starts = np.cumsum([0, *map(len, stored)]).astype(np.int64)
    found = [find(body) for body in bodies]
    bases = np.cumsum([0, *map(len, bodies)]).tolist()
    lanes = []
    for kind in (Kind.VIDEO, Kind.AUDIO):
        if kind not in found[0].streams:
            continue
        files = [each.streams[kind] for each in found]
        setups = tuple(dict.fromkeys(replace(stream, number=0) for stream in files))
        lane: list[Row] = []
        literals: list[bytes] = []
        for number, (each, begin) in enumerate(zip(found, begins_us, strict=True)):
            rows = each.rows[kind]
            end = begins_us[number + 1] + (found[number + 1].rows[kind][0][0]) if number + 1 < len(found) else 1 << 60
            setup = setups.index(replace(files[number], number=0))
            kept = [row for row in rows if begin + row[0] < end - (30_000 if kind is Kind.AUDIO else 0)]
            if kind is Kind.AUDIO and lane:
                _fill(lane, literals, begin + kept[0][0], files[number])
            for index, (time, cts, duration, key, offset, size) in enumerate(kept):
                start, length = begin + time, kept[index + 1][0] - time if index + 1 < len(kept) else duration or FRAME_US
                if kind is Kind.AUDIO:  # packets follow each other and say themselves how long they are; Chromium's MP4 says 21 ms of each last one
                    start, length = lane[-1][0] + lane[-1][1] if lane else start, 60_000 if files[number].codec == "opus" else duration
                elif lane:
                    _stretch(lane, start)
                lane.append((start, length, cts, key, setup, -1, bases[number] + offset, size))
        lanes.append(Lane(kind, (np.array(lane, PLACED),), setups, tuple(literals)))
    chunks = Chunks(tuple(f"{number:04d}" for number in range(len(stored))), starts)
    container = Container.MP4 if bodies[0][4:8] == b"ftyp" else Container.WEBM
    return Tape(Placement(tuple(lanes), chunks, container), dict(zip(chunks.keys, stored, strict=True)))


def _stretch(lane: list[Row], until: int) -> None:
    lane[-1] = (lane[-1][0], until - lane[-1][0], *lane[-1][2:])


def _fill(lane: list[Row], literals: list[bytes], until: int, stream: Stream) -> None:
    at = lane[-1][0] + lane[-1][1]
    for packet, length in silence(stream, max(0, until - at)):
        if packet not in literals:
            literals.append(packet)
        lane.append((at, length, 0, 1, 0, literals.index(packet), 0, len(packet)))
        at += length


def files(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CHROMIUM / name).glob("0*.*"))]


def cut_file(name: str) -> Tape:
    """One recorder whose bytes came in cuts."""
    parts = files(name)
    return place([b"".join(parts)], [0], cuts=[parts])


def restarts(name: str, pitch_us: int = 4_007_000) -> Tape:
    parts = files(name)
    return place(parts, [number * pitch_us for number in range(len(parts))])


def annexb(tape: Tape) -> Tape:
    """Chromium's Matroska H.264: patches put lengths over start codes, the set-up comes from the first key frame."""
    whole = b"".join(tape.objects.values())
    patches = []
    lane = tape.placement.lanes[0]
    for at, size in zip(lane.rows["at"].tolist(), lane.rows["size"].tolist(), strict=True):
        frame = whole[at : at + size]
        codes = [place for place in range(size - 3) if frame[place : place + 4] == b"\0\0\0\1"]
        patches += [(at + code, stop - code - 4) for code, stop in zip(codes, [*codes[1:], size], strict=True)]
    avcc = codecs.avcc(codecs.annexb_split(lane.setups[0].setup))
    lanes = (replace(lane, setups=(replace(lane.setups[0], setup=avcc),)), *tape.placement.lanes[1:])
    chunks = replace(tape.placement.chunks, patches=np.array(patches, PLACED_PATCH))
    return replace(tape, placement=replace(tape.placement, lanes=lanes, chunks=chunks))


@dataclass
class Seen:
    """What a decoder makes of a file: microseconds and digest of each picture, and the sound."""

    times_us: list[float]
    pictures: list[str]
    sound: npt.NDArray[np.float32]
    sound_us: list[float]


def watch(data: bytes) -> Seen:
    seen = Seen([], [], np.zeros((2, 0), np.float32), [])
    sound: list[npt.NDArray[np.float32]] = []
    with av.open(io.BytesIO(data), "r") as file:
        for frame in file.decode(*file.streams):
            assert frame.pts is not None
            assert frame.time_base is not None
            time = float(frame.pts * frame.time_base * 1_000_000)
            if isinstance(frame, av.VideoFrame):
                seen.times_us.append(time)
                seen.pictures.append(sha256(frame.to_ndarray().tobytes()).hexdigest()[:16])
            elif isinstance(frame, av.AudioFrame):
                seen.sound_us.append(time)
                sound.append(frame.to_ndarray())
    seen.sound = np.concatenate(sound, axis=1) if sound else seen.sound
    return seen


def complaints(path: Path, *options: str) -> str:
    """What ffmpeg has to say about a file that it reads and decodes to the end."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        *options,
        "-i",
        str(path),
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "demux",
        "-f",
        "null",
        "-",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stderr


def assert_on_the_clock(seen: Seen, tape: Tape, tick_us: float) -> None:
    """Each picture at its own time to half a tick, and the sound's first sample too."""
    picture = tape.placement.lanes[0].rows
    shown = np.sort(picture["time_us"] + picture["cts_us"])
    assert len(seen.times_us) == len(shown)
    assert np.abs(np.array(seen.times_us) - shown).max() <= tick_us / 2 + 0.5
    assert abs(seen.sound_us[0] - float(tape.placement.lanes[1].rows["time_us"][0])) <= max(tick_us, 1e6 / 48_000)


def windows(tape: Tape) -> Iterator[tuple[int, int]]:
    """Windows from key frame to key frame."""
    rows = tape.placement.lanes[0].rows
    keys = rows["time_us"][rows["key"] != 0].tolist()
    yield from zip(keys, [*keys[1:], int(rows["time_us"][-1]) + 1_000_000], strict=True)


CUT = ["A-vp9", "A-mp4", "A-mp4-avc1"]
RESTARTED = ["B-vp9", "B-mp4", "B-mp4-avc1"]


@pytest.mark.parametrize("name", CUT)
def test_an_mp4_over_one_recorders_bytes_shows_and_sounds_exactly_like_them(name: str, tmp_path: Path) -> None:
    tape = cut_file(name)
    rope = mp4head.progressive(tape.placement)
    body = tape.bytes_of(rope)
    source, seen = watch(b"".join(files(name))), watch(body)
    assert seen.pictures == source.pictures
    assert_on_the_clock(seen, tape, 1e6 / 90_000)
    lost = seen.sound.shape[1] - source.sound.shape[1]  # Chromium's MP4 says pre-skip 3840, and the source's first 80 ms are dropped
    assert lost == (0 if tape.placement.container is Container.WEBM else 3840)
    assert name != "A-vp9" or np.array_equal(seen.sound, source.sound)
    (tmp_path / "a.mp4").write_bytes(body)
    assert complaints(tmp_path / "a.mp4") == ""


@pytest.mark.parametrize("name", RESTARTED)
def test_restarted_recorders_become_one_mp4_with_every_picture_at_its_time(name: str, tmp_path: Path) -> None:
    tape = restarts(name)
    body = tape.bytes_of(mp4head.progressive(tape.placement))
    seen = watch(body)
    assert seen.pictures == [picture for part in files(name) for picture in watch(part).pictures]
    assert_on_the_clock(seen, tape, 1e6 / 90_000)
    sound = tape.placement.lanes[1].rows
    assert seen.sound.shape[1] == round(int(sound["duration_us"].sum()) * 48 / 1000)
    (tmp_path / "b.mp4").write_bytes(body)
    assert complaints(tmp_path / "b.mp4") == ""


def test_annex_b_becomes_lengths_without_touching_the_stored_bytes(tmp_path: Path) -> None:
    tape = annexb(cut_file("A-webm-h264"))
    rope = mp4head.progressive(tape.placement)
    body = tape.bytes_of(rope)
    seen = watch(body)
    assert len(seen.pictures) == 720
    assert seen.pictures == watch(b"".join(files("A-webm-h264"))).pictures
    (tmp_path / "a.mp4").write_bytes(body)
    assert complaints(tmp_path / "a.mp4") == ""
    assert any(isinstance(piece, Lazy) for piece in rope.pieces)
    at = body.index(b"mdat") + 12  # pieces that a range cuts in the middle of a patch
    for start in range(at, at + 300):
        assert tape.bytes_of(rope, start, start + 3) == body[start : start + 3]


@pytest.mark.parametrize("name", ["B-vp9", "A-mp4-avc1"])
def test_an_mp4_seeks_to_each_key_frame(name: str) -> None:
    tape = restarts(name) if name.startswith("B") else cut_file(name)
    rows = tape.placement.lanes[0].rows
    with av.open(io.BytesIO(tape.bytes_of(mp4head.progressive(tape.placement))), "r") as file:
        video = file.streams.video[0]
        for time in reversed(rows["time_us"][rows["key"] != 0].tolist()):
            file.seek(round(time * 0.09), stream=video)
            frame = next(file.decode(video))
            assert frame.key_frame
            assert frame.pts == round(time * 0.09)


@pytest.mark.parametrize("name", [*CUT, *RESTARTED, "A-webm-h264"])
def test_fragments_after_their_init_show_the_same_as_the_whole(name: str, tmp_path: Path) -> None:
    tape = restarts(name) if name.startswith("B") else cut_file(name)
    tape = annexb(tape) if name == "A-webm-h264" else tape
    made = [cmaf.init(cmaf.setups(tape.placement, 0))]
    for number, (start, stop) in enumerate(windows(tape), 1):
        rope = cmaf.fragment(tape.placement, start, stop, number)
        made.append(tape.bytes_of(rope))
        assert name == "A-webm-h264" or len(rope.pieces) <= 20
    (tmp_path / "a.mp4").write_bytes(b"".join(made))
    whole, seen = watch(tape.bytes_of(mp4head.progressive(tape.placement))), watch(b"".join(made))
    assert seen.pictures == whole.pictures
    assert np.abs(np.array(seen.times_us) - whole.times_us).max() < 1
    assert np.array_equal(seen.sound, whole.sound)
    assert complaints(tmp_path / "a.mp4") == ""


def test_a_fragments_bytes_stand_in_the_order_of_time_silence_where_it_is_heard() -> None:
    tape = restarts("B-vp9")
    silent = [(start, stop) for start, stop in windows(tape) if _literals(tape, start, stop)]
    assert len(silent) >= 5
    for start, stop in silent:
        body = tape.bytes_of(cmaf.fragment(tape.placement, start, stop, 1))
        with av.open(io.BytesIO(cmaf.init(cmaf.setups(tape.placement, 0)) + body), "r") as file:
            places: dict[str, list[tuple[int, int]]] = {}
            for packet in file.demux():
                if packet.dts is not None and packet.pos is not None:
                    places.setdefault(packet.stream.type, []).append((packet.dts, packet.pos))
        assert all(each == sorted(each, key=lambda row: row[1]) for each in places.values())


class Forward(io.RawIOBase):
    """A file that can only be read on, as a pipe can."""

    def __init__(self, body: bytes) -> None:
        self.rest = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self.rest.readinto(memoryview(into)[:65_536])


def test_a_file_with_a_hole_inside_an_object_is_read_without_a_jump() -> None:
    cut = cut_file("A-vp9")
    chunks = cut.placement.chunks
    body = b"".join(cut.objects[key] for key in chunks.keys)
    tape = Tape(replace(cut.placement, chunks=Chunks(("whole",), np.array([0, len(body)], np.int64))), {"whole": body})
    picture, sound = tape.placement.lanes
    rows = sound.rows.copy()
    hole = (rows["time_us"] >= 18_000_000) & (rows["time_us"] < 20_000_000)
    packet = silence(sound.setups[0], 20_000)[0][0]
    rows["literal"][hole], rows["size"][hole] = 0, len(packet)
    whole = mp4head.progressive(replace(tape.placement, lanes=(picture, replace(sound, blocks=(rows,), literals=(packet,)))))
    seen = probe.verify({"file": "-"}, io.BufferedReader(Forward(tape.bytes_of(whole))))
    assert {one["kind"]: one["packets"] for one in seen["streams"]} == {"video": len(picture.rows), "audio": len(rows)}


def _literals(tape: Tape, start: int, stop: int) -> int:
    rows = tape.placement.lanes[1].rows
    return int(((rows["time_us"] >= start) & (rows["time_us"] < stop) & (rows["literal"] >= 0)).sum())


def test_a_fragment_stays_the_same_when_the_picture_comes_later() -> None:
    tape = cut_file("A-vp9")
    alone = replace(tape.placement, lanes=tape.placement.lanes[1:])
    late = replace(tape.placement, lanes=(replace(tape.placement.lanes[0], blocks=(tape.placement.lanes[0].rows[100:],)), tape.placement.lanes[1]))
    sound = cmaf.setups(alone, 0)
    before, after = (cmaf.fragment(placement, 0, 2_000_000, 1, sound) for placement in (alone, late))
    assert tape.bytes_of(before) == tape.bytes_of(after)
    assert len(watch(cmaf.init(sound) + tape.bytes_of(after)).sound_us) == 33


def test_a_window_without_samples_is_nothing_and_a_lane_without_any_is_absent() -> None:
    tape = cut_file("A-vp9")
    assert cmaf.fragment(tape.placement, 90_000_000, 94_000_000, 1).size == 0
    assert clusters.webm(tape.placement, 90_000_000, 94_000_000, live=True).size == 0
    first = int(tape.placement.lanes[1].rows["time_us"][0])
    assert first > 20_000
    moof = tape.bytes_of(cmaf.fragment(tape.placement, 0, first, 1))
    assert moof.count(b"traf") == 1


@pytest.mark.parametrize("name", ["B-vp8", "A-vp8", "B-vp9", "C-vp8-overlap", "A-webm-h264", "B-mp4-avc1"])
def test_a_webm_rope_shows_every_picture_and_seeks(name: str, tmp_path: Path) -> None:
    tape = cut_file(name) if name.startswith("A") else restarts(name, 4_007_000 if name.startswith("B") else 4_000_000)
    tape = annexb(tape) if name == "A-webm-h264" else tape
    body = tape.bytes_of(clusters.webm(tape.placement, live=False))
    seen = watch(body)
    expected = watch(b"".join(files(name))).pictures if name.startswith("A") else [p for part in _kept(tape, files(name)) for p in part]
    assert seen.pictures == expected
    assert_on_the_clock(seen, tape, 1000)
    (tmp_path / "a.webm").write_bytes(body)
    assert complaints(tmp_path / "a.webm") == ""
    rows = tape.placement.lanes[0].rows
    end = int((rows["time_us"] + rows["duration_us"]).max())
    with av.open(io.BytesIO(body), "r") as file:
        assert file.duration is not None
        assert abs(file.duration - max(end, int(tape.placement.lanes[1].rows["time_us"][-1] + 60_000))) < 61_000
        video = file.streams.video[0]
        for time in reversed(rows["time_us"][rows["key"] != 0].tolist()):
            file.seek(round(time / 1000), stream=video)
            frame = next(file.decode(video))
            assert (frame.key_frame, frame.pts) == (True, round(time / 1000))


def _kept(tape: Tape, parts: list[bytes]) -> list[list[str]]:
    """The pictures of each file as far as the layout keeps them."""
    rows, starts = tape.placement.lanes[0].rows, tape.placement.chunks.starts
    counts = np.histogram(rows["at"], starts)[0]
    return [watch(part).pictures[:count] for part, count in zip(parts, counts.tolist(), strict=True)]


def test_windows_of_webm_can_each_be_read_alone_and_stand_on_the_recordings_clock() -> None:
    tape = restarts("B-vp8")
    whole = watch(tape.bytes_of(clusters.webm(tape.placement, live=False)))
    times, pictures = [], []
    for start, stop in windows(tape):
        seen = watch(tape.bytes_of(clusters.webm(tape.placement, start, stop, live=True)))
        assert min(seen.times_us) >= start - 500
        times += seen.times_us
        pictures += seen.pictures
    assert (times, pictures) == (whole.times_us, whole.pictures)


def test_an_audio_only_recording_has_heads_too(tmp_path: Path) -> None:
    tape = restarts("B-opus")
    for name, rope in (("a.mp4", mp4head.progressive(tape.placement)), ("a.webm", clusters.webm(tape.placement, live=False))):
        body = tape.bytes_of(rope)
        (tmp_path / name).write_bytes(body)
        assert complaints(tmp_path / name) == ""
        assert watch(body).sound.shape[1] == round(int(tape.placement.lanes[0].rows["duration_us"].sum()) * 48 / 1000)
    with av.open(str(tmp_path / "a.webm"), "r") as file:
        file.seek(15_000_000)
        assert 9_900 <= (next(file.demux()).pts or 0) <= 15_060


def test_objects_that_no_sample_uses_are_left_out_of_an_mp4() -> None:
    tape = restarts("B-vp9")
    starts = tape.placement.chunks.starts
    lanes = tuple(
        replace(lane, blocks=(lane.rows[(lane.rows["literal"] < 0) & ((lane.rows["at"] < starts[2]) | (lane.rows["at"] >= starts[3]))],))
        for lane in tape.placement.lanes
    )
    rope = mp4head.progressive(replace(tape.placement, lanes=lanes))
    keys = [piece.key for piece in rope.pieces if isinstance(piece, Span)]
    assert keys == ["0000", "0001", "0003", "0004", "0005"]
    assert len(watch(tape.bytes_of(rope)).pictures) == len(lanes[0].rows)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 1 << 21), size=st.integers(0, 1 << 19))
@pytest.mark.parametrize("kind", ["mp4", "webm", "cmaf"])
def test_any_range_of_a_rope_is_that_range_of_the_file(kind: str, start: int, size: int) -> None:
    tape, rope, body = _made(kind)
    assert tape.bytes_of(rope, start, start + size) == body[start : start + size]


_MADE: dict[str, tuple[Tape, Rope, bytes]] = {}


def _made(kind: str) -> tuple[Tape, Rope, bytes]:
    if kind not in _MADE:
        tape = annexb(cut_file("A-webm-h264")) if kind == "mp4" else restarts("B-vp9")
        if kind == "mp4":
            rope = mp4head.progressive(tape.placement)
        else:
            rope = clusters.webm(tape.placement, live=False) if kind == "webm" else cmaf.fragment(tape.placement, 0, 9_000_000, 1)
        _MADE[kind] = tape, rope, tape.bytes_of(rope)
    return _MADE[kind]


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_few_reads_give_the_same_bytes_as_many_pieces(kind: str) -> None:
    tape, rope, body = _made(kind)
    made, reads = [], 0
    for piece in woven(rope.slice(0, rope.size)):
        if isinstance(piece, Literal):
            made.append(piece.body)
            continue
        span = piece.read if isinstance(piece, Woven) else piece
        stored = tape.objects[span.key][span.offset : span.offset + span.size]
        made.append(piece.weave(stored) if isinstance(piece, Woven) else stored)
        reads += 1
    assert b"".join(made) == body
    assert reads <= 2 * len(tape.objects) + 2
    assert reads * 10 < sum(1 for _ in rope.slice(0, rope.size))


def test_vp8_is_not_put_into_an_mp4() -> None:
    tape = cut_file("A-vp8")
    streams = cmaf.setups(tape.placement, 0)
    assert not boxes.playable_as_mp4(streams)
    assert boxes.playable_as_mp4(streams[1:])
    with pytest.raises(ValueError, match="vp8 has no place"):
        cmaf.init(streams)
    with pytest.raises(ValueError, match="vp8 has no place"):
        mp4head.progressive(tape.placement)


def encoded(width: int, height: int, *, frames: int = 50, b_frames: int = 2, channels: int = 2, number: int = 0) -> bytes:
    """H.264 with B-frames and AAC, 25 pictures a second; a tone of 440 Hz."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=25, options={"bf": str(b_frames), "g": "25", "x264-params": "scenecut=0:b-adapt=0"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = file.add_stream("aac", rate=44_100, layout="stereo" if channels == 2 else "mono")
        for index in range(frames):
            picture = np.full((height, width, 3), 40 + number * 60, np.uint8)
            picture[:, : 4 + index * 2] = 220
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(video.encode())
        tone = np.sin(np.arange(frames * 1764) * 2 * np.pi * 440 / 44_100).astype(np.float32) * 0.3
        frame = av.AudioFrame.from_ndarray(np.stack([tone] * channels), "fltp", "stereo" if channels == 2 else "mono")
        frame.rate = 44_100
        file.mux(audio.encode(frame))
        file.mux(audio.encode())
    return out.getvalue()


def test_b_frames_keep_pictures_and_sound_at_their_times(tmp_path: Path) -> None:
    source = encoded(320, 240)
    tape = place([source], [1_000_000])
    rows = tape.placement.lanes[0].rows
    assert rows["cts_us"].any()
    body = tape.bytes_of(mp4head.progressive(tape.placement))
    seen = watch(body)
    assert seen.pictures == watch(source).pictures
    assert_on_the_clock(seen, tape, 1e6 / 90_000)
    assert abs(seen.sound.shape[1] - int(tape.placement.lanes[1].rows["duration_us"].sum()) * 44_100 / 1e6) < 1024  # decoders make the last frame whole
    (tmp_path / "b.mp4").write_bytes(body)
    assert complaints(tmp_path / "b.mp4") == ""
    parts = [tape.bytes_of(cmaf.fragment(tape.placement, start, stop, number)) for number, (start, stop) in enumerate(windows(tape), 1)]
    fragments = watch(cmaf.init(cmaf.setups(tape.placement, 0)) + b"".join(parts))
    assert fragments.pictures == seen.pictures
    assert_on_the_clock(fragments, tape, 1e6 / 90_000)
    matroska = watch(tape.bytes_of(clusters.webm(tape.placement, live=False)))
    assert matroska.pictures == seen.pictures
    assert_on_the_clock(matroska, tape, 1000)


def test_b_frames_from_the_very_start_of_the_clock_lose_nothing() -> None:
    source = encoded(320, 240)
    tape = place([source], [0])
    picture = tape.placement.lanes[0].rows
    picture["time_us"] -= picture["time_us"][0]  # decoding begins at 0, the first picture shows two frames later
    seen = watch(tape.bytes_of(mp4head.progressive(tape.placement)))
    assert seen.pictures == watch(source).pictures
    assert np.abs(np.array(seen.times_us) - np.sort(picture["time_us"] + picture["cts_us"])).max() <= 6


def test_two_sizes_of_h264_stand_in_one_mp4_each_with_its_own_set_up(tmp_path: Path) -> None:
    sources = [encoded(320, 240), encoded(160, 120, number=1)]
    tape = place(sources, [500_000, 2_620_000])
    assert len(tape.placement.lanes[0].setups) == 2
    body = tape.bytes_of(mp4head.progressive(tape.placement))
    seen = watch(body)
    assert seen.pictures == [picture for source in sources for picture in watch(source).pictures]
    assert_on_the_clock(seen, tape, 1e6 / 90_000)
    (tmp_path / "two.mp4").write_bytes(body)
    assert "rror" not in complaints(tmp_path / "two.mp4").replace("-v error", "")


def test_a_new_set_up_is_a_discontinuity_with_an_init_of_its_own(tmp_path: Path) -> None:
    sources = [encoded(320, 240, b_frames=0), encoded(160, 120, b_frames=0, number=1)]
    tape = place(sources, [500_000, 2_620_000])
    inits: dict[tuple[Stream, ...], str] = {}
    listed = []
    for number, (start, stop) in enumerate(windows(tape), 1):
        setup = cmaf.setups(tape.placement, start)
        name = inits.setdefault(setup, f"init{len(inits)}.mp4")
        (tmp_path / name).write_bytes(cmaf.init(setup))
        (tmp_path / f"{number}.m4s").write_bytes(tape.bytes_of(cmaf.fragment(tape.placement, start, stop, number)))
        listed.append(playlist.Window(f"{number}.m4s", start, stop, name))
    text = playlist.media(listed, ended=True, target_us=2_000_000)
    assert (text.count("EXT-X-DISCONTINUITY"), text.count("EXT-X-MAP")) == (1, 2)
    (tmp_path / "p.m3u8").write_text(text)
    # ffmpeg's HLS reader keeps the first init for ever, so each run is read as a player reads it: its init, then its fragments
    runs = [run.splitlines() for run in text.split("#EXT-X-MAP:URI=")[1:]]
    bodies = [b"".join((tmp_path / name).read_bytes() for name in [run[0].strip('"'), *(line for line in run if line.endswith("m4s"))]) for run in runs]
    seen = [watch(body) for body in bodies]
    assert [each.pictures for each in seen] == [watch(source).pictures for source in sources]
    assert [round(each.times_us[0]) for each in seen] == [500_000, 2_620_000]
