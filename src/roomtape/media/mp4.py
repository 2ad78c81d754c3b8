"""Where MP4 keeps each frame: a walk over boxes, fragmented or not, that may stop and go on at any byte."""

import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from roomtape.media import codecs
from roomtape.media.carry import KEEP_BYTES, Walker, pack_carry, stream_list, stream_of
from roomtape.media.isobmff import FAR, MAX_ROWS, Numbers, Track, boxes, child, header, moov, rows, rows_of, tfhd, u32
from roomtape.media.sample import SAMPLE, Container, Index, Part, Samples, Warnings

_HELD = (b"moov", b"moof")  # taken only when whole; all other boxes are passed by
_TOP = frozenset(  # what may stand outside of every box; anything else is damage, or no MP4 at all
    (*_HELD, *(b"ftyp styp mdat sidx ssix free skip wide uuid emsg prft mfra meta pdin pnot udta junk".split())),
)
_FRAGMENT = b"moof"
JUDGED = frozenset(("vp8", "vp9", "av1", "h264", "opus"))


@dataclass(slots=True)
class _File:
    """The state between two cuts."""

    tracks: dict[int, Track] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()
    at: int = 0  # the file's byte at which the pending bytes begin
    skip: int = 0  # bytes still to pass by
    lost: bool = False  # damage: look for a moof
    adrift: bool = False  # the place in the file is not known since a hole
    ahead: Samples = field(default_factory=lambda: np.zeros(0, SAMPLE))  # described, but their bytes are not all there; offsets in the file
    begun_at: int = 0
    begun: bytes = b""  # the first bytes of the sample that the cut splits

    def carry(self, pending: bytes) -> bytes:
        listed = [[n, t.scale, t.shift_us, t.defaults, t.entries, t.clock, *stream_list(t.stream)] for n, t in self.tracks.items()]
        state = [self.at, self.skip, self.lost, self.adrift, self.begun_at]
        fields = {"tracks": listed, "ignored": sorted(self.ignored), "state": state}
        return pack_carry(Container.MP4, fields, pending, self.begun, zlib.compress(self.ahead.tobytes(), 1) if len(self.ahead) else b"")

    @classmethod
    def of(cls, fields: dict[str, Any], parts: list[bytes]) -> "_File":
        tracks = {row[0]: Track(stream_of(row[6:]), row[1], row[2], (row[3][0], row[3][1], row[3][2]), row[4], row[5]) for row in fields["tracks"]}
        at, skip, lost, adrift, begun_at = fields["state"]
        ahead = np.frombuffer(bytearray(zlib.decompress(parts[2])), SAMPLE) if parts[2] else np.zeros(0, SAMPLE)
        return cls(tracks, frozenset(fields["ignored"]), at, skip, lost, adrift, ahead, begun_at, parts[1])


def head(data: Any) -> tuple[Index, bytes]:
    return _walk(_File(), b"", data, Part.HEAD)


def cut(data: Any, fields: dict[str, Any], parts: list[bytes]) -> tuple[Index, bytes]:
    return _walk(_File.of(fields, parts), parts[0], data, Part.CUT)


def resync(data: Any, fields: dict[str, Any]) -> tuple[Index, bytes] | None:
    """Goes on at the next moof in `data` with the set-up of any earlier carry; None: no moof, or no set-up."""
    found = _find_moof(data, 0)
    if found < 0 or not fields["tracks"]:
        return None
    past = _File.of(fields, [b"", b"", b""])
    for track in past.tracks.values():
        track.clock = -1
    return _walk(_File(past.tracks, past.ignored, found, adrift=True), b"", data, Part.CUT, found)


def _find_moof(buf: Any, at: int) -> int:
    """Where a moof seems to begin from `at` on, -1: nowhere. It seems so if its size leaves room for mfhd, and mfhd comes first."""
    block = 256  # small at first: false finds may lie close together
    while at < len(buf):
        piece = bytes(buf[at : at + block + 7])
        found = piece.find(_FRAGMENT, 4)
        while found >= 0:
            begin = at + found - 4
            if u32(buf, begin) >= 24 and b"\0\0\0\x10mfhd".startswith(bytes(buf[begin + 8 : begin + 16])):
                return begin
            found = piece.find(_FRAGMENT, found + 1)
        at, block = at + block, min(block * 4, 1 << 16)
    return -1


def _walk(file: _File, pending: bytes, data: Any, part: Part, start: int = 0) -> tuple[Index, bytes]:
    walker = _Walker(file, file.at + len(pending) - start, len(pending) + len(data))
    if pending and len(data):
        pending, start = walker.bridge(pending, data)
    if not pending:
        start = walker.run(data, start, 0)
        pending = bytes(data[start:]) if start < len(data) else b""
    file.at = walker.origin + len(data) - len(pending)
    return walker.index(part, data), file.carry(pending)


class _Walker(Walker):
    """One pass over one cut: `origin` is the file's byte at which the cut begins, `base` what makes places in a buffer places in the cut."""

    def __init__(self, file: _File, origin: int, size: int) -> None:
        self.file, self.origin = file, origin
        self.found: list[Samples] = [file.ahead]
        self.warnings = Warnings()
        self.left = max(MAX_ROWS - len(file.ahead), 0)
        self.claims = max(rows_of(size) - len(file.ahead), 0)  # of runs whose rows have no bytes of their own

    def run(self, buf: Any, p: int, base: int) -> int:
        file, n = self.file, len(buf)
        while p < n:
            if file.skip or file.lost:
                p = self._pass(buf, p)
                if file.lost:
                    return p
                continue
            found = header(buf, p, n)
            if found is None:
                self.need = 16
                return p
            kind, body, size = found
            if size < body - p or kind not in _TOP:
                self.warnings.add("box", p + base)
                file.lost, p = True, p + 1
                continue
            end = p + size
            if kind not in _HELD:
                file.skip = size
                continue
            if end > n:
                if size > KEEP_BYTES:
                    self.warnings.add("box_large", p + base)
                    file.skip = size
                    continue
                self.need = size
                return p
            if kind == _FRAGMENT:
                self._moof(buf, p, body, end, base)
            else:
                self._moov(buf, body, end, base)
            p = end
        return p

    def _pass(self, buf: Any, p: int) -> int:
        """Goes by what is not to be walked; stays lost where no moof comes up."""
        file, n = self.file, len(buf)
        if file.skip:
            step = min(file.skip, n - p)
            file.skip -= step
            return p + step
        found = _find_moof(buf, p)
        file.lost = found < 0
        self.need = n - p + 16
        return max(p, n - 7) if file.lost else found

    def _moov(self, buf: Any, at: int, end: int, base: int) -> None:
        if self.file.tracks:
            self.warnings.add("second_moov", at + base)
            return
        self.file.tracks, ignored, tables = moov(buf, at, end, self.left, self.warnings)
        self.file.ignored = frozenset(ignored)
        for table in tables:
            self.left -= len(table)
            self.found.append(table)

    def _moof(self, buf: Any, at: int, body: int, end: int, base: int) -> None:
        start = self.origin + base + at  # of the moof in the file
        follows = start  # where the data of the next traf begins if it does not say
        for kind, a, b in boxes(buf, body, end):
            if kind == b"traf":
                follows = self._traf(bytes(buf[a:b]), start, follows, a + base)

    def _traf(self, traf: bytes, moof: int, follows: int, place: int) -> int:
        found = tfhd(traf)
        track = self.file.tracks.get(found[0]) if found else None
        if found is None or track is None:
            if found is None or found[0] not in self.file.ignored:
                self.warnings.add("track" if found else "tfhd", place)
            return follows
        said = found[1]
        if said.get(2, 1) != 1 and track.entries > 1:
            self.warnings.add("entry_change", place)
        base = said.get(1, moof if 0x20000 in said else follows)
        if 1 in said and self.file.adrift:
            self.warnings.add("adrift", place)
            return follows
        defaults = tuple(said.get(flag, default) for flag, default in zip((8, 16, 32), track.defaults, strict=True))
        tfdt = child(traf, (0, len(traf)), b"tfdt")
        if tfdt and tfdt[1] - tfdt[0] >= 8:
            track.clock = int.from_bytes(traf[tfdt[0] + 4 : tfdt[0] + (12 if traf[tfdt[0]] else 8)], "big")
        if track.clock < 0 or track.clock > FAR:
            self.warnings.add("no_time", place)
            return follows
        at = base
        for kind, a, b in boxes(traf, 0, len(traf)):
            if kind == b"trun":
                at = self._trun(traf[a:b], track, base, at, (defaults[0], defaults[1], defaults[2]), place)
        return at

    def _trun(self, trun: bytes, track: Track, base: int, at: int, defaults: tuple[int, int, int], place: int) -> int:
        """One run of samples; gives the file's byte at which the next begins if it does not say."""
        flags = u32(trun, 0) & 0xFFFFFF
        skip = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
        fields = [flag for flag in (0x100, 0x200, 0x400, 0x800) if flags & flag]
        if len(trun) < skip:
            self.warnings.add("trun", place)
            return at
        claimed = count = u32(trun, 4)
        if fields:
            count = min(count, (len(trun) - skip) // (4 * len(fields)))
        else:
            count = min(count, self.claims) if defaults[1] else 0
            self.claims -= count
        count = min(count, self.left)
        if count < claimed:
            self.warnings.add("trun", place)
        self.left -= count
        if flags & 1:
            at = base + struct.unpack_from(">i", trun, 8)[0]
        table = np.frombuffer(trun, ">u4", count * len(fields), skip).reshape(count, len(fields)).astype(np.int64)
        columns = {flag: table[:, number] for number, flag in enumerate(fields)}
        durations, sizes, marks = (columns.get(flag, np.full(count, default)) for flag, default in zip((0x100, 0x200, 0x400), defaults, strict=True))
        if flags & 4 and count:
            marks = marks.copy()
            marks[0] = u32(trun, skip - 4)
        cts: Numbers = columns.get(0x800, np.zeros(count, np.int64))
        cts = (cts + (1 << 31)) % (1 << 32) - (1 << 31)  # signed also in version 0: unsigned ones that large do not exist
        dts = np.cumsum(durations) - durations + track.clock
        self.found.append(rows(track, dts, cts, durations, np.cumsum(sizes) - sizes + at, sizes, marks & 0x10000 == 0))
        track.clock += int(durations.sum())
        return at + int(sizes.sum())

    def index(self, part: Part, data: Any) -> Index:
        """The samples whose last byte is there by now; the others wait in the file's state."""
        file, end = self.file, self.origin + len(data)
        known = np.concatenate(self.found) if len(self.found) > 1 else file.ahead
        there = known["offset"] + known["size"] <= end
        samples, file.ahead = known[there], known[~there]
        samples = samples[np.argsort(samples["offset"], kind="stable")]
        samples["offset"] -= self.origin
        if file.lost and not len(samples):
            self.warnings.add("lost", 0)
        self._judge(samples, data)
        self._begin(data, end)
        streams = tuple(track.stream for track in file.tracks.values())
        return Index(Container.MP4, part, streams, samples, warning=str(self.warnings))

    def _begin(self, data: Any, end: int) -> None:
        """Keeps the first bytes of the sample that the end of the cut splits: they tell its key flag and duration."""
        file = self.file
        split = file.ahead[file.ahead["offset"] < end]
        if not len(split):
            file.begun_at, file.begun = 0, b""
            return
        first = split[np.argmin(split["offset"])]
        at, size = int(first["offset"]), min(int(first["size"]), codecs.LOOK)
        if at >= self.origin:
            file.begun_at, file.begun = at, bytes(data[at - self.origin : at - self.origin + size])
        elif at == file.begun_at:
            file.begun += bytes(data[: size - len(file.begun)])
        else:
            file.begun_at, file.begun = 0, b""  # described only after it began

    def _judge(self, samples: Samples, data: Any) -> None:
        """Puts the frames' own word on key frames, and Opus packets' on their length, in place of the container's."""
        tracks = {track.stream.number: track for track in self.file.tracks.values() if track.stream.codec in JUDGED}
        keys, lengths = samples["key"].tolist(), samples["duration_us"].tolist()
        begun, begun_at = self.file.begun, self.file.begun_at - self.origin
        columns = (samples["stream"].tolist(), samples["offset"].tolist(), samples["size"].tolist())
        for row, (stream, place, size) in enumerate(zip(*columns, strict=True)):
            track = tracks.get(stream)
            if track is None:
                continue
            if place >= 0:
                buf, at, end = data, place, place + size
            elif place == begun_at and begun:
                buf = begun + bytes(data[: codecs.LOOK - len(begun)])
                at, end = 0, min(size, len(buf))
            else:
                continue  # its bytes went by before its table came
            if track.stream.codec == "opus":
                toc = buf[at]
                lengths[row] = codecs.OPUS_US[toc] or (codecs.opus_us(toc, buf[at + 1]) if size > 1 else 0) or lengths[row]
            else:
                keys[row] = _key(track, buf, at, end, key=keys[row])
        samples["key"], samples["duration_us"] = keys, lengths


def _key(track: Track, buf: Any, at: int, end: int, *, key: int) -> int:
    """The frame's own word on being a key frame, `key` where it says nothing. A key frame's size stands in where the sample entry has none."""
    stream = track.stream
    said: bool | None = None
    if stream.codec == "vp9":
        said = codecs.vp9_key(buf, at)
    elif stream.codec == "vp8":
        said = codecs.vp8_key(buf, at)
    elif stream.codec == "av1":
        said = codecs.av1_key(buf, at, end)
    elif len(stream.setup) > 4:
        said = codecs.nal_key(buf, at, end, (stream.setup[4] & 3) + 1)
    if said and not stream.width:
        width, height = codecs.frame_size(stream.codec, bytes(buf[at : min(end, at + codecs.LOOK)]))
        track.stream = replace(stream, width=width, height=height)
    return key if said is None else said
