"""multipart/form-data as it arrives: the file passes through piece by piece and never lies in a temporary folder of somebody else's."""

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from roomtape.core.errors import BadInput, TooLarge

_PARTS = 24
FIELDS_BYTES = 64 << 10  # all fields, part headers, preamble and epilogue together


class Form:
    """One form with one `file`. Iterate `file()` to its end, then `fields` is whole; fields may stand before and after the file."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self.fields: dict[str, str] = {}
        self.file_type: str | None = None
        self.has_file = False
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]
        self._name = ""
        self._value = bytearray()
        self._in_file = False
        self._pieces: list[bytes] = []
        self._parts = 0
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        try:
            self._parser = MultipartParser(boundary or b"", {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._heard(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._heard(1, data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._whole,
            })  # fmt: skip
        except FormParserError as wrong:
            raise _unreadable() from wrong
        if not boundary:
            raise _unreadable()

    async def file(self) -> AsyncIterator[bytes]:
        """The bytes of the part `file`. BadInput: the form is cut off, or none; TooLarge: more than a file and some fields."""
        beside = 0
        async for block in self._body:
            try:
                self._parser.write(block)
            except FormParserError as wrong:
                raise _unreadable() from wrong
            pieces, self._pieces = self._pieces, []
            beside += len(block) - sum(map(len, pieces))
            if beside > FIELDS_BYTES:
                raise TooLarge("The form has more than a file and some fields.", limit_bytes=FIELDS_BYTES)
            for piece in pieces:
                yield piece
        if not self._ended:
            raise _unreadable()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise BadInput(f"The form has more than {_PARTS} parts.", code="bad_form")
        self._headers, self._header, self._name, self._value, self._in_file = {}, [b"", b""], "", bytearray(), False

    def _heard(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _headers_end(self) -> None:
        said = parse_options_header(self._headers.get(b"content-disposition", b""))[1]
        self._name = said.get(b"name", b"").decode(errors="replace")
        if self._name != "file":
            return
        if self.has_file:
            raise BadInput("The form has more than one `file`.", code="bad_form")
        self.has_file = self._in_file = True
        self.file_type = self._headers.get(b"content-type", b"").decode("latin-1") or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])
        else:
            self._value += data[start:end]

    def _end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _whole(self) -> None:
        self._ended = True


def _unreadable() -> BadInput:
    return BadInput("The body is no whole multipart/form-data.", code="bad_form")
