"""The ruler is measured first: numbers and beeps are read back exactly after each codec a browser uses, and every kind of damage is seen."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtape.testing import known

VIDEO = {"libvpx": "webm", "libvpx-vp9": "webm", "libx264": "mp4"}
SPEED = {
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
    "libx264": {"preset": "veryfast"},
}


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known.write_numbers(tmp_path_factory.mktemp("camera") / "numbers.mjpeg", 6, first=990)


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known.write_beeps(tmp_path_factory.mktemp("microphone") / "beeps.wav", 6, first=29)


def encode(camera: Path, to: Path, codec: str, *, width: int = 640, height: int = 360, keep: range | None = None) -> Path:
    """Encodes at 500 kb/s as a browser does; `keep`: only these frames of the camera, at their own times."""
    with av.open(str(camera)) as source, av.open(str(to), "w") as out:
        stream = out.add_stream(codec, known.FPS, options=SPEED[codec])
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 500_000
        for at, frame in enumerate(source.decode(video=0)):
            if keep is None or at in keep:
                small = frame.reformat(width, height, "yuv420p")
                small.pts, small.time_base = at, Fraction(1, known.FPS)
                out.mux(stream.encode(small))
        out.mux(stream.encode(None))
    return to


def encode_sound(sound: np.ndarray, to: Path, codec: str, bit_rate: int) -> Path:
    with av.open(str(to), "w") as out:
        stream = out.add_stream(codec, known.RATE_HZ, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bit_rate
        resampler = av.AudioResampler(stream.codec_context.format, "mono", known.RATE_HZ, frame_size=stream.codec_context.frame_size or 960)
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32).reshape(1, -1), "fltp", "mono")
        frame.sample_rate, frame.pts = known.RATE_HZ, 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return to


@pytest.mark.parametrize("codec", VIDEO)
def test_every_number_is_read_back_after_a_lossy_encode(camera: Path, tmp_path: Path, codec: str) -> None:
    seen = known.read_frame_numbers(encode(camera, tmp_path / f"a.{VIDEO[codec]}", codec))
    assert [number for _, number in seen] == list(range(990, 1170))
    assert np.allclose([time_s for time_s, _ in seen], np.arange(180) / 30, atol=0.001)
    assert known.judge(seen, range(990, 1170)).whole


def test_numbers_are_read_after_scaling_and_in_a_part_of_the_picture(camera: Path, tmp_path: Path) -> None:
    small = known.read_frame_numbers(encode(camera, tmp_path / "small.mp4", "libx264", width=214, height=120))
    assert known.judge(small, range(990, 1170)).whole
    wall = np.zeros((360, 640), np.uint8)
    wall[180:, 320:] = known.picture(4711).reformat(320, 180, "gray").to_ndarray()
    assert known.read_picture(wall, (0.5, 0.5, 0.5, 0.5)) == 4711
    assert known.read_picture(wall) == known.UNREADABLE


def test_the_raw_file_for_a_camera_holds_the_same_numbers(tmp_path: Path) -> None:
    raw = known.write_numbers(tmp_path / "numbers.y4m", 1, first=7)
    assert raw.read_bytes().startswith(b"YUV4MPEG2 W640 H360 F30:1")
    assert [number for _, number in known.read_frame_numbers(raw)] == list(range(7, 37))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, known.NUMBERS - 1))
def test_each_number_reads_as_itself(number: int) -> None:
    assert known.read_picture(known.luma_of(known.picture(number))) == number


@settings(max_examples=60, deadline=None)
@given(st.integers(0, known.NUMBERS - 1), st.integers(2, 19))
def test_a_cell_that_lies_makes_the_picture_unreadable(number: int, cell: int) -> None:
    luma = known.luma_of(known.picture(number)).copy()
    row, column = divmod(cell, 5)
    part = luma[row * 90 : row * 90 + 90, column * 128 : column * 128 + 128]
    part[:] = 255 - part
    assert known.read_picture(luma) == known.UNREADABLE


def test_a_black_a_grey_and_a_blended_picture_say_nothing() -> None:
    assert known.read_picture(np.zeros((360, 640), np.uint8)) == known.UNREADABLE
    assert known.read_picture(np.full((360, 640), 128, np.uint8)) == known.UNREADABLE
    blend = (known.picture(3).to_ndarray(format="gray").astype(int) + known.picture(4).to_ndarray(format="gray")) // 2
    assert known.read_picture(blend.astype(np.uint8)) == known.UNREADABLE


def test_frames_that_were_lost_are_named(camera: Path, tmp_path: Path) -> None:
    seen = known.read_frame_numbers(encode(camera, tmp_path / "a.webm", "libvpx", keep=range(5, 100)))
    verdict = known.judge(seen, range(990, 1170))
    assert verdict.missing == (*range(990, 995), *range(1090, 1170))
    assert not verdict.whole
    assert known.judge(seen).whole  # from first to last seen nothing is lost


@pytest.mark.parametrize(("codec", "suffix", "bit_rate"), [("libopus", "webm", 32_000), ("aac", "mp4", 64_000), ("flac", "flac", 0)])
def test_every_beep_is_read_back_within_3_ms(microphone: Path, tmp_path: Path, codec: str, suffix: str, bit_rate: int) -> None:
    sound, _ = known.read_sound(microphone)
    seen = known.read_beeps(encode_sound(sound, tmp_path / f"a.{suffix}", codec, bit_rate))
    assert [second for _, second in seen] == list(range(29, 35))
    verdict = known.judge(seen, range(29, 35), rate=1)
    assert verdict.whole
    assert verdict.jitter_s <= 0.003
    assert verdict.offset_s == pytest.approx(-29, abs=0.003 if codec != "aac" else 0.025)  # AAC's priming is not told by every muxer


def test_all_seconds_differ(tmp_path: Path) -> None:
    for first in (0, 500, known.SECONDS - 40):
        seen = known.read_beeps(known.write_beeps(tmp_path / "a.wav", 40, first=first))
        assert [second for _, second in seen] == list(range(first, first + 40))


def test_a_beep_cut_short_says_nothing_and_a_lost_one_is_named(microphone: Path, tmp_path: Path) -> None:
    sound, rate = known.read_sound(microphone)
    sound[2 * rate + rate // 25 : 3 * rate] = 0  # 40 ms are left of the third
    sound[4 * rate : 5 * rate] = 0
    seen = known.read_beeps(encode_sound(sound, tmp_path / "a.webm", "libopus", 32_000))
    verdict = known.judge(seen, range(29, 35), rate=1)
    assert verdict.missing == (31, 33)
    assert verdict.unreadable == 1


def test_doubled_and_disordered_numbers_are_named() -> None:
    verdict = known.judge([(0.0, 5), (0.1, 6), (0.2, 6), (0.3, 8), (0.4, 7)])
    assert (verdict.missing, verdict.doubled, verdict.disordered, verdict.whole) == ((), (6,), (7,), False)


def test_an_even_pace_has_no_jitter_and_a_shifted_one_shows() -> None:
    even = [(2.5 + at / 30, at) for at in range(90)]
    assert known.judge(even).offset_s == pytest.approx(2.5)
    assert known.judge(even).jitter_s < 1e-9
    assert known.judge([*even[:45], *((time_s + 0.04, at) for time_s, at in even[45:])]).jitter_s == pytest.approx(0.04)


def test_nothing_read_means_all_is_missing() -> None:
    assert known.judge([], range(3)).missing == (0, 1, 2)
    assert known.judge([(0.0, known.UNREADABLE)], range(1)).unreadable == 1


def test_numbers_and_seconds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="65535"):
        known.write_numbers(tmp_path / "a.mjpeg", 1, first=known.NUMBERS - 29)
    with pytest.raises(ValueError, match="1023"):
        known.write_beeps(tmp_path / "a.wav", 2, first=known.SECONDS - 1)


def test_beeps_are_read_at_their_time_at_any_rate(microphone: Path, tmp_path: Path) -> None:
    other = tmp_path / "44100.wav"
    with av.open(str(microphone)) as source, av.open(str(other), "w") as out:
        stream = out.add_stream("pcm_s16le", 44_100, layout="mono")
        resampler = av.AudioResampler("s16", "mono", 44_100)
        for frame in source.decode(audio=0):
            for piece in resampler.resample(frame):
                out.mux(stream.encode(piece))
        for piece in resampler.resample(None):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    right, read = known.read_beeps(microphone), known.read_beeps(other)
    assert [second for _, second in read] == [second for _, second in right]
    assert np.allclose([at for at, _ in read], [at for at, _ in right], atol=0.003)
