"""The decoders behind the door: what they find in real files, what they refuse, and what a hostile file costs."""

import asyncio
import io
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.errors import Unavailable
from roomtape.core.health import Facts, TrackFacts, judge
from roomtape.core.lifecycle import Health
from roomtape.media import door
from roomtape.media.refusal import MediaCrashed, MediaError, MediaRefused, MediaTooBig
from roomtape.media.runner import Limits, Runner, give, job_folder
from roomtape.media.sandbox import Bounds
from roomtape.media.sniff import DEMUXERS, sniff

pytestmark = pytest.mark.anyio
CANARY = b"CANARY-0c5f"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    with job_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    async with Runner(warm=1) as one:
        yield one


async def test_the_child_that_opens_strangers_media_is_locked_while_it_does(runner: Runner, job: Path) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def feed() -> AsyncIterator[bytes]:
        yield movie([(0, 1)])
        asked.set()
        await go.wait()

    work = asyncio.create_task(door.verify(runner, job, door.FEED, feed=feed(), limits=Limits()))
    await asyncio.wait_for(asked.wait(), 30)
    level = await runner.level()
    children = [int(name) for task in Path("/proc/self/task").iterdir() for name in (task / "children").read_text().split()]
    locked = [Path(f"/proc/{child}/status").read_text() for child in children if b"roomtape.media.child" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert level.seccomp, "else this machine cannot show it"
    assert any("Seccomp:\t2\n" in status and "NoNewPrivs:\t1\n" in status for status in locked), "the one at work"
    go.set()
    assert (await work).streams


def movie(pictures: list[tuple[int, int]], sound: "np.ndarray[Any, Any] | None" = None, *, codec: str = "libvpx", form: str = "webm") -> bytes:
    """(time in ms, seed) of key frames of 64 x 36: seed 0 is black, others are noise of their own; sound as mono floats at 48 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as out:
        if pictures:
            stream: Any = out.add_stream(codec, rate=25, options={"g": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            track: Any = out.add_stream("libopus", rate=48000, layout="mono")
        for at_ms, seed in pictures:
            gray = np.zeros((36, 64), np.uint8) if seed == 0 else np.kron(np.random.default_rng(seed).integers(30, 220, (9, 16)), np.ones((4, 4)))
            frame = av.VideoFrame.from_ndarray(np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = at_ms, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        if pictures:
            out.mux(stream.encode(None))
        if sound is not None:
            heard = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None, :], format="flt", layout="mono")
            heard.sample_rate = 48000
            out.mux(track.encode(heard))
            out.mux(track.encode(None))
    return file.getvalue()


# What real files hold


@pytest.mark.parametrize(
    ("name", "container", "codecs"),
    [
        ("B-vp8/0001.webm", "matroska", ["vp8", "opus"]),
        ("B-vp9/0001.webm", "matroska", ["vp9", "opus"]),
        ("B-mp4-avc1/0001.mp4", "mov", ["h264", "opus"]),
        ("B-opus/0001.webm", "matroska", ["opus"]),
    ],
)
async def test_a_probe_counts_what_chromium_recorded(runner: Runner, job: Path, chromium: Path, name: str, container: str, codecs: list[str]) -> None:
    give(job, "a", chromium / name)
    seen = await door.verify(runner, job, "a", full=True)
    assert seen.sound
    assert (seen.container, [stream.codec for stream in seen.streams]) == (container, codecs)
    video = [stream for stream in seen.streams if stream.kind == "video"]
    for stream in video:
        assert (stream.width, stream.height, stream.keys) == (640, 360, 2)
        assert stream.packets in {119, 120}
        assert stream.frames == stream.packets
        assert stream.end_us is not None
        assert abs(stream.end_us - 4_000_000) < 50_000
    sound = seen.streams[-1]
    assert sound.packets == 66
    assert 65 * 2880 - 1440 <= sound.samples <= 66 * 2880


async def test_a_probe_of_a_feed_is_that_of_the_file(runner: Runner, job: Path, chromium: Path) -> None:
    give(job, "a", chromium / "B-vp8/0001.webm")

    async def feed() -> AsyncIterator[bytes]:
        yield (job / "a").read_bytes()

    assert await door.probe(runner, job, door.FEED, feed=feed()) == await door.probe(runner, job, "a")


@pytest.mark.parametrize("after", [0, 3])
async def test_a_store_that_fails_while_it_feeds_is_heard_as_such(runner: Runner, job: Path, chromium: Path, after: int) -> None:
    cause = OSError("the line is cut")

    async def feed() -> AsyncIterator[bytes]:
        body = (chromium / "B-vp8/0001.webm").read_bytes()
        for at in range(after):
            yield body[at * 4096 : (at + 1) * 4096]
        raise Unavailable("The object store failed.", code="storage_error") from cause

    with pytest.raises(Unavailable) as heard:
        await door.verify(runner, job, door.FEED, feed=feed(), limits=Limits())
    assert heard.value.code == "storage_error"
    assert heard.value.__cause__ is cause
    with pytest.raises(Unavailable):
        await runner.ffmpeg(["-f", "matroska", "-i", "pipe:0", "-f", "null", "-"], job, limits=Limits(), feed=feed())


async def test_a_flipped_and_a_cut_file_are_not_sound(runner: Runner, job: Path, chromium: Path) -> None:
    body = bytearray((chromium / "B-vp9/0001.webm").read_bytes())
    (job / "cut").write_bytes(body[: len(body) // 2])
    for at in range(20_000, len(body), 997):
        body[at] ^= 0x55
    (job / "flipped").write_bytes(body)
    cut, flipped = await door.verify(runner, job, "cut", full=True), await door.verify(runner, job, "flipped", full=True)
    assert not flipped.sound
    assert flipped.words
    assert cut.streams[0].packets < 100  # a cut is seen by its counts: WebM has no end to miss


async def test_many_small_jobs_leave_no_process_and_no_file(tmp_path: Path, chromium: Path) -> None:
    async with Runner(warm=2) as runner:
        for _ in range(4):
            with job_folder(tmp_path) as job:
                give(job, "a", chromium / "B-opus/0000.webm")
                found = await asyncio.gather(*(door.probe(runner, job, "a") for _ in range(3)))
                assert {seen.streams[0].packets for seen in found} == {66}
    assert list(tmp_path.iterdir()) == []


# Health from media


@pytest.mark.parametrize(
    ("pictures", "volume", "health"),
    [
        ([(n * 1000, n + 1) for n in range(12)], 0.2, Health.LIVE),
        ([(n * 1000, 0) for n in range(12)], 0.2, Health.BLACK),
        ([(n * 1000, 5) for n in range(12)], 0.2, Health.FROZEN),
        ([(n * 1000, n + 1) for n in range(12)], 0.0005, Health.SILENT),
        ([(n * 1000, n + 1) for n in range(12)], 0.0, Health.SILENT),
    ],
)
async def test_health_is_told_from_what_a_file_shows(runner: Runner, job: Path, pictures: list[tuple[int, int]], volume: float, health: Health) -> None:
    tone = volume * np.sin(2 * np.pi * 300 * np.arange(12 * 48000) / 48000)
    (job / "a").write_bytes(movie(pictures, tone))
    heard = await door.watch(runner, job, files=["a"])
    assert len(heard.pictures) == 12
    assert abs(sum(sound.end_us - sound.start_us for sound in heard.sounds) - 12_000_000) < 100_000
    facts = Facts((TrackFacts(heard.pictures, heard.sounds, until_us=12_000_000),), last_byte_us=12_000_000)
    assert judge(13_000_000, facts) is health


async def test_packets_without_a_container_look_and_sound_as_in_the_file(runner: Runner, job: Path, chromium: Path) -> None:
    for name in ("B-vp8/0002.webm", "B-mp4-avc1/0002.mp4", "B-vp9/0002.webm"):
        (job / "a").unlink(missing_ok=True)
        give(job, "a", chromium / name)
        with av.open(str(chromium / name)) as container:
            streams = []
            for stream in container.streams:
                container.seek(0)
                packets = [
                    (bytes(packet), round((packet.pts or 0) * (packet.time_base or 0) * 1_000_000), packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size
                ]
                codec: Any = stream.codec_context
                streams.append(door.Elementary(stream.type, codec.name, codec.extradata or b"", packets))  # type: ignore[arg-type]
        loose, whole = await door.watch(runner, job, streams=streams), await door.watch(runner, job, files=["a"])
        assert [picture.points for picture in loose.pictures] == [picture.points for picture in whole.pictures]
        assert len(loose.pictures) == 2
        peaks = [[sound.peak_dbfs or -99.0 for sound in heard.sounds] for heard in (loose, whole)]
        assert max(peaks[0]) == pytest.approx(max(peaks[1]), abs=1)


# What is refused


def playlists(secret: Path, port: int) -> dict[str, bytes]:
    """Text that demuxers follow: each names the secret beside, above, absolutely, as a URL, or a server."""
    name, url = secret.name, f"http://127.0.0.1:{port}/x.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    dash = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 VP8/90000\n"
    texts = {
        "hls-abs.mp4": hls.format(secret),
        "hls-rel.mp4": hls.format(f"../{name}"),
        "hls-file.webm": hls.format(f"file:{secret}"),
        "hls-http.mp4": hls.format(url),
        "hls-key.mp4": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n',
        "hls-subfile.mp4": hls.format(f"subfile,,start,0,end,0,,:{secret}"),
        "dash-abs.mp4": dash.format(secret),
        "dash-rel.webm": dash.format(f"../{name}"),
        "dash-http.mp4": dash.format(url),
        "ffconcat-rel.mp4": f"ffconcat version 1.0\nfile '../{name}'\n",
        "ffconcat-abs.webm": f"ffconcat version 1.0\nfile '{secret}'\n",
        "ffconcat-http.mp4": f"ffconcat version 1.0\nfile '{url}'\n",
        "sdp.mp4": sdp,
        "xspf.webm": f'<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>file://{secret}</location></track></trackList></playlist>',
        "pattern-%03d.png": "\x89PNG",
        "svg.mp4": f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{url}"/></svg>',
        "bom.mp4": "\ufeff" + hls.format(secret),
        "id3.mp3": "ID3\x04\x00\x00\x00\x00\x00\x00" + hls.format(secret),
    }
    return {file: text.encode() for file, text in texts.items()}


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_playlists_in_disguise_read_nothing_and_call_nobody(runner: Runner, job: Path, tmp_path: Path, listening: int) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(movie([(0, 1), (40, 2)], codec="libx264", form="mpegts") + CANARY)
    payloads = playlists(secret, listening)
    assert len(payloads) >= 14
    for number, body in enumerate(payloads.values()):
        (job / f"{number}").write_bytes(body)
        with pytest.raises(MediaError):
            await door.verify(runner, job, f"{number}")
        args = ["-f", DEMUXERS[number % len(DEMUXERS)], "-i", f"{number}", "-c", "copy", "-f", "matroska", "out/x"]
        with suppress(MediaError):  # the sniff passed by: the forced format and the white lists hold
            assert CANARY.decode() not in await runner.ffmpeg(args, job, limits=Limits(bounds=Bounds(file_bytes=1 << 20)))
    assert all(CANARY not in file.read_bytes() and file.stat().st_size < 1000 for file in (job / "out").iterdir())


async def test_the_sandbox_alone_holds_where_a_demuxer_does_follow_names(runner: Runner, job: Path, tmp_path: Path, listening: int) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(movie([(40 * n, n) for n in range(50)], codec="libx264", form="mpegts"))
    give(job, "mine", secret)
    limits = Limits(bounds=Bounds(file_bytes=1 << 20))

    async def concat(name: str) -> None:
        (job / "list").write_text(f"ffconcat version 1.0\nfile '{name}'\n")
        await runner.ffmpeg(["-f", "concat", "-safe", "0", "-i", "list", "-c", "copy", "-f", "matroska", "-y", "out/x"], job, limits=limits)

    await concat("mine")  # so it can work
    for name in (str(secret), "../secret.ts", f"http://127.0.0.1:{listening}/x.ts", "/etc/passwd"):
        with pytest.raises(MediaCrashed):
            await concat(name)
    with pytest.raises(MediaCrashed, match="stopped"):
        await runner.ffmpeg(["-f", "lavfi", "-i", f"movie={secret}", "-f", "matroska", "-y", "out/x"], job, limits=limits)


@given(st.binary(max_size=600))
def test_a_sniff_says_one_of_nine_or_refuses(head: bytes) -> None:
    try:
        assert sniff(head) in DEMUXERS
    except MediaRefused:
        assert head[:4] not in {b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"DKIF"}


@pytest.mark.parametrize(
    ("form", "codec", "demuxer"), [("webm", "libvpx", "matroska"), ("mp4", "libx264", "mov"), ("mpegts", "libx264", "mpegts"), ("ivf", "libvpx", "ivf")]
)
def test_pictures_are_sniffed(form: str, codec: str, demuxer: str) -> None:
    assert sniff(movie([(0, 1), (40, 2)], codec=codec, form=form)[:4096]) == demuxer


@pytest.mark.parametrize(("form", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("adts", "aac"), ("ogg", "libopus")])
async def test_sound_files_are_sniffed_and_verified(runner: Runner, job: Path, form: str, codec: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as out:
        stream: Any = out.add_stream(codec, rate=48000)
        tone = 0.2 * np.sin(np.arange(48000) / 20)
        frame = av.AudioFrame.from_ndarray((np.stack([tone, tone], 1) * 32767).astype(np.int16).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = 48000
        for ready in av.AudioResampler(stream.format, stream.layout, 48000, stream.frame_size or None).resample(frame):
            out.mux(stream.encode(ready))
        out.mux(stream.encode(None))
    (job / "a").write_bytes(file.getvalue())
    seen = await door.verify(runner, job, "a")
    assert seen.sound
    assert seen.container == {"adts": "aac"}.get(form, form)
    assert abs(seen.streams[0].samples - 48000) < 4000


# What a hostile file costs


def bomb(width: int, height: int, frames: int = 1) -> bytes:
    """A VP8 key frame that says it is that large: the size is in its own header, and in IVF's. Further frames are 64 x 36."""
    body = bytearray(movie([(40 * n, 1) for n in range(frames)], form="ivf"))
    struct.pack_into("<HH", body, 12, width, height)
    struct.pack_into("<HH", body, 32 + 12 + 6, width, height)
    return bytes(body)


async def test_a_bomb_of_sixteen_thousand_squared_is_refused_in_little_memory(runner: Runner, job: Path) -> None:
    (job / "a").write_bytes(bomb(16000, 16000))
    (job / "b").write_bytes(bomb(64, 36))
    tight = Limits(bounds=Bounds(memory_bytes=600 << 20))  # a single such picture is 384 MB
    for task in ("probe", "verify"):
        with pytest.raises((MediaTooBig, MediaRefused)):
            await runner.run(task, job, {"file": "a"}, limits=tight)
    with pytest.raises((MediaTooBig, MediaRefused)):
        await runner.run("watch", job, {"files": ["a"]}, limits=tight)
    assert (await door.verify(runner, job, "b", limits=tight)).sound
    (job / "hidden").write_bytes(bomb(16000, 16000, frames=3))  # the stream is small, its first frame is not
    seen = await door.verify(runner, job, "hidden", limits=tight)
    assert (seen.streams[0].errors, seen.streams[0].frames) == (1, 2)


async def test_ten_hours_between_two_frames_cost_nothing(runner: Runner, job: Path) -> None:
    (job / "a").write_bytes(movie([(0, 1), (36_000_000, 2)]))
    began = time.monotonic()
    seen = await door.verify(runner, job, "a", full=True)
    assert seen.streams[0].frames == 2
    assert seen.streams[0].end_us is not None
    assert seen.streams[0].end_us >= 36_000_000_000
    assert time.monotonic() - began < 10


async def test_nine_streams_are_too_many(runner: Runner, job: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        tracks: list[Any] = [out.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(9)]
        for track in tracks:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            out.mux(track.encode(frame))
    (job / "a").write_bytes(file.getvalue())
    with pytest.raises((MediaTooBig, MediaRefused)):
        await door.probe(runner, job, "a")


async def test_a_child_that_falls_over_says_so_with_its_last_words(runner: Runner, job: Path) -> None:
    with pytest.raises(MediaCrashed) as crashed:
        await runner.run("no such task", job, {})
    assert "KeyError" in crashed.value.tail
    assert "KeyError" not in crashed.value.message


async def test_a_warm_child_that_died_is_replaced(job: Path, chromium: Path) -> None:
    give(job, "a", chromium / "B-opus/0000.webm")
    async with Runner(warm=1) as runner:
        waiting = runner._waiting[0]
        waiting.kill()
        await waiting.wait()
        assert (await door.probe(runner, job, "a")).sound
