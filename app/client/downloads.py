"""Brings bytes of the service to this machine: what was cut short goes on, and is proven whole."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.client.connection import Server
from app.client.errors import Corrupt, Refused, Unreachable
from app.client.session import Session
from app.client.uploads import transfer

READ_BYTES = 1 << 20
TRIES = 5  # in a row without a byte
PAUSE_S = 1.0


def save(session: Session, path: str, target: Path) -> str:
    """Write what is at a path into a file, and return its sha256.

    What is incomplete stays beside the target, under a name with the sha256, for the next time.

    Raises:
        Corrupt: the bytes are not those that the service has.
    """
    head = _head(session.server, path)
    sha256, size = head.headers["etag"].strip('"'), int(head.headers["content-length"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{sha256[:16]}.part")
    with transfer(session) as progress:
        task = progress.add_task(target.name, total=size)
        tries = 0
        while (have := _size(partial)) < size:
            progress.update(task, completed=have)
            try:
                for count in _append(session.server, path, partial, have, sha256):
                    progress.advance(task, count)
            except Unreachable:
                tries = 1 if _size(partial) > have else tries + 1
                if tries >= TRIES:
                    raise
                time.sleep(PAUSE_S)
    _prove(partial, sha256, what=path)
    partial.replace(target)
    return sha256


def _head(server: Server, path: str) -> httpx.Response:
    try:
        return server.send("HEAD", path)
    except Refused:
        with server.stream(path, {}):  # the answer to a HEAD has no body, and so no words
            raise


def _append(server: Server, path: str, partial: Path, have: int, sha256: str) -> Iterator[int]:
    """Go on after `have` bytes; yield how many came, each time some did."""
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {}
    with server.stream(path, {"Accept-Encoding": "identity"} | headers) as answer:
        if answer.headers["etag"].strip('"') != sha256:
            raise Corrupt(f"{path} has changed while it was downloaded; start again.")
        goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
        with partial.open("ab" if goes_on else "wb") as file:
            for data in answer.iter_bytes(READ_BYTES):
                file.write(data)
                file.flush()
                yield len(data)


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _prove(partial: Path, sha256: str, *, what: str) -> None:
    """Compare the whole with its sha256; what differs is of no use any more."""
    if not partial.exists():
        partial.touch()  # nothing at all was to come
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        partial.unlink()
        raise Corrupt(
            f"{what} has the sha256 {found} here, and {sha256} on the server; it was not kept.",
            hint="Try again; if it stays, `basin fsck --deep` on the server looks at its side.",
        )
