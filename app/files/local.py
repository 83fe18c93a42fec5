"""Checks a file on this machine as an upload would, and prints the report on it."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.console import print_json
from app.files.report import Survey, report
from app.files.rows import RowChecker
from app.models import catalog
from app.models.catalog import BaseModel
from app.tables import Json

PIECE_BYTES = 1 << 20
STYLES = {"error": "red", "warn": "yellow", "info": "default"}


def check(
    file: Path,
    out: Console,
    *,
    model: Path | None,
    validation: Path | None,
    as_json: bool = False,
) -> bool:
    """Print what is wrong with a file, or the report on it; return whether a job could take it."""
    base = catalog.of_folder(model) if model else None
    beside = None
    for path in filter(None, (validation, file)):
        survey, problems = _survey(path, base=base, validation=beside)
        if problems:
            _say_problems(problems, out, name=path.name, as_json=as_json)
            return False
        beside = survey if path is validation else beside
    found = report(survey)
    if as_json:
        print_json(found)
    else:
        _show(found, out, name=file.name)
    return all(finding["severity"] != "error" for finding in found["findings"])


def _survey(
    file: Path, *, base: BaseModel | None, validation: Survey | None
) -> tuple[Survey, list[str]]:
    """Read a file; return what it is like, and why it is no training data, if it is none."""
    checker = RowChecker()
    for data in _pieces(file):
        checker.feed(data)
    problems = checker.finish()
    survey = Survey(base, rows=checker.rows, validation=validation)
    if not problems:
        for data in _pieces(file):
            survey.feed(data)
        survey.finish()
    return survey, problems


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while data := opened.read(PIECE_BYTES):
            yield data


def _say_problems(problems: list[str], out: Console, *, name: str, as_json: bool) -> None:
    if as_json:
        print_json({"file": name, "problems": problems})
        return
    out.print(f"{name} is not training data:", style="red", markup=False)
    for problem in problems:
        out.print(f"  {problem}", markup=False, highlight=False)


def _show(found: Json, out: Console, *, name: str) -> None:
    out.print(f"{name}: {found['rows']} {found['format']} rows", markup=False)
    if tokens := found["tokens"]:
        about = " (estimated)" if tokens["estimated"] else ""
        spread = ", ".join(f"{key} {tokens[key]}" for key in ("min", "median", "p95", "max"))
        limit = f"; at most {tokens['max_length']} are used" if tokens["max_length"] else ""
        out.print(f"tokens of a row{about}: {spread}{limit}", markup=False)
    if not found["findings"]:
        out.print("nothing is doubtful")
        return
    table = Table("severity", "code", "rows", "lines", "what to do")
    for finding in found["findings"]:
        lines = finding["pairs"] or finding["lines"]
        where = ", ".join(f"{x[0]}={x[1]}" if isinstance(x, tuple) else str(x) for x in lines)
        severity = Text(finding["severity"], style=STYLES[finding["severity"]])
        message = Text(finding["message"])
        table.add_row(severity, finding["code"], str(finding["count"]), where, message)
    out.print(table)
