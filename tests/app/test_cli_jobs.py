"""`basin jobs` against a real server, and its event stream as the API sends it."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from rich.console import Console

from app.client.errors import Code
from app.client.follow import View
from app.client.watch import Update
from app.settings import ApiSettings
from tests.app.basin import Basin, basin_of, scripted
from tests.app.records import run_now
from tests.conftest import Api
from tests.e2e.jobs import create

POINTS = [(1, "train_loss", 2.0), (2, "train_loss", 1.5), (2, "valid_loss", 1.25)]


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


@pytest.fixture
def job(client: openai.OpenAI, training_file: str) -> str:
    return create(client, training_file, metadata={"for": "the command line"}).id


def ended(settings: ApiSettings, job: str, status: str) -> str:
    """Let a job look as if a worker had brought it to its end."""
    for step, name, value in POINTS:
        run_now(
            settings,
            "INSERT INTO metrics (job_id, name, step, value, attempt, ts, seq)"
            " VALUES (:job, :name, :step, :value, 1, now(), :step)",
            job=job,
            name=name,
            step=step,
            value=value,
        )
    run_now(
        settings,
        "UPDATE jobs SET status = :status, step = 2, metric_seq = 2, error_code = :code,"
        " error_message = 'Too hot.', fine_tuned_model = 'ft:tiny:x::1' WHERE id = :job",
        job=job,
        status=status,
        code="diverged" if status == "failed" else None,
    )
    return job


def test_jobs_are_listed_newest_first_and_by_status_and_metadata(
    basin: Basin, client: openai.OpenAI, training_file: str
):
    first = create(client, training_file, metadata={"n": "1"}).id
    second = create(client, training_file, metadata={"n": "2"}).id
    client.fine_tuning.jobs.cancel(first)

    def ids(*options: str) -> list[str]:
        found = basin.json("jobs", "list", *options)["data"]
        return [each["id"] for each in found]

    assert ids("--limit", "2") == [second, first]
    assert ids("--limit", "1", "--status", "cancelled") == [first]
    assert ids("--metadata", "n=2") == [second]
    assert first in basin("jobs", "list").stdout


def test_a_job_is_shown_with_all_that_was_filled_in(basin: Basin, job: str):
    words = basin("jobs", "show", job).stdout
    found = basin.json("jobs", "show", job)

    assert "rho=0.05" in words and "for=the command line" in words and "queued" in words
    assert found["peft"]["r"] == 8 and found["attempts"] == []


def test_a_job_is_paused_resumed_and_cancelled(basin: Basin, job: str):
    states = [basin.json("jobs", verb, job)["status"] for verb in ("pause", "resume", "cancel")]

    assert states == ["paused", "queued", "cancelled"]


def test_what_the_server_refuses_is_told_in_its_words_with_a_code(basin: Basin, job: str):
    basin("jobs", "cancel", job)

    words = basin("jobs", "resume", job, code=Code.REFUSED)
    document = basin.json("jobs", "resume", job, code=Code.REFUSED)

    assert words.stdout == "" and "cancelled" in words.stderr
    assert document["error"]["code"] == "invalid_job_state"
    assert basin.json("jobs", "show", "ftjob-none", code=Code.REFUSED)["error"]["code"]


def test_events_and_metrics_are_shown(basin: Basin, settings: ApiSettings, job: str):
    ended(settings, job, "succeeded")

    events = basin.json("jobs", "events", job)["data"]
    metrics = basin.json("jobs", "metrics", job, "--name", "train_loss")["data"]
    table = basin("jobs", "metrics", job).stdout

    assert events and events[0]["object"] == "fine_tuning.job.event"
    assert metrics == [{"name": "train_loss", "agg": "raw", "points": [[1, 2.0], [2, 1.5]]}]
    assert "valid_loss" in table and "1.25" in table and "█▁" in table


def test_logs_are_printed_as_they_are(basin: Basin, settings: ApiSettings, job: str):
    text = "[bold]no markup[/bold] :smile:\n"
    insert = "INSERT INTO log_chunks (job_id, attempt, text) VALUES (:job, 1, :text)"
    run_now(settings, insert, job=job, text=text)
    ended(settings, job, "succeeded")

    assert basin("jobs", "logs", job).stdout == text
    assert basin.lines("jobs", "logs", job, "--follow") == [{"text": text}]


@pytest.mark.parametrize(
    ("status", "code"),
    [("succeeded", Code.OK), ("failed", Code.FAILED), ("cancelled", Code.CANCELLED)],
)
def test_following_ends_with_a_code_for_the_outcome(
    status: str, code: Code, basin: Basin, settings: ApiSettings, job: str
):
    ended(settings, job, status)

    words = basin("jobs", "follow", job, code=code).stdout
    updates = basin.lines("jobs", "follow", job, code=code)

    assert f"{job} {'was ' if status == 'cancelled' else ''}{status}" in words
    assert ("Too hot. (diverged)" in words) == (status == "failed")
    assert updates[0]["event"] == "status" and updates[-1]["data"]["status"] == status
    steps = [each["data"]["step"] for each in updates if each["event"] == "metrics"]
    assert steps == [1, 2]


def message(event: str, data: Any, at: int) -> bytes:
    return f"id: {at}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()


def step(number: int, loss: Any, at: int) -> bytes:
    data = {"step": number, "attempt": 1, "values": {"train_loss": loss, "valid_loss": loss}}
    return message("metrics", data, at)


RUNNING = {
    "id": "ftjob-1",
    "status": "running",
    "attempt": 1,
    "progress": {"step": 1, "total_steps": 3},
    "estimated_finish": None,
    "queue": None,
    "fine_tuned_model": "ft:x",
}
DONE = RUNNING | {"status": "succeeded", "progress": {"step": 3, "total_steps": 3}}


@contextmanager
def streaming(*connections: bytes) -> Iterator[tuple[Basin, Any]]:
    path = "/v1/fine_tuning/jobs/ftjob-1"
    with scripted({path: [RUNNING], f"{path}/stream": list(connections)}) as (basin, script):
        yield basin, script


def test_a_stream_that_breaks_goes_on_after_the_last_message():
    first = b": keep-alive\n\n" + message("status", RUNNING, 1) + step(1, 2.0, 2)
    second = step(2, "NaN", 3) + step(3, 1.0, 4) + message("status", DONE, 5)
    over = message("done", {"status": "succeeded"}, 6)

    with streaming(first, second, over) as (basin, script):
        updates = basin.lines("jobs", "follow", "ftjob-1")

    steps = [each["data"]["step"] for each in updates if each["event"] == "metrics"]
    streams = [headers for _, path, headers, _ in script.asked if path.endswith("/stream")]
    assert steps == [1, 2, 3] and updates[-1]["event"] == "done"
    assert [each.get("Last-Event-ID") for each in streams] == [None, "2", "5"]


def test_on_a_terminal_a_bar_a_curve_and_the_place_in_the_queue_are_drawn():
    console = Console(record=True, width=140, file=io.StringIO(), force_terminal=True)
    queue = {"position": 2, "ahead": 1, "eta_s": None, "reason": "all devices are busy"}
    view = View()
    view.take(Update("status", RUNNING | {"queue": queue, "estimated_finish": time.time() + 61}))
    for number in range(1, 4):
        values = {"train_loss": 4.0 - number, "valid_loss": "NaN"}
        view.take(Update("metrics", {"step": number, "attempt": 1, "values": values}))

    console.print(view)

    drawn = console.export_text()
    assert "ftjob-1 running" in drawn and "1/3" in drawn and "1:0" in drawn and "━" in drawn
    assert "number 2 in the queue: all devices are busy" in drawn
    assert "train_loss █▅▁ 1   valid_loss NaN at step 3" in drawn


def test_a_run_that_went_back_replaces_the_steps_it_takes_again():
    view = View()
    view.take(Update("status", RUNNING))
    for attempt, loss in ((1, 3.0), (2, 5.0)):
        data = {"step": 1, "attempt": attempt, "values": {"train_loss": loss}}
        view.take(Update("metrics", data))

    assert "train_loss 5" in str(view.plain(now=0.0))


def test_a_stream_reads_as_plain_lines_where_there_is_no_terminal():
    waiting = RUNNING | {
        "status": "queued",
        "queue": {"position": 2, "ahead": 1, "eta_s": 90, "reason": "all devices are busy"},
    }
    event = {"type": "message", "level": "warn", "message": "Rows cut [3]", "created_at": 1}
    whole = b"".join(
        [
            message("status", waiting, 1),
            message("event", event, 2),
            message("status", RUNNING, 3),
            step(3, 1.0, 4),
            message("status", DONE, 5),
            message("done", {"status": "succeeded"}, 6),
        ]
    )

    with streaming(whole) as (basin, _):
        words = basin("jobs", "follow", "ftjob-1").stdout

    assert "number 2 in the queue, about 1:30: all devices are busy" in words
    assert "Rows cut [3]" in words and "running  step 1/3" in words
    assert "succeeded  step 3/3  train_loss 1  valid_loss 1 at step 3" in words
    assert "ftjob-1 succeeded: ft:x" in words
