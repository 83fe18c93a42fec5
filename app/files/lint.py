"""What is doubtful in rows that are valid: counted while they stream, first lines remembered."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jiter import from_json

from app.files.conversation import calls_of
from app.files.parse import Row

Severity = Literal["info", "warn", "error"]

FIRST_LINES = 5
REMEMBERED_ROWS = 1 << 17  # about 14 MiB; later rows are compared with these
# U+FFFD, and UTF-8 that was read as Latin-1 or Windows-1252: Ã© for é, â€™ for ’.
DAMAGE = re.compile(
    rb"\xef\xbf\xbd|\xc3\x83\xc2[\x80-\xbf]|\xc3\xa2(?:\xe2\x82\xac|\xc2\x80)"
    rb"|\\ufffd|\\u00c3\\u00[89ab]|\\u00e2\\u(?:20ac|0080)",
    re.IGNORECASE,
)


@dataclass
class Finding:
    """One thing to know: how often, on which lines first, and what to do about it.

    `pairs` are, for duplicates, the first lines with the line that each repeats before it.
    """

    code: str
    severity: Severity
    count: int
    lines: list[int]
    message: str
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """How often something was seen, and on which lines first."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < FIRST_LINES:
            self.lines.append(line)

    def finding(self, code: str, severity: Severity, message: str) -> Iterator[Finding]:
        if self.count:
            yield Finding(code, severity, self.count, self.lines, message)


class Lint:
    """Takes the good rows of a file, and says what is doubtful in them; memory is bounded."""

    def __init__(self, *, remembered: int = REMEMBERED_ROWS) -> None:
        self._digests: dict[int, int] = {}  # digest of a row → its first line
        self._remembered = remembered
        self._repeats, self._pairs = Tally(), list[tuple[int, int]]()
        self._empty, self._users, self._first = Tally(), Tally(), Tally()
        self._damaged, self._arguments, self._same = Tally(), Tally(), Tally()

    @property
    def forgetful(self) -> bool:
        """Whether some rows were not remembered, so that duplicates are at least so many."""
        return len(self._digests) >= self._remembered

    def see(self, number: int, line: bytes, row: Row, row_format: str) -> None:
        """Count one row."""
        digest = _digest(line)
        if len(self._digests) < self._remembered:
            first = self._digests.setdefault(digest, number)
        else:
            first = self._digests.get(digest, number)
        if first != number:
            self._see_again(first, number)
        self._see_damage(number, line)
        if row_format in ("chat", "prompt_only"):
            self._see_turns(number, row["messages"])
        elif row_format == "prompt_completion":
            if not row["completion"].strip():
                self._empty.add(number)
        elif row_format == "preference":
            self._see_preference(number, row)

    def see_plain(self, number: int, lines: Sequence[bytes]) -> None:
        """Count rows in which only repeats and damage are left to find; `number` is the first's."""
        room = self._remembered - len(self._digests)
        if 0 < room < len(lines):
            self.see_plain(number, lines[:room])
            self.see_plain(number + room, lines[room:])
            return
        numbers = range(number, number + len(lines))
        digests = [*map(hash, map(bytes.rstrip, lines))]  # as `_digest`, without a call for each
        self._see_many(digests, numbers, remember=room > 0)
        if _may_be_damaged(b"".join(lines)):
            for this, line in zip(numbers, lines, strict=True):
                self._see_damage(this, line)

    def _see_many(self, digests: Sequence[int], numbers: Sequence[int], *, remember: bool) -> None:
        usual: list[int | None] = [*numbers]
        firsts = usual
        if remember:
            firsts = [*map(self._digests.setdefault, digests, numbers)]
        elif not self._digests.keys().isdisjoint(digests):
            firsts = [*map(self._digests.get, digests)]
        if firsts != usual:
            for first, this in zip(firsts, numbers, strict=True):
                if first is not None and first != this:
                    self._see_again(first, this)

    def knows(self, line: bytes) -> bool:
        """Return whether a row of the file is the same as another's."""
        return _digest(line) in self._digests

    def findings(self) -> list[Finding]:
        """Return what was found, worst first."""
        found = [
            *self._empty.finding("empty_answers", "warn", EMPTY),
            *self._same.finding("same_outputs", "warn", SAME),
            *self._damaged.finding("damaged_text", "warn", DAMAGED),
            *self._arguments.finding("arguments_not_json", "warn", ARGUMENTS),
            *self._users.finding("users_in_a_row", "warn", USERS),
            *self._first.finding("assistant_first", "info", SPEAKS_FIRST),
        ]
        for repeats in self._repeats.finding("duplicate_rows", "warn", DUPLICATES):
            repeats.pairs = self._pairs
            repeats.message += FORGETFUL if self.forgetful else ""
            found.insert(0, repeats)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what the file's row keeps of it."""
        return {"findings": [finding.as_json() for finding in self.findings()]}

    def _see_damage(self, number: int, line: bytes) -> None:
        if _may_be_damaged(line) and DAMAGE.search(line):
            self._damaged.add(number)

    def _see_again(self, first: int, number: int) -> None:
        self._repeats.add(number)
        if len(self._pairs) < FIRST_LINES:
            self._pairs.append((first, number))

    def _see_turns(self, number: int, messages: list[Row]) -> None:
        before = None
        for message in messages:
            role = message["role"]
            if role == "assistant":
                content = message.get("content")
                if len(message) > 2 or type(content) is not str or not content.strip():
                    self._see_answer(number, message)
                if before is None or before == "system" or before == "developer":
                    self._first.add(number)
            elif role == "user" and before == "user":
                self._users.add(number)
            before = role

    def _see_answer(self, number: int, message: Row) -> None:
        if calls := calls_of(message):
            if not all(_is_json(call.get("arguments") or "{}") for call in calls):
                self._arguments.add(number)
        elif message.get("weight") != 0 and not text_of(message).strip():
            self._empty.add(number)

    def _see_preference(self, number: int, row: Row) -> None:
        self._see_turns(number, row["input"]["messages"])
        if row["preferred_output"] == row["non_preferred_output"]:
            self._same.add(number)
        if not calls_of(last := row["preferred_output"][-1]) and not text_of(last).strip():
            self._empty.add(number)


EMPTY = "Answers without text: the model would learn to say nothing. Fill them in, or remove them."
SAME = "Rows that prefer an answer to itself: there is nothing to learn from them. Remove them."
DAMAGED = (
    "Characters that a wrong encoding damaged, such as \ufffd or Ã©. Write the file again from its"
    " source, as UTF-8."
)
ARGUMENTS = (
    "Tool calls whose arguments are not JSON: the model would learn to write such. Mend them."
)
USERS = "A user's message right after a user's message. Join the two, or add the answer between."
SPEAKS_FIRST = "Rows that begin with the assistant: fine if it is meant to speak first."
DUPLICATES = "Rows that repeat an earlier row: they count twice. Remove them unless that is meant."
FORGETFUL = " The file is long: there may be more."


def _digest(line: bytes) -> int:
    return hash(line.rstrip())  # 8 bytes of SipHash, with a key of this process's own


def _may_be_damaged(text: bytes) -> bool:
    # Most text has no backslash, and one byte is found much faster than two.
    return not text.isascii() or (b"\\" in text and b"\\u" in text)


def text_of(message: Row) -> str:
    """Return the text of a message, its parts joined; empty where it has none."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _is_json(arguments: Any) -> bool:
    if not isinstance(arguments, str):
        return True
    try:
        from_json(arguments.encode())
    except ValueError:
        return False
    return True
