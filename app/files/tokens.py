"""How many tokens a row is to a base model: counted with its tokenizer.json, else estimated."""

import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from app.files.formats import RowFormat
from app.files.lint import text_of
from app.files.parse import Row
from app.jobs.defaults import MAX_LENGTH
from app.models.catalog import BaseModel

log = structlog.get_logger()

BYTES_PER_TOKEN = 4
MOST_CHARACTERS = 1 << 16  # of a text that is tokenized; a longer one is counted in proportion


@dataclass(frozen=True)
class Length:
    """A row in tokens, its longer side where a model reads two; whether an answer is left of it.

    `read` are the tokens of what goes in: all but an encoder-decoder's completion. `learned_from`
    is where the first token stands that is learned; a row that is cut before it is left out.
    """

    tokens: int
    read: int
    learned_from: int = 0
    answered: bool = True


class TokenCounter:
    """Counts the tokens of rows as a run on the base model would.

    `estimated` says that it cannot: without a base or its tokenizer, a token is four bytes, and
    the markers that a chat template puts around turns are taken to be those of the plain one.
    """

    def __init__(self, base: BaseModel | None) -> None:
        folder = Path(base.location) if base and base.source == "folder" else None
        self._config = _read(folder / "tokenizer_config.json") if folder else {}
        self._tokenizer = _load(folder) if folder else None
        self._bos, self._eos = self._special("bos_token"), self._special("eos_token")
        self._templated = bool(self._config.get("chat_template")) or (
            folder is not None and (folder / "chat_template.jinja").exists()
        )
        self.task = base.task if base else "causal"
        self.max_length = self._max_length(base) if base else None

    def estimates(self, row_format: RowFormat | None) -> bool:
        """Return whether rows of a format are estimated."""
        chat = row_format in ("chat", "preference", "prompt_only")
        return self._tokenizer is None or (self._templated and chat)

    def measure(self, row: Row, row_format: RowFormat) -> Length:
        """Return how long a row is, and whether a causal model keeps something to learn from it.

        A prompt is as long as it is; what is learned begins after it.
        """
        if row_format == "classification":
            tokens = self._tokens(row["text"], row.get("text_pair"), special=True)
            return Length(tokens, tokens)
        if row_format == "prompt_completion" and self.task == "seq2seq":
            read, written = (
                self._tokens(row[side], special=True) for side in ("prompt", "completion")
            )
            return Length(max(read, written), read)
        if row_format == "preference":
            return self._measure_causal(*self._preference(row))
        return self._measure_causal(*self._causal(row, row_format))

    def _causal(self, row: Row, row_format: RowFormat) -> tuple[str, int]:
        """Return the text of a row, and the first character that is learned."""
        if row_format == "chat":
            return plain_text(row, bos=self._bos, eos=self._eos)
        if row_format == "prompt_only":
            asked, _ = plain_text(row, bos=self._bos, eos=self._eos)
            prompt = f"{asked}Assistant: "
            return prompt, len(prompt)
        if row_format == "prompt_completion":
            prompt = self._bos + row["prompt"]
            return prompt + row["completion"] + self._eos, len(prompt)
        return self._bos + row["text"] + self._eos, 0

    def _preference(self, row: Row) -> tuple[str, int]:
        """Return the longer one of a row's two conversations, and where the answers begin."""
        asked, _ = plain_text(row["input"], bos=self._bos, eos=self._eos)
        outputs = (row["preferred_output"], row["non_preferred_output"])
        told = [plain_text({"messages": output}, eos=self._eos) for output in outputs]
        answer, first = max(told, key=lambda each: len(each[0]))
        return asked + answer, len(asked) + first

    def _measure_causal(self, text: str, first: int) -> Length:
        if self._tokenizer is None:
            tokens = _estimate(text)
            starts = _estimate(text[:first])
            return Length(tokens, tokens, starts, answered=self._reaches(starts))
        encoding = self._encode(text[:MOST_CHARACTERS])
        tokens = _in_proportion(len(encoding), text)
        starts = bisect_left(encoding.offsets, (first, 0))
        return Length(tokens, tokens, starts, answered=self._reaches(starts))

    def _reaches(self, starts: int) -> bool:
        """Return whether a row that is learned from some token on keeps one when it is cut."""
        return self.max_length is None or starts < self.max_length

    def _tokens(self, text: str, pair: str | None = None, *, special: bool = False) -> int:
        if self._tokenizer is None:
            return _estimate(text) + _estimate(pair or "")
        second = None if pair is None else pair[:MOST_CHARACTERS]
        found = self._encode(text[:MOST_CHARACTERS], second, special=special)
        return _in_proportion(len(found), text)

    def _encode(self, text: str, pair: str | None = None, *, special: bool = False) -> Any:
        assert self._tokenizer is not None
        # A batch of one: it alone lets other threads work meanwhile.
        both = text if pair is None else (text, pair)
        return self._tokenizer.encode_batch([both], add_special_tokens=special)[0]

    def _special(self, name: str) -> str:
        token = self._config.get(name)
        return str(token["content"] if isinstance(token, dict) else token or "")

    def _max_length(self, base: BaseModel) -> int:
        longest = [base.context_length, MAX_LENGTH]
        of_tokenizer = self._config.get("model_max_length")
        if base.task != "causal" and isinstance(of_tokenizer, int):
            longest.append(of_tokenizer)
        return min(longest)


def plain_text(row: Row, *, bos: str = "", eos: str = "") -> tuple[str, int]:
    """Return a conversation as the template of training's for bases without one writes it.

    Beside it, where the first answer that is learned begins.
    """
    text, first = bos, None
    if row.get("tools"):
        text += f"Tools: {_as_json(row['tools'])}\n"
    for message in row["messages"]:
        said = text_of(message)
        text += f"{message['role'].capitalize()}: "
        if message["role"] == "assistant":
            if first is None and message.get("weight") != 0:
                first = len(text)
            calls = message.get("tool_calls")
            said += (_as_json([_call(call) for call in calls]) if calls else "") + eos
        text += f"{said}\n"
    return text, first or 0


def _call(call: Row) -> Row:
    """Return a call with its arguments as an object, as training hands them to a template."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return call | {"function": function | {"arguments": arguments}}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _estimate(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _in_proportion(tokens: int, text: str) -> int:
    return tokens * len(text) // MOST_CHARACTERS if len(text) > MOST_CHARACTERS else tokens


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


def _load(folder: Path) -> Any:
    """Return the tokenizer of a folder, or None where it has none that can be read."""
    from tokenizers import Tokenizer  # noqa: PLC0415  the API starts without it

    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        log.warning("tokenizer.unreadable", path=str(path), error=str(error))
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
