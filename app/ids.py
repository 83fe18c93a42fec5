"""Prefixed random identifiers."""

import re
import secrets

_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_PUNCTUATION = str.maketrans("", "", "-_")


def token(length: int) -> str:
    """Return `length` random letters and digits, about 5.95 bits each."""
    found = ""
    while len(found) < length:
        found += secrets.token_urlsafe(length).translate(_PUNCTUATION)
    return found[:length]


def new_id(prefix: str) -> str:
    """Return a fresh id such as ftjob-… that cannot be guessed."""
    return f"{prefix}{token(24)}"


def is_readable(text: str) -> bool:
    """Say whether PostgreSQL takes this for text: it has no NUL, and no half of a character."""
    return _UNREADABLE.search(text) is None
