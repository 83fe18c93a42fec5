"""Models on the wire."""

from typing import Literal

from pydantic import BaseModel

from app.jobs.spec import Task


class ModelOut(BaseModel):
    """A model, as OpenAI's client reads it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: Task


class ModelList(BaseModel):
    """All of them; OpenAI's client does not page here."""

    object: Literal["list"]
    data: list[ModelOut]


class ModelDeletedOut(BaseModel):
    """The receipt of a deletion."""

    id: str
    object: Literal["model"]
    deleted: bool
