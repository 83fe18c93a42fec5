"""Prefixed random identifiers."""

import secrets
import string

ALPHABET = string.ascii_letters + string.digits


def token(length: int) -> str:
    """Return `length` random letters and digits, about 5.95 bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_id(prefix: str) -> str:
    """Return a fresh id such as ftjob-… that cannot be guessed."""
    return f"{prefix}{token(24)}"
