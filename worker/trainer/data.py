"""Rows → token ids and labels: loss on what the assistant says, and on nothing else."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError

from worker.trainer.chat import Row, render, shaped
from worker.trainer.faults import RunError

IGNORED = -100
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """A file as token ids; what was cut and what was left out is counted."""

    dataset: Dataset
    rows: int
    truncated: int
    dropped: int


def encode_file(path: Path, tokenizer: Any, *, max_length: int) -> Encoded:
    """Read a file of rows, cutting each at `max_length` tokens.

    Rows that keep no token to learn from are left out.

    Raises:
        RunError: no row is left, or the base model's template refuses one.
    """
    kept: list[dict[str, list[int]]] = []
    truncated = dropped = 0
    for line, row in numbered_rows(path):
        try:
            ids, labels = encode_row(row, tokenizer)
        except TemplateError as error:  # what a template raises by itself, such as on two users
            raise bad_row(path, line, f"the base model's chat template says: {error}") from error
        truncated += len(ids) > max_length
        ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORED for label in labels[1:]):
            dropped += 1
        else:
            kept.append({"input_ids": ids, "labels": labels})
    if not kept:
        raise none_left(max_length)
    return Encoded(Dataset.from_list(kept), len(kept), truncated, dropped)


def encode_pairs(path: Path, tokenizer: Any, *, max_length: int) -> Encoded:
    """Read prompt/completion rows for an encoder-decoder, cutting each side at `max_length`."""
    kept: list[Row] = []
    truncated = 0
    for row in read_rows(path):
        source, cut = _cut(tokenizer, max_length, row["prompt"])
        target, cut_target = _cut(tokenizer, max_length, text_target=row["completion"])
        truncated += cut or cut_target
        kept.append({**source, "labels": target["input_ids"]})
    return Encoded(Dataset.from_list(kept), len(kept), truncated, dropped=0)


def encode_labelled(
    path: Path, tokenizer: Any, *, max_length: int, labels: Sequence[str]
) -> Encoded:
    """Read labelled rows for a classifier; a label becomes its place in `labels`.

    Raises:
        RunError: a label that is not among them.
    """
    places = {label: place for place, label in enumerate(labels)}
    kept: list[Row] = []
    truncated = 0
    for line, row in numbered_rows(path):
        if str(row["label"]) not in places:
            raise RunError(
                "unknown_label",
                f"The validation file has the label {row['label']!r} in line {line}, which no"
                " training row has.",
                param="validation_file",
            )
        inputs, cut = _cut(tokenizer, max_length, row["text"], row.get("text_pair"))
        truncated += cut
        kept.append({**inputs, "labels": places[str(row["label"])]})
    return Encoded(Dataset.from_list(kept), len(kept), truncated, dropped=0)


def _cut(tokenizer: Any, max_length: int, *texts: str | None, **target: str) -> tuple[Row, bool]:
    """Tokenize with the special tokens, which stay when the text is cut."""
    whole = tokenizer(*texts, **target, verbose=False)
    if len(whole["input_ids"]) <= max_length:
        return dict(whole), False
    return dict(tokenizer(*texts, **target, truncation=True, max_length=max_length)), True


def encode_row(row: Row, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the token ids of a row and its labels, −100 where nothing is learned."""
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    if "messages" in row:
        text, spans = render_chat(row, tokenizer)
    elif "prompt" in row and "completion" in row:
        prompt = bos + row["prompt"]
        text = prompt + row["completion"] + eos
        spans = [(len(prompt), len(text))]
    else:
        text = bos + row["text"] + eos
        spans = [(0, len(text))]
    return encode_text(text, spans, tokenizer)


def encode_text(text: str, spans: Sequence[Span], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokenize; a token is learned when its first character lies in a span."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    learned = [
        any(start <= first < stop for start, stop in spans)
        for first, _ in encoding["offset_mapping"]
    ]
    return ids, [token if yes else IGNORED for token, yes in zip(ids, learned, strict=True)]


def render_chat(row: Row, tokenizer: Any) -> tuple[str, list[Span]]:
    """Return the conversation as text, and where its learned assistant turns stand.

    A turn starts where the text goes on from what the template opens for the assistant, and ends
    with its end-of-turn token.
    """
    messages = [shaped(message) for message in row["messages"]]
    tools = row.get("tools")
    text = render(tokenizer, messages, tools)
    spans: list[Span] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and row["messages"][index].get("weight") != 0:
            spans.append(_turn(tokenizer, text, messages, index, tools))
    return text, spans


def _turn(tokenizer: Any, text: str, messages: list[Row], index: int, tools: Any) -> Span:
    opened = render(tokenizer, messages[:index], tools, add_generation_prompt=True)
    start = len(commonprefix([text, opened]))  # noqa: RUF071  characters, not paths
    closed = render(tokenizer, messages[: index + 1], tools)
    if text.startswith(closed):
        return start, len(closed.rstrip("\n"))
    # The template writes earlier turns otherwise than last ones (Qwen3 drops their thoughts).
    content = (messages[index]["content"] or "").strip()
    found = text.find(content, start)
    if found < 0:
        raise RunError(
            "unsupported_chat_template",
            "The base model's chat template rewrites earlier answers, so what to learn cannot be"
            " told; send one answer a row.",
        )
    stop = found + len(content)
    after = text[stop : stop + 64].find("\n")
    return start, stop + max(after, 0)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that was checked when it was uploaded."""
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows with their lines, 1 for the first."""
    # As the upload's check takes lines: a byte order mark may begin the file, \n alone ends a line.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, json.loads(line)


def none_left(max_length: int) -> RunError:
    """Say that no row of a file can be learned from."""
    return RunError(
        "no_trainable_tokens",
        f"No row keeps an answer within {max_length} tokens; raise training.max_length.",
        param="training.max_length",
    )


def bad_row(path: Path, line: int, why: str) -> RunError:
    """Name the line that the run cannot learn from, by the file's name on the wire."""
    name = "validation_file" if path.stem == "valid" else "training_file"
    told = name.replace("_", " ")
    return RunError("bad_row", f"Line {line} of the {told} cannot be used: {why}", param=name)
