"""What waits to be sent is sent once to each, again when it fails, and for a day at most."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import openai
import pytest
from sqlalchemy import text

from app.addresses import Inside
from app.audit import Actor
from app.background import beside
from app.db import Database
from app.ids import new_id
from app.jobs.states import JobStatus
from app.sweep import sweep_storage
from app.vault import Vault
from app.webhooks import outbox, sender
from app.webhooks import service as webhooks
from app.webhooks.sender import Sender, wait_s
from tests.app.records import make_organization, run
from tests.receiver import Receiver, receiving

VAULT = Vault(["a key for this test only"])
PLAIN = Inside.parse("http://127.0.0.2/32")
ALL = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
async def organization_id(own: Database) -> str:
    await run(own, "DELETE FROM webhook_endpoints")
    return await make_organization(own)


async def hook(
    db: Database, organization_id: str, url: str, event_types: list[str] = ALL
) -> tuple[str, str]:
    """An endpoint's id and its secret."""
    async with db.transaction() as tx:
        made = await webhooks.create(
            tx, Actor(organization_id), name="x", url=url, event_types=event_types, vault=VAULT
        )
    return made.endpoint.id, made.secret


async def tell(db: Database, organization_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> str:
    job_id = new_id("ftjob-")
    async with db.transaction() as tx:
        await outbox.tell(tx, organization_id, job_id, status)
    return job_id


async def deliveries(db: Database) -> list[Any]:
    query = """
        SELECT d.*, (SELECT json_agg(a ORDER BY number) FROM webhook_attempts a
                     WHERE a.delivery_id = d.id) AS tries,
               extract(epoch FROM next_at - now()) AS wait_s
        FROM webhook_deliveries d ORDER BY seq"""
    async with db.transaction() as tx:
        return list(await tx.execute(text(query)))


async def one(db: Database) -> Any:
    (found,) = await deliveries(db)
    return found


def sending(
    db: Database, inside: Inside = PLAIN, vault: Vault = VAULT
) -> AbstractAsyncContextManager[None]:
    return beside(Sender(db, vault, inside).run_forever)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await true():
            await asyncio.sleep(0.05)


async def send_until(db: Database, true: Callable[[Any], bool], **given: Any) -> Any:
    """Send until that is so of the one delivery there is, and return it."""

    async def is_so() -> bool:
        return true(await one(db))

    async with sending(db, **given):
        await until(is_so)
    return await one(db)


async def test_each_endpoint_that_wants_to_know_is_told_once_by_however_many_senders(
    own: Database, organization_id: str, receiver: Receiver
):
    wanting, _ = await hook(own, organization_id, receiver.url)
    await hook(own, organization_id, receiver.url, ["fine_tuning.job.failed"])
    await hook(own, await make_organization(own), receiver.url)
    job_ids = [await tell(own, organization_id) for _ in range(5)]

    async def all_sent() -> bool:
        return {each.state for each in await deliveries(own)} == {"delivered"}

    async with sending(own), sending(own), sending(own):
        await until(all_sent)

    assert {each.endpoint_id for each in await deliveries(own)} == {wanting}
    assert len(receiver.heard) == 5
    assert {job_id for job_id in job_ids for each in receiver.heard if job_id.encode() in each.body}


async def test_nothing_is_told_of_what_was_not_committed(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)

    with suppress(ZeroDivisionError):
        async with own.transaction() as tx:
            await outbox.tell(tx, organization_id, "ftjob-x", JobStatus.FAILED)
            raise ZeroDivisionError

    assert not await deliveries(own)


async def test_a_refused_message_is_sent_again_later_under_the_same_id_and_signed_anew(
    own: Database, organization_id: str, receiver: Receiver
):
    _, secret = await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    receiver.statuses = [500, 200]

    refused = await send_until(own, lambda found: found.tries is not None)
    await run(own, "UPDATE webhook_deliveries SET next_at = now()")
    delivered = await send_until(own, lambda found: found.state == "delivered")

    assert refused.state == "pending" and 3 < refused.wait_s <= 6
    assert [each["status_code"] for each in delivered.tries] == [500, 200]
    assert "500" in delivered.tries[0]["error"] and delivered.tries[1]["error"] is None
    first, second = receiver.heard
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    for heard in receiver.heard:
        openai.OpenAI(api_key="sk-none").webhooks.unwrap(heard.body, heard.headers, secret=secret)


def test_waits_double_up_to_an_hour_and_are_never_all_alike():
    waits = [wait_s(attempts) for attempts in range(1, 40)]

    assert all(0.8 * 5 * 2**n <= wait <= 1.2 * 5 * 2**n for n, wait in enumerate(waits[:9]))
    assert max(waits) <= 1.2 * 3600 and min(waits[11:]) >= 0.8 * 3600
    assert len(set(waits)) == len(waits)
    assert wait_s(100_000) <= 1.2 * 3600


async def test_after_a_day_a_message_is_given_up(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    receiver.statuses = [503]
    long_ago = "UPDATE webhook_deliveries SET created_at = now() - interval '1 day',"
    await run(own, f"{long_ago} gives_up_at = now()")

    given_up = await send_until(own, lambda found: found.tries is not None)

    assert given_up.state == "given_up" and len(receiver.heard) == 1


async def test_a_message_is_tried_for_a_day(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)

    query = "SELECT extract(epoch FROM gives_up_at - created_at)::int FROM webhook_deliveries"
    assert await run(own, query) == 24 * 3600


async def test_gone_disables_the_endpoint_and_ends_what_waits_for_it(
    own: Database, organization_id: str, receiver: Receiver
):
    endpoint_id, _ = await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    later = await tell(own, organization_id)
    await run(
        own,
        "UPDATE webhook_deliveries SET next_at = now() + interval '1 hour' WHERE body LIKE :body",
        body=f"%{later}%",
    )
    receiver.statuses = [410]

    async def all_over() -> bool:
        return {each.state for each in await deliveries(own)} == {"given_up"}

    async with sending(own):
        await until(all_over)
    await tell(own, organization_id)

    assert len(receiver.heard) == 1 and len(await deliveries(own)) == 2
    async with own.transaction() as tx:
        endpoint = await webhooks.get(tx, endpoint_id)
    assert endpoint.disabled_at is not None and "410" in (endpoint.disabled_reason or "")


async def test_a_redirect_is_a_failure_and_is_not_followed(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    receiver.statuses, receiver.headers = [307], {"location": receiver.url}

    tried = await send_until(own, lambda found: found.tries is not None)

    assert len(receiver.heard) == 1 and tried.state == "pending"
    assert "redirects are not followed" in tried.tries[0]["error"]


async def test_an_address_is_checked_at_each_delivery_too(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)

    tried = await send_until(own, lambda found: found.tries is not None, inside=Inside())

    assert not receiver.heard and tried.state == "pending"
    assert tried.tries[0]["status_code"] is None and "public" in tried.tries[0]["error"]


async def test_without_the_key_a_message_waits_and_says_why(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)

    tried = await send_until(
        own, lambda found: found.tries is not None, vault=Vault(["another key altogether"])
    )

    assert not receiver.heard and "BASIN_SECRETS_KEY" in tried.tries[0]["error"]


async def test_a_sender_that_dies_on_the_way_leaves_the_message_to_another(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    receiver.going_on.clear()

    async def was_heard() -> bool:
        return bool(receiver.heard)

    async with sending(own):
        await until(was_heard)
    async with own.transaction() as tx:
        held = await outbox.claim(tx)
    receiver.going_on.set()
    await run(own, "UPDATE webhook_deliveries SET next_at = now()")  # its hold has run out
    delivered = await send_until(own, lambda found: found.state == "delivered")

    assert held is None and delivered.attempts == 2 and len(receiver.heard) == 2


async def test_a_late_answer_does_not_undo_what_a_second_try_reached(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    async with own.transaction() as tx:
        late = await outbox.claim(tx)
    assert late is not None
    await run(own, "UPDATE webhook_deliveries SET next_at = now()")
    await send_until(own, lambda found: found.state == "delivered")

    async with own.transaction() as tx:
        became = await outbox.settle(tx, late, outbox.Result(1, status_code=500), wait_s=5)

    assert became is None and (await one(own)).state == "delivered"


async def test_who_answers_slowly_holds_up_only_their_own(
    own: Database, organization_id: str, receiver: Receiver
):
    with receiving() as slow:
        slow.going_on.clear()
        await hook(own, await make_organization(own), slow.url)
        slow_id = await run(own, "SELECT organization_id FROM webhook_endpoints")
        for _ in range(sender.PACE.most_at_once + 1):
            await tell(own, slow_id)
        await hook(own, organization_id, receiver.url)
        await tell(own, organization_id)

        async def arrived() -> bool:
            return bool(receiver.heard)

        async with sending(own):
            await until(arrived)

        assert len(slow.heard) <= sender.PACE.most_of_one


async def test_no_transaction_is_held_while_it_is_sent(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)
    receiver.going_on.clear()

    async def was_heard() -> bool:
        return bool(receiver.heard)

    async with sending(own):
        await until(was_heard)
        query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"""
        open_ones = await run(own, query)
        receiver.going_on.set()

    assert open_ones == 0


async def test_an_endpoint_that_is_deleted_takes_its_messages_along(
    own: Database, organization_id: str, receiver: Receiver
):
    endpoint_id, _ = await hook(own, organization_id, receiver.url)
    await tell(own, organization_id)

    async with own.transaction() as tx:
        endpoint = await webhooks.get(tx, endpoint_id)
        await webhooks.delete(tx, endpoint, Actor(organization_id))

    assert not await deliveries(own)


async def test_the_log_is_swept_after_a_month_and_what_waits_is_not(
    own: Database, organization_id: str, receiver: Receiver
):
    await hook(own, organization_id, receiver.url)
    for _ in range(3):
        await tell(own, organization_id)
    await run(
        own,
        "UPDATE webhook_deliveries SET state = 'delivered', created_at = now()"
        " - make_interval(days => CASE WHEN seq % 2 = 0 THEN 31 ELSE 29 END)",
    )
    waits = await tell(own, organization_id)
    await run(
        own,
        "UPDATE webhook_deliveries SET created_at = now() - interval '40 days'"
        " WHERE state = 'pending'",
    )
    before = len([each for each in await deliveries(own) if each.seq % 2 or waits in each.body])

    await sweep_storage(own, file_retention_days=None, resume_retention_days=30)

    kept = await deliveries(own)
    assert len(kept) == before < 4 and any(waits in each.body for each in kept)


async def test_after_a_new_key_secrets_are_sealed_anew(
    own: Database, organization_id: str, receiver: Receiver
):
    _, secret = await hook(own, organization_id, receiver.url)
    new = "the key of next year"

    async with own.transaction() as tx:
        count = await webhooks.reseal(tx, Vault([new, "a key for this test only"]))
    await tell(own, organization_id)
    await send_until(own, lambda found: found.state == "delivered", vault=Vault([new]))

    (heard,) = receiver.heard
    client = openai.OpenAI(api_key="sk-none")
    assert count == 1 and client.webhooks.unwrap(heard.body, heard.headers, secret=secret)
