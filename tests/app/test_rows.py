"""What a training file may hold, and how a mistake is told."""

import json
from typing import Any

import pytest

from app.files.rows import MAX_PROBLEMS, BadRow, RowChecker, check_row, parse_row
from tests.factories import chat_row, jsonl

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
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
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_only_looks_right_is_refused(line: bytes, reason: str):
    with pytest.raises(BadRow, match=reason):
        parse_row(line)


def test_a_row_is_read_as_it_is():
    assert parse_row(json.dumps(chat_row(3)).encode()) == chat_row(3)
