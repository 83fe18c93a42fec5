"""Reads multipart/form-data as a stream: the file passes through, other fields are kept."""

from collections.abc import AsyncIterator

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidRequest

MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 32
MAX_BOUNDARY = 70  # RFC 2046 §5.1.1


class UploadForm:
    """One upload: iterate `file()` to the end, then `fields` and `filename` are whole.

    `part` is the name of the part that is the file.

    Raises:
        InvalidRequest: not multipart, malformed, without a file or with two, too many fields or one
            that is too long.
    """

    def __init__(
        self, content_type: str | None, stream: AsyncIterator[bytes], *, part: str = "file"
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary or len(boundary) > MAX_BOUNDARY:
            raise InvalidRequest(f"Send multipart/form-data, with the bytes as `{part}`.")
        self._part = part
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._stream = stream
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._value = bytearray()
        self._name = ""
        self._parts = 0
        self._in_file = False
        self._pending: list[bytes] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def file(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file."""
        try:
            async for data in self._stream:
                self._parser.write(data)
                for piece in self._pending:
                    yield piece
                self._pending.clear()
        except MultipartParseError as error:
            raise InvalidRequest(f"The multipart body is malformed: {error}.") from error
        if not self._ended:
            raise InvalidRequest("The multipart body ends early.")
        if self.filename is None:
            raise InvalidRequest(f"Missing required parameter: '{self._part}'.", param=self._part)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = data[start:end].lower()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._header] = self._headers.get(self._header, b"") + data[start:end]

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._in_file = self._name == self._part
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        if self._in_file and self.filename is not None:
            message = f"The form has two parts named '{self._name}'; send one file at a time."
            raise InvalidRequest(message, param=self._name)
        if self._in_file:
            self.filename = options.get(b"filename", b"upload").decode(errors="replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pending.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"The field '{self._name}' is too long.", param=self._name)

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._value.decode(errors="replace")
        self._value.clear()
        self._in_file = False

    def _on_end(self) -> None:
        self._ended = True
