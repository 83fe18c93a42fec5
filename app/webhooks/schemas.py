"""Webhook endpoints on the wire: OpenAI's fields, and beside them whether it is enabled."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, HttpUrl, TypeAdapter

from app.paging import Listed
from app.schemas import NO_CONTROL, Asked
from app.tables import WebhookAttempt, WebhookEndpoint
from app.webhooks.service import Logged, Made

EventType = Literal[
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"
]


def _plain(url: HttpUrl) -> HttpUrl:
    if url.username is not None or url.password is not None or url.fragment is not None:
        raise ValueError("leave out user, password and fragment: messages carry a signature")
    return url


Url = Annotated[HttpUrl, AfterValidator(_plain)]
Target = TypeAdapter[HttpUrl](Url)
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=16)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_CONTROL)]


class CreateEndpoint(Asked):
    """Where to tell of jobs that end: https, on a public address."""

    name: Name = "unnamed"
    url: Url
    event_types: EventTypes


class UpdateEndpoint(Asked):
    """What is left out stays; `enabled` true takes up again an endpoint that was disabled."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = None


class RotateSecret(Asked):
    """For a day messages can be signed with the old secret too."""

    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(Asked):
    """Which event to send, about no job."""

    event_type: EventType = "fine_tuning.job.succeeded"


class EndpointOut(Listed):
    """An endpoint without its secret; an answer of 410 disables it."""

    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    enabled: bool
    disabled_reason: str | None


class SecretEndpointOut(EndpointOut):
    """An endpoint with its secret, which is shown this once."""

    signing_secret: str


class DeletedOut(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: bool


class TestOut(BaseModel):
    """What the endpoint answered."""

    object: Literal["webhook_endpoint.test"]
    event_type: str
    status_code: int
    success: Literal[True]
    webhook_endpoint_id: str


class AttemptOut(BaseModel):
    """One try: what was answered, with the start of the body, or why nothing was."""

    at: int
    duration_ms: int
    status_code: int | None
    error: str | None
    response: str | None


class DeliveryOut(Listed):
    """A message; its id is the header webhook-id. `next_try_at` is null once it is over."""

    object: Literal["webhook_endpoint.delivery"]
    created_at: int
    event_id: str
    event_type: str
    state: Literal["pending", "delivered", "given_up"]
    next_try_at: int | None
    attempts: list[AttemptOut]


class EventTypesOut(BaseModel):
    object: Literal["list"]
    data: list[str]


def endpoint_out(endpoint: WebhookEndpoint) -> EndpointOut:
    """Show an endpoint on the wire."""
    return EndpointOut.model_validate(_shown(endpoint))


def secret_endpoint_out(made: Made) -> SecretEndpointOut:
    """Show an endpoint whose secret was made just now."""
    return SecretEndpointOut.model_validate(_shown(made.endpoint) | {"signing_secret": made.secret})


def delivery_out(logged: Logged) -> DeliveryOut:
    """Show a message and the tries at it."""
    delivery = logged.delivery
    pending = delivery.state == "pending"
    return DeliveryOut.model_validate(
        {
            "id": delivery.id,
            "object": "webhook_endpoint.delivery",
            "created_at": int(delivery.created_at.timestamp()),
            "event_id": delivery.event_id,
            "event_type": delivery.event_type,
            "state": delivery.state,
            "next_try_at": int(delivery.next_at.timestamp()) if pending else None,
            "attempts": [_attempt_out(attempt) for attempt in logged.attempts],
        }
    )


def _attempt_out(attempt: WebhookAttempt) -> AttemptOut:
    return AttemptOut(
        at=int(attempt.at.timestamp()),
        duration_ms=attempt.duration_ms,
        status_code=attempt.status_code,
        error=attempt.error,
        response=attempt.response,
    )


def _shown(endpoint: WebhookEndpoint) -> dict[str, object]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created_at.timestamp()),
        "updated_at": int(endpoint.updated_at.timestamp()),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": endpoint.secret_hint,
        "enabled": endpoint.disabled_at is None,
        "disabled_reason": endpoint.disabled_reason,
    }
