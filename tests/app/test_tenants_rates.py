"""How many requests a key may make."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from app.main import create_app
from app.settings import ApiSettings
from tests.conftest import Api

LIMIT = 3
HEADERS = [f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")]


@asynccontextmanager
async def served(settings: ApiSettings, **changed: object) -> AsyncIterator[httpx.AsyncClient]:
    """An API of our own, with other settings."""
    app = create_app(settings.model_copy(update=changed))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://basin/v1") as client,
    ):
        yield client


@pytest.fixture
def keys(api: Api) -> list[dict[str, str]]:
    return [{"Authorization": f"Bearer {api.key('hasty')}"} for _ in range(2)]


async def test_a_key_that_asks_too_often_is_told_when_to_ask_again(
    settings: ApiSettings, keys: list[dict[str, str]]
):
    hasty, other = keys
    async with served(settings, requests_per_minute=LIMIT) as http:
        passed = [await http.get("/models", headers=hasty) for _ in range(LIMIT)]
        refused = await http.get("/models", headers=hasty)
        unaffected = await http.get("/models", headers=other)

    assert [answer.status_code for answer in passed] == [200] * LIMIT
    assert [answer.headers[HEADERS[1]] for answer in passed] == ["2", "1", "0"]
    assert [answer.headers[HEADERS[0]] for answer in passed] == [str(LIMIT)] * LIMIT
    assert passed[0].headers[HEADERS[2]].endswith("s")
    error = refused.json()["error"]
    assert refused.status_code == 429 and error["code"] == "rate_limit_exceeded"
    assert set(error) == {"message", "type", "param", "code"}
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / LIMIT
    assert refused.headers[HEADERS[1]] == "0" and refused.headers["x-request-id"]
    assert unaffected.status_code == 200


async def test_requests_that_come_at_once_are_counted_one_by_one(
    settings: ApiSettings, keys: list[dict[str, str]]
):
    async with served(settings, requests_per_minute=LIMIT) as http:
        together = [http.get("/models", headers=each) for each in keys * 4]
        answers = await asyncio.gather(*together)

    for own in (answers[::2], answers[1::2]):
        passed = [answer for answer in own if answer.status_code == 200]
        left = [answer.headers[HEADERS[1]] for answer in passed]
        assert sorted(left) == ["0", "1", "2"]
        assert [answer.status_code for answer in own if answer not in passed] == [429]
        assert {answer.headers[HEADERS[1]] for answer in own if answer not in passed} == {"0"}


async def test_what_was_used_comes_back_with_time(
    settings: ApiSettings, keys: list[dict[str, str]]
):
    hasty, _ = keys
    bucket = f"basin:requests:{hasty['Authorization'][10:22]}"
    async with served(settings, requests_per_minute=LIMIT) as http:
        for _ in range(LIMIT):
            await http.get("/models", headers=hasty)
        async with Redis.from_url(settings.redis_url) as redis:
            await redis.hincrby(bucket, "ms", -20_000)  # a third of a minute ago
            lives_ms = await redis.pttl(bucket)
        again = [(await http.get("/models", headers=hasty)).status_code for _ in range(2)]

    assert again == [200, 429]
    assert 0 < lives_ms <= 61_000


async def test_counting_costs_one_round_trip(settings: ApiSettings, keys: list[dict[str, str]]):
    async with served(settings, requests_per_minute=100) as http:
        await http.get("/models", headers=keys[0])  # Redis learns the script
        async with Redis.from_url(settings.redis_url) as redis:
            before = await redis.info("commandstats")
            for _ in range(5):
                await http.get("/models", headers=keys[0])
            after = await redis.info("commandstats")

    asked = [stats["cmdstat_evalsha"]["calls"] for stats in (before, after)]
    assert asked[1] - asked[0] == 5


async def test_without_redis_everything_is_allowed_and_that_is_told_once(
    settings: ApiSettings, keys: list[dict[str, str]], tmp_path: Path
):
    away = f"unix://{tmp_path}/nowhere.sock"
    with capture_logs() as logs:
        async with served(settings, requests_per_minute=1, redis_url=away) as http:
            answers = [await http.get("/models", headers=keys[0]) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert HEADERS[0] not in answers[0].headers
    assert [each["event"] for each in logs].count("requests.not_counted") == 1


async def test_zero_counts_nothing(settings: ApiSettings, keys: list[dict[str, str]]):
    async with served(settings, requests_per_minute=0) as http:
        answers = [await http.get("/models", headers=keys[0]) for _ in range(3)]

    assert {answer.status_code for answer in answers} == {200}
    assert HEADERS[0] not in answers[0].headers
