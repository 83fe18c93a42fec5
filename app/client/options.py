"""Options that describe a job, as data, and the body that is made of them."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.client import completion
from app.jobs.spec import Method, PeftMethod, PerturbationType

Body = dict[str, Any]
WEIGHTS, GRADIENT, LOOP = "Which weights are trained", "Where the gradient is taken", "Training"
REWARDS = "With --learn reinforcement"


@dataclass(frozen=True)
class Field:
    """An option, and the field of the body that it sets; `read` makes the value of what is said."""

    option: str
    path: str
    kind: Any
    help: str
    panel: str | None = None
    complete: Callable[..., Any] | None = None
    read: Callable[[Any], Any] | None = None
    required: bool = False

    @property
    def name(self) -> str:
        return self.path.replace(".", "_")

    def parameter(self) -> inspect.Parameter:
        """Return what typer makes the option of."""
        option = typer.Option(
            *self.option.split(),
            help=self.help,
            rich_help_panel=self.panel,
            autocompletion=self.complete,
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[self.kind | None, option],
        )


def metadata_of(texts: list[str]) -> dict[str, str]:
    """Read KEY=VALUE pairs."""
    return dict(_pair(text, option="--metadata") for text in texts)


def grader_of(text: str) -> dict[str, Any]:
    """Read a grader: JSON, or a file that holds it."""
    if text.lstrip().startswith("{"):
        return _object(text, of="the grader", option="--grader")
    return _read(Path(text), option="--grader")


MODEL = Field(
    "--model -m", "model", str, "The base model.", complete=completion.models, required=True
)
FILES = (
    Field(
        "--file -f",
        "training_file",
        str,
        "Training data: file-… or a path to upload.",
        complete=completion.files,
        required=True,
    ),
    Field(
        "--validation",
        "validation_file",
        str,
        "Validation data: file-… or a path to upload.",
        complete=completion.files,
    ),
)
JOB = (
    MODEL,
    *FILES,
    Field(
        "--learn",  # before what stands in the method
        "method.type",
        Method,
        "From answers: supervised; from pairs of which one is preferred: dpo; or from rewards.",
        LOOP,
    ),
    Field("--suffix", "suffix", str, "A part of the fine-tuned model's name."),
    Field("--seed", "seed", int, "Of everything that is drawn; drawn when left out."),
    Field(
        "--metadata",
        "metadata",
        list[str],
        "KEY=VALUE to find the job by; repeatable.",
        read=metadata_of,
    ),
    Field("--priority", "priority", int, "Of two that wait, the higher runs first; 0."),
    Field("--gpus", "resources.gpus", int, "Devices of one worker; 1."),
    Field("--method", "peft.method", PeftMethod, "How they are trained; lora.", WEIGHTS),
    Field("--r", "peft.r", int, "Rank of the adapter; 8.", WEIGHTS),
    Field("--alpha", "peft.alpha", float, "The scale is alpha/r; 2 r.", WEIGHTS),
    Field("--dropout", "peft.dropout", float, "Before the factors; 0.", WEIGHTS),
    Field(
        "--go-on-from",
        "peft.from",
        str,
        "A fine-tuned model of yours, ft:…",
        WEIGHTS,
        completion.models,
    ),
    Field(
        "--perturbation",
        "perturbation.type",
        PerturbationType,
        "mgpo unless said; none is the plain method.",
        GRADIENT,
    ),
    Field("--rho", "perturbation.rho", float, "Length of the look-ahead; 0.05.", GRADIENT),
    Field("--epochs", "hyperparameters.n_epochs", int, "Passes over the rows.", LOOP),
    Field("--batch-size", "hyperparameters.batch_size", int, "Rows of a step.", LOOP),
    Field("--dpo-beta", "method.dpo.hyperparameters.beta", float, "Of dpo; 0.1.", LOOP),
    Field(
        "--learning-rate",
        "training.learning_rate",
        float,
        "Its peak; 2e-4, and 2e-5 for dpo and rewards.",
        LOOP,
    ),
    Field("--max-steps", "training.max_steps", int, "Ends before the epochs do.", LOOP),
    Field("--max-length", "training.max_length", int, "Tokens of a row, at most.", LOOP),
    Field(
        "--precision",
        "training.precision",
        Literal["auto", "bf16", "fp32"],
        "Of the computation; auto.",
        LOOP,
    ),
    Field(
        "--grader",
        "method.reinforcement.grader",
        str,
        "What rewards an answer: a file of JSON, or the JSON.",
        REWARDS,
        read=grader_of,
    ),
    Field(
        "--environment",
        "method.reinforcement.environment.name",
        str,
        "What rewards an episode; its arguments by --set.",
        REWARDS,
        completion.environments,
    ),
    Field(
        "--algorithm",
        "method.reinforcement.algorithm",
        Literal["grpo", "gigpo"],
        "grpo; gigpo compares steps too.",
        REWARDS,
    ),
    Field(
        "--group-size", "method.reinforcement.group_size", int, "Rollouts of a prompt; 8.", REWARDS
    ),
)
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any field: training.max_steps=100; a value is JSON or text. Repeatable."
    ),
]
FROM = Annotated[
    Path | None,
    typer.Option("--from", help="A body in JSON to begin with; - reads it from stdin."),
]


def body_of(
    fields: Sequence[Field], defaults: Mapping[str, Any] | None = None
) -> Callable[..., Body]:
    """Return what makes a body of options: --from first, the options over it, --set over all."""

    def make(*, set_: list[str] | None, from_: Path | None, **given: Any) -> Body:
        body = dict(defaults or {}) | (_read(from_, option="--from") if from_ else {})
        for field in fields:
            value = given[field.name]
            if value is not None:
                put(body, _place(body, field.path), field.read(value) if field.read else value)
        for text in set_ or []:
            put(body, *assigned(text))
        for field in fields:
            if field.required and not body.get(field.path):
                option = field.option.split()[0]
                raise typer.BadParameter("say it, or bring it with --from.", param_hint=option)
        return body

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in (("set_", SET), ("from_", FROM))
    ]
    parameters = [*(field.parameter() for field in fields), *more]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `takes` reads
    return make


def put(body: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its dotted path; groups on the way are made."""
    *groups, name = path.split(".")
    for group in groups:
        body = body.setdefault(group, {})
        if not isinstance(body, dict):
            raise typer.BadParameter(f"{group} has no fields, so {path} cannot be set.")
    body[name] = value


def assigned(text: str) -> tuple[str, Any]:
    """Read PATH=VALUE, where the value is JSON, or else text."""
    path, value = _pair(text, option="--set")
    try:
        return path, json.loads(value)
    except json.JSONDecodeError:
        return path, value


def _read(path: Path, *, option: str) -> dict[str, Any]:
    """Read a JSON object from a file, or from stdin for -."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint=option) from error
    return _object(text, of=str(path), option=option)


def _object(text: str, *, of: str, option: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{of}: {error}", param_hint=option) from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{of} holds no JSON object.", param_hint=option)
    return body


def _place(body: Mapping[str, Any], path: str) -> str:
    """Return where a field stands: hyperparameters are in the method, if the body has one."""
    method = body.get("method")
    if path.startswith("hyperparameters.") and isinstance(method, dict) and "type" in method:
        return f"method.{method['type']}.{path}"
    return path


def _pair(text: str, *, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"{text!r} is no KEY=VALUE.", param_hint=option)
    return key, value
