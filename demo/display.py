"""Loss curves and progress in the terminal; plain lines where there is none."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = ("cyan", "magenta", "yellow")
PLAIN_EVERY_S = 10.0

Curve = Sequence[tuple[int, float]]


@dataclass
class Track:
    """One line of the display."""

    title: str
    step: int = 0
    total: int = 1
    status: str = "waiting"
    curve: list[tuple[int, float]] = field(default_factory=list)


class Board:
    """Shows tracks live on a terminal, and a line now and then elsewhere."""

    def __init__(self, console: Console, tracks: Sequence[Track]) -> None:
        self._console = console
        self._tracks = tracks
        self._live: Live | None = None
        self._printed_at = 0.0

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show until the end of the block."""
        if not self._console.is_terminal:
            yield
            self._print()
            return
        with Live(self._draw(), console=self._console, refresh_per_second=8) as self._live:
            yield
            self._live.update(self._draw())

    def refresh(self) -> None:
        """Show what has changed."""
        if self._live is not None:
            self._live.update(self._draw())
        elif time.monotonic() - self._printed_at > PLAIN_EVERY_S:
            self._print()

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        for track in self._tracks:
            loss = f"loss {track.curve[-1][1]:.3f}" if track.curve else ""
            self._console.print(
                f"  {track.title:<12} {track.status:<10} {track.step}/{track.total} {loss}"
            )

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for track, style in zip(self._tracks, STYLES, strict=False):
            loss = f"loss {track.curve[-1][1]:.3f}" if track.curve else ""
            table.add_row(
                Text(track.title, style=f"bold {style}"),
                ProgressBar(total=track.total, completed=track.step, width=28),
                f"{track.step}/{track.total}",
                Text(sparkline(track.curve, width=30), style=style),
                loss,
                Text(track.status, style="dim"),
            )
        return table


def sparkline(curve: Curve, *, width: int) -> str:
    """Return a curve as one line of blocks, the newest `width` means of it."""
    values = resample(curve, width)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 1) / ((high - low) or 1)
    return "".join(
        BLOCKS[round((value - low) * scale)] if math.isfinite(value) else "!" for value in values
    )


def plot(curves: Mapping[str, Curve], *, title: str, width: int = 64, height: int = 12) -> Panel:
    """Draw curves into one braille picture, each with its own colour."""
    points = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    low, high = min(points), max(points)
    rows: list[Text] = []
    layers = [
        _dots(curve, low=low, high=high, width=width, height=height) for curve in curves.values()
    ]
    for row in range(height):
        value = high - (high - low) * row / (height - 1)
        line = Text(f"{value:7.3f} ┤", style="dim")
        for column in range(width):
            line.append(*_cell([layer[row][column] for layer in layers]))
        rows.append(line)
    legend = Text("         ")
    for name, style in zip(curves, STYLES, strict=False):
        legend.append(f"━ {name}   ", style=style)
    return Panel(Group(*rows, legend), title=title, expand=False)


def resample(curve: Curve, width: int) -> list[float]:
    """Return at most `width` means of equal stretches of a curve."""
    values = [value for _, value in curve]
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)] if count else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def _dots(curve: Curve, *, low: float, high: float, width: int, height: int) -> list[list[int]]:
    """Return braille bits, two columns and four rows of dots a cell."""
    cells = [[0] * width for _ in range(height)]
    values = resample(curve, width * 2)
    bits = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
    for index, value in enumerate(values):
        x = index * (width * 2 - 1) // max(len(values) - 1, 1)
        y = (
            round((high - value) / ((high - low) or 1) * (height * 4 - 1))
            if math.isfinite(value)
            else 0
        )
        cells[y // 4][x // 2] |= bits[x % 2][y % 4]
    return cells


def _cell(layers: Sequence[int]) -> tuple[str, str]:
    """Return one character and its colour; where curves meet, the later one is on top."""
    for dots, style in reversed(list(zip(layers, STYLES, strict=False))):
        if dots:
            return chr(0x2800 + dots), style
    return " ", ""
