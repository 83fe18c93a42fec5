"""Cursor pages as OpenAI's clients walk them: `after` names the last id seen."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

Item = TypeVar("Item")


class Listed(BaseModel):
    """What can stand in a list on the wire."""

    id: str


Shown = TypeVar("Shown", bound=Listed)


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some rows, and whether there are more behind them."""

    data: list[Item]
    has_more: bool


class ListOut(BaseModel, Generic[Item]):
    """A page on the wire."""

    object: str
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


def cut(rows: list[Item], limit: int) -> Page[Item]:
    """Make a page of the `limit + 1` rows that were asked of the database."""
    return Page(rows[:limit], has_more=len(rows) > limit)


def list_out(items: list[Shown], *, has_more: bool) -> ListOut[Shown]:
    """Put a page on the wire."""
    return ListOut(
        object="list",
        data=items,
        has_more=has_more,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
    )


def list_json(items: Mapping[str, bytes], *, has_more: bool) -> bytes:
    """Put a page on the wire whose items, by id, are JSON already."""
    ids = list(items)
    first, last = (json.dumps(ids[end]).encode() if ids else b"null" for end in (0, -1))
    return b'{"object":"list","data":[%b],"has_more":%b,"first_id":%b,"last_id":%b}' % (
        b",".join(items.values()),
        b"true" if has_more else b"false",
        first,
        last,
    )
