"""What the demo says: what it is about to do, and in the end what came out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app.files.parse import Row
from demo.compare import Judged, question_and_answer
from demo.jobs import PERTURBATIONS, Metrics, Trained
from demo.material import Base, Rows
from demo.plot import Curve, Point, plot, smooth
from demo.service import Served

WIDE = 150  # columns from which two plots stand side by side
PLOT_WIDTH, PLOT_HEIGHT = 62, 10
SHOWN_CHARACTERS = 240
STAND_IN = (
    "The model is a stand-in: about a million parameters, a minute of training. What it answers is"
    " babble in the tone of documentation. What counts here is the path, and the same path"
    " fine-tunes a model of yours:\n\n"
    "    make demo MODEL=<folder or hub id> DATA=<file.jsonl>"
)
ONE_SEED = (
    "One seed on a tiny model decides nothing: neither which method is better nor by how much."
)
ONE_SEED_OWN = "One seed decides nothing; compare over several, with python -m demo --seed N."
CURVES = {
    "train_loss": "Training loss by step, smoothed (LoRA-MGPO's is taken at the perturbed weights)",
    "valid_loss": "Held-out loss by step (clean weights)",
}


def say_base(console: Console, folder: Path, *, found: bool) -> None:
    """Say where the stand-in base comes from."""
    if found:
        console.print(f"The stand-in base is there from before, in {folder}.", soft_wrap=True)
        return
    console.print(
        "Nothing is downloaded: a small LLaMA with a tokenizer of its own now learns from the"
        " documentation of Python's standard library. That takes about a minute, once."
    )


def say_material(console: Console, base: Base, rows: Rows) -> None:
    """Say what is fine-tuned on what."""
    kind = "rows of yours" if rows.own else "questions answered by Python's docstrings"
    console.print(
        f"[bold]{base.name}[/bold] is fine-tuned on {len(rows.train)} {kind};"
        f" {len(rows.valid)} more are held out.",
        soft_wrap=True,
    )


def say_service(console: Console, served: Served) -> None:
    """Say where the service is and what is sent to it."""
    console.print(
        f"It listens at {served.url}/v1. Two jobs go there through the openai client, alike but for"
        " one field:",
        soft_wrap=True,
    )
    for label, perturbation in PERTURBATIONS.items():
        field = json.dumps({"perturbation": perturbation})
        console.print(f"  {label:<10} extra_body={field}")
    console.print()


def show_curves(
    console: Console, metrics: Mapping[str, Metrics], styles: Mapping[str, str]
) -> None:
    """Draw training and held-out losses, side by side where there is room."""
    width = min(PLOT_WIDTH, console.width - 10)
    pictures = []
    for name, title in CURVES.items():
        curves = [
            Curve(label, styles[label], _shown(name, found.get(name, [])), dashed=bool(number))
            for number, (label, found) in enumerate(metrics.items())
        ]
        picture = plot(curves, width=width, height=PLOT_HEIGHT)
        pictures.append(Text.assemble("\n", (f"{title}\n", "bold"), picture))
    if console.width >= WIDE:
        console.print(Columns(pictures, padding=(0, 4)))
    else:
        console.print(*pictures, sep="\n")


def show_losses(console: Console, metrics: Mapping[str, Metrics]) -> None:
    """Show held-out losses side by side, at every evaluation."""
    table = Table("step", title="Held-out loss", title_justify="left", box=None, padding=(0, 2))
    by_step = [dict(found.get("valid_loss", [])) for found in metrics.values()]
    for label in metrics:
        table.add_column(label, justify="right")
    for step in sorted(set().union(*by_step)):
        losses = (found.get(step) for found in by_step)
        table.add_row(f"{step:g}", *("" if loss is None else f"{loss:.4f}" for loss in losses))
    console.print(Padding(table, (1, 0, 0, 0)))


def show_judged(
    console: Console, judged: Sequence[Judged], row: Row, styles: Mapping[str, str]
) -> None:
    """Show the models beside each other, with one answer before and after."""
    question, expected = question_and_answer(row)
    table = Table("model", box=None, padding=(0, 2))
    table.add_column("held-out loss", justify="right")
    table.add_column("answer")
    for verdict in judged:
        answer = Text(_short(verdict.answer) or "(nothing)")
        label = Text(verdict.label, style=styles[verdict.label])
        table.add_row(label, f"{verdict.loss:.4f}", answer)
    table.add_row(Text("the data", style="dim"), "", Text(_short(expected), style="dim"))
    console.print(Text.assemble("\nA held-out question: ", (_short(question), "bold"), "\n"))
    console.print(table)
    console.print(
        "\nHeld-out loss here: mean over all answer tokens, in nats; in the curves, the service's"
        " own mean over batches.",
        style="dim",
    )


def show_adapters(console: Console, base: Base, trained: Mapping[str, Trained]) -> None:
    """Say where the adapters lie, and how to load one."""
    console.print("\n[bold]The adapters[/bold], and the same unpacked beside them:")
    for label, job in trained.items():
        console.print(f"  {label:<10} {job.archive}", soft_wrap=True)
    folder = list(trained.values())[-1].folder
    snippet = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f'base = AutoModelForCausalLM.from_pretrained("{base.location}")',
        f'model = PeftModel.from_pretrained(base, "{folder}")',
    )
    console.print()
    for line in snippet:
        console.print(f"    {line}", markup=False, soft_wrap=True)
    console.print()


def say_how_to_read(console: Console, judged: Sequence[Judged], base: Base) -> None:
    """Say what the numbers are worth."""
    loss = {verdict.label: verdict.loss for verdict in judged}
    difference = loss["LoRA-MGPO"] - loss["LoRA"]
    console.print(
        f"LoRA-MGPO − LoRA: {difference:+.4f} nats a token."
        f" {ONE_SEED if base.stand_in else ONE_SEED_OWN}"
    )
    if base.stand_in:
        console.print(Panel(STAND_IN, expand=False, width=min(100, console.width)))


def _shown(name: str, points: Sequence[Point]) -> Sequence[Point]:
    return smooth(points) if name == "train_loss" else points


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
