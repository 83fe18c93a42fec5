"""What every command that asks the service shares: options, output, and how it ends."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from app.client.connection import Server, is_loopback
from app.client.errors import ClientError, Code, Refused
from app.console import DEFAULT_DATA, AsJson, print_json
from app.up import KEY, URL

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECTION = "Server"

Url = Annotated[
    str | None,
    typer.Option(
        envvar="BASIN_URL",
        help=f"Where the server is; that of `basin up`, or {DEFAULT_URL}.",
        rich_help_panel=CONNECTION,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="BASIN_API_KEY",
        help="Key to it; that of `basin up` for a server on this machine.",
        show_default=False,
        rich_help_panel=CONNECTION,
    ),
]
DataFolder = Annotated[
    Path, typer.Option(help="Folder of a `basin up` here.", rich_help_panel=CONNECTION)
]


@dataclass(frozen=True)
class Session:
    """A command at work: the server it asks, and where its words go."""

    server: Server
    as_json: bool = False
    words: Console = field(default_factory=Console)
    errors: Console = field(default_factory=lambda: Console(stderr=True))

    def show(self, document: Any, shown: RenderableType | Callable[[], RenderableType]) -> None:
        """Print the one result of a command: JSON for scripts, else what a person reads."""
        if self.as_json:
            self.line(document)
        else:
            self.words.print(shown() if callable(shown) else shown, soft_wrap=True)

    def line(self, document: Any) -> None:
        """Print a line of JSON."""
        print_json(document)

    def say(self, text: str) -> None:
        """Tell a person something on the way."""
        console = self.errors if self.as_json else self.words
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Turn what goes wrong into words and an exit code."""
        try:
            yield
        except ClientError as error:
            if self.as_json:
                self.line(error.document())
            self._tell(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # a full disk, a folder of somebody else
            where = f"{error.filename}: " if error.filename else ""
            self._tell(ClientError(f"{where}{error.strerror or error}"))
            raise typer.Exit(Code.FAILED) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(Code.INTERRUPTED) from error
        finally:
            self.server.close()

    def _tell(self, error: ClientError) -> None:
        param = error.error.get("param") if isinstance(error, Refused) else None
        about = f"{param}: " if param and str(param) not in error.message else ""
        self.errors.print(
            f"{about}{error.message}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        if error.hint:
            self.errors.print(error.hint, markup=False, highlight=False, soft_wrap=True)


def session(
    url: Url = None,
    api_key: ApiKey = None,
    data: DataFolder = DEFAULT_DATA,
    as_json: AsJson = False,
) -> Session:
    """Find the server, and the key that goes with it.

    The key of a `basin up` never leaves for another machine.
    """
    where = url or _kept(data / URL) or DEFAULT_URL
    if not api_key and is_loopback(where):
        api_key = _kept(data / KEY)
    return Session(Server(where, api_key), as_json)


def talks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `session` from options that all have, and end it with the right code."""

    @wraps(command)
    def run(*, session: Session, **given: Any) -> None:
        with session.ending():
            command(session=session, **given)

    return takes(session=session)(run)


def takes(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let parameters be made of options: those that their makers have."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        asked = {name: inspect.signature(make).parameters for name, make in makers.items()}

        @wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: make(**{option: given.pop(option) for option in asked[name]})
                for name, make in makers.items()
            }
            command(**made, **given)

        options = [each for name, each in own.parameters.items() if name not in makers]
        options += [each for those in asked.values() for each in those.values()]
        options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
        run.__signature__ = own.replace(parameters=options)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {each.name: each.annotation for each in options}
        return run

    return decorate


def _kept(path: Path) -> str | None:
    """Return what `basin up` wrote there; nothing where there is none of mine."""
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        print(f"{path} cannot be read: {error.strerror}", file=sys.stderr)
        return None
