"""Sends files of this machine to the service, large ones in parts."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.client.errors import ClientError, Unreachable
from app.client.session import Session

MIB = 1 << 20
PART_BYTES = 64 * MIB
PART_TRIES = 4
JSON_LINES = "text/jsonl"


def transfer(session: Session) -> Progress:
    """Return a bar for bytes that travel, on stderr; a log has none."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=session.errors,
        transient=True,
        disable=not session.errors.is_terminal,
    )


def uploaded(session: Session, text: str, *, option: str) -> str:
    """Return the id of a file: as it was said, or of the path that was uploaded now."""
    path = Path(text)
    if not path.is_file():
        if text.startswith("file-"):
            return text
        raise typer.BadParameter(f"{text} is no file here, and no id.", param_hint=option)
    file = upload(session, path)
    session.say(f"{path.name} is {file['id']} now")
    return str(file["id"])


def upload(
    session: Session,
    path: Path,
    *,
    purpose: str = "fine-tune",
    lifetime_s: int | None = None,
    part_bytes: int = PART_BYTES,
) -> Any:
    """Send a file; return it as the service has it."""
    with transfer(session) as progress:
        if path.stat().st_size <= part_bytes:
            return _whole(session, path, progress, purpose=purpose, lifetime_s=lifetime_s)
        return _in_parts(
            session, path, progress, purpose=purpose, lifetime_s=lifetime_s, part_bytes=part_bytes
        )


def _whole(
    session: Session, path: Path, progress: Progress, *, purpose: str, lifetime_s: int | None
) -> Any:
    fields: dict[str, Any] = {"purpose": purpose}
    if lifetime_s is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(lifetime_s)}
    with progress.open(path, "rb", description=path.name) as data:
        sent = {"file": (path.name, data, JSON_LINES)}
        return session.server.send("POST", "files", data=fields, files=sent).json()


def _in_parts(
    session: Session,
    path: Path,
    progress: Progress,
    *,
    purpose: str,
    lifetime_s: int | None,
    part_bytes: int,
) -> Any:
    """Send part after part; what is not completed is dropped."""
    size = path.stat().st_size
    body = {"filename": path.name, "bytes": size, "mime_type": JSON_LINES, "purpose": purpose}
    if lifetime_s is not None:
        body["expires_after"] = {"anchor": "created_at", "seconds": lifetime_s}
    at = f"uploads/{session.server.post('uploads', body)['id']}"
    try:
        task, digest, parts = progress.add_task(path.name, total=size), hashlib.md5(), []  # noqa: S324  what the API compares with
        with path.open("rb") as data:
            while part := data.read(part_bytes):
                parts.append(_part(session, at, part))
                digest.update(part)
                progress.advance(task, len(part))
        made = session.server.post(
            f"{at}/complete",
            {"part_ids": parts, "md5": digest.hexdigest()},
        )
    except BaseException:
        with suppress(ClientError):  # the hour it may take ends it too
            session.server.post(f"{at}/cancel")
        raise
    return made["file"]


def _part(session: Session, at: str, data: bytes) -> str:
    """Send one part, again where the way was cut."""
    for _ in range(PART_TRIES - 1):
        try:
            return _part_once(session, at, data)
        except Unreachable as error:
            session.say(f"{error.message} The part is sent again.")
    return _part_once(session, at, data)


def _part_once(session: Session, at: str, data: bytes) -> str:
    answer = session.server.send("POST", f"{at}/parts", files={"data": data})
    return str(answer.json()["id"])
