"""Checks training rows while they stream in: line numbers and reasons, the first twenty of them."""

from collections.abc import Callable
from typing import Literal, get_args

from app.files.conversation import check_chat, check_preference
from app.files.lint import Lint
from app.files.parse import BadRow, Row, foreign, parse_row

RowFormat = Literal["chat", "prompt_completion", "text", "classification", "preference"]
See = Callable[[int, bytes, Row], None]

FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
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
            for line in lines:
                self._check(line)
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

    def _check(self, line: bytes) -> None:
        if self.given_up:
            return
        self._line += 1
        if self._line == 1:
            line = self._begin(line)
        if len(line) > MAX_LINE_BYTES:
            self._refuse_long()
        elif line.strip() and not self.given_up:
            self._check_row(line)

    def _begin(self, line: bytes) -> bytes:
        """Look at how the file starts: a byte order mark is no part of the first row."""
        if found := foreign(line):
            self._problem(f"the file is {found}")
            self.given_up = True
        return line.removeprefix(BOM)

    def _check_row(self, line: bytes) -> None:
        try:
            row = parse_row(line)
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
            raise BadRow(f"a {found} row in a {self.format} file")

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


def check_row(row: Row) -> RowFormat:
    """Return the format of a row.

    Raises:
        BadRow: it is none of the formats, or breaks the rules of its own.
    """
    if "messages" in row:
        check_chat(row)
        return "chat"
    if "prompt" in row and "completion" in row:
        _check_prompt_completion(row)
        return "prompt_completion"
    if "text" in row and "label" in row:
        _check_classification(row)
        return "classification"
    if "text" in row:
        _check_text(row)
        return "text"
    if "input" in row and ("preferred_output" in row or "non_preferred_output" in row):
        check_preference(row)
        return "preference"
    raise BadRow(
        'needs "messages", or "prompt" and "completion", or "text", or "text" and "label",'
        ' or "input", "preferred_output" and "non_preferred_output"'
    )


def _check_prompt_completion(row: Row) -> None:
    for key in ("prompt", "completion"):
        if type(row[key]) is not str:
            raise BadRow(f'"{key}" must be a string')
    if not row["completion"]:
        raise BadRow('"completion" is empty: there is nothing to learn')


def _check_text(row: Row) -> None:
    if "text_pair" in row:
        raise BadRow('"text_pair" needs a "label"')
    if not isinstance(row["text"], str) or not row["text"]:
        raise BadRow('"text" must be a string that is not empty')


def _check_classification(row: Row) -> None:
    if type(row["text"]) is not str:
        raise BadRow('"text" must be a string')
    if type(row.get("text_pair", "")) is not str:
        raise BadRow('"text_pair" must be a string')
    label = row["label"]
    if type(label) is not int and (type(label) is not str or not label):
        raise BadRow('"label" must be an integer, or a string that is not empty')
