"""Ropes: any range of a rope is the same range of the file it stands for."""

from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.rope import Literal, Piece, Rope, Span

OBJECTS = {"a": bytes(range(256)) * 4, "b": bytes(reversed(range(256))) * 4}

spans = st.builds(Span, st.sampled_from(sorted(OBJECTS)), st.integers(0, 500), st.integers(0, 500))
literals = st.builds(Literal, st.binary(max_size=40))
ropes = st.lists(spans | literals, max_size=12)


def written(pieces: list[Piece]) -> bytes:
    return b"".join(piece.body if isinstance(piece, Literal) else OBJECTS[piece.key][piece.offset : piece.offset + piece.size] for piece in pieces)


@given(ropes, st.integers(0, 3000), st.integers(0, 3000))
def test_a_slice_gives_the_bytes_of_the_file(pieces: list[Piece], start: int, stop: int) -> None:
    rope = Rope.of(pieces)
    assert rope.size == len(written(pieces))
    assert written(list(rope.slice(start, stop))) == written(pieces)[start:stop]


def test_touching_pieces_become_one() -> None:
    rope = Rope.of([Span("a", 0, 5), Span("a", 5, 5), Literal(b"x"), Literal(b"y"), Span("b", 0, 0)])
    assert rope.pieces == (Span("a", 0, 10), Literal(b"xy"))
