"""`basin jobs`: look at jobs, follow them, and stop or hold them."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from app.client import completion, rollouts, words
from app.client.follow import follow
from app.client.options import metadata_of
from app.client.session import Session, talks
from app.client.watch import OVER
from app.jobs.states import JobStatus

app = typer.Typer(help="Look at jobs, follow them, stop or hold them.", no_args_is_help=True)
LOG_EVERY_S = 1.0

JobId = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Its id, ftjob-…", autocompletion=completion.jobs),
]
Limit = Annotated[int, typer.Option(help="How many at most, newest first.", min=1)]


@app.command("list")
@talks
def list_jobs(
    *,
    session: Session,
    status: Annotated[
        JobStatus | None, typer.Option(help="Only those in this state.", case_sensitive=False)
    ] = None,
    limit: Limit = 20,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Only those with KEY=VALUE; repeatable.")
    ] = None,
) -> None:
    """List your jobs, newest first."""
    wanted = {f"metadata[{key}]": value for key, value in metadata_of(metadata or []).items()}
    pages = session.server.pages("fine_tuning/jobs", limit=None if status else limit, **wanted)
    jobs = list(islice((job for job in pages if status in (None, job["status"])), limit))
    session.show(
        {"object": "list", "data": jobs},
        lambda: words.table(
            ("job", "status", "steps", "model", "method", "submitted"), map(_row, jobs)
        ),
    )


@app.command("show")
@talks
def show_job(*, session: Session, job: JobId) -> None:
    """Show a job: its state, its settings with every default filled in, and its attempts."""
    found = session.server.get(f"fine_tuning/jobs/{job}")
    attempts = session.server.get(f"fine_tuning/jobs/{job}/attempts")["data"]
    session.show(found | {"attempts": attempts}, lambda: _described(found, attempts))


@app.command("follow")
@talks
def follow_job(*, session: Session, job: JobId) -> None:
    """Show a job live until it is over: place in the queue, progress, losses, events.

    Exits 0 when it succeeded, 1 when it failed, 5 when it was cancelled. Ctrl-C stops the
    watching, not the job. With --json every update is a line: {"event": …, "data": …}.
    """
    raise typer.Exit(follow(session, job))


@app.command("cancel")
@talks
def cancel_job(*, session: Session, job: JobId) -> None:
    """Stop a job: now if it waits, within seconds if it runs."""
    _change(session, job, "cancel")


@app.command("pause")
@talks
def pause_job(*, session: Session, job: JobId) -> None:
    """Hold a job after its current step and a checkpoint; its device is free then."""
    _change(session, job, "pause")


@app.command("resume")
@talks
def resume_job(*, session: Session, job: JobId) -> None:
    """Let a paused job go on from its last checkpoint, once a worker is free."""
    _change(session, job, "resume")


@app.command("logs")
@talks
def show_logs(
    *,
    session: Session,
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over.")
    ] = False,
) -> None:
    """Print what the run printed. With --json each piece is a line: {"text": …}."""
    for piece in _log(session, job, follow=follow):
        if session.as_json:
            session.line({"text": piece})
        else:
            session.words.print(
                piece, end="", markup=False, highlight=False, emoji=False, soft_wrap=True
            )


@app.command("events")
@talks
def list_events(*, session: Session, job: JobId, limit: Limit = 50) -> None:
    """List what happened to a job, oldest first."""
    newest = session.server.pages(f"fine_tuning/jobs/{job}/events", limit=limit)
    events = list(newest)[::-1]
    rows = ((words.when(event["created_at"]), event["level"], event["message"]) for event in events)
    session.show({"object": "list", "data": events}, words.table(("when", "level", "what"), rows))


@app.command("metrics")
@talks
def show_metrics(
    *,
    session: Session,
    job: JobId,
    name: Annotated[
        list[str] | None, typer.Option(help="Such as train_loss; all when left out; repeatable.")
    ] = None,
) -> None:
    """Show how the metrics of a job went; with --json every value of every step."""
    found = session.server.get(f"fine_tuning/jobs/{job}/metrics", name=name)
    session.show(
        found,
        lambda: words.table(
            ("metric", "steps", "first", "lowest", "last", "course"),
            map(_course, found["data"]),
        ),
    )


@app.command("rollouts")
@talks
def show_rollouts(
    *,
    session: Session,
    job: JobId,
    step: Annotated[
        int | None, typer.Option(help="Of this step; the newest when left out.", min=0)
    ] = None,
    index: Annotated[
        int | None, typer.Option("--open", help="Read this one of the group, by its number.", min=0)
    ] = None,
) -> None:
    """Show what a run by reinforcement sampled for a step: one group, or one of it turn by turn."""
    path = f"fine_tuning/jobs/{job}/rollouts"
    known = session.server.get(path, limit=0)["steps"]
    if step is None:
        step = known[0]["step"] if known else 0
    group = list(session.server.pages(path, limit=None, step=step))
    shown = [each for each in group if index in (None, each["index"])]
    session.show(
        {"object": "list", "data": shown, "steps": known},
        lambda: rollouts.described(shown, known, step=step, opened=index is not None),
    )


def _change(session: Session, job: str, verb: str) -> None:
    """Ask for another state, and say which one the job has."""
    changed = session.server.post(f"fine_tuning/jobs/{job}/{verb}")
    session.show(changed, lambda: words.status(f"{changed['id']} {changed['status']}"))


def _row(job: dict[str, Any]) -> tuple[Any, ...]:
    progress = job["progress"]
    return (
        job["id"],
        words.status(job["status"]),
        f"{progress['step']}/{progress['total_steps']}",
        job["model"],
        f"{job['peft']['method']}+{job['perturbation']['type']}",
        words.when(job["created_at"]),
    )


def _described(job: dict[str, Any], attempts: list[dict[str, Any]]) -> RenderableType:
    queue, error = job["queue"], job["error"]
    facts = [
        ("job", job["id"]),
        ("status", words.status(job["status"])),
        ("why", error and f"{error['message']} ({error['code']})"),
        ("queue", queue and f"number {queue['position']}: {queue['reason']}"),
        ("progress", f"{job['progress']['step']}/{job['progress']['total_steps']} steps"),
        ("model", job["model"]),
        ("fine-tuned model", job["fine_tuned_model"]),
        ("files", ", ".join(filter(None, (job["training_file"], job["validation_file"])))),
        ("submitted", words.when(job["created_at"])),
        ("finished", words.when(job["finished_at"])),
        ("metadata", job["metadata"] and words.settings(job["metadata"])),
    ]
    groups = ("hyperparameters", "peft", "perturbation", "training", "resources", "budget")
    facts += [(group, words.settings(job[group])) for group in groups]
    tries = words.table(
        ("attempt", "worker", "started", "steps", "outcome"),
        (
            (
                each["number"],
                each["worker"],
                words.when(each["started_at"]),
                f"{each['first_step'] or '–'} to {each['last_step'] or '–'}",
                each["outcome"] or "running",
            )
            for each in attempts
        ),
    )
    shown = words.pairs([(name, value) for name, value in facts if value])
    return Group(shown, tries) if attempts else shown


def _course(series: dict[str, Any]) -> tuple[Any, ...]:
    points = [(step, float(value)) for step, value in series["points"]]
    values = [value for _, value in points]
    return (
        series["name"],
        len(points),
        words.number(values[0]),
        words.number(min(values)),
        words.number(values[-1]),
        words.sparkline(values, 24),
    )


def _log(session: Session, job: str, *, follow: bool) -> Iterator[str]:
    """Yield what a run printed: all there is, and what comes until the job is over."""
    path, told = f"fine_tuning/jobs/{job}", 0
    while True:
        over = not follow or session.server.get(path)["status"] in OVER
        text = session.server.send("GET", f"{path}/logs").text
        if text[told:]:
            yield text[told:]
        told = len(text)
        if over:
            return
        time.sleep(LOG_EVERY_S)
