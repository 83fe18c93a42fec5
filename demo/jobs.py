"""The client's side: what a user of the service writes, with the `openai` package."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from app.files.parse import Row
from app.tars import unpack
from demo.board import Board, Track
from demo.material import to_jsonl
from demo.plot import Point
from demo.service import DemoError, Served, ServiceFailed, last_lines

POLL_S = 1.0
LIVE = ("validating_files", "queued", "running")
PERTURBATIONS = {"LoRA": {"type": "none"}, "LoRA-MGPO": {"type": "mgpo"}}
PACE_POINTS = 10
PACE_KNOWN = 0.05  # of the steps: the first ones carry the start of the run

Metrics = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Recipe:
    """What both jobs have in common; what is None is left to the service."""

    model: str
    seed: int
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    max_steps: int | None

    def body(self, perturbation: Mapping[str, str]) -> dict[str, Any]:
        """Return the job to send: OpenAI's fields, and Basin's in the extra body."""
        asked = {"n_epochs": self.epochs, "batch_size": self.batch_size}
        training = {"learning_rate": self.learning_rate, "max_steps": self.max_steps}
        return {
            "model": self.model,
            "seed": self.seed,
            "suffix": "demo",
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": _said(asked)},
            },
            "extra_body": {"perturbation": perturbation, "training": _said(training)},
        }


@dataclass(frozen=True)
class Trained:
    """A job that succeeded."""

    job_id: str
    metrics: Metrics
    max_length: int
    archive: Path
    folder: Path


def connect(served: Served) -> openai.OpenAI:
    """Return the client; a proxy in the environment knows nothing of our own port."""
    return openai.OpenAI(
        base_url=f"{served.url}/v1",
        api_key=served.api_key,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@contextmanager
def spoken() -> Iterator[None]:
    """Turn the client's errors into sentences for the user."""
    try:
        yield
    except openai.APIStatusError as error:
        told = error.body.get("message") if isinstance(error.body, dict) else error.message
        kind = (
            ServiceFailed if error.status_code >= httpx.codes.INTERNAL_SERVER_ERROR else DemoError
        )
        raise kind(f"The service answered {error.status_code}: {told}") from error
    except openai.APIConnectionError as error:
        raise ServiceFailed("The service does not answer any more.") from error


@contextmanager
def none_left_behind(client: openai.OpenAI) -> Iterator[None]:
    """Cancel the jobs of an earlier demo that was killed, and in the end those of this one."""
    cancel_live(client)
    try:
        yield
    finally:
        with suppress(openai.APIError):
            cancel_live(client)


def cancel_live(client: openai.OpenAI) -> None:
    """Cancel every job that waits or runs."""
    for job in client.fine_tuning.jobs.list(limit=100).data:
        if job.status in LIVE:
            client.fine_tuning.jobs.cancel(job.id)


def submit(
    client: openai.OpenAI, recipe: Recipe, *, train: Sequence[Row], valid: Sequence[Row]
) -> dict[str, str]:
    """Upload both files and send one job for each perturbation; return their ids."""
    train_file = client.files.create(file=("train.jsonl", to_jsonl(train)), purpose="fine-tune")
    valid_file = client.files.create(file=("valid.jsonl", to_jsonl(valid)), purpose="fine-tune")
    return {
        label: client.fine_tuning.jobs.create(
            training_file=train_file.id,
            validation_file=valid_file.id,
            **recipe.body(perturbation),
        ).id
        for label, perturbation in PERTURBATIONS.items()
    }


def follow(client: openai.OpenAI, tracks: Mapping[str, Track], board: Board) -> None:
    """Keep the board up to date until every job has succeeded; the keys are the jobs' ids.

    Raises:
        ServiceFailed: one failed or was cancelled.
    """
    with board.showing():
        while True:
            for job_id, track in tracks.items():
                if track.status != "succeeded":
                    look(client, job_id, track)
            board.refresh()
            if all(track.status == "succeeded" for track in tracks.values()):
                return
            time.sleep(POLL_S)


def look(client: openai.OpenAI, job_id: str, track: Track) -> None:
    """Bring one track up to date.

    Raises:
        ServiceFailed: the job failed or was cancelled.
    """
    job = client.fine_tuning.jobs.retrieve(job_id).to_dict()
    progress: Any = job["progress"]
    finish: Any = job["estimated_finish"]
    track.status = str(job["status"])
    track.step, track.total = progress["step"], progress["total_steps"]
    track.done = track.step / track.total
    known = finish and track.done >= PACE_KNOWN
    track.remaining_s = finish - time.time() if known else None
    if track.status not in (*LIVE, "succeeded"):
        error: Any = job.get("error") or {}
        why = error.get("message") or "no reason is given"
        printed = last_lines(_get(client, f"{job_id}/logs").text, f"what {job_id} printed")
        raise ServiceFailed(f"{track.label} {track.status}: {why}", printed)
    if track.step:
        found = metrics(client, job_id)
        track.losses = found.get("train_loss", [])
        pace = [value for _, value in found.get("tokens_per_second", [])[-PACE_POINTS:]]
        track.tokens_per_s = sum(pace) / len(pace) if pace else None


def metrics(client: openai.OpenAI, job_id: str) -> Metrics:
    """Return every metric of a job as (step, value)."""
    answer = _get(client, f"{job_id}/metrics").json()
    return {
        series["name"]: [(float(step), float(value)) for step, value in series["points"]]
        for series in answer["data"]
    }


def collect(client: openai.OpenAI, job_id: str, adapters: Path) -> Trained:
    """Download what a job left, and unpack it; nothing may land outside its folder."""
    adapters.mkdir(exist_ok=True)
    archive, folder = adapters / f"{job_id}.tar", adapters / job_id
    archive.write_bytes(_get(client, f"{job_id}/adapter").content)
    unpack(archive, folder)
    training: Any = client.fine_tuning.jobs.retrieve(job_id).to_dict()["training"]
    return Trained(job_id, metrics(client, job_id), training["max_length"], archive, folder)


def _get(client: openai.OpenAI, path: str) -> httpx.Response:
    """Ask for one of Basin's own answers about a job."""
    return client.get(f"/fine_tuning/jobs/{path}", cast_to=httpx.Response)


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
