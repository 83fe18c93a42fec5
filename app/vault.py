"""Seals what the server must read again: the secrets of webhooks and the keys of integrations."""

import base64
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PURPOSE = b"basin: secrets at rest"


class SealBroken(Exception):
    """It was sealed with a key that this server does not have."""


class Vault:
    """Encrypts with the first key; opens what any of them encrypted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(_derived(key)) for key in keys])

    def seal(self, secret: str) -> bytes:
        """Encrypt a secret for the database."""
        return self._fernet.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """Return a secret in the clear.

        Raises:
            SealBroken: none of the keys opens it.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as error:
            raise SealBroken("It was sealed with another BASIN_SECRETS_KEY.") from error

    def reseal(self, sealed: bytes) -> bytes:
        """Seal again with the first key what another one sealed.

        Raises:
            SealBroken: none of the keys opens it.
        """
        try:
            return self._fernet.rotate(sealed)
        except InvalidToken as error:
            raise SealBroken("It was sealed with another BASIN_SECRETS_KEY.") from error


def _derived(key: str) -> bytes:
    """Make a Fernet key of a long random string; no digest is made with the same."""
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE)
    return base64.urlsafe_b64encode(derive.derive(key.encode()))
