"""/v1/webhook_endpoints"""

from typing import get_args

from fastapi import APIRouter
from pydantic import HttpUrl

from app import egress
from app.addresses import Inside
from app.egress import Unreachable
from app.errors import InvalidRequest
from app.paging import ListOut, list_out
from app.web import Admin, After, Caller, Config, Db, Limit, Seal, Tx
from app.webhooks import service
from app.webhooks.schemas import (
    CreateEndpoint,
    DeletedOut,
    DeliveryOut,
    EndpointOut,
    EventType,
    EventTypesOut,
    RotateSecret,
    SecretEndpointOut,
    TestEndpoint,
    TestOut,
    UpdateEndpoint,
    delivery_out,
    endpoint_out,
    secret_endpoint_out,
)
from app.webhooks.sender import Sender

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.get("/webhook_event_types", response_model=EventTypesOut)
async def list_event_types(_: Caller) -> EventTypesOut:
    """List what an endpoint can be told of."""
    return EventTypesOut(object="list", data=list(get_args(EventType)))


@router.get("/webhook_endpoints", response_model=ListOut[EndpointOut])
async def list_endpoints(
    tx: Tx, caller: Admin, after: After = None, limit: Limit = 20
) -> ListOut[EndpointOut]:
    """List the endpoints of your organization, newest first."""
    page = await service.list_endpoints(tx, caller.organization_id, after=after, limit=limit)
    return list_out([endpoint_out(each) for each in page.data], has_more=page.has_more)


@router.post("/webhook_endpoints", response_model=SecretEndpointOut)
async def create_endpoint(
    body: CreateEndpoint, tx: Tx, caller: Admin, settings: Config, vault: Seal
) -> SecretEndpointOut:
    """Add an endpoint; the secret that its messages are signed with is shown this once."""
    await _require_reachable(body.url, settings.webhook_networks)
    made = await service.create(
        tx,
        caller,
        name=body.name,
        url=str(body.url),
        event_types=body.event_types,
        vault=vault,
    )
    return secret_endpoint_out(made)


@router.get("/webhook_endpoints/{webhook_endpoint_id}", response_model=EndpointOut)
async def get_endpoint(webhook_endpoint_id: str, tx: Tx, caller: Admin) -> EndpointOut:
    """Show an endpoint, without its secret."""
    organization_id = caller.organization_id
    return endpoint_out(await service.get(tx, webhook_endpoint_id, organization_id=organization_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}", response_model=EndpointOut)
async def update_endpoint(
    webhook_endpoint_id: str, body: UpdateEndpoint, tx: Tx, caller: Admin, settings: Config
) -> EndpointOut:
    """Change what is named; take up an endpoint again, or stop it, with `enabled`."""
    if body.url is not None:
        await _require_reachable(body.url, settings.webhook_networks)
    endpoint = await service.get(
        tx, webhook_endpoint_id, organization_id=caller.organization_id, hold=True
    )
    asked = body.model_dump(mode="json", exclude_none=True)
    await service.change(tx, endpoint, caller, asked)
    return endpoint_out(endpoint)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}", response_model=DeletedOut)
async def delete_endpoint(webhook_endpoint_id: str, tx: Tx, caller: Admin) -> DeletedOut:
    """Forget an endpoint, with what waits for it and its log."""
    endpoint = await service.get(
        tx, webhook_endpoint_id, organization_id=caller.organization_id, hold=True
    )
    await service.delete(tx, endpoint, caller)
    return DeletedOut(id=webhook_endpoint_id, object="webhook_endpoint.deleted", deleted=True)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", response_model=SecretEndpointOut
)
async def rotate_secret(
    webhook_endpoint_id: str,
    tx: Tx,
    caller: Admin,
    vault: Seal,
    body: RotateSecret | None = None,
) -> SecretEndpointOut:
    """Sign with a new secret from now on, shown this once."""
    endpoint = await service.get(
        tx, webhook_endpoint_id, organization_id=caller.organization_id, hold=True
    )
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    made = await service.rotate(tx, endpoint, caller, keep_old=keep_old, vault=vault)
    return secret_endpoint_out(made)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", response_model=TestOut)
async def test_endpoint(
    webhook_endpoint_id: str,
    db: Db,
    caller: Admin,
    settings: Config,
    vault: Seal,
    body: TestEndpoint | None = None,
) -> TestOut:
    """Send a message about no job, once, and say what was answered."""
    event_type = (body or TestEndpoint()).event_type
    async with db.transaction() as tx:
        endpoint = await service.get(
            tx, webhook_endpoint_id, organization_id=caller.organization_id
        )
        due = await service.begin_test(tx, endpoint, caller, event_type)
    result = await Sender(db, vault, settings.webhook_networks).send(due)
    if result.status_code is None:
        raise InvalidRequest(f"{endpoint.url} was not reached. {result.error}")
    return TestOut(
        object="webhook_endpoint.test",
        event_type=event_type,
        status_code=result.status_code,
        success=True,
        webhook_endpoint_id=webhook_endpoint_id,
    )


@router.get(
    "/webhook_endpoints/{webhook_endpoint_id}/deliveries", response_model=ListOut[DeliveryOut]
)
async def list_deliveries(
    webhook_endpoint_id: str, tx: Tx, caller: Admin, after: After = None, limit: Limit = 20
) -> ListOut[DeliveryOut]:
    """List the messages to an endpoint, newest first, with every try at them."""
    endpoint = await service.get(tx, webhook_endpoint_id, organization_id=caller.organization_id)
    page = await service.list_deliveries(tx, endpoint, after=after, limit=limit)
    return list_out([delivery_out(each) for each in page.data], has_more=page.has_more)


async def _require_reachable(url: HttpUrl, inside: Inside) -> None:
    """Refuse an endpoint that nothing would be sent to; asked before the transaction begins."""
    try:
        await egress.check(str(url), inside)
    except Unreachable as error:
        raise InvalidRequest(str(error), param="url") from error
