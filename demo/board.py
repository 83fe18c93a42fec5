"""Shows what runs: bars and a growing curve on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.plot import Curve, Point, plot, smooth

PLAIN_EVERY_S = 10.0
WAITING = "waiting"
FRAMES_PER_S = 4
BAR_WIDTH = 18
PLOT_WIDTH, PLOT_HEIGHT = 68, 9


@dataclass
class Track:
    """One line of the board, and one curve below."""

    label: str
    style: str
    status: str = WAITING
    step: int = 0
    total: int = 0
    done: float = 0.0  # from 0 to 1
    losses: Sequence[Point] = field(default_factory=list)
    tokens_per_s: float | None = None
    remaining_s: float | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Return how far it is, the loss, the pace and the time left, as far as they are known."""
        loss = f"loss {smooth(self.losses)[-1][1]:.3f}" if self.losses else ""
        pace = f"{self.tokens_per_s:,.0f} tokens/s" if self.tokens_per_s else ""
        left = f"{clock(self.remaining_s)} left" if self.remaining_s is not None else ""
        return f"{self.step}/{self.total or '?'}", loss, pace, left


class Board:
    """Tracks on one console; whoever changes a track calls `refresh`."""

    def __init__(self, console: Console, tracks: Sequence[Track], *, curves: bool = True) -> None:
        self._console = console
        self._tracks = tracks
        self._curves = curves
        self._live: Live | None = None
        self._said: dict[str, tuple[str, str, float]] = {}

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show until the end of the block; then the lines stay, without the curve."""
        if not self._console.is_terminal:
            yield
            self._say(every_s=0)
            return
        with Live(self._drawn(), console=self._console, refresh_per_second=FRAMES_PER_S) as live:
            self._live = live
            try:
                yield
            finally:
                live.update(self._table())

    def refresh(self) -> None:
        """Show what has changed."""
        if self._live is not None:
            self._live.update(self._drawn())
        else:
            self._say(every_s=PLAIN_EVERY_S)

    def _say(self, *, every_s: float) -> None:
        """Print each track whose status is new, or that has moved on and was not shown lately."""
        now = time.monotonic()
        for track in self._tracks:
            if track.status == WAITING:
                continue
            line = "  ".join([f"{track.label:<10} {track.status:<9}", *filter(None, track.cells())])
            status, before, said_at = self._said.get(track.label, ("", "", 0.0))
            if track.status != status or (line != before and now - said_at >= every_s):
                self._console.print(f"  {line}", soft_wrap=True)
                self._said[track.label] = track.status, line, now

    def _drawn(self) -> RenderableType:
        if not self._curves or not any(track.losses for track in self._tracks):
            return self._table()
        curves = [
            Curve(track.label, track.style, smooth(track.losses), dashed=bool(number))
            for number, track in enumerate(self._tracks)
        ]
        right = max(track.total for track in self._tracks)
        width = min(PLOT_WIDTH, self._console.width - 10)
        return Group(
            self._table(), plot(curves, width=width, height=PLOT_HEIGHT, right=right or None)
        )

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for track in self._tracks:
            table.add_row(
                Text(track.label, style=f"bold {track.style}"),
                Text(track.status, style="dim"),
                ProgressBar(total=1.0, completed=track.done, width=BAR_WIDTH),
                *(Text(cell, no_wrap=True) for cell in track.cells()),
            )
        return table


def clock(seconds: float) -> str:
    """Return minutes and seconds, such as 2:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02}"
