"""What runs beside the API goes on whatever happens in it, and ends with it."""

import asyncio

import pytest

from app import background
from app.background import beside


async def test_a_bug_does_not_end_for_good_what_has_no_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "AGAIN_S", 0.0)
    begun: list[int] = []
    enough = asyncio.Event()

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise ValueError("a bug")
        enough.set()
        await asyncio.Event().wait()

    async with beside(work), asyncio.timeout(30):
        await enough.wait()

    assert begun == [0, 1, 2]


async def test_what_runs_beside_a_block_ends_with_it():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with beside(work):
        await begun.wait()
        assert not ended.is_set()

    assert ended.is_set()
