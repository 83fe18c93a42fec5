"""`basin submit` and `basin estimate`: one job from options, sent or only asked about."""

import uuid
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.client import words
from app.client.follow import follow as follow_job
from app.client.options import FILES, JOB, Body, body_of
from app.client.session import Session, takes, talks
from app.client.uploads import uploaded

job_body = body_of(JOB)


@talks
@takes(body=job_body)
def submit(
    *,
    session: Session,
    body: Body,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show it live to its end, as `basin jobs follow`.")
    ] = False,
) -> None:
    """Submit a job: basin submit -m my-llama -f train.jsonl --validation valid.jsonl --follow

    Files of this machine are uploaded first. What is left out, the server fills in and shows.
    """
    body = with_files(session, body)
    # The same key each time: an answer that got lost does not make a second job.
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    job = session.server.post("fine_tuning/jobs", body, headers=headers)
    session.show(job, Text(job["id"]))
    if follow:
        raise typer.Exit(follow_job(session, job["id"]))


@talks
@takes(body=job_body)
def estimate(*, session: Session, body: Body) -> None:
    """Say what a job would take, with the options of `basin submit`; nothing is queued.

    Steps, tokens, memory and time as a range, the wait, and on what that rests. Files of this
    machine are uploaded, as the server reads them. Exits 1 when it fits on no worker.
    """
    body = with_files(session, body)
    found = session.server.post("fine_tuning/jobs", body, params={"dry_run": "true"})
    session.show(found, lambda: _estimated(found))
    if not found["fits"]["verdict"]:
        raise typer.Exit(1)


def with_files(session: Session, body: Body) -> Body:
    """Return the body with ids for files; those of this machine are uploaded."""
    ids = {
        field.path: uploaded(session, body[field.path], option=field.option.split()[0])
        for field in FILES
        if body.get(field.path)
    }
    return body | ids


def _estimated(found: dict[str, Any]) -> RenderableType:
    tokens, queue, fits = found["tokens"], found["queue"], found["fits"]
    rows = [
        ("steps", found["steps"]),
        ("tokens", f"{tokens['total']:,}, {tokens['per_epoch']:,} an epoch"),
        ("memory", _range(found["memory"], "{}_bytes", words.size)),
        ("time", _range(found["time"], "{}_s", words.clock)),
        ("wait", _range(queue, "wait_{}_s", words.clock)),
        ("why it waits", queue["reason"]),
        ("fits", Text(fits["words"], style="green" if fits["verdict"] else "red")),
        ("this rests on", found["basis"]["words"]),
    ]
    warnings = [Text(each, style="yellow") for each in found["warnings"]]
    return Group(words.pairs(rows), *warnings)


def _range(group: dict[str, Any] | None, name: str, said: Callable[[float], str]) -> str | None:
    """Return what is expected, and between what; nothing where nobody knows."""
    if group is None or group[name.format("expected")] is None:
        return None
    low, expected, high = (said(group[name.format(part)]) for part in ("low", "expected", "high"))
    return f"{expected} ({low} to {high})"
