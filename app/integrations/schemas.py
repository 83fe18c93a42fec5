"""Integrations on the wire: a key goes in, and never comes out."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr

from app.schemas import Asked
from app.tables import IntegrationKey


class StoreKey(Asked):
    """An API key of Weights & Biases."""

    api_key: Annotated[SecretStr, Field(min_length=16, max_length=256)]


class IntegrationOut(BaseModel):
    """A key that is stored: its last four characters say which."""

    object: Literal["organization.integration"]
    type: str
    last4: str
    updated_at: int


class DeletedOut(BaseModel):
    object: Literal["organization.integration.deleted"]
    type: str
    deleted: bool


def integration_out(key: IntegrationKey) -> IntegrationOut:
    """Show that a key is there."""
    return IntegrationOut(
        object="organization.integration",
        type=key.type,
        last4=key.last4,
        updated_at=int(key.updated_at.timestamp()),
    )
