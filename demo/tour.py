"""The demo from top to bottom: a base, the service, two jobs, and what came out of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from demo import base as pretraining
from demo import jobs, report
from demo.board import Board, Track
from demo.compare import Judged, judge
from demo.corpus import read_corpus
from demo.jobs import Recipe, Trained
from demo.material import Base, Rows, offer
from demo.service import running

STYLES = {"base": "yellow", "LoRA": "cyan", "LoRA-MGPO": "magenta"}
# What suits the stand-in and the docstrings; anything else is left to the service.
STAND_IN_LEARNING_RATE = 3e-3
DOCSTRING_EPOCHS, DOCSTRING_BATCH = 2, 16
QUICK_PRETRAINING_STEPS, QUICK_STEPS = 20, 10


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; what is None is for us to choose."""

    seed: int
    epochs: int | None
    steps: int | None
    learning_rate: float | None
    quick: bool


def tour(base: Base | None, rows: Rows, wishes: Wishes, *, home: Path, console: Console) -> None:
    """Show everything; `base` is the user's own, or none."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    models = home / "models"
    models.mkdir(exist_ok=True)
    base = base or stand_in(models, console, quick=wishes.quick)
    offer(base, models)
    report.say_material(console, base, rows)

    trained = train_both(base, rows, wishes, home=home, console=console)
    report.show_curves(console, {label: job.metrics for label, job in trained.items()}, STYLES)
    report.show_losses(console, {label: job.metrics for label, job in trained.items()})

    judged = judge_all(base, trained, rows, console)
    report.show_judged(console, judged, rows.valid[0], STYLES)
    report.show_adapters(console, base, trained)
    report.say_how_to_read(console, judged, base)


def stand_in(models: Path, console: Console, *, quick: bool) -> Base:
    """Return the stand-in base, trained in front of the user the first time."""
    recipe = pretraining.Recipe(steps=QUICK_PRETRAINING_STEPS) if quick else pretraining.Recipe()
    folder = models / pretraining.folder_name(recipe)
    base = Base(name=folder.name, location=str(folder.resolve()), stand_in=True)
    if folder.is_dir():
        report.say_base(console, folder, found=True)
        return base
    report.say_base(console, folder, found=False)
    track = Track("base", STYLES["base"], status="training", total=recipe.steps)
    board = Board(console, [track])
    with board.showing():
        for step in pretraining.train_base(read_corpus().text, folder, recipe):
            track.step, track.done = step.step, step.done
            track.losses = [*track.losses, (step.step, step.loss)]
            track.tokens_per_s = step.tokens / step.elapsed_s
            track.remaining_s = step.elapsed_s * (1 - step.done) / step.done
            board.refresh()
        track.status = "trained"
    return base


def train_both(
    base: Base, rows: Rows, wishes: Wishes, *, home: Path, console: Console
) -> dict[str, Trained]:
    """Fine-tune twice through the service and bring home what came out, by label."""
    console.print("\nStarting the service: PostgreSQL, Redis, the API and a worker …")
    with (
        running(home / "service", models=home / "models", hub_models=base.hub_models) as served,
        jobs.spoken(),
        jobs.connect(served) as client,
        jobs.none_left_behind(client),
    ):
        report.say_service(console, served)
        ids = jobs.submit(client, recipe(base, rows, wishes), train=rows.train, valid=rows.valid)
        tracks = {job_id: Track(label, STYLES[label]) for label, job_id in ids.items()}
        jobs.follow(client, tracks, Board(console, list(tracks.values())))
        trained = {
            label: jobs.collect(client, job_id, home / "adapters") for label, job_id in ids.items()
        }
        console.print("Downloaded both adapters; stopping the service …")
    return trained


def recipe(base: Base, rows: Rows, wishes: Wishes) -> Recipe:
    """Return what both jobs share."""
    return Recipe(
        model=base.name,
        seed=wishes.seed,
        epochs=wishes.epochs or (None if rows.own else DOCSTRING_EPOCHS),
        batch_size=None if rows.own else DOCSTRING_BATCH,
        learning_rate=wishes.learning_rate or (STAND_IN_LEARNING_RATE if base.stand_in else None),
        max_steps=wishes.steps or (QUICK_STEPS if wishes.quick else None),
    )


def judge_all(
    base: Base, trained: Mapping[str, Trained], rows: Rows, console: Console
) -> list[Judged]:
    """Score the base and both adapters on the held-out rows."""
    console.print(f"\nPEFT loads both adapters; scoring {len(rows.valid)} held-out answers …")
    tracks = {
        label: Track(label, STYLES[label], total=len(rows.valid)) for label in ("base", *trained)
    }
    board = Board(console, list(tracks.values()), curves=False)

    def progress(label: str, done: int) -> None:
        track = tracks[label]
        track.step, track.done = done, done / track.total
        track.status = "scored" if done == track.total else "scoring"
        board.refresh()

    with board.showing():
        return judge(
            base,
            {label: job.folder for label, job in trained.items()},
            rows.valid,
            max_length=min(job.max_length for job in trained.values()),
            progress=progress,
        )
