"""`basin compare`: the same data by several methods and seeds, with error bars and a verdict."""

import time
from contextlib import nullcontext
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.client import words
from app.client.errors import OUTCOMES
from app.client.options import FILES, MODEL, Body, Field, body_of
from app.client.session import Session, takes, talks
from app.client.submit import with_files
from app.jobs.spec import PeftMethod, PerturbationType

POLL_S = 2.0
BAR_WIDTH = 28


def _method(text: str) -> dict[str, Any]:
    """Read METHOD or METHOD+PERTURBATION; what has no + is plain."""
    method, plus, perturbation = text.partition("+")
    known = get_args(PeftMethod), get_args(PerturbationType)
    kind = perturbation if plus else "none"
    if method not in known[0] or kind not in known[1]:
        raise typer.BadParameter(
            f"{text!r} is none of {', '.join(known[0])}, alone or with + and one of"
            f" {', '.join(known[1])}.",
            param_hint="--method",
        )
    return {"name": text, "peft": {"method": method}, "perturbation": {"type": kind}}


def _seeds(text: str) -> int | list[int]:
    """Read how many, or which."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(
            f"{text!r} is no number, and no list of seeds.", param_hint="--seeds"
        )
    numbers = [int(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]


contest = body_of(
    (
        MODEL,
        *FILES,
        Field(
            "--method",
            "methods",
            list[str],
            "METHOD+PERTURBATION, such as lora+mgpo, or METHOD for the plain one; say it for each.",
            read=lambda texts: [_method(text) for text in texts],
            required=True,
        ),
        Field("--seeds", "seeds", str, "How many, or which: 5, or 7,8,9; 3.", read=_seeds),
        Field(
            "--equal",
            "budget.equal",
            Literal["steps", "passes"],
            "What each method gets as much of; steps.",
        ),
        Field("--max-steps", "budget.max_steps", int, "Of each job."),
        Field("--name", "name", str, "What the comparison is called."),
    ),
    {"seeds": 3},
)


@talks
@takes(body=contest)
def compare(
    *,
    session: Session,
    body: Body,
    detach: Annotated[bool, typer.Option("--detach", help="Print its id and go.")] = False,
) -> None:
    """Compare methods: basin compare -m my-llama -f train.jsonl --method lora --method lora+mgpo

    Every method runs with every seed. The table has the mean of each with its 95 % interval, how
    it stands against the first, and what it cost; the verdict says it in words.
    """
    made = session.server.post("comparisons", with_files(session, body))
    if detach:
        session.show(made, Text(made["id"]))
        return
    ended = _follow(session, made)
    session.show(ended, lambda: _result(ended))
    raise typer.Exit(OUTCOMES[ended["status"]])


def _follow(session: Session, comparison: dict[str, Any]) -> dict[str, Any]:
    """Show how far the jobs are until the comparison is over."""
    errors = session.errors
    session.say(f"{comparison['id']}: {comparison['progress']['jobs']} jobs")
    live = Live(_progress(comparison), console=errors) if errors.is_terminal else None
    with live or nullcontext():
        while comparison["status"] == "running":
            time.sleep(POLL_S)
            comparison = session.server.get(f"comparisons/{comparison['id']}")
            if live:
                live.update(_progress(comparison))
    return comparison


def _progress(comparison: dict[str, Any]) -> RenderableType:
    progress = comparison["progress"]
    running = [job for job in comparison["jobs"] if job["status"] == "running"]
    now = ", ".join(f"{job['method']} seed {job['seed']}" for job in running)
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress["jobs"], completed=progress["finished"], width=BAR_WIDTH)
    grid.add_row(
        Text(comparison["id"], style="bold"),
        bar,
        Text(f"{progress['finished']}/{progress['jobs']} jobs"),
        Text(now, style="dim"),
    )
    return grid


def _result(comparison: dict[str, Any]) -> RenderableType:
    """Return the table, with a column for each metric of the task, and the verdict.

    p is Holm's: what the verdict goes by. A point is 0.01 of validation loss won over the base.
    """
    methods = comparison["methods"]
    metrics = sorted({name for method in methods for name in method["metrics"]})
    columns = (
        *("method", "seeds", "valid_loss", *metrics, "against the first", "p"),
        *("sharpness, worst", "time", "time a point"),
    )
    rows = (
        (
            method["name"],
            method["valid_loss"]["n"] if method["valid_loss"] else 0,
            _spread(method["valid_loss"]),
            *(_spread(method["metrics"].get(name)) for name in metrics),
            *_against(method["against_first"]),
            _spread((method["sharpness"] or {}).get("worst")),
            *_times(method["cost"]),
        )
        for method in methods
    )
    return Group(words.table(columns, rows), Text(comparison["verdict"] or "", style="bold"))


def _spread(found: dict[str, Any] | None) -> str | None:
    if not found or found["mean"] is None:
        return None
    mean, low, high = (words.number(found[part]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _times(cost: dict[str, Any] | None) -> tuple[str | None, str | None]:
    if not cost:
        return None, None
    a_point = cost["seconds_per_point"]
    return words.clock(cost["seconds"]), None if a_point is None else words.clock(a_point)


def _against(found: dict[str, Any] | None) -> tuple[str | None, str | None]:
    if not found or found["difference"] is None:
        return None, None
    low, high = words.number(found["low"]), words.number(found["high"])
    return f"{found['difference']:+.4g} [{low}, {high}]", words.number(found["adjusted_p_value"])
