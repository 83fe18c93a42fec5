"""Looks at what many objects hold under one key at a time, which spares the work for each."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from app.files.parse import Row


def column(rows: Iterable[Row], name: str, default: object = None) -> list[Any]:
    """Return what each holds under a name."""
    return [row.get(name, default) for row in rows]


def full_column(rows: Iterable[Row], name: str) -> list[Any]:
    """Return what each holds under a name that all have."""
    return [*map(itemgetter(name), rows)]


def keys_of(rows: Iterable[Iterable[str]]) -> frozenset[str]:
    """Return the keys of all."""
    return frozenset().union(*rows)


def shapes_of(rows: Sequence[Row]) -> set[frozenset[str]]:
    """Return the sets of keys that there are."""
    keys = keys_of(rows)
    return {keys} if {*map(len, rows)} == {len(keys)} else {*map(frozenset, rows)}


def are(values: Iterable[Any], *kinds: type | None) -> bool:
    """Return whether all are of these very types; of none there are only none."""
    return {*map(type, values)} <= {*kinds}


def are_telling(values: Sequence[Any]) -> bool:
    """Return whether all are strings of more than white space."""
    return are(values, str) and all(map(str.strip, values))
