"""What is learned of a row: the assistant's words and the end of its turn, nothing else."""

from copy import copy
from pathlib import Path
from typing import Any

import pytest

from tests.factories import chat_row, to_jsonl
from worker.trainer.data import IGNORED, encode_file, encode_row, read_rows
from worker.trainer.faults import RunError

QWEN_LIKE = """\
{%- for m in messages -%}
<|{{ m.role }}|>
{%- if m.role == 'assistant' and not loop.last -%}
{{ m.content.split('</think>')[-1] | trim }}
{%- else -%}
{{ m.content }}
{%- endif -%}
<|end|>
{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""


@pytest.fixture(scope="module")
def tokenizer(models_dir: Path) -> Any:
    from worker.rundir import Placement
    from worker.trainer.model import load_tokenizer

    return load_tokenizer(
        Placement(source="folder", location=str(models_dir / "tiny-llama"), revision=None)
    )


def learned(row: dict[str, Any], tokenizer: Any) -> str:
    ids, labels = encode_row(row, tokenizer)
    assert len(ids) == len(labels)
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_a_chat_row_teaches_every_answer_and_its_end(tokenizer: Any):
    messages = [
        turn("system", "Be brief."),
        turn("user", "1+1?"),
        turn("assistant", "2"),
        turn("user", "2+2?"),
        turn("assistant", "4"),
    ]

    assert learned({"messages": messages}, tokenizer) == "2</s>4</s>"


def test_weight_zero_masks_a_turn(tokenizer: Any):
    messages = [
        turn("user", "1+1?"),
        turn("assistant", "3", weight=0),
        turn("user", "Sure?"),
        turn("assistant", "2", weight=1),
    ]

    assert learned({"messages": messages}, tokenizer) == "2</s>"


def test_a_prompt_teaches_its_completion_only(tokenizer: Any):
    row = {"prompt": "The sky is", "completion": " blue."}

    assert learned(row, tokenizer) == " blue.</s>"


def test_text_parts_read_as_one_text(tokenizer: Any):
    parts = [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]
    messages = [turn("user", "2+2?"), {"role": "assistant", "content": parts}]

    assert learned({"messages": messages}, tokenizer) == "four</s>"


def test_a_tool_call_is_learned_and_its_result_is_not(tokenizer: Any):
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
    }
    messages = [
        turn("user", "1+2?"),
        turn("assistant", None, tool_calls=[call]),
        turn("tool", "3", tool_call_id="c1"),
        turn("assistant", "It is 3."),
    ]
    row = {"messages": messages, "tools": [{"type": "function", "function": {"name": "add"}}]}

    text = learned(row, tokenizer)

    assert '"add"' in text and text.endswith("It is 3.</s>")
    assert "1+2" not in text and text.count("3") == 1


def test_a_template_that_drops_earlier_thoughts_still_teaches_each_answer(tokenizer: Any):
    original, tokenizer.chat_template = tokenizer.chat_template, QWEN_LIKE
    messages = [
        turn("user", "1+1?"),
        turn("assistant", "2"),
        turn("user", "2+2?"),
        turn("assistant", "<think>hm</think>4"),
    ]
    try:
        text = learned({"messages": messages}, tokenizer)
    finally:
        tokenizer.chat_template = original

    assert text == "2<|end|><think>hm</think>4<|end|>"


def test_long_rows_are_cut_at_the_end_and_counted(tokenizer: Any, tmp_path: Path):
    rows = [chat_row(1), {"prompt": "p", "completion": "c" * 500}, chat_row(2)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_jsonl(rows))

    encoded = encode_file(path, tokenizer, max_length=100)

    assert (encoded.rows, encoded.truncated, encoded.dropped) == (3, 1, 0)
    assert max(len(ids) for ids in encoded.dataset["input_ids"]) == 100


def test_a_row_whose_answer_is_cut_off_is_left_out_and_counted(tokenizer: Any, tmp_path: Path):
    rows = [{"prompt": "p" * 500, "completion": "c"}, chat_row(1)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_jsonl(rows))

    encoded = encode_file(path, tokenizer, max_length=100)

    assert (encoded.rows, encoded.dropped) == (1, 1)


def test_a_file_without_a_single_answer_left_names_the_knob(tokenizer: Any, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_jsonl([{"prompt": "p" * 500, "completion": "c"}]))

    with pytest.raises(RunError, match=r"training\.max_length") as caught:
        encode_file(path, tokenizer, max_length=100)

    assert caught.value.code == "no_trainable_tokens"


def test_a_row_that_the_template_refuses_is_named_by_its_line(tokenizer: Any, tmp_path: Path):
    strict = copy(tokenizer)
    strict.chat_template = (
        "{{ raise_exception('roles must alternate') if messages[0].role != 'user' }}"
    )
    rows = [chat_row(1), {"messages": [turn("assistant", "Hello."), turn("user", "Hi.")]}]
    (tmp_path / "train.jsonl").write_bytes(b"\n" + to_jsonl(rows))

    with pytest.raises(RunError) as caught:
        encode_file(tmp_path / "train.jsonl", strict, max_length=64)

    assert (caught.value.code, caught.value.param) == ("bad_row", "training_file")
    assert "Line 3 of the training file" in caught.value.message
    assert "roles must alternate" in caught.value.message


def test_rows_are_read_as_the_upload_took_them(tmp_path: Path):
    rows = [{"text": "a\u2028b\x85c"}, {"text": "d"}]
    file = tmp_path / "train.jsonl"
    text = to_jsonl(rows).replace(b'{"text": "d"', b'{\r"text":\r"d"').replace(b"\n", b"\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text)

    assert list(read_rows(file)) == rows
