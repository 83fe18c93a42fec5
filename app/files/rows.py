"""Checks training rows while they stream in: line numbers and reasons, the first twenty of them."""

from collections.abc import Callable, Sequence

from app.files.formats import RowFormat, check_row
from app.files.lint import Lint
from app.files.parse import BadRow, Row, foreign, parse_many, parse_row
from app.files.plain import are_plain

See = Callable[[int, bytes, Row], None]

LINES_AT_ONCE = 64  # enough to spare most of the work for each; few, for one doubt slows them all
BYTES_AT_ONCE = 8 << 10  # of shorter lines, at which what is done once for all still shows
MIN_ROWS = 10
MAX_PROBLEMS = 20
MAX_LINE_BYTES = 2 << 20
BOM = b"\xef\xbb\xbf"


class RowChecker:
    """Takes a file piece by piece and knows at the end whether it is training data.

    `see` is called with number, line and row of each good line.
    """

    def __init__(self, lint: Lint | None = None, see: See | None = None) -> None:
        self.rows = 0
        self.format: RowFormat | None = None
        self.problems: list[str] = []
        self.given_up = False  # nothing that follows could make the file good
        self.lint = lint or Lint()
        self._see = see
        self._label_type: type | None = None
        self._line = 0
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        """Check the lines that `data` completes."""
        if self.given_up:
            return
        first, newline, rest = data.partition(b"\n")
        self._partial += first
        if newline:
            self._check(bytes(self._partial))
            *lines, last = rest.split(b"\n")
            self._check_all(lines, max(LINES_AT_ONCE, BYTES_AT_ONCE * len(lines) // len(data)))
            self._partial = bytearray(last)
        if len(self._partial) > MAX_LINE_BYTES and not self.given_up:
            self._line += 1
            self._refuse_long()

    def finish(self) -> list[str]:
        """Check the last line and the whole; return the problems, none when the file is good."""
        self._check(bytes(self._partial))
        self._partial.clear()
        if not self.problems and self.rows == 0:
            self.problems.append("The file is empty; it needs one JSON object a line.")
        elif not self.problems and self.rows < MIN_ROWS:
            self.problems.append(
                f"The file has {self.rows} examples; at least {MIN_ROWS} are needed."
            )
        return self.problems

    def _check_all(self, lines: Sequence[bytes], at_once: int) -> None:
        for start in range(0, len(lines), at_once):
            self._check_many(lines[start : start + at_once])

    def _check_many(self, lines: Sequence[bytes]) -> None:
        """Check lines as `_check` does each, with less work for each where they are plain."""
        rows = parse_many(lines) if self.format and not self.given_up else None
        if rows and self.format and are_plain(rows, self.format, self._label_type):
            self._take_plain(lines, rows)
        elif len(lines) > LINES_AT_ONCE:
            self._check_all(lines, LINES_AT_ONCE)
        elif rows is None:
            for line in lines:
                self._check(line)
        else:
            for line, row in zip(lines, rows, strict=True):
                self._line += 1
                self._check_row(line, row)

    def _check(self, line: bytes) -> None:
        if self.given_up:
            return
        self._line += 1
        if self._line == 1:
            line = self._begin(line)
        if len(line) > MAX_LINE_BYTES:
            self._refuse_long()
        elif line.strip():
            self._check_row(line)

    def _begin(self, line: bytes) -> bytes:
        """Look at how the file starts: a byte order mark is no part of the first row."""
        if found := foreign(line):
            self._problem(f"the file is {found}")
            self.given_up = True
        return line.removeprefix(BOM)

    def _take_plain(self, lines: Sequence[bytes], rows: Sequence[Row]) -> None:
        self.lint.see_plain(self._line + 1, lines)
        if self._see is None:
            self._line += len(lines)
            self.rows += len(lines)
            return
        for line, row in zip(lines, rows, strict=True):
            self._line += 1
            self.rows += 1
            self._see(self._line, line, row)

    def _check_row(self, line: bytes, row: Row | None = None) -> None:
        if self.given_up:
            return
        try:
            row = parse_row(line) if row is None else row
            row_format = check_row(row)
            if row_format != self.format:
                self._check_format(row_format)
            if row_format == "classification" and type(row["label"]) is not self._label_type:
                self._check_label_type(type(row["label"]))
        except BadRow as problem:
            self._problem(str(problem))
            return
        self.format = row_format
        self.rows += 1
        self.lint.see(self._line, line, row, row_format)
        if self._see is not None:
            self._see(self._line, line, row)

    def _check_format(self, found: RowFormat) -> None:
        if self.format is not None:
            told = f"a {found} row in a {self.format} file"
            raise BadRow(told.replace("a episode", "an episode"))

    def _check_label_type(self, found: type) -> None:
        if self._label_type is not None:
            names = {str: "a string", int: "an integer"}
            raise BadRow(f'"label" is {names[found]}; in the rows before it is not')
        self._label_type = found

    def _refuse_long(self) -> None:
        self._problem(f"longer than {MAX_LINE_BYTES >> 20} MiB; split the row, or shorten it")
        self.given_up = True
        self._partial.clear()

    def _problem(self, reason: str) -> None:
        self.problems.append(f"line {self._line}: {reason}")
        self.given_up = self.given_up or len(self.problems) >= MAX_PROBLEMS
