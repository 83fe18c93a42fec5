"""`make demo`: fine-tunes twice through the running service, LoRA and LoRA-MGPO, and compares."""

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import openai
import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from transformers.utils import logging as transformers_logging

from demo.base import NAME, cached_base
from demo.compare import Judged, judge, unpack
from demo.corpus import read_corpus, write_rows
from demo.display import Board, Track, plot
from demo.service import Service, ServiceError, log_ends, running_service

TRAIN_ROWS, VALID_ROWS = 1200, 96
JUDGED_ROWS = 64
SEED = 7
POLL_S = 1.0
OVER = ("succeeded", "failed", "cancelled")
PERTURBATIONS = {"LoRA": {"type": "none"}, "LoRA-MGPO": {"type": "mgpo"}}
STAND_IN = (
    "The model is a stand-in of about 1M parameters, trained a minute ago on documentation: its"
    " answers are babble. What counts is the path: the same calls fine-tune a model of yours with"
    " `make demo MODEL=<folder or hub id> DATA=<file.jsonl>`."
)
ONE_SEED = "One seed on a small model decides nothing; compare on your data, with several seeds."

console = Console()


@dataclass(frozen=True)
class Material:
    """What is fine-tuned on what."""

    model: str
    base: str
    models_dir: Path
    hub_model: str | None
    train: Path
    valid: Path
    training: dict[str, Any]
    stand_in: bool


def main(
    model: Annotated[str | None, typer.Option(help="A folder or hub id of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your own rows, as JSONL.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Where all is kept.")] = Path(".basin/demo"),
) -> None:
    """Fine-tune a base twice, LoRA and LoRA-MGPO with the same seed, and show both side by side."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        material = prepare(data_dir, model, data)
        run(data_dir, material)
    except (ServiceError, openai.APIError, DemoError) as error:
        console.print(f"[red]{error}[/red]")
        console.print(log_ends(data_dir / "service"), highlight=False, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130)


class DemoError(RuntimeError):
    """A job did not succeed."""


def run(data_dir: Path, material: Material) -> None:
    """Train both through the service, then look at what came out."""
    service_dir = data_dir / "service"
    with running_service(service_dir, material.models_dir, hub_model=material.hub_model) as service:
        console.print(
            f"The service runs at [bold]{service.url}[/bold] (PostgreSQL, Redis, API, worker)."
        )
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.api_key)
        jobs = train_both(client, service, material)
        series = {title: metrics(service, job_id) for title, job_id in jobs.items()}
        adapters = {
            title: unpack(download(service, job_id), data_dir / "adapters" / job_id)
            for title, job_id in jobs.items()
        }
    show_curves(series)
    show_verdicts(judge_all(material, adapters), adapters, material)


def prepare(data_dir: Path, model: str | None, data: Path | None) -> Material:
    """Return the user's own model and rows, or make both from the standard library."""
    models_dir = data_dir / "models"
    models_dir.mkdir(exist_ok=True)
    corpus = read_corpus(train_rows=TRAIN_ROWS, valid_rows=VALID_ROWS)
    if data:
        train, valid = split(data)
    else:
        train, valid = corpus.train, corpus.valid
    train_file = write_rows(train, data_dir / "train.jsonl")
    valid_file = write_rows(valid, data_dir / "valid.jsonl")
    console.print(f"{len(train)} rows to train on, {len(valid)} held out.")
    if model is None:
        base = pretrained(models_dir, corpus.text)
        training = {"learning_rate": 3e-3, "eval_steps": 25, "max_length": 256}
        return Material(NAME, str(base), models_dir, None, train_file, valid_file, training, True)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return Material(model, model, models_dir, model, train_file, valid_file, {}, False)
    link = models_dir / folder.resolve().name
    if not link.exists():
        link.symlink_to(folder.resolve())
    return Material(link.name, str(folder), models_dir, None, train_file, valid_file, {}, False)


def split(data: Path) -> tuple[list[Any], list[Any]]:
    """Shuffle the user's rows and keep a tenth of them, ten at least, apart."""
    rows = [json.loads(line) for line in data.read_text().splitlines() if line.strip()]
    random.Random(SEED).shuffle(rows)
    held_out = max(10, len(rows) // 10)
    return rows[held_out:], rows[:held_out]


def pretrained(models_dir: Path, text: list[str]) -> Path:
    """Return the stand-in base, trained in front of the user the first time."""
    track = Track("base model", status="pre-training")
    board = Board(console, [track])

    def progress(step: int, total: int, loss: float) -> None:
        track.step, track.total = step, total
        track.curve.append((step, loss))
        board.refresh()

    console.print(
        "A small LLaMA learns the standard library's documentation"
        " (about a minute, kept for next time)."
    )
    with board.showing():
        folder = cached_base(models_dir, text, progress)
        track.status = "ready"
        track.step = track.total
    return folder


def train_both(client: openai.OpenAI, service: Service, material: Material) -> dict[str, str]:
    """Submit both jobs and follow them to their end; return their ids by title."""
    train = client.files.create(file=material.train.open("rb"), purpose="fine-tune")
    valid = client.files.create(file=material.valid.open("rb"), purpose="fine-tune")
    jobs = {
        title: client.fine_tuning.jobs.create(
            model=material.model,
            training_file=train.id,
            validation_file=valid.id,
            seed=SEED,
            suffix="demo",
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 16}},
            }
            if material.stand_in
            else {"type": "supervised"},
            extra_body={"perturbation": perturbation, "training": material.training},
        ).id
        for title, perturbation in PERTURBATIONS.items()
    }
    tracks = {title: Track(title) for title in jobs}
    board = Board(console, list(tracks.values()))
    done = False
    with board.showing():
        while not done:
            done = True
            for title, job_id in jobs.items():
                done &= follow(client, service, job_id, tracks[title])
            board.refresh()
            time.sleep(POLL_S)
    return jobs


def follow(client: openai.OpenAI, service: Service, job_id: str, track: Track) -> bool:
    """Bring a track up to date; True once the job has succeeded.

    Raises:
        DemoError: it failed or was cancelled.
    """
    job = client.fine_tuning.jobs.retrieve(job_id)
    progress = (job.model_extra or {})["progress"]
    track.status, track.step, track.total = job.status, progress["step"], progress["total_steps"]
    if job.status == "running":
        track.curve = metrics(service, job_id).get("train_loss", [])
    if job.status in OVER and job.status != "succeeded":
        raise DemoError(f"{track.title} {job.status}: {job.error.message if job.error else ''}")
    return job.status == "succeeded"


def metrics(service: Service, job_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return every metric of a job as (step, value)."""
    answer = _get(service, f"{job_id}/metrics")
    return {
        series["name"]: [(int(step), float(value)) for step, value in series["points"]]
        for series in answer.json()["data"]
    }


def download(service: Service, job_id: str) -> bytes:
    """Return the adapter's archive."""
    return _get(service, f"{job_id}/adapter").content


def _get(service: Service, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    url = f"{service.url}/v1/fine_tuning/jobs/{path}"
    return httpx.get(url, headers=headers, timeout=60).raise_for_status()


def show_curves(series: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    """Draw training and held-out losses."""
    for name, title in (
        ("train_loss", "training loss by step (MGPO's is taken at the perturbed weights)"),
        ("valid_loss", "held-out loss by step (clean weights)"),
    ):
        curves = {label: found[name] for label, found in series.items() if found.get(name)}
        if curves:
            console.print(plot(curves, title=title))


def judge_all(material: Material, adapters: dict[str, Path]) -> list[Judged]:
    """Score base and adapters, loaded with PEFT on the original base."""
    rows = [json.loads(line) for line in material.valid.read_text().splitlines()][:JUDGED_ROWS]
    rows = [row for row in rows if "messages" in row]
    if not rows:
        return []
    first = next(iter(adapters.values()))
    console.print(f"Loading both adapters with PEFT and scoring {len(rows)} held-out answers …")
    judged = [judge("base", material.base, first, rows, tuned=False)]
    return judged + [
        judge(title, material.base, folder, rows, tuned=True) for title, folder in adapters.items()
    ]


def show_verdicts(judged: list[Judged], adapters: dict[str, Path], material: Material) -> None:
    """Show held-out losses side by side, one answer before and after, and how to go on."""
    table = Table("model", "held-out loss", "one answer", title="held-out answers")
    for verdict in judged:
        table.add_row(verdict.title, f"{verdict.loss:.4f}", verdict.answer[:90])
    if judged:
        console.print(table)
        by_title = {verdict.title: verdict.loss for verdict in judged}
        difference = by_title["LoRA-MGPO"] - by_title["LoRA"]
        console.print(f"LoRA-MGPO − LoRA: {difference:+.4f} nats a token. {ONE_SEED}")
    for title, folder in adapters.items():
        console.print(f"{title}: {folder}", soft_wrap=True)
    if material.stand_in:
        console.print(Panel(STAND_IN, expand=False))


if __name__ == "__main__":
    typer.run(main)
