"""A rope: one file's bytes as generated literals and ranges of stored objects, so that media is never copied to be served."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

_PART_BYTES = 120


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
class Lazy:
    """`size` bytes in many small pieces, made only when they are asked for: an hour of blocks with generated headers is 400,000 pieces, a request needs some."""

    size: int
    make: Callable[[], Iterable[Piece]] = field(repr=False)

    def slice(self, start: int, stop: int) -> Iterator[Piece]:
        made = Rope.of(self.make())
        assert made.size == self.size, f"{made.size} bytes made, {self.size} promised"
        return made.slice(start, stop)


Part = Piece | Lazy


@dataclass(frozen=True, slots=True)
class Rope:
    """Parts in order; parts of size 0 are left out and touching pieces of one object are joined. `held`: the bytes of memory it takes, about."""

    pieces: tuple[Part, ...]
    starts: tuple[int, ...] = field(repr=False)
    size: int
    held: int = field(repr=False)

    @classmethod
    def of(cls, pieces: Iterable[Part]) -> "Rope":
        joined = tuple(_joined(pieces))
        starts, at, held = [], 0, len(joined) * _PART_BYTES
        for piece in joined:
            starts.append(at)
            at += piece.size
            held += piece.size if isinstance(piece, Literal) else 0
        return cls(joined, tuple(starts), at, held)

    def slice(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces of bytes start ≤ n < stop."""
        stop = min(stop, self.size)
        at = bisect_right(self.starts, start) - 1
        while start < stop:
            part, first = self.pieces[at], self.starts[at]
            end = min(first + part.size, stop)
            if isinstance(part, Lazy):
                yield from part.slice(start - first, end - first)
            else:
                yield part.cut(start - first, end - first)
            start, at = end, at + 1


@dataclass(frozen=True, slots=True)
class Woven:
    """Small pieces of one object that are near each other: `read` fetches them all at once, `weave` puts them in order."""

    read: Span
    pieces: tuple[Piece, ...]
    size: int

    def weave(self, body: bytes) -> bytes:
        """The bytes of the pieces, out of the bytes of `read`."""
        base, view = self.read.offset, memoryview(body)
        return b"".join(piece.body if isinstance(piece, Literal) else view[piece.offset - base : piece.offset - base + piece.size] for piece in self.pieces)


def woven(pieces: Iterable[Piece], *, small: int = 64 << 10, most: int = 1 << 20) -> Iterator[Piece | Woven]:
    """The same bytes with few reads: runs of pieces below `small` bytes near each other in one object become one read of at most `most` bytes.

    Whoever sends a rope pays for each read and each system call; 190 blocks of 2 kB are one read here. Large spans stay as they are, for sendfile.
    """
    held: list[Piece] = []
    key, start, stop = "", 0, 0
    for piece in pieces:
        if isinstance(piece, Span):
            low, high = (min(start, piece.offset), max(stop, piece.offset + piece.size)) if key else (piece.offset, piece.offset + piece.size)
            near = high - low <= most and piece.offset <= stop + small and piece.offset + piece.size >= start - small
            if piece.size >= small or (key and (key != piece.key or not near)):
                yield from _read_at_once(held, key, start, stop)
                held, key = [], ""
                low, high = piece.offset, piece.offset + piece.size
            if piece.size >= small:
                yield piece
                continue
            key, start, stop = piece.key, low, high
        held.append(piece)
    yield from _read_at_once(held, key, start, stop)


def _read_at_once(held: list[Piece], key: str, start: int, stop: int) -> Iterator[Piece | Woven]:
    if len(held) < 2 or not key:
        yield from held
        return
    yield Woven(Span(key, start, stop - start), tuple(held), sum(piece.size for piece in held))


def _joined(pieces: Iterable[Part]) -> Iterator[Part]:
    held: Part | None = None
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
