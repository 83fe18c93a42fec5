"""What many ask at the same time is asked once, and each is told as if they had asked alone."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from app.db import Database
from app.errors import InvalidApiKey, Unavailable
from app.keys import service as keys
from app.main import create_app
from app.rounds import Rounds
from app.settings import ApiSettings
from tests.factories import PEPPER, jsonl

JOBS = "/v1/fine_tuning/jobs"


class Asked:
    """Answers a round with the number it has, when it is let; notes what each was asked."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, asked: Sequence[str]) -> int:
        self.rounds.append(list(asked))
        number = len(self.rounds)
        await self.may_answer.wait()
        return number


async def test_who_asks_while_a_round_is_under_way_is_told_by_the_next():
    asked = Asked()
    rounds = Rounds(asked)
    first = asyncio.create_task(rounds.ask(["a"]))
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(rounds.ask([name])) for name in "bcd"]
    await asyncio.sleep(0.01)

    asked.may_answer.set()

    assert [await first, *[await each for each in later]] == [1, 2, 2, 2]
    assert asked.rounds == [["a"], ["b", "c", "d"]]


async def test_who_leaves_takes_the_answer_from_nobody_else():
    asked = Asked()
    rounds = Rounds(asked)
    leaves, stays = (asyncio.create_task(rounds.ask([name])) for name in "ab")
    await asyncio.sleep(0.01)

    leaves.cancel()
    await asyncio.sleep(0.01)
    asked.may_answer.set()

    assert await stays == 1
    assert leaves.cancelled()


async def test_a_round_that_hangs_is_given_up_and_the_next_one_is_asked():
    asked = Asked()
    rounds = Rounds(asked, patience_s=0.05)
    first = asyncio.create_task(rounds.ask(["a"]))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(rounds.ask(["b"]))

    with pytest.raises(Unavailable):
        await first
    asked.may_answer.set()

    assert await second == 2


async def test_a_round_that_hangs_holds_up_nobody_while_it_is_cancelled():
    async def ask_all(asked: Sequence[str]) -> list[str]:
        if "a" in asked:
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(5)  # as psycopg does while PostgreSQL says nothing
        return list(asked)

    rounds = Rounds(ask_all, patience_s=0.05)
    first = asyncio.create_task(rounds.ask(["a"]))
    await asyncio.sleep(0.01)

    async with asyncio.timeout(2):
        second = await rounds.ask(["b"])
        with pytest.raises(Unavailable):
            await first

    assert second == ["b"]


async def test_an_error_that_nobody_waits_for_is_not_logged_as_a_bug():
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    async def ask_all(_: Sequence[str]) -> None:
        await asyncio.sleep(0.02)
        raise OSError("away")

    asker = asyncio.create_task(Rounds(ask_all).ask(["a"]))
    await asyncio.sleep(0.01)
    asker.cancel()
    await asyncio.sleep(0.05)
    gc.collect()

    assert asker.cancelled() and not complaints


async def test_keys_that_come_at_the_same_time_are_looked_up_together_and_told_apart(
    settings: ApiSettings, own: Database, own_url: str
):
    async with own.transaction() as tx:
        good = [
            await keys.create(tx, organization=name, name="test", pepper=PEPPER)
            for name in ("left", "right")
        ]
    bad = [
        "sk-" + "x" * 48,
        good[0][:-1] + ("a" if good[0][-1] != "a" else "b"),
        good[0][:15] + good[1][15:],  # the secret of another
        "sk-é" + "x" * 47,
        "",
        "sk-",
    ]
    app = create_app(settings.model_copy(update={"database_url": own_url}))
    transport = httpx.ASGITransport(app)
    asked: list[str] = []

    def note(_connection, _cursor, statement: str, *_: object) -> None:
        asked.append(statement)

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://basin") as client,
    ):

        async def status(secret: str) -> int:
            headers = {b"Authorization": f"Bearer {secret}".encode("latin-1")}
            return (await client.get(JOBS, headers=headers)).status_code

        event.listen(Engine, "before_cursor_execute", note)
        try:
            alone = [await status(secret) for secret in [*good, *bad]]
            looks_alone = sum("api_keys" in statement for statement in asked)
            asked.clear()
            together = await asyncio.gather(*(status(secret) for secret in [*good, *bad] * 5))
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    assert alone == [200, 200] + [401] * len(bad)
    assert together == alone * 5
    assert sum("api_keys" in statement for statement in asked) < looks_alone


async def test_a_key_that_cannot_be_read_fails_for_who_sent_it_alone(own: Database):
    async with own.transaction() as tx:
        good = await keys.create(tx, organization="left", name="test", pepper=PEPPER)
    door = keys.Door(own, pepper=PEPPER)
    sent = [good, "sk-a\0b" + "x" * 46, good, "sk-\udc80" + "x" * 47]

    told = await asyncio.gather(
        *(door.authenticate(each, ip=None, request_id=None) for each in sent),
        return_exceptions=True,
    )

    assert [type(each) for each in told] == [keys.Caller, InvalidApiKey] * 2


async def test_an_id_that_cannot_be_read_fails_for_who_sent_it_alone(
    settings: ApiSettings, own: Database, own_url: str
):
    async with own.transaction() as tx:
        secret = await keys.create(tx, organization="left", name="test", pepper=PEPPER)
    app = create_app(settings.model_copy(update={"database_url": own_url}))
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://basin", headers=headers
        ) as client,
    ):
        upload = {"file": ("t.jsonl", jsonl(12))}
        file = await client.post("/v1/files", data={"purpose": "fine-tune"}, files=upload)
        asked = {"model": "tiny-llama", "training_file": file.json()["id"]}
        job_id = (await client.post(JOBS, json=asked)).json()["id"]
        paths = [f"{JOBS}/{each}" for each in [job_id, "a%00b"] * 8]
        answers = await asyncio.gather(*map(client.get, paths))

    assert [answer.status_code for answer in answers] == [200, 404] * 8
