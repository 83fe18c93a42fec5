"""Shows a job while it waits and runs: a bar and a curve on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.client import words
from app.client.errors import OUTCOMES, Code
from app.client.session import Session
from app.client.watch import Update, watch

FRAMES_PER_S = 4
PLAIN_EVERY_S = 10.0
BAR_WIDTH, CURVE_WIDTH = 28, 60


def follow(session: Session, job_id: str) -> Code:
    """Show a job to its end, and return what to exit with."""
    updates = watch(session.server, job_id)
    try:
        status = _lines(session, updates) if session.as_json else _show(session.words, updates)
    except KeyboardInterrupt:
        session.say(f"The job goes on; `basin jobs follow {job_id}` shows it again.")
        raise
    return OUTCOMES[status]


def _lines(session: Session, updates: Iterable[Update]) -> str:
    status = ""
    for update in updates:
        session.line({"event": update.kind, "data": update.data})
        status = update.data["status"] if update.kind == "done" else status
    return status


def _show(console: Console, updates: Iterable[Update]) -> str:
    view = View()
    live = (
        Live(view, console=console, refresh_per_second=FRAMES_PER_S)
        if console.is_terminal
        else nullcontext()
    )
    with live:
        for update in updates:
            if line := view.take(update):
                console.print(line, soft_wrap=True)
            if not console.is_terminal and (line := view.plain(time.monotonic())):
                console.print(line, soft_wrap=True)
    console.print(view.end(), soft_wrap=True)
    return str(view.job["status"])


class View:
    """What is known of a job, and how it looks."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = {}
        self._losses: dict[int, float] = {}
        self._valid: tuple[int, Any] | None = None
        self._said: tuple[str, float] = ("", 0.0)

    def take(self, update: Update) -> Text | None:
        """Learn what is new; return the line that it is worth by itself."""
        if update.kind == "status":
            self.job = update.data
        elif update.kind == "done":
            self.job |= update.data
        elif update.kind == "metrics":
            self._learn(update.data["step"], update.data["values"])
        elif update.data["type"] == "message":
            return _event_line(update.data)
        return None

    def plain(self, now: float) -> Text | None:
        """Return a line for a log when the status is new, or some time has gone by."""
        line = self._plain_line()
        said, said_at = self._said
        new_status = said.split(" ")[0] != line.split(" ")[0]
        if line == said or not (new_status or now - said_at >= PLAIN_EVERY_S):
            return None
        self._said = line, now
        return Text(line)

    def end(self) -> Text:
        """Return the last line: what came of it, and what to do next."""
        job = self.job
        if job["status"] == "succeeded":
            text = f"{job['id']} succeeded: {job['fine_tuned_model']}\nbasin pull {job['id']}"
        elif job["status"] == "failed":
            error = job.get("error") or {}
            text = f"{job['id']} failed: {error.get('message')} ({error.get('code')})"
        else:
            text = f"{job['id']} was {job['status']}"
        return Text(text, style=words.STYLES.get(job["status"], ""))

    def __rich__(self) -> RenderableType:
        if not self.job:
            return Text("…")
        parts: list[RenderableType] = [self._head()]
        if waits := self._waiting():
            parts.append(Text(waits, style="dim"))
        if self._losses:
            parts.append(self._curve())
        return Group(*parts)

    def _learn(self, step: int, values: dict[str, Any]) -> None:
        """Keep the losses by step: one that is taken again replaces the first try."""
        if "train_loss" in values:
            self._losses[step] = float(values["train_loss"])
        if "valid_loss" in values:
            self._valid = step, values["valid_loss"]

    def _head(self) -> RenderableType:
        progress = self.job["progress"]
        done, total = progress["step"], progress["total_steps"]
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            Text(self.job["id"], style="bold"),
            words.status(self.job["status"]),
            ProgressBar(total=max(total, 1), completed=done, width=BAR_WIDTH),
            Text(f"{done}/{total}"),
            Text(self._left()),
        )
        return grid

    def _left(self) -> str:
        finish = self.job["estimated_finish"]
        return f"{words.clock(finish - time.time())} left" if finish else ""

    def _waiting(self) -> str:
        queue = self.job["queue"]
        if self.job["status"] == "paused":
            return f"paused; `basin jobs resume {self.job['id']}` lets it go on"
        if not queue:
            return ""
        wait = f", about {words.clock(queue['eta_s'])}" if queue["eta_s"] is not None else ""
        return f"number {queue['position']} in the queue{wait}: {queue['reason']}"

    def _curve(self) -> Text:
        losses = [self._losses[step] for step in sorted(self._losses)]
        text = Text("train_loss ", style="dim")
        text.append(words.sparkline(losses, CURVE_WIDTH), style="cyan")
        text.append(f" {words.number(losses[-1])}", style="default")
        text.append(self._valid_words(), style="default")
        return text

    def _valid_words(self) -> str:
        if self._valid is None:
            return ""
        return f"   valid_loss {words.number(self._valid[1])} at step {self._valid[0]}"

    def _plain_line(self) -> str:
        if not self.job:
            return ""
        progress = self.job["progress"]
        loss = self._losses[max(self._losses)] if self._losses else None
        parts = [
            self.job["status"],
            f"step {progress['step']}/{progress['total_steps']}",
            f"train_loss {words.number(loss)}" if loss is not None else "",
            self._valid_words().strip(),
            self._left(),
            self._waiting(),
        ]
        return "  ".join(filter(None, parts))


def _event_line(event: dict[str, Any]) -> Text:
    style = {"warn": "yellow", "error": "red"}.get(event["level"], "")
    at = words.when(event["created_at"])
    return Text(f"{at}  {event['message']}", style=style)
