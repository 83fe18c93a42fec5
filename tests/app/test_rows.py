"""What a training file may hold, and how a mistake is told."""

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.files.formats import check_row
from app.files.parse import MAX_DEPTH, BadRow, parse_exactly, parse_row
from app.files.rows import BOM, MAX_LINE_BYTES, MAX_PROBLEMS, RowChecker
from tests.conftest import SHARED
from tests.factories import chat_row, jsonl, to_jsonl

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
FUNCTION = {"name": "add", "arguments": "{}"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": FUNCTION}],
}
TOOL = {"role": "tool", "content": "42", "tool_call_id": "1"}


def check(data: bytes, *, piece: int = 1 << 20) -> RowChecker:
    checker = RowChecker()
    for start in range(0, len(data), piece):
        checker.feed(data[start : start + piece])
    checker.finish()
    return checker


def test_good_chat_rows_are_counted():
    checker = check(jsonl(12))

    assert (checker.problems, checker.rows, checker.format) == ([], 12, "chat")


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_size_of_the_pieces_does_not_matter(piece: int):
    data = jsonl(10) + b"oops\n" + jsonl(2).rstrip(b"\n")

    checker = check(data, piece=piece)

    assert checker.rows == 12
    assert checker.problems == ["line 11: not JSON (Expecting value at column 1)"]


def test_only_the_first_twenty_offending_lines_are_named():
    checker = check(b"nonsense\n" * 50)

    assert len(checker.problems) == MAX_PROBLEMS == 20
    assert checker.problems[-1].startswith("line 20:")


def test_an_empty_file_says_so():
    assert check(b"\n\n").problems == ["The file is empty; it needs one JSON object a line."]


def test_fewer_than_ten_rows_are_too_few():
    assert check(jsonl(9)).problems == ["The file has 9 examples; at least 10 are needed."]


def test_prompt_completion_rows_are_known():
    assert check_row({"prompt": "2+2=", "completion": "4"}) == "prompt_completion"


@pytest.mark.parametrize(
    ("row", "row_format"),
    [
        ({"text": "Once upon a time"}, "text"),
        ({"text": "good", "label": "positive"}, "classification"),
        ({"text": "good", "label": 0}, "classification"),
        ({"text": "It rains.", "text_pair": "It is wet.", "label": 1}, "classification"),
    ],
)
def test_text_and_labelled_rows_are_known(row: dict[str, Any], row_format: str):
    assert check_row(row) == row_format


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": ""}, "not empty"),
        ({"text": 3}, "must be a string"),
        ({"text": "a", "text_pair": "b"}, 'needs a "label"'),
        ({"text": "a", "text_pair": 1, "label": 1}, '"text_pair" must be a string'),
        ({"text": ["a"], "label": 1}, '"text" must be a string'),
        ({"text": "a", "label": ""}, '"label" must be an integer, or a string'),
        ({"text": "a", "label": True}, '"label" must be an integer, or a string'),
        ({"text": "a", "label": 0.5}, '"label" must be an integer, or a string'),
        ({"text": "a", "label": None}, '"label" must be an integer, or a string'),
        ({"label": 1}, 'needs "messages"'),
    ],
)
def test_a_bad_text_or_label_says_what_is_wrong(row: dict[str, Any], reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row(row)


def test_one_file_holds_labels_of_one_kind():
    rows = [{"text": "a", "label": number} for number in range(10)]
    data = b"".join(
        json.dumps(row).encode() + b"\n" for row in [*rows, {"text": "a", "label": "1"}]
    )

    assert check(data).problems == ['line 11: "label" is a string; in the rows before it is not']


@pytest.mark.parametrize("text", [r"\ud83d\ude00", "😀", r"\\ud800", r"\u00e9"])
def test_whole_characters_are_good_however_they_are_written(text: str):
    assert check_row(parse_row(f'{{"text": "{text}"}}'.encode())) == "text"


def test_one_file_holds_one_format():
    line = json.dumps({"prompt": "a", "completion": "b"}).encode()

    assert check(jsonl(10) + line).problems == ["line 11: a prompt_completion row in a chat file"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "no assistant message"),
        ([ASSISTANT, USER], "last message must be"),
        ([USER, ASSISTANT, {"role": "system", "content": "x"}, ASSISTANT], "system message must"),
        ([USER, ASSISTANT, ASSISTANT], "two assistant messages in a row"),
        ([USER, TOOL, ASSISTANT], "must follow a tool call"),
        ([USER, {"role": "robot", "content": "x"}], "has the role 'robot'"),
        ([USER, {"role": "assistant", "content": None}], 'needs "content"'),
        ([USER, ASSISTANT | {"weight": 0}], "weight 0"),
        ([USER, ASSISTANT | {"weight": 0.5}], '"weight" is 0 or 1'),
        ([USER | {"weight": 1}, ASSISTANT], '"weight" is 0 or 1'),
        ([], "not empty"),
        ("hello", "must be a list"),
        (["hello"], "not an object"),
    ],
)
def test_a_bad_conversation_says_what_is_wrong(messages: Any, reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row({"messages": messages})


def test_tool_calls_and_text_parts_are_good():
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}

    assert check_row({"messages": [parts, CALL, TOOL, TOOL, ASSISTANT]}) == "chat"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": NaN}', "NaN is not JSON"),
        (b'{"a": 1e400}', "1e400 is too large a number"),
        (b'{"a": {"b": [-1e999]}}', "-1e999 is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large a number"),
        (rb'{"text": "\ud800"}', r"\\ud800 alone is half a character"),
        (rb'{"a": {"\uDC00 key": 1}}', r"\\udc00 alone is half a character"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (rb'{"a": 1, "\u0061": 2}', "the key 'a' stands twice"),
        (b'{"text": "x", "b": [{"c": 1, "c": 1}]}', "the key 'c' stands twice"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "\xff\xfe"}', "not UTF-8 .byte 0xff at column 11"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8 .byte 0xed at column 11"),
        (b'{"text": "a\0b"}', "a NUL byte at column 12"),
        (b'{"text": "a"} and more', "not JSON .Extra data at column 15"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
    ],
)
def test_json_that_only_looks_right_is_refused(line: bytes, reason: str):
    with pytest.raises(BadRow, match=reason):
        parse_row(line)


@pytest.mark.parametrize(
    "number", ["1e4", "3E-2", "0." + "3" * 30, "18446744073709551615", "-10000000000000000000"]
)
def test_numbers_that_are_only_long_are_good(number: str):
    assert parse_exactly(f'{{"a": {number}}}'.encode()) == {"a": json.loads(number)}
    assert parse_row(f'{{"text": "x", "a": {number}}}'.encode())["a"] == json.loads(number)


@pytest.mark.parametrize("parse", [parse_row, parse_exactly])
def test_the_depth_cap_is_the_same_on_both_paths(parse: Callable[[bytes], Any]):
    def nested(depth: int) -> bytes:
        return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert parse(nested(MAX_DEPTH))
    with pytest.raises(BadRow, match="nested too deeply, more than 200 levels"):
        parse(nested(MAX_DEPTH + 1))


JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())
PIECES = st.sampled_from(
    [
        *rb'{ } [ ] : , " a 1 -0 01 1. .5 1e400 9E9 NaN -Infinity true null "a": "a" /'.split(),
        *[rb"\u0061", rb"\ud800", rb"\x", b"\xff", b"\0", b"\t", b"\r", b" ", b"\x0c", b"1" * 30],
    ]
)


@given(st.one_of(JSON_TEXT, st.lists(PIECES, max_size=12).map(b"".join)))
def test_the_fast_path_takes_what_the_exact_one_takes(text: bytes):
    line = b'{"text": ' + text + b"}"

    assert outcome(parse_row, line) == outcome(parse_exactly, line)


def outcome(parse: Callable[[bytes], Any], line: bytes) -> str:
    try:
        return repr(parse(line))
    except BadRow as problem:
        return f"refused: {problem}"


def test_a_row_is_read_as_it_is():
    assert parse_row(json.dumps(chat_row(3)).encode()) == chat_row(3)


def test_a_line_over_the_cap_ends_the_check_with_its_number():
    checker = RowChecker()
    checker.feed(jsonl(10) + b'{"text": "')
    for _ in range(MAX_LINE_BYTES >> 16):
        assert not checker.given_up
        checker.feed(b"a" * (1 << 16))

    assert checker.given_up
    checker.feed(b'"}\nnonsense\n')
    assert checker.finish() == ["line 11: longer than 2 MiB; split the row, or shorten it"]


def test_a_line_at_the_cap_is_good():
    frame = len(b'{"text": ""}')
    line = b'{"text": "' + b"a" * (MAX_LINE_BYTES - frame) + b'"}\n'
    rows = to_jsonl([{"text": str(number)} for number in range(9)])

    assert check(rows + line, piece=1 << 16).problems == []
    assert "line 10: longer" in check(rows + b" " + line, piece=1 << 16).problems[0]


def test_a_byte_order_mark_is_no_part_of_the_first_row():
    assert check(BOM + jsonl(10)).problems == []
    assert check(jsonl(10) + BOM + jsonl(1)).problems == [
        "line 11: not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1)"
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("\ufeff{}".encode("utf-16-le"), "UTF-16"),
        (jsonl(10).decode().encode("utf-16-le"), "a NUL byte"),
        (gzip.compress(jsonl(10)), r"compressed \(gzip\); send the plain file"),
        (b"PK\x03\x04" + b"\0" * 30, r"compressed \(zip\)"),
    ],
)
def test_what_is_no_text_is_named(data: bytes, reason: str):
    assert re.match(f"line 1: .*{reason}", check(data).problems[0])


def test_carriage_returns_end_no_line_of_their_own():
    assert check(jsonl(10).replace(b"\n", b"\r\n")).rows == 10
    assert check(jsonl(10).replace(b'"messages": ', b'"messages":\r')).rows == 10


PREFERENCE = {
    "input": {"messages": [USER]},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [ASSISTANT | {"content": "Go away"}],
}


def test_a_preference_is_known():
    assert check_row(PREFERENCE) == "preference"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": "Hi"}, '"input" must be an object with "messages"'),
        ({"input": {"messages": []}}, '"input.messages" must be a list that is not empty'),
        ({"input": {"messages": [USER, ASSISTANT]}}, '"input" must not end with the assistant'),
        ({"input": {"messages": [USER], "tools": [{}]}}, 'tool 1 needs a "function"'),
        ({"preferred_output": "Hello"}, '"preferred_output" must be a list'),
        ({"preferred_output": [USER]}, '"preferred_output" holds what the assistant says'),
        ({"non_preferred_output": [CALL, TOOL]}, "must end with an assistant message"),
        ({"non_preferred_output": []}, '"non_preferred_output" must be a list'),
    ],
)
def test_a_bad_preference_says_what_is_wrong(change: dict[str, Any], reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row(PREFERENCE | change)


def test_a_preference_needs_both_outputs():
    row = {key: value for key, value in PREFERENCE.items() if key != "non_preferred_output"}

    with pytest.raises(BadRow, match='"non_preferred_output" is missing'):
        check_row(row)


@pytest.mark.parametrize(
    "tools",
    [
        None,
        [],
        [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    ],
)
def test_tools_are_good(tools: Any):
    row = {"messages": [USER, CALL, TOOL, ASSISTANT], "tools": tools, "parallel_tool_calls": False}

    assert check_row(row) == "chat"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tools": {}}, '"tools" must be a list'),
        ({"tools": ["add"]}, "tool 1 must be an object"),
        ({"tools": [{"type": "retrieval"}]}, "tool 1 must be an object of the type"),
        ({"tools": [{"type": "function"}]}, 'tool 1 needs a "function" with a "name"'),
        ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, '"parameters" must be'),
        ({"parallel_tool_calls": 1}, "must be true or false"),
        ({"messages": [USER | {"tool_calls": CALL["tool_calls"]}, CALL]}, "only the assistant"),
        ({"messages": [USER, CALL | {"tool_calls": "add"}]}, '"tool_calls" must be a list'),
        ({"messages": [USER, CALL | {"tool_calls": ["add"]}]}, "a tool call is an object"),
        ({"messages": [USER, CALL | {"tool_calls": [{"id": "1"}]}]}, 'needs a "function"'),
        ({"messages": [USER, CALL | {"tool_calls": [{"id": 1}]}]}, 'a tool call: "id" must'),
        (
            {"messages": [USER, ASSISTANT | {"function_call": {"name": "f", "arguments": 3}}]},
            '"arguments" of a call',
        ),
        ({"messages": [USER, CALL, TOOL | {"tool_call_id": 1}, ASSISTANT]}, "must be a string"),
        ({"messages": [USER, CALL, TOOL | {"tool_call_id": "2"}, ASSISTANT]}, "has the id '2'"),
        ({"messages": [USER, ASSISTANT | {"weight": True}]}, '"weight" is 0 or 1'),
    ],
)
def test_bad_tools_say_what_is_wrong(change: dict[str, Any], reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row({"messages": [USER, ASSISTANT]} | change)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER], "reference_answer": "4"},
        {"messages": [USER], "answer": None},
        {
            "messages": [{"role": "system", "content": ""}, USER, ASSISTANT, USER],
            "answer": {"a": [1]},
        },
        {"messages": [USER, CALL, TOOL], "tools": [{"function": FUNCTION}], "answer": 42},
    ],
)
def test_a_prompt_with_what_grades_its_answers_is_known(row: dict[str, Any]):
    assert check_row(row) == "prompt_only"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER]}, "no assistant message: there is nothing to learn"),
        ({"messages": [USER], "tools": []}, "no assistant message: there is nothing to learn"),
        ({"messages": [USER, ASSISTANT, USER]}, "the last message must be the assistant's"),
        ({"messages": [], "answer": 1}, '"messages" must be a list that is not empty'),
        ({"messages": [SYSTEM], "answer": 1}, "must be the user's, or a tool's"),
        ({"messages": [USER, SYSTEM], "answer": 1}, "message 2: a system message must come first"),
        ({"messages": [USER, {"role": "robot"}], "answer": 1}, "message 2 has the role 'robot'"),
        (
            {"messages": [{"role": "user", "content": 1}], "answer": 1},
            'message 1 .user. needs "con',
        ),
        ({"messages": [USER, TOOL], "answer": 1}, "message 2: a tool message must follow a tool"),
        ({"messages": [USER], "answer": 1, "tools": {}}, '"tools" must be a list'),
    ],
)
def test_a_bad_prompt_says_what_is_wrong(row: dict[str, Any], reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row(row)


@pytest.mark.parametrize("beside", [{"answer": "4"}, {"reference_answer": None, "tools": []}])
def test_a_chat_with_further_keys_is_still_a_chat(beside: dict[str, Any]):
    assert check_row({"messages": [USER, ASSISTANT]} | beside) == "chat"


@pytest.mark.parametrize("episode", [{"seed": 7}, {"seed": -1, "level": "hard"}, {"game": "a.z8"}])
def test_an_episode_is_known(episode: dict[str, Any]):
    assert check_row({"episode": episode}) == "episode"


@pytest.mark.parametrize(
    ("episode", "reason"),
    [
        (None, "must be an object that is not empty"),
        (7, "must be an object that is not empty"),
        ({}, "must be an object that is not empty"),
        ({"seed": "7"}, '"seed" must be an integer'),
        ({"seed": True}, '"seed" must be an integer'),
        ({"seed": 0.5}, '"seed" must be an integer'),
    ],
)
def test_a_bad_episode_says_what_is_wrong(episode: Any, reason: str):
    with pytest.raises(BadRow, match=reason):
        check_row({"episode": episode})


def test_prompts_and_episodes_keep_to_their_files():
    prompts = [{"messages": [USER], "answer": number} for number in range(70)]
    episodes = [{"episode": {"seed": number}} for number in range(70)]

    assert (found := check(to_jsonl(prompts))).format == "prompt_only" and not found.problems
    assert (found := check(to_jsonl(episodes))).format == "episode" and not found.problems
    assert check(jsonl(10) + to_jsonl(prompts[:1])).problems == [
        "line 11: a prompt_only row in a chat file"
    ]
    assert check(to_jsonl([*episodes, {"episode": 1}, *prompts[:1]])).problems == [
        'line 71: "episode" must be an object that is not empty, such as {"seed": 7}',
        "line 72: a prompt_only row in an episode file",
    ]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "row_format"),
    [
        ("tool_calls/train_200.chat.jsonl", "chat"),
        ("preference/train_200.pref.jsonl", "preference"),
        ("gsm8k/test_100.chat.jsonl", "chat"),
    ],
)
def test_published_files_are_good(name: str, row_format: str):
    checker = check((SHARED / "data" / name).read_bytes(), piece=1 << 16)

    assert (checker.problems, checker.format) == ([], row_format)
