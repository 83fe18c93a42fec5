"""The first key of an embedded server, kept in a file that only its owner reads."""

import os
from pathlib import Path

from app.db import connected
from app.keys import service

ORGANIZATION = "default"


async def first_key(database_url: str, pepper: str, key_file: Path) -> str:
    """Return the key in `key_file`; make both when the file is not there."""
    found = _read(key_file)
    if found:
        return found
    async with connected(database_url) as db, db.transaction() as tx:
        key = await service.create(
            tx, organization=ORGANIZATION, name="first", pepper=pepper, scope=service.Scope.ADMIN
        )
    _write(key_file, key)
    return key


def _read(key_file: Path) -> str | None:
    return key_file.read_text().strip() if key_file.exists() else None


def _write(key_file: Path, key: str) -> None:
    descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
