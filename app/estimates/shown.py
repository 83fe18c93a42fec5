"""An estimate for a person: a table, the advice, and what to mind."""

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.estimates.verdict import gib

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def estimate(found: dict[str, Any]) -> RenderableType:
    """Return what an answer to a dry run says, in words."""
    tokens, queue, fits = found["tokens"], found["queue"], found["fits"]
    about = " (estimated)" if tokens["estimated"] else ""
    table = Table(show_header=False)
    rows: list[tuple[str, str | Text]] = [
        ("steps", f"{found['steps']:,}"),
        ("tokens", f"{tokens['total']:,}, {tokens['per_epoch']:,} an epoch{about}"),
        ("memory, each device", _range(found["memory"], "{}_bytes", gib)),
        ("time", _range(found["time"], "{}_s", duration)),
        ("wait", f"{_range(queue, 'wait_{}_s', duration)}; {queue['reason']}"),
        ("basis", found["basis"]["words"]),
        ("fits", Text(fits["words"], style="green" if fits["verdict"] else "red")),
    ]
    for name, value in rows:
        table.add_row(name, Text(value) if isinstance(value, str) else value)
    parts: list[RenderableType] = [table]
    if fits["advice"]:
        parts.append(_advice(fits["advice"]))
    parts += [Text(warning, style="yellow") for warning in found["warnings"]]
    return Group(*parts)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < HOUR_S:
        return f"{seconds // MINUTE_S:.0f} min {seconds % MINUTE_S:.0f} s"
    if seconds < DAY_S:
        return f"{seconds // HOUR_S:.0f} h {seconds % HOUR_S // MINUTE_S:.0f} min"
    return f"{seconds // DAY_S:.0f} d {seconds % DAY_S // HOUR_S:.0f} h"


def _range(group: dict[str, Any] | None, name: str, said: Callable[[float], str]) -> str:
    if group is None or group[name.format("expected")] is None:
        return "not known"
    low, expected, high = (said(group[name.format(each)]) for each in ("low", "expected", "high"))
    return f"{expected} ({low} to {high})"


def _advice(advised: list[dict[str, Any]]) -> Table:
    table = Table("what would help", "memory, each device", "fits")
    for each in advised:
        change = ", ".join(f"{name} = {value}" for name, value in each["change"].items())
        table.add_row(Text(change), gib(each["expected_bytes"]), "yes" if each["fits"] else "no")
    return table
