"""Generates an answer piece by piece: what is asked as tokens, and tokens as text, up to a stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from app.jobs.spec import Task
from app.previews.spec import Question
from worker.trainer import model as models
from worker.trainer.chat import render_prompt
from worker.trainer.faults import RunError
from worker.trainer.loaded import Loaded

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to

LATE = "Loading the model took all the time that a preview may take; it is there now: ask again."

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """An answer, why it ended, and the tokens that were read and made."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


def generate(
    loaded: Loaded,
    question: Question,
    *,
    task: Task,
    context_length: int,
    ends_at: float,
    stop: threading.Event,
    tell: Tell,
) -> Made:
    """Answer a question, telling each piece of text as soon as it is certain.

    Without a temperature this is the greedy `model.generate`. `ends_at` is by the monotonic clock;
    an answer that is not complete then ends there, as if for want of tokens.

    Raises:
        RunError: the question does not fit, the model's template refuses it, or it is too late.
    """
    if time.monotonic() >= ends_at:
        raise RunError("service_unavailable", LATE)
    ids, continued = _encode(loaded.tokenizer, question, task)
    room = _room(loaded, question, len(ids), task=task, context_length=context_length)
    words = Words(loaded.tokenizer, question.stop, tell, before=ids if continued else [])
    ends = _end_tokens(loaded, task)
    if question.seed is not None:
        torch.manual_seed(question.seed % 2**63)
    inputs = torch.tensor([ids], device=loaded.model.device)
    with torch.inference_mode():
        loaded.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(question.max_tokens, room),
            num_beams=1,
            eos_token_id=ends or None,
            pad_token_id=loaded.tokenizer.pad_token_id,
            streamer=words,
            stopping_criteria=[Until(words, ends_at, stop)],
            **_sampling(question),
        )
    ended = words.stopped or (words.ids and words.ids[-1] in ends)
    words.end()
    return Made(words.text, "stop" if ended else "length", len(ids), len(words.ids))


class Words(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Turns tokens into text as they come, and holds back what may still change.

    That is the half of a character, and what a stop string may begin with. A text that goes on from
    another is decoded with it: some tokenizers drop a space at the beginning.
    """

    def __init__(
        self, tokenizer: Any, stops: tuple[str, ...], tell: Tell, before: list[int]
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._tell = tell
        self._before = before
        self._prefix = self._decode(before) if before else ""
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, and then a token at a time."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self.ids += value.reshape(-1).tolist()
        text = self._cut(self._whole())
        if self.stopped:
            self._advance(text)
        elif not text.endswith(UNFINISHED):
            self._advance(text[: len(text) - _held_back(text, self._stops)])

    def end(self) -> None:
        """Tell the rest: nothing follows any more."""
        self._advance(self._cut(self._whole()))

    def _whole(self) -> str:
        text = self._decode(self._before + self.ids)
        if text.startswith(self._prefix):
            return text[len(self._prefix) :]
        return self._decode(self.ids)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.replace("\0", UNFINISHED)  # the database keeps no NUL

    def _cut(self, text: str) -> str:
        """Cut a text before the first stop string in it."""
        found = [place for each in self._stops if (place := text.find(each)) >= 0]
        self.stopped = self.stopped or bool(found)
        return text[: min(found)] if found else text

    def _advance(self, text: str) -> None:
        """Tell what is new; what was told once stays, however the tokenizer decodes it later."""
        if len(text) > len(self.text):
            piece = text[len(self.text) :]
            self.text += piece
            self._tell(piece)


class Until(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Ends an answer at a stop string, when its time is over, or when nobody waits for it."""

    def __init__(self, words: Words, ends_at: float, stop: threading.Event) -> None:
        self._words = words
        self._ends_at = ends_at
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Say for each row of the batch whether it is over."""
        over = self._words.stopped or self._stop.is_set() or time.monotonic() >= self._ends_at
        return torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device)


def _encode(tokenizer: Any, question: Question, task: Task) -> tuple[list[int], bool]:
    """Return the tokens of a question as training makes them, and whether its text goes on."""
    if task == "seq2seq":
        return tokenizer(_source(question))["input_ids"], False
    if question.messages is None:
        text = (tokenizer.bos_token or "") + (question.prompt or "")
    else:
        try:
            text = render_prompt(list(question.messages), tokenizer)
        except TemplateError as error:
            raise RunError(
                "invalid_value", f"The model's chat template says: {error}", param="messages"
            ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise RunError("invalid_value", "The text is empty.", param=question.param)
    return ids, question.messages is None


def _source(question: Question) -> str:
    """Return the text for an encoder-decoder, which learned from prompts: the contents alone."""
    if question.messages is None:
        return question.prompt or ""
    contents = [message.get("content") or "" for message in question.messages]
    return "\n".join(
        content if isinstance(content, str) else "".join(part["text"] for part in content)
        for content in contents
    )


def _room(
    loaded: Loaded, question: Question, asked: int, *, task: Task, context_length: int
) -> int:
    """Return how many tokens the answer may have.

    Raises:
        RunError: the question leaves none.
    """
    context = models.context_length(loaded.model) or context_length
    room = context - asked
    if task == "seq2seq":  # the answer has a context of its own
        room = context if room >= 0 else 0
    if room < 1:
        raise RunError(
            "context_length_exceeded",
            f"The model sees {context} tokens, and {question.param} has {asked}; shorten it"
            " so that an answer fits as well.",
            param=question.param,
        )
    return room


def _end_tokens(loaded: Loaded, task: Task) -> list[int]:
    """Return the tokens that end an answer: the model's, and the one that training ends it with."""
    told = loaded.model.generation_config.eos_token_id
    found = [told] if isinstance(told, int) else list(told or ())
    own = loaded.tokenizer.eos_token_id
    return found if own is None or own in found else [*found, own]


def _sampling(question: Question) -> dict[str, Any]:
    """Return how the next token is chosen; what a model's files say about that is not asked."""
    if question.temperature == 0 or question.top_p == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "top_k": 0,
    }


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Return how many of the last characters may be the beginning of a stop string."""
    return max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        ),
        default=0,
    )
