"""The options that describe a job, and the body that is made of them."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.client import completion
from app.jobs.spec import PeftMethod, PerturbationType

WEIGHTS, GRADIENT, LOOP = "Which weights are trained", "Where the gradient is taken", "Training"
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Wish:
    """A job to send; files are ids, or paths of this machine to upload first."""

    body: dict[str, Any]


def wish(
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The base model.", autocompletion=completion.models),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            help="Training data: file-… or a path to upload.",
            autocompletion=completion.files,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            help="Validation data: file-… or a path to upload.",
            autocompletion=completion.files,
        ),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="A part of the model's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.", min=0)] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE to find the job by; repeatable.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Of two that wait, the higher runs first.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Devices of one worker.", min=1)] = None,
    method: Annotated[
        PeftMethod | None, typer.Option(help="How they are trained.", rich_help_panel=WEIGHTS)
    ] = None,
    r: Annotated[
        int | None, typer.Option("--r", help="Rank of the adapter.", rich_help_panel=WEIGHTS)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Scale is alpha/r; 2 r.", rich_help_panel=WEIGHTS)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Before the factors.", rich_help_panel=WEIGHTS)
    ] = None,
    go_on_from: Annotated[
        str | None, typer.Option(help="A fine-tuned model, ft:…", rich_help_panel=WEIGHTS)
    ] = None,
    perturbation: Annotated[
        PerturbationType | None,
        typer.Option(help="mgpo unless said; none is plain.", rich_help_panel=GRADIENT),
    ] = None,
    rho: Annotated[
        float | None, typer.Option(help="Length of the look-ahead.", rich_help_panel=GRADIENT)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the rows.", rich_help_panel=LOOP)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a step.", rich_help_panel=LOOP)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Its peak.", rich_help_panel=LOOP)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Ends before the epochs do.", rich_help_panel=LOOP)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a row.", rich_help_panel=LOOP)
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of the computation.", rich_help_panel=LOOP)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any field, such as training.max_steps=100; a value is JSON or text."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="A body in JSON to begin with; - reads it from stdin."),
    ] = None,
) -> Wish:
    """Make a body: --from first, the options over it, --set over all."""
    body = read_body(from_) if from_ else {}
    given: dict[str, Any] = {
        "model": model,
        "training_file": file,
        "validation_file": validation,
        "suffix": suffix,
        "seed": seed,
        "metadata": metadata_of(metadata) if metadata else None,
        "priority": priority,
        "resources.gpus": gpus,
        "peft.method": method,
        "peft.r": r,
        "peft.alpha": alpha,
        "peft.dropout": dropout,
        "peft.from": go_on_from,
        "perturbation.type": perturbation,
        "perturbation.rho": rho,
        f"{_hyperparameters(body)}.n_epochs": epochs,
        f"{_hyperparameters(body)}.batch_size": batch_size,
        "training.learning_rate": learning_rate,
        "training.max_steps": max_steps,
        "training.max_length": max_length,
        "training.precision": precision,
    }
    required = {"model": "--model", "training_file": "--file"}
    return Wish(laid_over(body, given, set_ or [], required=required))


def metadata_of(texts: list[str]) -> dict[str, str]:
    """Read KEY=VALUE pairs."""
    return dict(_pair(text, option="--metadata") for text in texts)


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


def laid_over(
    body: dict[str, Any],
    given: Mapping[str, Any],
    assignments: list[str],
    *,
    required: Mapping[str, str],
) -> dict[str, Any]:
    """Put options over a body, and assignments over all; `required` fields have an option each."""
    for path, value in given.items():
        if value is not None:
            put(body, path, value)
    for text in assignments:
        put(body, *assigned(text))
    for name, option in required.items():
        if not body.get(name):
            raise typer.BadParameter("say it, or bring it with --from.", param_hint=option)
    return body


def read_body(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, or from stdin for -."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        body = json.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--from") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{path} holds no JSON object.", param_hint="--from")
    return body


def _hyperparameters(body: Mapping[str, Any]) -> str:
    """Return where they stand: in the method, or in the older form beside it."""
    method = body.get("method")
    if isinstance(method, dict) and method.get("type"):
        return f"method.{method['type']}.hyperparameters"
    return "hyperparameters"


def _pair(text: str, *, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"{text!r} is no KEY=VALUE.", param_hint=option)
    return key, value
