"""Checks training rows while they stream in: line numbers and reasons, the first twenty of them."""

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

RowFormat = Literal["chat", "prompt_completion", "text", "classification"]
Row = dict[str, Any]

MIN_ROWS = 10
MAX_PROBLEMS = 20
MAX_LINE_BYTES = 8 << 20
MAX_DIGITS = 20
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class BadRow(ValueError):
    """Why a row cannot be trained on."""


class RowChecker:
    """Takes a file piece by piece and knows at the end whether it is training data."""

    def __init__(self) -> None:
        self.rows = 0
        self.format: RowFormat | None = None
        self.problems: list[str] = []
        self._label_type: type | None = None
        self._line = 0
        self._partial = b""

    def feed(self, data: bytes) -> None:
        """Check the lines that `data` completes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._check(line)
        if len(self._partial) > MAX_LINE_BYTES:
            self._line += 1
            self._problem(f"longer than {MAX_LINE_BYTES >> 20} MiB")
            self._partial = b""

    def finish(self) -> list[str]:
        """Check the last line and the whole; return the problems, none when the file is good."""
        self._check(self._partial)
        self._partial = b""
        if not self.problems and self.rows == 0:
            self.problems.append("The file is empty; it needs one JSON object a line.")
        elif not self.problems and self.rows < MIN_ROWS:
            self.problems.append(
                f"The file has {self.rows} examples; at least {MIN_ROWS} are needed."
            )
        return self.problems

    def _check(self, line: bytes) -> None:
        self._line += 1
        if not line.strip() or len(self.problems) >= MAX_PROBLEMS:
            return
        try:
            row = parse_row(line)
            row_format = check_row(row)
            if self.format not in (None, row_format):
                raise BadRow(f"a {row_format} row in a {self.format} file")
            if row_format == "classification":
                self._check_label_type(type(row["label"]))
        except BadRow as problem:
            self._problem(str(problem))
        else:
            self.format = row_format
            self.rows += 1

    def _check_label_type(self, found: type) -> None:
        if self._label_type not in (None, found):
            names = {str: "a string", int: "an integer"}
            raise BadRow(f'"label" is {names[found]}; in the rows before it is not')
        self._label_type = found

    def _problem(self, reason: str) -> None:
        self.problems.append(f"line {self._line}: {reason}")


def parse_row(line: bytes) -> Row:
    """Read one line as a JSON object.

    Raises:
        BadRow: not UTF-8, not JSON, not an object, a number that is not finite, half a character,
            or a key that stands twice.
    """
    try:
        row = json.loads(
            line.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_no_duplicates,
        )
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise BadRow("nested too deeply") from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    if b"\\u" in line:
        _refuse_half_characters(row)
    return row


def check_row(row: Row) -> RowFormat:
    """Return the format of a row.

    Raises:
        BadRow: it is none of the formats, or breaks the rules of its own.
    """
    if "messages" in row:
        _check_chat(row["messages"])
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
    raise BadRow('needs "messages", or "prompt" and "completion", or "text", or "text" and "label"')


def _check_prompt_completion(row: Row) -> None:
    for key in ("prompt", "completion"):
        if not isinstance(row[key], str):
            raise BadRow(f'"{key}" must be a string')
    if not row["completion"]:
        raise BadRow('"completion" is empty: there is nothing to learn')


def _check_text(row: Row) -> None:
    if "text_pair" in row:
        raise BadRow('"text_pair" needs a "label"')
    if not isinstance(row["text"], str) or not row["text"]:
        raise BadRow('"text" must be a string that is not empty')


def _check_classification(row: Row) -> None:
    for key in ("text", "text_pair"):
        if not isinstance(row.get(key, ""), str):
            raise BadRow(f'"{key}" must be a string')
    label = row["label"]
    if type(label) not in (str, int) or label == "":
        raise BadRow('"label" must be an integer, or a string that is not empty')


def _check_chat(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRow('"messages" must be a list that is not empty')
    for number, message in enumerate(messages, 1):
        _check_message(message, number)
    for reason in _order_mistakes([message["role"] for message in messages], messages):
        raise BadRow(reason)
    assistants = [message for message in messages if message["role"] == "assistant"]
    if not assistants:
        raise BadRow("no assistant message: there is nothing to learn")
    if all(message.get("weight") == 0 for message in assistants):
        raise BadRow("every assistant message has weight 0: there is nothing to learn")
    if messages[-1]["role"] != "assistant":
        raise BadRow("the last message must be the assistant's")


def _check_message(message: Any, number: int) -> None:
    if not isinstance(message, dict):
        raise BadRow(f"message {number} is not an object")
    role = message.get("role")
    if role not in ROLES:
        raise BadRow(f"message {number} has the role {role!r}; one of {', '.join(sorted(ROLES))}")
    if not _has_content(message):
        raise BadRow(f'message {number} ({role}) needs "content" as a string or text parts')
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        raise BadRow(f'message {number}: "weight" is 0 or 1, on assistant messages only')


def _has_content(message: Row) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return all(
            isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        )
    calls = message["role"] == "assistant" and (
        message.get("tool_calls") or message.get("function_call")
    )
    return isinstance(content, str) or (content is None and bool(calls))


def _order_mistakes(roles: list[str], messages: list[Row]) -> Iterator[str]:
    """Yield what is wrong with the order of turns, first mistake first."""
    for index, role in enumerate(roles):
        before = roles[index - 1] if index else None
        if role in ("system", "developer") and before not in (None, "system", "developer"):
            yield f"message {index + 1}: a {role} message must come first"
        if role == "assistant" and before == "assistant":
            yield f"message {index + 1}: two assistant messages in a row"
        if role in ("tool", "function") and not _answers_call(messages[:index]):
            yield f"message {index + 1}: a {role} message must follow a tool call"


def _answers_call(before: list[Row]) -> bool:
    last = next((m for m in reversed(before) if m["role"] not in ("tool", "function")), None)
    return last is not None and bool(last.get("tool_calls") or last.get("function_call"))


def _refuse_constant(name: str) -> None:
    raise BadRow(f"{name} is not JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise BadRow(f"{_start(number)} is too large a number")
    return value


def _integer(number: str) -> int:
    if len(number) > MAX_DIGITS:
        raise BadRow(f"{_start(number)} is too large a number")
    return int(number)


def _start(number: str) -> str:
    return number if len(number) <= MAX_DIGITS else number[:MAX_DIGITS] + "…"


def _refuse_half_characters(row: Row) -> None:
    """An escape such as \\ud800 alone is half of a surrogate pair: no text that UTF-8 can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise BadRow(f"{half} alone is half a character") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise BadRow("a key stands twice in one object")
    return row
