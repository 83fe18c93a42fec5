"""Signatures of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`."""

import base64
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """Return a fresh signing secret."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """Return what a secret is recognized by."""
    return f"{PREFIX}…{secret[-4:]}"


def sign(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature, as the header webhook-signature has it; several stand with spaces."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
