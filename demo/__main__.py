"""`make demo`: fine-tunes twice through the running service, LoRA and LoRA-MGPO, and compares."""

import logging
import signal
import sys
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from demo import material
from demo.board import clock
from demo.service import DemoError, ServiceFailed

INTERRUPTED = 130
QUICK_HELP = "Few rows and steps: see that everything works, not that it learns."

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    *,
    model: Annotated[str | None, typer.Option(help="Your base: a folder or a hub id.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your rows as JSONL: messages, or prompt and completion.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the rows.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each job.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of both jobs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of both jobs.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help=QUICK_HELP)] = False,
    home: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".basin/demo"),
) -> None:
    """Fine-tune a base twice, LoRA and LoRA-MGPO with one seed, and show both side by side."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    _hush()
    console, began = Console(highlight=False), time.monotonic()
    try:
        own_base = material.own_base(model) if model else None
        own_rows = material.own_rows(data) if data else None
        # PyTorch takes seconds to import: mistakes and --help come first.
        from demo import tour  # noqa: PLC0415

        home.mkdir(parents=True, exist_ok=True)
        wishes = tour.Wishes(seed, epochs, steps, learning_rate, quick)
        rows = own_rows or material.documentation_rows(quick=quick)
        tour.tour(own_base, rows, wishes, home=home, console=console)
    except DemoError as error:
        if isinstance(error, ServiceFailed):
            console.print(f"\n{error.logs}", markup=False, soft_wrap=True)
        console.print(f"{error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing runs any more.")
        sys.exit(INTERRUPTED)
    console.print(f"Done in {clock(time.monotonic() - began)} min.")


def _hush() -> None:
    """Keep the libraries' remarks out of the picture."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command()
