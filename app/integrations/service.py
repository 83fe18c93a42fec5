"""Keys to services that metrics are sent to: kept sealed, never shown, never in a job."""

from importlib.util import find_spec
from typing import Literal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.audit import Actor
from app.errors import InvalidRequest, NotFound
from app.jobs.schemas import CreateJob
from app.tables import IntegrationKey
from app.vault import Vault

Target = Literal["wandb", "mlflow"]
WANDB: Target = "wandb"
MLFLOW: Target = "mlflow"


async def store(tx: AsyncSession, by: Actor, api_key: str, *, vault: Vault) -> IntegrationKey:
    """Keep an organization's W&B key, in place of the one before.

    Raises:
        InvalidRequest: this server has not what is needed to use it.
    """
    if find_spec(WANDB) is None:
        raise InvalidRequest(
            "This server cannot speak to Weights & Biases: its operator has to install"
            " basin[integrations]."
        )
    values = {"secret": vault.seal(api_key), "last4": api_key[-4:]}
    row = insert(IntegrationKey).values(organization_id=by.organization_id, type=WANDB, **values)
    changed = row.on_conflict_do_update(
        index_elements=["organization_id", "type"],
        set_=values | {"updated_at": row.excluded.updated_at},
    )
    await tx.execute(changed)
    audit.record(tx, by, "integration.stored", WANDB)
    return await get(tx, by.organization_id)


async def get(tx: AsyncSession, organization_id: str) -> IntegrationKey:
    """Return an organization's W&B key, sealed.

    Raises:
        NotFound: there is none.
    """
    found = await _find(tx, organization_id)
    if found is None:
        raise NotFound("Your organization has stored no key of Weights & Biases.")
    return found


async def delete(tx: AsyncSession, by: Actor) -> None:
    """Forget an organization's W&B key.

    Raises:
        NotFound: there is none.
    """
    await tx.delete(await get(tx, by.organization_id))
    audit.record(tx, by, "integration.deleted", WANDB)
    await tx.flush()


async def targets(
    tx: AsyncSession, organization_id: str, body: CreateJob, mlflow_tracking_uri: str | None
) -> list[Target]:
    """Return where a job's metrics are to be sent.

    Raises:
        InvalidRequest: it asks for W&B, whose key is not there.
    """
    found = [MLFLOW] if mlflow_tracking_uri else []
    if body.integrations:
        if await _find(tx, organization_id) is None:
            raise InvalidRequest(
                "Your organization has stored no key of Weights & Biases: an administrator can,"
                " with PUT /v1/organization/integrations/wandb. Or leave integrations out.",
                param="integrations",
            )
        found.append(WANDB)
    return found


async def reseal(tx: AsyncSession, vault: Vault) -> int:
    """Seal every key with the first of the server's own; say how many there are.

    Raises:
        SealBroken: one was sealed with a key that is not among them.
    """
    found = list(await tx.scalars(select(IntegrationKey).with_for_update()))
    for each in found:
        each.secret = vault.reseal(each.secret)
    await tx.flush()
    return len(found)


async def _find(tx: AsyncSession, organization_id: str) -> IntegrationKey | None:
    query = select(IntegrationKey).where(
        IntegrationKey.organization_id == organization_id, IntegrationKey.type == WANDB
    )
    fresh = query.execution_options(populate_existing=True)
    return (await tx.execute(fresh)).scalar_one_or_none()
