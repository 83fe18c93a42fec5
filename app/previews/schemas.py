"""Previews on OpenAI's wire: chat completions and completions, whole or in chunks."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, ValidationInfo, field_validator

from app.previews.spec import Question
from app.schemas import Asked

FinishReason = Literal["stop", "length"]
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256

# Parameters that would change an answer in ways a preview does not offer, with what asks for
# nothing. They are refused by name otherwise.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneText = Annotated[list[str], Field(min_length=1, max_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed, json_schema_input_type=StopString | list[StopString]),
]


def _single(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        raise ValueError("a preview takes one text, not several and no tokens")
    return value


class StreamOptions(Asked):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # nothing is added to hide how long a piece is


class Generation(Asked):
    """What both calls take. What is only for OpenAI's own books is read and ignored."""

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, description="Cut down to the server's cap.")
    temperature: FiniteFloat | None = Field(default=None, ge=0, le=2)
    top_p: FiniteFloat | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    n: Any = None
    presence_penalty: Any = None
    user: Any = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _asks_for_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        neutral = NEUTRAL[info.field_name or ""]
        if value is None or any(value == each and type(value) is type(each) for each in neutral):
            return value
        raise ValueError("a preview does not offer that; leave it out")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def question(
        self,
        *,
        most_tokens: int,
        asked_tokens: int | None,
        messages: tuple[dict[str, Any], ...] | None = None,
        prompt: str | None = None,
    ) -> Question:
        """Resolve what was left out as OpenAI does; the number of tokens has a cap."""
        return Question(
            messages=messages,
            prompt=prompt,
            max_tokens=min(asked_tokens or most_tokens, most_tokens),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(self.stop or ()),
        )


class ChatIn(Generation):
    """A conversation for the model to go on with."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionIn(Generation):
    """A text for the model to go on with."""

    prompt: Annotated[str, BeforeValidator(_single, json_schema_input_type=str | OneText)]

    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class UsageOut(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class MessageOut(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceOut(BaseModel):
    index: Literal[0]
    message: MessageOut
    logprobs: None
    finish_reason: FinishReason


class TextChoiceOut(BaseModel):
    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: FinishReason


class AnswerOut(BaseModel):
    """What both calls answer with; `preview` says that this is no serving engine."""

    id: str
    created: int
    model: str
    preview: Literal[True]
    usage: UsageOut


class ChatCompletionOut(AnswerOut):
    """What the model said, in full."""

    object: Literal["chat.completion"]
    choices: list[ChatChoiceOut]


class CompletionOut(AnswerOut):
    """What the model wrote, in full."""

    object: Literal["text_completion"]
    choices: list[TextChoiceOut]


@dataclass(frozen=True)
class Ended:
    """How an answer ended, and how many tokens were read and made."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> UsageOut:
        return UsageOut(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
        )


class Wire(Protocol):
    """One of the two calls: its answer whole, and its chunks."""

    def whole(self, text: str, ended: Ended) -> AnswerOut: ...

    def first(self) -> list[dict[str, Any]]: ...

    def piece(self, text: str) -> dict[str, Any]: ...

    def last(self, ended: Ended) -> dict[str, Any]: ...

    def usage(self, ended: Ended) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Named:
    """What stands in every chunk of an answer."""

    id: str
    created: int
    model: str

    def head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model, "preview": True}


class ChatWire(Named):
    """The chunks of a chat completion."""

    def whole(self, text: str, ended: Ended) -> ChatCompletionOut:
        """Return the answer in full."""
        message = MessageOut(role="assistant", content=text, refusal=None)
        choice = ChatChoiceOut(
            index=0, message=message, logprobs=None, finish_reason=ended.finish_reason
        )
        return ChatCompletionOut(
            object="chat.completion", choices=[choice], usage=ended.usage, **self.head()
        )

    def first(self) -> list[dict[str, Any]]:
        """Return what comes before the text: who speaks."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of the text."""
        return self._chunk({"content": text})

    def last(self, ended: Ended) -> dict[str, Any]:
        """Return the chunk that says why the text ends."""
        return self._chunk({}, ended.finish_reason)

    def usage(self, ended: Ended) -> dict[str, Any]:
        """Return the chunk with the number of tokens."""
        chunk = self._chunk({})
        return chunk | {"choices": [], "usage": ended.usage.model_dump()}

    def _chunk(self, delta: dict[str, Any], finish: FinishReason | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.head() | {"object": "chat.completion.chunk", "choices": [choice]}


class CompletionWire(Named):
    """The chunks of a completion."""

    def whole(self, text: str, ended: Ended) -> CompletionOut:
        """Return the answer in full."""
        choice = TextChoiceOut(index=0, text=text, logprobs=None, finish_reason=ended.finish_reason)
        return CompletionOut(
            object="text_completion", choices=[choice], usage=ended.usage, **self.head()
        )

    def first(self) -> list[dict[str, Any]]:
        """Return what comes before the text: nothing."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of the text."""
        return self._chunk(text)

    def last(self, ended: Ended) -> dict[str, Any]:
        """Return the chunk that says why the text ends."""
        return self._chunk("", ended.finish_reason)

    def usage(self, ended: Ended) -> dict[str, Any]:
        """Return the chunk with the number of tokens."""
        return self._chunk("") | {"choices": [], "usage": ended.usage.model_dump()}

    def _chunk(self, text: str, finish: FinishReason | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return self.head() | {"object": "text_completion", "choices": [choice]}
