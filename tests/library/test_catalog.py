"""What the API says of things, made of rows."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar

from roomtape.core.lifecycle import ChunkState
from roomtape.db.rows import Chunk
from roomtape.library import catalog
from roomtape.media.layout import Span, TrackFacts, lay_out


class Counted(tuple[Span, ...]):
    """Spans that count how often they are looked through."""

    __slots__ = ()
    looks: ClassVar[list[int]] = []

    def __iter__(self) -> Iterator[Span]:
        self.looks.append(1)
        return super().__iter__()


def test_ten_thousand_segments_are_listed_in_one_look_at_their_spans() -> None:
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Chunk))
    found = [Chunk(**nothing | {"track_id": "1", "index": index, "state": ChunkState.DONE}) for index in range(1, 10_001)]
    spans = Counted(Span(index, index * 10, index * 10 + 5) for index in range(2, 10_001))
    views = catalog.segments_view(found, {"1": replace(lay_out(TrackFacts("1"), []), spans=spans)})
    assert [(view["index"], view["start_s"], view["duration_s"]) for view in views[:2]] == [(1, None, None), (2, 0.00002, 0.000005)]
    assert len(views) == 10_000
    assert len(Counted.looks) == 1
