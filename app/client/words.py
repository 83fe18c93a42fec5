"""How numbers and times read in tables and on lines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "running": "cyan",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table of plain values; what is None is a dash."""
    made = Table(*columns)
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def pairs(rows: Iterable[tuple[str, Any]]) -> Table:
    """Return names beside their values, without a frame."""
    made = Table.grid(padding=(0, 2))
    for name, value in rows:
        made.add_row(Text(name, style="dim"), _cell(value))
    return made


def settings(group: Mapping[str, Any]) -> str:
    """Return the fields of a group that say something."""
    return "  ".join(f"{name}={value}" for name, value in group.items() if value is not None)


def status(text: str) -> Text:
    """Return a job's status in its colour."""
    return Text(text, style=STYLES.get(text, ""))


def when(at: int | None) -> str | None:
    """Return a unix time in the reader's zone."""
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}" if at else None


def clock(seconds: float) -> str:
    """Return a span, such as 2:05 or 1:02:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Return bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def number(value: Any) -> str:
    """Return a metric; what is not finite is a word."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values in a line of blocks, each the mean of its share; what is not finite is a gap."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [place * len(values) // count for place in range(count + 1)]
    means = [_mean(values[a:b]) for a, b in pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(mean, low=low, high=high) for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _block(value: float, *, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[round(share * (len(BLOCKS) - 1))]


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    return Text("–" if value is None else str(value))
