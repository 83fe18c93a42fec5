"""Knows conversations of the commonest shapes, many at once: weights and calls of tools too."""

import re
from collections.abc import Sequence
from itertools import chain, groupby, islice
from types import EllipsisType, NoneType
from typing import Any

from app.files.columns import are, are_telling, column, keys_of
from app.files.conversation import check_tools
from app.files.parse import BadRow, Row, values_of

_PLAIN = {"role", "content"}
_KNOWN = _PLAIN | {"weight", "tool_calls", "tool_call_id", "name"}
# What a message is, as one letter: by its role; and by role, whether it calls tools, and weight,
# which is `...` where there is none, for JSON cannot say that.
_ROLES = {"system": "s", "developer": "s", "user": "u", "assistant": "a", "tool": "t"}
_MASKED, _CALL, _MASKED_CALL = "mck"  # by a weight of 0
_TURNS: dict[tuple[str, bool, Any], str] = {
    **{(role, False, ...): letter for role, letter in _ROLES.items()},
    ("assistant", False, 0): _MASKED,
    ("assistant", False, 1): "a",
    ("assistant", True, 0): _MASKED_CALL,
    ("assistant", True, 1): _CALL,
    ("assistant", True, ...): _CALL,
}
# User and assistant take turns; what tools say follows a call; something is learned.
_ORDER = re.compile("(?=.*[ac])s?(?:u(?:[ck]t+)*[amck])+")


def have_good_tools(rows: Sequence[Row]) -> bool:
    """Return whether `check_tools` finds nothing; runs of equal tools are looked at once."""
    keys = keys_of(rows)
    if "parallel_tool_calls" in keys and not are(column(rows, "parallel_tool_calls", False), bool):
        return False
    try:
        for tools, _ in groupby(column(rows, "tools")) if "tools" in keys else ():
            check_tools({"tools": tools})
    except BadRow:
        return False
    return True


def are_plain_chats(chats: Sequence[Any]) -> bool:
    """Return whether each is a list of messages that a check and `Lint` find good."""
    if not are(chats, list):
        return False
    messages: list[Any] = list(chain.from_iterable(chats))
    if not are(messages, dict) or not are(roles := column(messages, "role"), str):
        return False
    if keys_of(messages) == _PLAIN:
        turns = [*map(_ROLES.get, roles)]
        plain = are_telling(column(messages, "content"))
    else:
        calls = column(messages, "tool_calls")
        turns = _turns(messages, roles, calls)
        plain = _are_plain_messages(messages, turns, calls)
    turn = iter(turns)
    return plain and all(map(_is_plain_order, {tuple(islice(turn, len(chat))) for chat in chats}))


def _is_plain_order(turns: tuple[str | None, ...]) -> bool:
    return _ORDER.fullmatch("".join([turn or "?" for turn in turns])) is not None


def _turns(messages: Sequence[Row], roles: Sequence[str], calls: Sequence[Any]) -> list[str | None]:
    """Say what each message is; None for what is not plain."""
    weights = column(messages, "weight", ...)
    if not are(calls, list, NoneType) or not are(weights, int, EllipsisType):
        return [None] * len(messages)
    return [*map(_TURNS.get, zip(roles, map(bool, calls), weights, strict=True))]


def _are_plain_messages(
    messages: Sequence[Row], turns: Sequence[str | None], calls: Sequence[Any]
) -> bool:
    """Return whether contents, calls and names are plain, given what messages are and call."""
    keys = keys_of(messages)
    contents = column(messages, "content")
    spoken = list(zip(turns, contents, strict=True))
    answers = [content for turn, content in spoken if turn == "a"]
    others = [content for turn, content in spoken if turn not in (_CALL, _MASKED_CALL)]
    return (
        keys <= _KNOWN
        and None not in turns
        and are(contents, str, NoneType)
        and are(others, str)
        and all(map(str.strip, answers))
        and ("name" not in keys or are(column(messages, "name", ""), str))
        and ("tool_calls" not in keys or _are_plain_calls(calls))
        and ("tool_call_id" not in keys or _name_calls(messages, calls))
    )


def _are_plain_calls(of_messages: Sequence[Any]) -> bool:
    """Return whether each call has an id, and the name and arguments of a function."""
    calls = list(chain.from_iterable(filter(None, of_messages)))
    if not are(calls, dict) or not are(column(calls, "id"), str):
        return False
    functions = column(calls, "function")
    if column(calls, "type", "function").count("function") != len(calls):
        return False
    if not are(functions, dict) or not keys_of(functions) <= {"name", "arguments"}:
        return False
    names, arguments = column(functions, "name"), column(functions, "arguments")
    return are(names, str) and all(names) and are(arguments, str, dict) and _are_json(arguments)


def _are_json(arguments: Sequence[Any]) -> bool:
    texts = [each.encode() for each in arguments if type(each) is str]
    return not texts or values_of(texts) is not None


def _name_calls(messages: Sequence[Row], of_messages: Sequence[Any]) -> bool:
    """Return whether each id that is named is one of the calls just made."""
    ids = column(messages, "tool_call_id", ...)
    if not are(ids, str, EllipsisType):
        return False
    known: list[str] = []
    for calls, told in zip(of_messages, ids, strict=True):
        if calls:
            known = [call["id"] for call in calls]
        if told is not ... and told not in known:
            return False
    return True
