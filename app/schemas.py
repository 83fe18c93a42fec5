"""What wire shapes of several domains start from."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

NO_CONTROL = r"^[^\x00-\x1f\x7f]+$"  # a name is shown in terminals and logs
AUTO = BeforeValidator(lambda value: None if value == "auto" else value)
Count = Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, AUTO]
Factor = Annotated[Annotated[FiniteFloat, Field(gt=0)] | None, AUTO]


class Asked(BaseModel):
    """What a caller sends: unknown keys are refused by name, and true is no number, nor is "8"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExpiresAfter(Asked):
    """When a file is deleted by itself: one hour to thirty days after it was made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)
