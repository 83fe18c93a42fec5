"""What a model is asked for a preview, and how its answer comes back by notification."""

from enum import StrEnum
from typing import Any

from pydantic import Field, FiniteFloat

from app.jobs.spec import Frozen

TOLD = "basin_previews_told"  # the channel of Told, to the API
WANTED = "basin_previews_wanted"  # the channel of ids that a worker should look at
PIECE_CHARACTERS = 1000  # of six bytes at most in JSON: a notification holds less than 8000 bytes


class PreviewState(StrEnum):
    """Where a preview stands; the last three are its ends."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Question(Frozen):
    """What a model is asked, and how it is to answer: messages, or a prompt to go on from."""

    messages: tuple[dict[str, Any], ...] | None
    prompt: str | None
    max_tokens: int = Field(ge=1)
    temperature: FiniteFloat = Field(ge=0)
    top_p: FiniteFloat = Field(ge=0, le=1)
    seed: int | None
    stop: tuple[str, ...]

    @property
    def param(self) -> str:
        """Return what the caller knows the text as."""
        return "prompt" if self.messages is None else "messages"


class Told(Frozen):
    """A piece of an answer that begins `at` this character; without one, look at the row."""

    id: str
    at: int = 0
    text: str = ""
