"""What a conversation may look like: messages, tools, and the order of turns."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from app.files.parse import BadRow, Row

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_PLAIN = frozenset({"system", "developer", "user", "assistant"})
_FIRST = ("system", "developer")
_RESULTS = ("tool", "function")
_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls"}
CALL = "call"  # an assistant's turn that calls tools
REMEMBERED = 32  # longer orders of turns are checked each time
MAX_TOOLS = 128


def check_chat(row: Row) -> None:
    """Check the messages and the tools of a row.

    Raises:
        BadRow: the first mistake, by the number of its message.
    """
    messages = row["messages"]
    special = check_messages(messages, name="messages")
    _check_order(messages, special=special, ends_with_answer=True)
    if special and all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
        raise BadRow("every assistant message has weight 0: there is nothing to learn")
    if len(row) > 1:
        check_tools(row)


def is_prompt(row: Row) -> bool:
    """Return whether a row of messages asks for an answer, and has beside it what grades answers.

    Without further keys it is taken for a chat that lacks its answer.
    """
    messages = row["messages"]
    last = messages[-1] if type(messages) is list and messages else None
    return type(last) is dict and last.get("role") != "assistant" and not row.keys() <= _CHAT_KEYS


def check_prompt(row: Row) -> None:
    """Check the messages and the tools of a row that `is_prompt`.

    Raises:
        BadRow: the first mistake, by the number of its message.
    """
    messages = row["messages"]
    special = check_messages(messages, name="messages")
    _check_order(messages, special=special, ends_with_answer=False)
    if messages[-1]["role"] not in ("user", *_RESULTS):
        raise BadRow("the last message of a prompt must be the user's, or a tool's")
    check_tools(row)


def check_preference(row: Row) -> None:
    """Check a question and two answers to it, one preferred.

    Raises:
        BadRow: the first mistake.
    """
    asked = row["input"]
    if not isinstance(asked, dict) or "messages" not in asked:
        raise BadRow('"input" must be an object with "messages"')
    special = check_messages(asked["messages"], name="input.messages")
    _check_order(asked["messages"], special=special, ends_with_answer=False)
    check_tools(asked)
    for name in ("preferred_output", "non_preferred_output"):
        if name not in row:
            raise BadRow(f'"{name}" is missing')
        check_messages(row[name], name=name)
        if any(message["role"] not in ("assistant", *_RESULTS) for message in row[name]):
            raise BadRow(f'"{name}" holds what the assistant says, and no other role')
        if row[name][-1]["role"] != "assistant":
            raise BadRow(f'"{name}" must end with an assistant message')


def check_messages(messages: Any, *, name: str) -> bool:
    """Check each message by itself; return whether any is other than role and text.

    Raises:
        BadRow: the first mistake.
    """
    if type(messages) is not list or not messages:
        raise BadRow(f'"{name}" must be a list that is not empty')
    special = False
    for number, message in enumerate(messages, 1):
        if type(message) is not dict:
            raise BadRow(f"message {number} is not an object")
        role = message.get("role")
        text = type(role) is str and role in _PLAIN and type(message.get("content")) is str
        if text and len(message) == 2:
            continue
        special = True
        _check_message(message, role, number)
    return special


def check_tools(row: Row) -> None:
    """Check the functions that are offered beside the messages.

    Raises:
        BadRow: the first mistake.
    """
    tools = row.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
            raise BadRow(f'"tools" must be a list of at most {MAX_TOOLS}')
        for number, tool in enumerate(tools, 1):
            if not isinstance(tool, dict) or tool.get("type", "function") != "function":
                raise BadRow(f'tool {number} must be an object of the type "function"')
            _check_function(tool.get("function"), f"tool {number}")
    if not isinstance(row.get("parallel_tool_calls", False), bool):
        raise BadRow('"parallel_tool_calls" must be true or false')


def calls_of(message: Row) -> list[Row]:
    """Return the calls of an assistant's message, the old form too."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    old = message.get("function_call")
    return [*calls, old] if old else calls


def _check_message(message: Row, role: Any, number: int) -> None:
    if not isinstance(role, str) or role not in ROLES:
        shown = repr(role)[:40]
        raise BadRow(f"message {number} has the role {shown}; one of {', '.join(sorted(ROLES))}")
    _check_calls(message, role, number)
    if not _has_content(message):
        raise BadRow(f'message {number} ({role}) needs "content" as a string or text parts')
    if not isinstance(message.get("name") or "", str):
        raise BadRow(f'message {number}: "name" must be a string')
    if "weight" in message:
        weight = message["weight"]
        if role != "assistant" or type(weight) is not int or weight not in (0, 1):
            raise BadRow(f'message {number}: "weight" is 0 or 1, on assistant messages only')


def _check_calls(message: Row, role: str, number: int) -> None:
    calls, old = message.get("tool_calls"), message.get("function_call")
    if (calls or old) and role != "assistant":
        raise BadRow(f"message {number}: only the assistant calls tools")
    if not isinstance(calls, list | None):
        raise BadRow(f'message {number}: "tool_calls" must be a list')
    for call in calls or ():
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise BadRow(f'message {number}: a tool call is an object of the type "function"')
        _check_id(call, "id", f"message {number}: a tool call")
        _check_call(call.get("function"), number)
    if old is not None:
        _check_call(old, number)
    _check_id(message, "tool_call_id", f"message {number}")


def _check_id(where: Row, key: str, told: str) -> None:
    if not isinstance(where.get(key, ""), str):
        raise BadRow(f'{told}: "{key}" must be a string')


def _check_call(function: Any, number: int) -> None:
    _check_function(function, f"message {number}: a call")
    if not isinstance(function.get("arguments", ""), str | dict):
        raise BadRow(f'message {number}: the "arguments" of a call are JSON in a string')


def _check_function(function: Any, where: str) -> None:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRow(f'{where} needs a "function" with a "name"')
    if not isinstance(function.get("parameters", {}), dict):
        raise BadRow(f'{where}: "parameters" must be an object')


def _has_content(message: Row) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return bool(content) and all(
            isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        )
    calls = message.get("tool_calls") or message.get("function_call")
    return isinstance(content, str) or (content is None and bool(calls))


def _check_order(messages: Sequence[Row], *, special: bool, ends_with_answer: bool) -> None:
    turns = tuple([_turn(m) if special else m["role"] for m in messages])
    find = _order_mistake if len(turns) <= REMEMBERED else _order_mistake.__wrapped__
    if mistake := find(turns, ends_with_answer):
        raise BadRow(mistake)
    if "tool" in turns:
        _check_answers(messages)


def _turn(message: Row) -> str:
    role: str = message["role"]
    calls = message.get("tool_calls") or message.get("function_call")
    return CALL if calls else role


@lru_cache(maxsize=1024)
def _order_mistake(turns: tuple[str, ...], ends_with_answer: bool) -> str | None:
    """Say what is wrong with the order of turns, first mistake first."""
    last = asked = None  # the turn before, and the last that is no result of a call
    for number, turn in enumerate(turns, 1):
        if mistake := _misplaced(turn, last, asked):
            return f"message {number}: {mistake}"
        last = turn
        if turn not in _RESULTS:
            asked = turn
    speaks = "assistant" in turns or CALL in turns
    if ends_with_answer and not speaks:
        return "no assistant message: there is nothing to learn"
    ended = turns[-1] in ("assistant", CALL)
    if ends_with_answer and not ended:
        return "the last message must be the assistant's"
    if not ends_with_answer and ended:
        return '"input" must not end with the assistant\'s message: the outputs are that'
    return None


def _misplaced(turn: str, last: str | None, asked: str | None) -> str | None:
    if turn in _FIRST and last not in (None, *_FIRST):
        return f"a {turn} message must come first"
    if turn in ("assistant", CALL) and last in ("assistant", CALL):
        return "two assistant messages in a row"
    if turn in _RESULTS and asked != CALL:
        return f"a {turn} message must follow a tool call"
    return None


def _check_answers(messages: Sequence[Row]) -> None:
    """A tool's message that names a call must name one of those just made."""
    known: set[str] = set()
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            known = {call["id"] for call in message.get("tool_calls") or () if "id" in call}
        told = message.get("tool_call_id")
        if message["role"] == "tool" and told is not None and known and told not in known:
            raise BadRow(f"message {number}: no call before it has the id {told[:40]!a}")
