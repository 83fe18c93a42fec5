"""`basin environments`: what agents can learn in, and episodes of it."""

from typing import Annotated

import typer

from app.client import words
from app.client.session import Session, talks
from app.console import print_json
from app.environments.installed import installed

app = typer.Typer(help="What agents can learn in.", no_args_is_help=True)


@app.command("list")
@talks
def list_environments(*, session: Session) -> None:
    """List the environments of the server: their arguments, and on how many workers each runs."""
    found = session.server.get("environments")
    rows = (
        (
            each["id"],
            each["summary"],
            " ".join(f"{name}={value}" for name, value in each["defaults"].items()),
            len(each["workers"]),
        )
        for each in found["data"]
    )
    session.show(
        found, lambda: words.table(("environment", "what it is", "arguments", "workers"), rows)
    )


@app.command("episodes")
def write_episodes(
    name: Annotated[str, typer.Argument(metavar="ENVIRONMENT", help="Its name.")],
    *,
    count: Annotated[int, typer.Option(help="How many.", min=1)],
    seed: Annotated[int, typer.Option(help="Of the first; each further one has the next.", min=0)],
) -> None:
    """Print rows of a training file, each an episode; no server is asked.

    basin environments episodes key-door --count 64 --seed 0 > train.jsonl
    """
    if name not in installed():
        raise typer.BadParameter(f"{name} is none of {', '.join(installed())}.", param_hint="NAME")
    for number in range(seed, seed + count):
        print_json({"episode": {"seed": number}})
