"""What a previewer and the process that holds the models say to each other, a JSON line each."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.jobs.spec import Frozen, Task
from app.previews.spec import Question
from worker.rundir import Placement


class Show(Frozen):
    """Answer a question, within `limit_s` seconds.

    `trained` is the folder of an adapter for the base, or of a whole model that stands in its
    place. `context_length` is what is assumed of a base that does not say, in tokens.
    """

    type: Literal["show"] = "show"
    id: str
    base: Placement
    task: Task
    trained: str | None
    context_length: int
    question: Question
    limit_s: float


class Stop(Frozen):
    """Nobody waits for this answer any more."""

    type: Literal["stop"] = "stop"
    id: str


class Piece(Frozen):
    """The answer goes on with this text."""

    type: Literal["piece"] = "piece"
    id: str
    text: str


class Answered(Frozen):
    """The answer is complete; `text` is all of it."""

    type: Literal["answered"] = "answered"
    id: str
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Refused(Frozen):
    """There is no answer: the code of an ApiError, and what to do."""

    type: Literal["refused"] = "refused"
    id: str
    code: str
    message: str
    param: str | None = None


Request = Annotated[Show | Stop, Field(discriminator="type")]
Said = Annotated[Piece | Answered | Refused, Field(discriminator="type")]
request: TypeAdapter[Request] = TypeAdapter(Request)
said: TypeAdapter[Said] = TypeAdapter(Said)
