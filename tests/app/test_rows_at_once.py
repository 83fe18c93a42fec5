"""Lines that are read many at once are taken, refused and doubted as they are one by one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.files.formats import check_row
from app.files.lint import Lint
from app.files.parse import MAX_DEPTH, parse_many, parse_row
from app.files.plain import are_plain
from app.files.rows import BOM, RowChecker
from tests.app.test_hostile_uploads import CONTENTS
from tests.factories import jsonl

SYSTEM = {"role": "system", "content": ""}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
FUNCTION = {"name": "add", "arguments": "{"}
CALL = ASSISTANT | {"content": None, "tool_calls": [{"id": "1", "function": FUNCTION}]}
MASKED, LEARNED = ASSISTANT | {"weight": 0}, ASSISTANT | {"weight": 1}
ADD = {"name": "add", "arguments": '{"a": 1}'}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def calls(*ids: str, **also: Any) -> dict[str, Any]:
    """An assistant's message that calls a tool under each id."""
    asked = [{"id": each, "type": "function", "function": ADD} for each in ids]
    return {"role": "assistant", "content": None, "tool_calls": asked} | also


def called(**call: Any) -> dict[str, Any]:
    """A row with one call, and in it what is given."""
    asked = calls(tool_calls=[{"id": "1", "type": "function", "function": ADD} | call])
    return {"messages": [USER, asked, result("1"), ASSISTANT]}


def result(told: Any, **also: Any) -> dict[str, Any]:
    """What a tool says to a call."""
    return {"role": "tool", "tool_call_id": told, "content": "2"} | also


def preference(asked: Any, one: Any, other: Any, **beside: Any) -> dict[str, Any]:
    told = {"preferred_output": one, "non_preferred_output": other}
    return {"input": {"messages": asked} | beside} | told


FILES: list[list[dict[str, Any]]] = [
    [{"text": "Hi"}, {"text": "\n"}],
    [{"text": "Hi", "label": "yes"}, {"text": "", "label": "no", "text_pair": "x", "id": 1}],
    [{"text": "Hi", "label": 1}, {"text": "Hi, too", "label": -(10**17)}],
    [{"prompt": "", "completion": "Hi"}, {"completion": "5", "prompt": "Hi", "score": 0.5}],
    [{"messages": [USER, ASSISTANT]}, {"messages": [SYSTEM, USER, ASSISTANT]}],
    [{"messages": [USER, ASSISTANT] * 20}, {"messages": [{"content": "Hi", "role": "user"}, CALL]}],
    [preference([USER], [ASSISTANT], [ASSISTANT | {"content": "No"}])],
    [
        {"messages": [USER, LEARNED], "id": 1},
        {"messages": [SYSTEM, USER, MASKED, USER, ASSISTANT]},
        {"messages": [USER, LEARNED, USER, ASSISTANT | {"content": "", "weight": 0}]},
    ],
    [
        {"messages": [USER, calls("1"), result("1"), ASSISTANT], "tools": TOOLS},
        {"messages": [USER, calls("1", "2"), result("2"), result("1", name="add"), ASSISTANT]},
        {"messages": [USER, calls("9e9"), USER, calls("3")], "parallel_tool_calls": False},
        {"messages": [USER, MASKED | calls("1"), result("1", content=""), LEARNED], "tools": []},
        called(function=ADD | {"arguments": {"a": 1e5}}) | {"tools": None},
        {"messages": [USER, ASSISTANT | {"tool_calls": None}], "tools": TOOLS * 2},
    ],
    [preference([USER, calls("1"), result("1")], [LEARNED], [calls("2")], tools=TOOLS)],
]
# Rows that are always looked at one by one.
RARE: list[list[dict[str, Any]]] = [
    [{"messages": [USER], "answer": "Hi"}, {"messages": [SYSTEM, USER], "answer": 1}],
    [{"episode": {"seed": 1, "said": "Hi"}}, {"episode": {"seed": 2}}],
]
ODD: list[dict[str, Any]] = [
    {},
    {"label": 1},
    {"text": ""},
    {"text": 1, "label": 1},
    {"text": "a", "label": True},
    {"text": "a", "label": ""},
    {"text": "a", "label": "1"},
    {"text": "a", "label": 1},
    {"text": "a", "label": 1, "text_pair": 2},
    {"text": "a", "text_pair": "b"},
    {"text": "caf\u00c3\u00a9"},
    {"prompt": "a"},
    {"prompt": "a", "completion": ""},
    {"prompt": "a", "completion": " "},
    {"prompt": 1, "completion": "a"},
    {"messages": None},
    {"messages": []},
    {"messages": [None]},
    {"messages": [USER]},
    {"messages": [USER], "answer": 1},
    {"messages": [USER, ASSISTANT], "answer": 1},
    {"episode": {"seed": 1}},
    {"episode": {}},
    {"messages": [ASSISTANT]},
    {"messages": [USER, USER, ASSISTANT]},
    {"messages": [USER, ASSISTANT, ASSISTANT]},
    {"messages": [USER, ASSISTANT, SYSTEM]},
    {"messages": [USER, ASSISTANT | {"content": " "}]},
    {"messages": [USER, ASSISTANT | {"content": 1}]},
    *({"messages": [USER, ASSISTANT | {"weight": odd}]} for odd in (0, 2, -1, True, 1.0, None, "")),
    {"messages": [USER, ASSISTANT | {"weight": 1, "content": ""}]},
    {"messages": [USER | {"weight": 1}, ASSISTANT]},
    {"messages": [USER, MASKED, USER, MASKED | calls("1")]},
    {"messages": [USER, MASKED, USER, calls("1")]},
    *(called(id=odd) for odd in (1, None, "2", "9e9", ["1"])),
    *(called(type=odd) for odd in ("function", "tool", None, ["function"])),
    *(called(function=odd) for odd in (None, [], {}, {"name": ""}, ADD | {"parameters": 1})),
    *(called(function=ADD | {"name": odd}) for odd in (1, "", None)),
    *(called(function=ADD | {"arguments": odd}) for odd in ("", "{", "1,1", 1, None, {}, '"}')),
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": ADD}]}]},
    {"messages": [USER, ASSISTANT | {"tool_calls": []}]},
    {"messages": [USER, ASSISTANT | {"tool_calls": {}}]},
    {"messages": [USER, ASSISTANT | {"tool_calls": [1]}]},
    *({"messages": [USER, ASSISTANT | {"tool_calls": odd}]} for odd in (0, 1, "a", {"a": 1})),
    {"messages": [USER, ASSISTANT | {"refusal": None}]},
    {"messages": [USER, ASSISTANT | {"function_call": ADD}]},
    {"messages": [USER | {"tool_calls": [{"id": "1", "function": ADD}]}, ASSISTANT]},
    {"messages": [USER | {"tool_call_id": "1", "name": "Ann"}, ASSISTANT | {"name": 1}]},
    {"messages": [USER, calls("1"), result("2"), ASSISTANT]},
    {"messages": [USER, calls("1"), result(None), ASSISTANT]},
    {"messages": [USER, calls("1"), result(["1"]), ASSISTANT]},
    {"messages": [USER, calls("1"), result("1", content=None), ASSISTANT]},
    {"messages": [USER, calls("1"), result("1", role="function"), ASSISTANT]},
    {"messages": [USER, calls("1"), {"role": "tool", "content": "2"}, ASSISTANT]},
    {"messages": [USER, calls("1"), result("1"), calls("2"), result("1"), ASSISTANT]},
    {"messages": [USER, calls("1"), ASSISTANT]},
    {"messages": [USER, result("1"), ASSISTANT]},
    {"messages": [result("1"), USER, ASSISTANT]},
    {"messages": [USER, calls("1"), result("1")]},
    {"messages": [USER, calls("1"), result("1"), USER, ASSISTANT]},
    *({"messages": [USER, ASSISTANT], "tools": odd} for odd in (1, {}, [1], [{}], TOOLS * 200)),
    {"messages": [USER, ASSISTANT], "tools": [{"type": "tool", "function": ADD}]},
    {"messages": [USER, ASSISTANT], "parallel_tool_calls": 1},
    {"messages": [USER, ASSISTANT], "parallel_tool_calls": None},
    {"messages": [USER, ASSISTANT], "text": 1e5},
    {"messages": [{"role": ["user"], "content": "x"}, ASSISTANT]},
    {"messages": [{"role": "robot", "content": "x"}, ASSISTANT]},
    *({"messages": [USER, {"role": odd, "content": "x"}]} for odd in ("a", "call", "tool")),
    {"messages": [{"role": "user"}, ASSISTANT]},
    {"input": 1, "preferred_output": []},
    {"input": {}, "non_preferred_output": []},
    preference([USER], [ASSISTANT], [ASSISTANT]),
    preference([USER], [ASSISTANT], [USER]),
    preference([USER], [ASSISTANT], []),
    preference([USER], [ASSISTANT], None),
    preference([USER], [ASSISTANT], [ASSISTANT, USER, ASSISTANT]),
    preference([USER, ASSISTANT], [USER], [USER]),
    preference([USER], [ASSISTANT], [ASSISTANT | {"content": "No"}], tools=1),
]
NESTED = b'{"text": "Hi", "b": %b%b}'
RAW = [
    b"",
    b" \r",
    b"null",
    b"[1]",
    b"}",
    b'"}',
    b'{"text": "a"},{"text": "b"}',
    b'{"text": "a", "b": [{"c": 1}',
    b'{"text": "a"}]}',
    b'{"text": "a"',
    b'{"text": "',
    b'{"text": "a", "text": "b"}',
    b'{"text": "a", "b": 1e400}',
    b'{"text": "a", "b": ' + b"9" * 30 + b"}",
    b'{"text": "3e8 1e9"}',
    b'{"text": "a", "b": ["call_3e8", 9e9]}',
    b'{"text": "a", "b": ["call_3e8", -9.5E400]}',
    b'{"text": "a", "b": {"c":-' + b"9" * 30 + b"}}",
    b'{"text": "a", "b": [' + b"9" * 30 + b'.5, "3e8"]}',
    b'{"text": "\xff"}',
    b'{"text": "\0"}',
    rb'{"text": "\ud800"}',
    BOM + b'{"text": "a"}',
    NESTED % (b"[" * (MAX_DEPTH - 1), b"]" * (MAX_DEPTH - 1)),
    NESTED % (b"[" * MAX_DEPTH, b"]" * MAX_DEPTH),
]


def dump(row: dict[str, Any], number: int) -> bytes:
    """A row, its texts told apart by a number."""
    return json.dumps(row, ensure_ascii=number % 2 == 0).replace("Hi", f"Hi {number}").encode()


@st.composite
def files(draw: st.DrawFn) -> list[bytes]:
    """Lines of a file: many plain rows of a format or two, some odd ones, and what is no row."""
    plain = st.sampled_from(draw(st.sampled_from(FILES + RARE)))
    most = [dump(draw(plain), number) for number in range(draw(st.integers(1, 150)))]
    rows = st.builds(dump, st.one_of(plain, st.sampled_from(ODD)), st.integers(0, 200))
    for line in draw(st.lists(st.one_of(rows, st.sampled_from(RAW)), max_size=6)):
        most.insert(draw(st.integers(0, len(most))), line)
    return most


def found(pieces: list[bytes]) -> tuple[Any, ...]:
    """Everything that a check of these pieces tells, also to who looks at each row."""
    seen: list[Any] = []
    checker = RowChecker(Lint(remembered=50), lambda *row: seen.append(row))
    unseen = RowChecker(Lint(remembered=50))
    for piece in pieces:
        checker.feed(piece)
        unseen.feed(piece)
    told = (checker.finish(), checker.rows, checker.format, checker.lint.findings())
    assert told == (unseen.finish(), unseen.rows, unseen.format, unseen.lint.findings())
    return (*told, repr(seen))


@pytest.mark.parametrize("odd", [*ODD, *RAW])
@pytest.mark.parametrize("rows", FILES + RARE)
def test_one_odd_line_is_told_as_it_is_alone(rows: list[dict[str, Any]], odd: Any):
    lines = [dump(rows[0], number % 60) for number in range(130)]
    lines[90:90] = [odd if isinstance(odd, bytes) else dump(odd, 0)]

    assert found([b"\n".join(lines)]) == found([line + b"\n" for line in lines])


@given(files())
def test_lines_are_found_at_once_as_they_are_one_by_one(lines: list[bytes]):
    assert found([b"\n".join(lines)]) == found([line + b"\n" for line in lines])


@pytest.mark.parametrize("name", [name for name in CONTENTS if CONTENTS[name].status != 413])
def test_hostile_lines_are_told_as_they_are_one_by_one(name: str):
    body = CONTENTS[name].body

    assert found([body + b"\n"]) == found([line + b"\n" for line in body.split(b"\n")])


def test_good_lines_are_read_at_once():
    assert parse_many(jsonl(10).splitlines()) == [*map(parse_row, jsonl(10).splitlines())]


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a": [{"b": 1}', b'{"b": 2}]}', b'{"c": 1},{"c": 2}'],
        [b'{"c": 1},{"c": 2},{"c": 3}', b'{"a": [{"b": 1}', b'{"b": 2}]}'],
        [b'{"c": 1},3,{"c": 2}', b'{"a": [{"b": 1}', b'{"b": 2}]}'],
        [b'{"a": "', b'"}', b'{"c": 1},{"c": 2}'],
        [b'{"a": 1},1,{"a": 2}', b'{"a": [', b"1]}"],
        [b'{"a": 1}],[{"a": 1}', b'{"a": 1}'],
        [b'{"a": 1}', b""],
        [b'{"a": 1}', b"1"],
    ],
)
def test_no_line_leans_on_its_neighbour(lines: list[bytes]):
    assert parse_many(lines) is None


@pytest.mark.parametrize("rows", FILES)
def test_the_commonest_rows_are_plain(rows: list[dict[str, Any]]):
    row_format = check_row(rows[0])

    assert are_plain(rows[:1] * 3, row_format, type(rows[0].get("label")))


def test_rows_with_weights_and_tools_are_plain_together():
    rows = [*FILES[-3], *FILES[-2]]

    assert parse_many([json.dumps(row).encode() for row in rows]) == rows
    assert are_plain(rows, "chat", None)
