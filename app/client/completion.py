"""What the shell offers after Tab: ids and names that the server knows."""

from contextlib import closing

import typer

from app.client.errors import ClientError
from app.client.session import session
from app.console import DEFAULT_DATA

FEW = 50
PATIENCE_S = 2.0


def jobs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the newest jobs, with what they are."""
    found = _asked(context, "fine_tuning/jobs", limit=FEW)
    return [
        (job["id"], f"{job['status']} {job['model']}")
        for job in found
        if job["id"].startswith(incomplete)
    ]


def files(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the newest files, with their names."""
    found = _asked(context, "files", limit=FEW)
    return [(file["id"], file["filename"]) for file in found if file["id"].startswith(incomplete)]


def models(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the models, with what they do."""
    found = _asked(context, "models")
    return [(model["id"], model["task"]) for model in found if model["id"].startswith(incomplete)]


def environments(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return what agents can learn in, with what each is."""
    found = _asked(context, "environments")
    return [(each["id"], each["summary"]) for each in found if each["id"].startswith(incomplete)]


def _asked(context: typer.Context, path: str, **params: int) -> list[dict[str, str]]:
    """Ask as the command would; without a server there is nothing to offer, and nothing to say."""
    given = context.params
    asking = session(given.get("url"), given.get("api_key"), given.get("data") or DEFAULT_DATA)
    with closing(asking.server) as server:
        server.http.timeout = PATIENCE_S
        try:
            found: list[dict[str, str]] = server.get(path, **params)["data"]
        except ClientError:
            return []
    return found
