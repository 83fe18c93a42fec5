"""Graders on the wire: all that OpenAI's clients can send, of which some run here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter

from app.schemas import Asked

Name = Annotated[str, Field(min_length=1, max_length=256)]
Template = Annotated[
    str, Field(max_length=100_000, description="May hold {{ item.… }} and {{ sample.… }}.")
]
Metric = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4",
    "rouge_5", "rouge_l",
]  # fmt: skip


class StringCheck(Asked):
    """1 where the input equals (eq), differs from (ne) or contains (like, ilike) the reference."""

    type: Literal["string_check"]
    name: Name
    input: Template
    operation: Literal["eq", "ne", "like", "ilike"]
    reference: Template


class TextSimilarity(Asked):
    """How much of the reference is in the input, from 0 to 1."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Metric


class NumberMatch(Asked):
    """1 where the last number of the input equals the reference's, or is within `tolerance` of it.

    Where there is "####", as before the answers of GSM8K, the last number after it.
    """

    type: Literal["number_match"]
    name: Name
    input: Template
    reference: Template
    tolerance: FiniteFloat = Field(default=0.0, ge=0)


class Python(Asked):
    """A program of the caller's; never run here."""

    type: Literal["python"]
    name: Name
    source: str = Field(max_length=256 << 10)
    image_tag: str | None = None


class ScoreModel(Asked):
    """A model that judges; none is served here."""

    type: Literal["score_model"]
    name: Name
    input: list[Any]
    model: str
    range: list[float] | None = None
    sampling_params: dict[str, Any] | None = None


class LabelModel(Asked):
    """A model that puts a label on it; none is served here."""

    type: Literal["label_model"]
    name: Name
    input: list[Any]
    model: str
    labels: list[str]
    passing_labels: list[str]


Single = Annotated[
    StringCheck | TextSimilarity | NumberMatch | Python | ScoreModel | LabelModel,
    Field(discriminator="type"),
]
# What a formula can name.
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


def _named(graders: object) -> object:
    """Take one grader alone, as OpenAI's client sends it, under its own name."""
    if not isinstance(graders, dict) or not isinstance(graders.get("type"), str):
        return graders
    name = graders.get("name")
    return {name: graders} if isinstance(name, str) else graders


class Multi(Asked):
    """Several graders, each under a name, and a formula over these.

    A formula has numbers, names, + - * / ^ and parentheses, and min, max, abs, floor, ceil, exp,
    sqrt and log. One grader may stand alone, under its own name.
    """

    type: Literal["multi"]
    name: Name
    graders: Annotated[
        dict[Variable, Single],
        Field(min_length=1, max_length=32),
        BeforeValidator(_named, json_schema_input_type=Single | dict[Variable, Single]),
    ]
    calculate_output: str


Grader = Annotated[
    StringCheck | TextSimilarity | NumberMatch | Python | ScoreModel | LabelModel | Multi,
    Field(discriminator="type"),
]
grader_adapter: TypeAdapter[Grader] = TypeAdapter(Grader)


class RunGrader(Asked):
    """Grade a sample: `item` is the dataset's row that it answers."""

    model_config = ConfigDict(protected_namespaces=())

    grader: Grader
    model_sample: str = Field(max_length=1_000_000)
    item: Any = None


class ValidateGrader(Asked):
    grader: Grader


class ValidatedOut(BaseModel):
    """The grader, as it was understood."""

    grader: Grader


class GraderErrorsOut(BaseModel):
    """What went wrong; the first three can here, a grader that would need the others is refused."""

    model_config = ConfigDict(protected_namespaces=())

    invalid_variable_error: bool
    sample_parse_error: bool
    formula_parse_error: bool
    model_grader_parse_error: bool
    model_grader_refusal_error: bool
    model_grader_server_error: bool
    model_grader_server_error_details: str | None
    other_error: bool
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    truncated_observation_error: bool
    unresponsive_reward_error: bool


class GradeMetadataOut(BaseModel):
    """About a grade; `execution_time` is in seconds."""

    errors: GraderErrorsOut
    execution_time: float
    name: str
    sampled_model_name: str | None
    scores: dict[str, float]
    token_usage: int | None
    type: str


class GradeOut(BaseModel):
    """A grade, as OpenAI's client reads it."""

    model_config = ConfigDict(protected_namespaces=())

    reward: float
    sub_rewards: dict[str, float]
    metadata: GradeMetadataOut
    model_grader_token_usage_per_model: dict[str, int]


def grade_out(
    grader: Grader,
    *,
    reward: float,
    sub_rewards: Mapping[str, float],
    unknown_variable: bool,
    no_json: bool,
    not_calculable: bool,
    seconds: float,
) -> GradeOut:
    """Show a grade on the wire."""
    errors = GraderErrorsOut(
        invalid_variable_error=unknown_variable,
        sample_parse_error=no_json,
        formula_parse_error=not_calculable,
        model_grader_parse_error=False,
        model_grader_refusal_error=False,
        model_grader_server_error=False,
        model_grader_server_error_details=None,
        other_error=False,
        python_grader_runtime_error=False,
        python_grader_runtime_error_details=None,
        python_grader_server_error=False,
        python_grader_server_error_type=None,
        truncated_observation_error=False,
        unresponsive_reward_error=False,
    )
    metadata = GradeMetadataOut(
        errors=errors,
        execution_time=seconds,
        name=grader.name,
        sampled_model_name=None,
        scores={**sub_rewards, grader.name: reward},
        token_usage=None,
        type=grader.type,
    )
    return GradeOut(
        reward=reward,
        sub_rewards=dict(sub_rewards),
        metadata=metadata,
        model_grader_token_usage_per_model={},
    )
