"""WebM as a rope: generated clusters and block headers around the stored frames, for the codecs and players that MP4 does not serve.

VP8 plays untouched this way: as a file to keep, and window by window through Media Source. Every block header is generated, so lost bytes, cut overlaps,
other containers and other track numbers are all the same case; the pieces of a cluster are made when somebody reads it.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.rope import Lazy, Literal, Piece, Rope
from roomtape.media.boxes import opus_setup
from roomtape.media.placed import Lane, Placement
from roomtape.media.sample import Stream

Ints = npt.NDArray[np.int64]
_CODECS = {"vp8": "V_VP8", "vp9": "V_VP9", "av1": "V_AV1", "h264": "V_MPEG4/ISO/AVC", "opus": "A_OPUS", "aac": "A_AAC"}
_OF_WEBM = frozenset({"vp8", "vp9", "av1", "opus"})  # the others make it a Matroska file
_CLUSTER_US = 5_000_000
_UNKNOWN_SIZE = b"\x01" + b"\xff" * 7
_SEEK_PRE_ROLL_NS = 80_000_000
_SIMPLE, _GROUP, _REFERENCE = 9, 20, 6  # sizes of headers: SimpleBlock, BlockGroup with its duration and Block, a ReferenceBlock besides
_CLUSTER_HEAD = 22


def playable_as_webm(streams: tuple[Stream, ...]) -> bool:
    """Whether this module has a codec id for all streams."""
    return all(stream.codec in _CODECS for stream in streams)


def webm(placement: Placement, start_us: int = 0, stop_us: int | None = None, *, live: bool) -> Rope:
    """The samples with start ≤ decode time < stop as WebM (Matroska for H.264 and AAC), times on the recording's clock in milliseconds.

    `live`: no length and no index; each window can be appended to Media Source on its own. Otherwise a file to keep, with Duration and Cues.
    A window without samples is an empty rope. ValueError for a codec without a place in Matroska.
    """
    lanes = [lane for lane in placement.lanes if len(lane.rows)]
    blocks = _Blocks.of(lanes, start_us, stop_us)
    if blocks is None:
        return Rope.of(())
    streams = [lane.setups[int(lane.rows["setup"][min(int(np.searchsorted(lane.rows["time_us"], start_us)), len(lane.rows) - 1)])] for lane in lanes]
    clusters = [
        Lazy(size, lambda first=first, last=last: blocks.cluster(placement, first, last))  # type: ignore[misc]
        for first, last, size in zip(blocks.firsts.tolist(), [*blocks.firsts[1:].tolist(), len(blocks.time_ms)], blocks.sizes.tolist(), strict=True)
    ]
    head, tracks = _ebml(streams), _tracks(streams)
    if live:
        return Rope.of([Literal(head + b"\x18\x53\x80\x67" + _UNKNOWN_SIZE + _info(None) + tracks), *clusters])
    info = _info(blocks.stop_ms)
    draft = _index(blocks, len(info), len(tracks), 0)
    before = _index(blocks, len(info), len(tracks), len(draft[0]) + len(info) + len(tracks) + len(draft[1]))
    body = before[0] + info + tracks + before[1]
    return Rope.of([Literal(head + b"\x18\x53\x80\x67" + _size8(len(body) + int(blocks.sizes.sum())) + body), *clusters])


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks of all lanes in the order they are written; one entry each, and one per cluster in `firsts` and `sizes`."""

    lanes: list[Lane]
    lane: Ints
    row: Ints
    time_ms: Ints
    duration_ms: Ints
    reference_ms: Ints  # to the picture before; 0: needs none
    size: Ints
    grouped: npt.NDArray[np.bool_]
    firsts: Ints
    sizes: Ints
    stop_ms: int

    @classmethod
    def of(cls, lanes: list[Lane], start_us: int, stop_us: int | None) -> "_Blocks | None":
        shares = [_share(lane, start_us, stop_us) for lane in lanes]
        counts = [last - first for first, last in shares]
        if not sum(counts):
            return None
        rows = np.concatenate([lane.rows[first:last] for lane, (first, last) in zip(lanes, shares, strict=True)])
        lane = np.repeat(np.arange(len(lanes)), counts)
        order = np.argsort(rows["time_us"], kind="stable")  # at equal times the picture first
        row = np.concatenate([np.arange(first, last) for first, last in shares])[order]
        rows, lane = rows[order], lane[order]
        shown = rows["time_us"] + rows["cts_us"]
        time_ms, end_ms = _ms(shown), _ms(shown + rows["duration_us"])
        video = np.array([each.kind is Kind.VIDEO for each in lanes])[lane]
        leads = (video & (rows["key"] != 0)) | (np.diff(rows["time_us"] // _CLUSTER_US, prepend=-1) != 0)
        leads[0] = True
        firsts = np.flatnonzero(leads)
        number = np.cumsum(leads) - 1
        grouped, reference = np.zeros(len(rows), bool), np.zeros(len(rows), np.int64)
        for index, each in enumerate(lanes):
            mine = np.flatnonzero(lane == index)
            # the last block of a lane in a cluster tells its duration: the others' is the way to the next one
            grouped[mine[np.diff(number[mine], append=number[-1] + 1) != 0]] = True
            if each.kind is Kind.VIDEO:
                reference[mine] = np.where(rows["key"][mine], 0, np.minimum(np.diff(time_ms[mine], prepend=0) * -1, -1))
        size = rows["size"].astype(np.int64)
        whole = size + np.where(grouped, _GROUP + np.where(reference, _REFERENCE, 0), _SIMPLE)
        sizes = np.add.reduceat(whole, firsts) + _CLUSTER_HEAD
        return cls(lanes, lane, row, time_ms, end_ms - time_ms, reference, size, grouped, firsts, sizes, int(end_ms.max()))

    def cluster(self, placement: Placement, first: int, last: int) -> list[Piece]:
        """The pieces of the cluster that holds the blocks first ≤ n < last."""
        base = int(self.time_ms[first])
        pieces: list[Piece] = []
        for number in range(first, last):
            lane = self.lanes[int(self.lane[number])]
            row = lane.rows[self.row[number]]
            pieces.append(Literal(self._header(number, base, lane.kind is Kind.AUDIO or bool(row["key"]))))
            if row["literal"] >= 0:
                pieces.append(Literal(lane.literals[row["literal"]]))
            else:
                pieces += placement.chunks.pieces(int(row["at"]), int(row["at"]) + int(row["size"]))
        size = sum(piece.size for piece in pieces)
        return [Literal(b"\x1f\x43\xb6\x75" + _size8(size + 10) + b"\xe7\x88" + base.to_bytes(8, "big")), *pieces]

    def _header(self, number: int, base: int, key: bool) -> bytes:
        size, relative, track = int(self.size[number]), int(self.time_ms[number]) - base, int(self.lane[number]) + 1
        if not self.grouped[number]:
            return struct.pack(">BIBhB", 0xA3, 1 << 28 | size + 4, 0x80 | track, relative, 0x80 if key else 0)
        reference = int(self.reference_ms[number])
        inside = b"\x9b\x84" + struct.pack(">I", max(0, int(self.duration_ms[number])))
        inside += b"\xfb\x84" + struct.pack(">i", reference) if reference else b""
        inside += struct.pack(">BIBhB", 0xA1, 1 << 28 | size + 4, 0x80 | track, relative, 0)
        return struct.pack(">BI", 0xA0, 1 << 28 | len(inside) + size) + inside

    def cues(self) -> list[tuple[int, int, int]]:
        """(time, track, cluster) where seeking may land: clusters that begin with a key frame of the picture, without a picture all of them."""
        video = [lane.kind is Kind.VIDEO for lane in self.lanes]
        firsts = self.firsts.tolist()
        return [
            (int(self.time_ms[block]), int(self.lane[block]) + 1, cluster)
            for cluster, block in enumerate(firsts)
            if not any(video) or (video[self.lane[block]] and not self.reference_ms[block])
        ]


def _share(lane: Lane, start_us: int, stop_us: int | None) -> tuple[int, int]:
    times = lane.rows["time_us"]
    return int(np.searchsorted(times, start_us)), len(times) if stop_us is None else int(np.searchsorted(times, stop_us))


def _ms(time_us: Ints) -> Ints:
    return (time_us + 500) // 1000


def _size8(size: int) -> bytes:
    return (1 << 56 | size).to_bytes(8, "big")


def _element(number: int, body: bytes) -> bytes:
    """An element with a size of 8 bytes: the size of what holds it then does not depend on values."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big") + _size8(len(body)) + body


def _number(number: int, value: int) -> bytes:
    return _element(number, value.to_bytes(8, "big"))


def _text(number: int, value: str) -> bytes:
    return _element(number, value.encode())


def _ebml(streams: list[Stream]) -> bytes:
    doctype = "webm" if all(stream.codec in _OF_WEBM for stream in streams) else "matroska"
    limits = _number(0x4286, 1) + _number(0x42F7, 1) + _number(0x42F2, 4) + _number(0x42F3, 8)
    return _element(0x1A45DFA3, limits + _text(0x4282, doctype) + _number(0x4287, 4) + _number(0x4285, 2))


def _info(duration_ms: int | None) -> bytes:
    length = b"" if duration_ms is None else _element(0x4489, struct.pack(">d", duration_ms))
    return _element(0x1549A966, _number(0x2AD7B1, 1_000_000) + length + _text(0x4D80, "Roomtape") + _text(0x5741, "Roomtape"))


def _tracks(streams: list[Stream]) -> bytes:
    entries = []
    for number, stream in enumerate(streams, 1):
        if stream.codec not in _CODECS:
            raise ValueError(f"{stream.codec} has no place in a WebM")
        entry = _number(0xD7, number) + _number(0x73C5, number) + _number(0x9C, 0) + _text(0x86, _CODECS[stream.codec])
        if stream.kind is Kind.VIDEO:
            entry += _number(0x83, 1) + _element(0xE0, _number(0xB0, stream.width) + _number(0xBA, stream.height))
            private = stream.setup if stream.codec in {"h264", "av1"} else b""
        else:
            rate = float(stream.rate or 48_000)
            entry += _number(0x83, 2) + _element(0xE1, _element(0xB5, struct.pack(">d", rate)) + _number(0x9F, stream.channels or 2))
            private = opus_setup(stream) if stream.codec == "opus" else stream.setup
            entry += _number(0x56BB, _SEEK_PRE_ROLL_NS) if stream.codec == "opus" else b""
        entries.append(_element(0xAE, entry + (_element(0x63A2, private) if private else b"")))
    return _element(0x1654AE6B, b"".join(entries))


def _index(blocks: _Blocks, info: int, tracks: int, lead: int) -> tuple[bytes, bytes]:
    """SeekHead (in front of Info and Tracks of these sizes) and Cues (behind them); `lead`: how far into the segment the first cluster begins."""
    places = np.cumsum(blocks.sizes) - blocks.sizes + lead
    points = [
        _element(0xBB, _number(0xB3, time) + _element(0xB7, _number(0xF7, track) + _number(0xF1, int(places[cluster]))))
        for time, track, cluster in blocks.cues()
    ]
    cues = _element(0x1C53BB6B, b"".join(points))
    seek = len(_seek_head(0, 0, 0))
    return _seek_head(seek, seek + info, seek + info + tracks), cues


def _seek_head(info: int, tracks: int, cues: int) -> bytes:
    targets = ((b"\x15\x49\xa9\x66", info), (b"\x16\x54\xae\x6b", tracks), (b"\x1c\x53\xbb\x6b", cues))
    return _element(0x114D9B74, b"".join(_element(0x4DBB, _element(0x53AB, name) + _number(0x53AC, place)) for name, place in targets))
