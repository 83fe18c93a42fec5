"""What the commands share: the terminal, and which server they speak to."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app import up
from app.embedded import ServiceError, find_services
from app.errors import ApiError
from app.settings import Settings, inherited_environment, mistakes

out = Console()

DEFAULT_DATA = Path(".basin")
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON alone on stdout, and words on stderr.")
]
Needed = TypeVar("Needed", bound=Settings)
Data = Annotated[Path, typer.Option(help="Folder of a running `basin up`, unless BASIN_… is set.")]


def settings_of(data: Path, kind: type[Needed]) -> Needed:
    """Return the environment's settings; without any, those of the server that `basin up` runs."""
    try:
        if "BASIN_DATABASE_URL" in inherited_environment():
            return kind()
        services = find_services(data)
        given: dict[str, Any] = {
            "database_url": services.database_url,
            "redis_url": services.redis_url,
            "key_pepper": (data / up.PEPPER).read_text(),
        }
        return kind(**given)
    except ServiceError as error:
        print(error, file=sys.stderr)
    except ValidationError as error:
        print(*mistakes(error), sep="\n", file=sys.stderr)
    raise typer.Exit(1)


def print_json(document: object) -> None:
    """Print the one result of a command for a program."""
    print(json.dumps(document, ensure_ascii=False, default=str), flush=True)


def say_rows(columns: Sequence[str], rows: Iterable[Sequence[str]], *, as_json: bool) -> None:
    """Print rows as a table, or as a list of objects."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def say_secret(name: str, secret: str, *, as_json: bool) -> None:
    """Print a secret that is shown this once."""
    if as_json:
        print_json({name: secret})
    else:
        print(secret)


@contextmanager
def refusals() -> Iterator[None]:
    """Tell what was refused as a wrong argument, without a traceback."""
    try:
        yield
    except ApiError as error:
        raise typer.BadParameter(error.message) from error
