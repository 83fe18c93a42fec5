"""Prefixed random identifiers."""

import re
import secrets

_ID = re.compile("[A-Za-z0-9_-]{1,64}")
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


def is_id(text: str) -> bool:
    """Say whether this is shaped as what `new_id` and `token` make."""
    return _ID.fullmatch(text) is not None
