"""Rows as what a policy is asked: prompts whose answers a grader judges, or episodes to act in."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError

from worker.trainer.chat import Row, render_prompt
from worker.trainer.data import Encoded, bad_row, numbered_rows
from worker.trainer.faults import RunError
from worker.trainer.heads import Batch

SENTINEL = "\u2042answer\u2042"  # stands for an action where a template is looked at


def encode_prompts(path: Path, tokenizer: Any, *, room: int) -> Encoded:
    """Read rows that ask: the prompt as text, and the whole row for the grader.

    What an assistant says at the end of a row is hidden from the policy. A prompt of more than
    `room` tokens is left out: cut, it would ask something else.

    Raises:
        RunError: no row is left, or the base model's template refuses one.
    """
    kept: list[Row] = []
    dropped = 0
    for line, row in numbered_rows(path):
        try:
            prompt = render_prompt(_asked(row), tokenizer)
        except TemplateError as error:
            raise bad_row(path, line, f"the base model's chat template says: {error}") from error
        if len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) > room:
            dropped += 1
        else:
            kept.append({"prompt": prompt, "item": json.dumps(row)})
    if not kept:
        raise RunError(
            "no_prompts",
            f"No prompt leaves room for an answer within {room} tokens; raise training.max_length"
            " or lower max_completion_tokens.",
            param="training.max_length",
        )
    return Encoded(Dataset.from_list(kept), len(kept), truncated=0, dropped=dropped)


def _asked(row: Row) -> list[Row]:
    messages: list[Row] = row["messages"]
    answers = sum(1 for _ in _last_answers(messages))
    return messages[: len(messages) - answers]


def _last_answers(messages: Sequence[Row]) -> Iterator[Row]:
    for message in reversed(messages):
        if message["role"] != "assistant":
            return
        yield message


def encode_episodes(path: Path) -> Encoded:
    """Read rows that say which episode to begin; the prompt is made of what the episode shows."""
    rows = [{"prompt": json.dumps(row["episode"])} for _, row in numbered_rows(path)]
    return Encoded(Dataset.from_list(rows), len(rows), truncated=0, dropped=0)


@dataclass(frozen=True)
class PromptCollator:
    """Makes a batch of prompts alone: what the finished adapter is proven with."""

    tokenizer: Any

    def __call__(self, rows: Sequence[Row]) -> Batch:
        ids = [self.tokenizer(row["prompt"])["input_ids"] for row in rows]
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Script:
    """How a dialogue with an environment is written, in the template's words.

    The policy sees all that came before. What it wrote is kept token for token; only what the
    environment says is tokenized. `ends` are the ids that end a turn.
    """

    tokenizer: Any
    instructions: str
    ends: Sequence[int]

    def opening(self, observation: str) -> list[int]:
        """Return the tokens up to where the first action begins."""
        return self._tokens(render_prompt([self._first(observation)], self.tokenizer))

    def answer(self, observation: str, *, ended: Sequence[int]) -> list[int]:
        """Return the tokens from the end of an action to where the next one begins.

        Args:
            ended: the tokens of the action; it may have left out the token that ends a turn.
        """
        dialogue = [
            self._first(observation),
            {"role": "assistant", "content": SENTINEL},
            {"role": "user", "content": observation},
        ]
        text = render_prompt(dialogue, self.tokenizer)
        text = text[text.rindex(SENTINEL) + len(SENTINEL) :]
        if ended[-1] in self.ends:
            text = text.removeprefix(self.tokenizer.convert_ids_to_tokens(ended[-1]))
        return self._tokens(text)

    def said(self, tokens: Sequence[int]) -> str:
        """Return an action as text."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def _first(self, observation: str) -> Row:
        # Not a system message: some templates have none.
        return {"role": "user", "content": f"{self.instructions}\n\n{observation}"}

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
