"""`basin files`: training files, on the server and here."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.client import completion, words
from app.client.downloads import save
from app.client.session import Session, talks
from app.client.uploads import MIB, PART_BYTES, upload
from app.console import AsJson, out
from app.files import local

app = typer.Typer(help="Training files, on the server and here.", no_args_is_help=True)
DAY_S = 86400
SEVERITIES = {"error": "red", "warn": "yellow", "info": ""}

FileId = Annotated[
    str, typer.Argument(metavar="FILE", help="Its id, file-…", autocompletion=completion.files)
]


@app.command("list")
@talks
def list_files(
    *,
    session: Session,
    purpose: Annotated[str | None, typer.Option(help="Only those, such as fine-tune.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most, newest first.", min=1)] = 100,
) -> None:
    """List your files, newest first."""
    files = list(session.server.pages("files", limit=limit, purpose=purpose))
    session.show(
        {"object": "list", "data": files},
        lambda: words.table(
            ("file", "name", "purpose", "rows", "size", "uploaded"), map(_row, files)
        ),
    )


@app.command("upload")
@talks
def upload_file(
    *,
    session: Session,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    expires_days: Annotated[
        float | None, typer.Option(help="Days until it is deleted; 1/24 to 30.", min=0)
    ] = None,
    part_mib: Annotated[
        int, typer.Option(help="Larger files go in parts of so many MiB.", min=1, max=64)
    ] = PART_BYTES // MIB,
) -> None:
    """Upload a file; it is checked line by line while it arrives."""
    file = upload(
        session,
        path,
        purpose=purpose,
        lifetime_s=round(expires_days * DAY_S) if expires_days is not None else None,
        part_bytes=part_mib * MIB,
    )
    session.show(file, Text(file["id"]))


@app.command("show")
@talks
def show_file(*, session: Session, file: FileId) -> None:
    """Describe one file."""
    found = session.server.get(f"files/{file}")
    times = {name: words.when(found[name]) for name in ("created_at", "expires_at")}
    session.show(
        found, words.pairs((found | times | {"bytes": words.size(found["bytes"])}).items())
    )


@app.command("report")
@talks
def report_on_file(
    *,
    session: Session,
    file: FileId,
    model: Annotated[
        str | None,
        typer.Option(help="A base model to measure rows by.", autocompletion=completion.models),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Another file to compare with.", autocompletion=completion.files),
    ] = None,
) -> None:
    """Say what is doubtful in a training file. Exits 1 when a job could not learn from it."""
    found = session.server.get(f"files/{file}/report", model=model, validation_file=validation)
    session.show(found, lambda: _report(found))
    if any(finding["severity"] == "error" for finding in found["findings"]):
        raise typer.Exit(1)


@app.command("download")
@talks
def download_file(
    *,
    session: Session,
    file: FileId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; its own name when left out.")
    ] = None,
) -> None:
    """Download a file; a download that was cut short goes on where it was."""
    found = session.server.get(f"files/{file}")
    target = output or Path(Path(found["filename"]).name or file)
    save(session, f"files/{file}/content", target)
    session.show(found | {"path": str(target)}, Text(str(target)))


@app.command("delete")
@talks
def delete_file(*, session: Session, file: FileId) -> None:
    """Delete a file that no unfinished job reads."""
    receipt = session.server.delete(f"files/{file}")
    session.show(receipt, Text(f"{file} deleted"))


@app.command("check")
def check_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines.")],
    *,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a base model to measure rows by.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a training file as an upload would, and report on it; no server is asked.

    Exits 1 when an upload would be refused, or a job could not learn from the file.
    """
    if model is not None and not (model / "config.json").is_file():
        raise typer.BadParameter(f"{model} holds no config.json.", param_hint="--model")
    if not local.check(file, out, model=model, validation=validation, as_json=as_json):
        raise typer.Exit(1)


def _row(file: dict[str, Any]) -> tuple[Any, ...]:
    return (
        file["id"],
        file["filename"],
        file["purpose"],
        file["rows"],
        words.size(file["bytes"]),
        words.when(file["created_at"]),
    )


def _report(found: dict[str, Any]) -> RenderableType:
    lines = [Text(f"{found['file_id']}: {found['rows']} {found['format'] or ''} rows")]
    if tokens := found["tokens"]:
        spread = ", ".join(f"{key} {tokens[key]}" for key in ("min", "median", "p95", "max"))
        lines.append(Text(f"tokens of a row: {spread}"))
    if not found["findings"]:
        return Group(*lines, Text("nothing is doubtful"))
    rows = (
        (
            Text(finding["severity"], style=SEVERITIES[finding["severity"]]),
            finding["code"],
            finding["count"],
            finding["message"],
        )
        for finding in found["findings"]
    )
    return Group(*lines, words.table(("severity", "code", "rows", "what to do"), rows))
