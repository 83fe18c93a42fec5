"""What is doubtful in valid rows, and on which lines."""

from typing import Any

import pytest

from app.files.lint import Finding, Lint
from app.files.rows import RowChecker
from tests.factories import chat_row, jsonl, to_jsonl

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
GOOD = {"prompt": "2+2=", "completion": "4"}


def linted(data: bytes, lint: Lint | None = None) -> list[Finding]:
    checker = RowChecker(lint)
    checker.feed(data)
    assert not [problem for problem in checker.finish() if problem.startswith("line")]
    return checker.lint.findings()


def chat(*messages: dict[str, Any]) -> bytes:
    return to_jsonl([{"messages": list(messages)}])


def test_good_rows_are_not_doubtful():
    assert linted(jsonl(100)) == []


def test_repeats_are_counted_with_the_line_they_repeat():
    rows = [chat_row(number) for number in (1, 2, 1, 3, 2, 1)]

    (found,) = linted(to_jsonl(rows).replace(b"\n", b"\r\n", 4))

    assert (found.code, found.severity, found.count) == ("duplicate_rows", "warn", 3)
    assert (found.lines, found.pairs) == ([3, 5, 6], [(1, 3), (2, 5), (1, 6)])


def test_only_the_first_five_lines_are_named():
    (found,) = linted(jsonl(1) * 50)

    assert (found.count, found.lines) == (49, [2, 3, 4, 5, 6])


def test_repeats_of_rows_that_were_not_remembered_are_not_claimed():
    (found,) = linted(jsonl(20) * 2, Lint(remembered=5))

    assert found.count == 5 and "there may be more" in found.message


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (chat(USER, ASSISTANT | {"content": " \n"}), "empty_answers"),
        (chat(USER, ASSISTANT | {"content": [{"type": "text", "text": ""}]}), "empty_answers"),
        (to_jsonl([{"prompt": "a", "completion": "  "}]), "empty_answers"),
        (chat(USER, USER, ASSISTANT), "users_in_a_row"),
        (chat(ASSISTANT), "assistant_first"),
        (chat({"role": "system", "content": "Be brief."}, ASSISTANT), "assistant_first"),
        (b'{"text": "caf\xc3\x83\xc2\xa9"}', "damaged_text"),
        (rb'{"text": "caf\u00c3\u00a9"}', "damaged_text"),
        (rb'{"text": "caf\u00C3\u00A9"}', "damaged_text"),
        ('{"text": "it\u00e2\u20ac\u2122s"}'.encode(), "damaged_text"),
        ('{"text": "caf\ufffd"}'.encode(), "damaged_text"),
        (rb'{"text": "caf\ufffd"}', "damaged_text"),
    ],
)
def test_what_is_doubtful_has_a_name(line: bytes, code: str):
    assert [(found.code, found.lines) for found in linted(line)] == [(code, [1])]


@pytest.mark.parametrize("text", ["café", "São Paulo", "„Straße“", "à la", "Ã", "👩‍👩‍👧", "10 €"])
def test_text_of_other_languages_is_not_damaged(text: str):
    assert linted(to_jsonl([{"text": text}])) == []
    assert linted(f'{{"text": "{text}"}}'.encode()) == []


def test_a_masked_answer_may_be_empty():
    masked = ASSISTANT | {"content": "", "weight": 0}

    assert linted(chat(USER, masked, USER, ASSISTANT)) == []


def test_calls_are_answers_and_their_arguments_are_json():
    def called(arguments: Any) -> bytes:
        function = {"name": "add", "arguments": arguments}
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
        return chat(USER, call)

    assert linted(called("{}")) == linted(called("")) == linted(called({"a": 1})) == []
    assert [found.code for found in linted(called("{a: 1}"))] == ["arguments_not_json"]


def test_a_preference_between_equal_answers_is_doubtful():
    row = {"preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]}

    found = linted(to_jsonl([{"input": {"messages": [USER]}} | row]))

    assert [finding.code for finding in found] == ["same_outputs"]
