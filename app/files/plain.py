"""Knows rows of the commonest shapes, many at once: good by every rule, and nothing to doubt."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from operator import add, eq, itemgetter
from typing import Any

from app.files.formats import RowFormat, format_of
from app.files.parse import BadRow, Row

_Values = Callable[[Iterable[Row]], list[Any]]


def _column(name: str) -> _Values:
    of = itemgetter(name)
    return lambda rows: list(map(of, rows))


_messages, _prompts, _completions = _column("messages"), _column("prompt"), _column("completion")
_texts, _labels = _column("text"), _column("label")
_roles, _contents = _column("role"), _column("content")
_inputs, _preferred = _column("input"), _column("preferred_output")
_non_preferred = _column("non_preferred_output")


def are_plain(rows: Sequence[Row], row_format: RowFormat, label_type: type | None) -> bool:
    """Return whether `check_row` would find this format in each row, and `Lint` nothing in it.

    Of repeats and damaged characters it says nothing: they are seen in the bytes. False may be
    said of good rows: those are then looked at one by one.
    """
    shapes = _shapes(rows)
    try:
        if {*map(format_of, shapes)} != {row_format}:
            return False
    except BadRow:
        return False
    keys = set().union(*shapes)
    match row_format:
        case "chat":
            return keys == {"messages"} and _are_plain_chats(_messages(rows))
        case "prompt_completion":
            return _are(_prompts(rows), str) and _are_telling(_completions(rows))
        case "text":
            return "text_pair" not in keys and _are(texts := _texts(rows), str) and all(texts)
        case "classification":
            pairs = [row.get("text_pair", "") for row in rows] if "text_pair" in keys else []
            return _are(_texts(rows) + pairs, str) and _are_labels(_labels(rows), label_type)
        case "preference":
            return all(map(_OUTPUTS.issubset, shapes)) and _are_plain_preferences(rows)
    return False  # prompts and episodes are looked at one by one


def _are_plain_chats(chats: list[Any]) -> bool:
    if not _are(chats, list):
        return False
    messages = list(chain.from_iterable(chats))
    if not _are(messages, dict) or not _shapes(messages) <= _MESSAGES:
        return False
    roles = _roles(messages)
    if not _are(roles, str) or not _are_telling(_contents(messages)):
        return False
    role = iter(roles)
    return all(map(_are_plain_turns, {tuple(islice(role, len(chat))) for chat in chats}))


_MESSAGES = {("role", "content"), ("content", "role")}


_OUTPUTS = {"preferred_output", "non_preferred_output"}


def _are_plain_preferences(rows: Sequence[Row]) -> bool:
    """Return whether each output is one message, which makes a plain chat of the input."""
    inputs, one, other = _inputs(rows), _preferred(rows), _non_preferred(rows)
    if not _are(inputs, dict) or _shapes(inputs) != {("messages",)}:
        return False
    asked = _messages(inputs)
    if not _are(asked + one + other, list) or {*map(len, one + other)} != {1}:
        return False
    return _are_plain_chats([*map(add, asked, one), *map(add, asked, other)]) and not any(
        map(eq, one, other)
    )


def _are_plain_turns(turns: tuple[str, ...]) -> bool:
    """Return whether user and assistant take turns, after a system message or none."""
    rest = turns[1:] if turns[:1] in (("system",), ("developer",)) else turns
    return bool(rest) and rest == ("user", "assistant") * (len(rest) // 2)


def _shapes(rows: Iterable[Row]) -> set[tuple[str, ...]]:
    return {*map(tuple, rows)}


def _are(values: Iterable[Any], kind: type | None) -> bool:
    return {*map(type, values)} == {kind}


def _are_telling(values: Sequence[Any]) -> bool:
    return _are(values, str) and all(map(str.strip, values))


def _are_labels(labels: Sequence[Any], label_type: type | None) -> bool:
    return _are(labels, label_type) and (label_type is int or all(labels))
