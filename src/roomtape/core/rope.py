"""A rope: one file's bytes as generated literals and ranges of stored objects, so that media is never copied to be served."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that were generated: a head, a box, silence."""

    body: bytes

    @property
    def size(self) -> int:
        return len(self.body)

    def cut(self, start: int, stop: int) -> "Literal":
        return Literal(self.body[start:stop])


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes at `offset` of the stored object `key`."""

    key: str
    offset: int
    size: int

    def cut(self, start: int, stop: int) -> "Span":
        return Span(self.key, self.offset + start, stop - start)


Piece = Literal | Span


@dataclass(frozen=True, slots=True)
class Rope:
    """Pieces in order; pieces of size 0 are left out and touching pieces of one object are joined."""

    pieces: tuple[Piece, ...]
    starts: tuple[int, ...] = field(repr=False)
    size: int

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "Rope":
        joined = tuple(_joined(pieces))
        starts, at = [], 0
        for piece in joined:
            starts.append(at)
            at += piece.size
        return cls(joined, tuple(starts), at)

    def slice(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces of bytes start ≤ n < stop."""
        stop = min(stop, self.size)
        at = bisect_right(self.starts, start) - 1
        while start < stop:
            piece, first = self.pieces[at], self.starts[at]
            end = min(first + piece.size, stop)
            yield piece.cut(start - first, end - first)
            start, at = end, at + 1


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    held: Piece | None = None
    for piece in pieces:
        if not piece.size:
            continue
        if isinstance(held, Span) and isinstance(piece, Span) and held.key == piece.key and held.offset + held.size == piece.offset:
            held = Span(held.key, held.offset, held.size + piece.size)
            continue
        if isinstance(held, Literal) and isinstance(piece, Literal):
            held = Literal(held.body + piece.body)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held
