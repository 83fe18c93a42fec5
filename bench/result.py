"""One line of the benchmark table: what we reach, what others reach, and the target.

Every bench ends with `report(lines, json_file)`: it prints the table and, with `--json FILE`,
leaves its lines for `python -m bench`, one JSON object a line.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

HEAD = ("what", "ours", "theirs", "unit", "ratio", "target", "met")
LEFT = {"what", "unit", "target"}
MET = {True: "yes", False: "no", None: ""}
COLOURS = {True: "green", False: "red", None: ""}

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Leave the lines of the table in this file.")
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """The median of some rounds, and their quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
        return cls(median=median, low=low, high=high, rounds=len(values))

    def __str__(self) -> str:
        if self.rounds == 1:
            return f"{number(self.median)}×"
        return f"{number(self.median)}× ({number(self.low)}–{number(self.high)})"


class Target(_Frozen):
    """A bound on our number, or on its ratio to theirs."""

    sign: Literal["≥", "≤"]
    bound: float
    of: Literal["ours", "ratio"] = "ours"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.sign == "≥" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {number(self.bound)}{'×' if self.of == 'ratio' else ''}"


class Line(_Frozen):
    """What was measured; `theirs` is of `against`, and `ratio` is ours / theirs of each round."""

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    against: str | None = None
    ratio: Spread | None = None
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one.

        Raises:
            ValueError: the target bounds a ratio, and there is none.
        """
        if self.target is None:
            return None
        if self.target.of == "ours":
            return self.target.is_met(self.ours)
        if self.ratio is None:
            raise ValueError(f"{self.what}: the target bounds a ratio, and nothing was compared.")
        return self.target.is_met(self.ratio.median)

    def cells(self) -> tuple[str, ...]:
        """Return what stands under HEAD."""
        return (
            f"{self.what}, against {self.against}" if self.against else self.what,
            number(self.ours),
            "" if self.theirs is None else number(self.theirs),
            self.unit,
            str(self.ratio or ""),
            str(self.target or ""),
            MET[self.met],
        )


def alone(what: str, unit: str, ours: Sequence[float], *, target: Target | None = None) -> Line:
    """Return a line of the median of some rounds, compared with nothing."""
    return Line(what=what, unit=unit, ours=Spread.of(ours).median, target=target)


def compared(
    what: str,
    unit: str,
    *,
    ours: Sequence[float],
    theirs: Sequence[float],
    against: str,
    target: Target | None = None,
) -> Line:
    """Return a line of rounds that were taken in turn: the ratio is taken within each round.

    Raises:
        ValueError: one has more rounds than the other.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Line(
        what=what,
        unit=unit,
        ours=Spread.of(ours).median,
        theirs=Spread.of(theirs).median,
        against=against,
        ratio=Spread.of(ratios),
        target=target,
    )


def report(lines: Sequence[Line], json_file: Path | None = None, *, title: str = "") -> None:
    """Print the table, and leave its lines where somebody wants them."""
    Console().print(table(lines, title=title))
    if json_file is not None:
        write(json_file, lines)


def write(file: Path, lines: Iterable[Line]) -> None:
    """Write one JSON object a line."""
    file.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))


def read(file: Path) -> list[Line]:
    """Return the lines that were written."""
    return [Line.model_validate_json(line) for line in file.read_text().splitlines()]


def table(lines: Iterable[Line], *, title: str = "") -> Table:
    """Return the lines for a terminal."""
    shown = Table(title=title or None)
    for name in HEAD:
        shown.add_column(name, justify="left" if name in LEFT else "right")
    for line in lines:
        *cells, met = line.cells()
        shown.add_row(*map(Text, cells), Text(met, COLOURS[line.met]))
    return shown


def markdown(lines: Iterable[Line]) -> str:
    """Return the lines as a table in Markdown."""
    rule = ["---" if name in LEFT else "--:" for name in HEAD]
    rows = [markdown_row(HEAD), markdown_row(rule), *(markdown_row(line.cells()) for line in lines)]
    return "\n".join(rows) + "\n"


def markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Return three digits that say something, and the whole of what is larger."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
