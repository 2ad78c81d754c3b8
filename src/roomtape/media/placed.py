"""Samples on the recording's clock: what a layout hands to the serialisers, so that no serialiser knows how a timeline is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from roomtape.core.model import Kind
from roomtape.core.rope import Literal, Piece, Span
from roomtape.media.sample import Container, Stream

# One row per sample of a lane, in time order: time[i] + duration[i] == time[i + 1] (the layout stretched the last picture, or put silence in); only
# the first may begin after 0. time_us is the decode time on the recording's clock, presentation is time_us + cts_us. `setup` is an index into
# Lane.setups. `literal` is -1, or an index into Lane.literals whose bytes are the sample (silence, mended packets); `size` is theirs then.
# `at` is the position of the sample in the track's bytes (all chunks one after the other, see Chunks); it means nothing for literals.
PLACED = np.dtype(
    [
        ("time_us", "<i8"),
        ("duration_us", "<i8"),
        ("cts_us", "<i4"),
        ("key", "u1"),
        ("setup", "<u2"),
        ("literal", "<i4"),
        ("at", "<i8"),
        ("size", "<u4"),
    ],
)
# index.PATCH with `at` in the track's bytes: four bytes of Annex B start code that are to be read as the big-endian NAL length `value`; sorted by `at`.
PLACED_PATCH = np.dtype([("at", "<i8"), ("value", "<u4")])
_PATCH_SIZE = 4


@dataclass(frozen=True, slots=True)
class Lane:
    """One elementary stream, placed: rows of dtype PLACED in blocks, of which those at the front stay the same while a recording grows."""

    kind: Kind
    blocks: tuple[npt.NDArray[np.void], ...]
    setups: tuple[Stream, ...]
    literals: tuple[bytes, ...] = ()
    _whole: list[npt.NDArray[np.void]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """All rows as one array: made once, when somebody needs them all."""
        if not self._whole:
            self._whole.append(joined(self.blocks, PLACED))
        return self._whole[0]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def last(self) -> npt.NDArray[np.void]:
        """The last row, in an array of one; empty without rows."""
        return next((block[-1:] for block in reversed(self.blocks) if len(block)), np.zeros(0, PLACED))

    def before(self, time_us: int) -> int:
        """How many rows begin before this time."""
        count = 0
        for block in self.blocks:
            if len(block) and block["time_us"][-1] >= time_us:
                return count + int(np.searchsorted(block["time_us"], time_us))
            count += len(block)
        return count

    def cut(self, first: int, stop: int) -> npt.NDArray[np.void]:
        """The rows first ≤ n < stop."""
        parts, at = [], 0
        for block in self.blocks:
            if at < stop and at + len(block) > first:
                parts.append(block[max(0, first - at) : stop - at])
            at += len(block)
        return joined(parts, PLACED)

    def between(self, start_us: int, stop_us: int) -> npt.NDArray[np.void]:
        """The rows with start ≤ time < stop."""
        return self.cut(self.before(start_us), self.before(stop_us))


def joined(arrays: Sequence[npt.NDArray[np.void]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """np.concatenate asks each structured array for its fields: ten times slower than joining bytes."""
    if len(arrays) == 1:
        return arrays[0]
    return np.frombuffer(bytearray().join(array.data if array.flags.c_contiguous else array.tobytes() for array in arrays), dtype)


@dataclass(frozen=True, slots=True)
class Chunks:
    """The stored objects of a track in order, as one run of bytes; `starts` has one entry more than `keys`: the cumulative sizes."""

    keys: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    patches: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, PLACED_PATCH))

    @property
    def size(self) -> int:
        return int(self.starts[-1])

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The bytes start ≤ n < stop as they are stored, over several objects where need be, patches overlaid as literals."""
        if not len(self.patches):
            yield from self._spans(start, stop)
            return
        ats = self.patches["at"]
        first, last = np.searchsorted(ats, (start - _PATCH_SIZE + 1, stop))  # a patch may be cut by either end
        for at, value in self.patches[first:last].tolist():
            yield from self._spans(start, at)
            body = value.to_bytes(_PATCH_SIZE, "big")
            yield Literal(body[max(start - at, 0) : stop - at])
            start = max(start, at + _PATCH_SIZE)
        yield from self._spans(start, stop)

    def _spans(self, start: int, stop: int) -> Iterator[Span]:
        if start >= stop:
            return
        number = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            first, end = int(self.starts[number]), min(int(self.starts[number + 1]), stop)
            if end > start:
                yield Span(self.keys[number], start - first, end - start)
            start, number = end, number + 1


@dataclass(frozen=True, slots=True)
class Placement:
    """A track on the recording's clock: its lanes, video first, over the bytes they lie in."""

    lanes: tuple[Lane, ...]
    chunks: Chunks
    container: Container
