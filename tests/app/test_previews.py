"""A preview's row is the truth: who takes it, when it ends, and what of it reaches the caller."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update

from app.db import Database
from app.errors import ApiError, PreviewFailed, PreviewsOff, RateLimited, Unavailable
from app.ids import new_id
from app.listen import listening
from app.previews import lease, service
from app.previews.lease import Answer, Taken, Trouble
from app.previews.live import Previews
from app.previews.schemas import Ended
from app.previews.spec import PIECE_CHARACTERS, TOLD, WANTED, PreviewState, Question, Told
from app.settings import ApiSettings
from app.tables import Preview, Worker
from tests.app.records import make_organization, run

QUESTION = Question(
    messages=None, prompt="Once", max_tokens=8, temperature=0, top_p=1, seed=None, stop=()
)
WHOLE = Answer("Once upon a time", "stop", 3, 5)


@pytest.fixture(autouse=True)
async def nothing_waits(own: Database) -> None:
    await run(own, "DELETE FROM previews")
    await run(own, "DELETE FROM workers")


@pytest.fixture
async def owner(own: Database) -> str:
    async with own.transaction() as tx:
        tx.add(Worker(id="w", hostname="w", devices={"all": ["cpu"], "preview": "cpu"}))
    return await make_organization(own)


async def ask(
    db: Database, owner: str, settings: ApiSettings, question: Question = QUESTION, **changes: Any
) -> str:
    preview_id = new_id("cmpl-")
    async with db.transaction() as tx:
        await service.ask(
            tx,
            owner,
            settings.model_copy(update=changes),
            preview_id=preview_id,
            model="tiny-llama",
            question=question,
        )
    return preview_id


async def take(db: Database, worker: str = "w") -> Taken | None:
    async with db.transaction() as tx:
        return await lease.take(tx, worker)


async def state(db: Database, preview_id: str) -> str:
    return str(await run(db, "SELECT state FROM previews WHERE id = :id", id=preview_id))


async def finish(db: Database, taken: Taken, answer: Answer = WHOLE) -> None:
    async with db.transaction() as tx:
        await lease.finish(tx, taken, answer)


async def test_nobody_is_let_wait_for_a_worker_that_is_not_there(
    own: Database, settings: ApiSettings
):
    owner = await make_organization(own)
    async with own.transaction() as tx:
        tx.add(Worker(id="trains", hostname="only", devices={"all": ["0"], "preview": None}))

    with pytest.raises(Unavailable, match="No worker that previews"):
        await ask(own, owner, settings)


async def test_a_server_without_previews_says_so(own: Database, settings: ApiSettings, owner: str):
    with pytest.raises(PreviewsOff, match="turned that off"):
        await ask(own, owner, settings, preview="off")


async def test_an_organization_asks_so_many_at_once_and_no_more(
    own: Database, settings: ApiSettings, owner: str
):
    asked = [ask(own, owner, settings, preview_max_live=2) for _ in range(5)]
    other = await make_organization(own)

    results = await asyncio.gather(*asked, return_exceptions=True)

    refused = [each for each in results if isinstance(each, RateLimited)]
    assert len(refused) == 3 and refused[0].headers == {"Retry-After": "5"}
    await ask(own, other, settings, preview_max_live=2)


async def test_what_ended_makes_room_for_the_next(own: Database, settings: ApiSettings, owner: str):
    await ask(own, owner, settings, preview_max_live=1)
    taken = await take(own)
    assert taken is not None
    await finish(own, taken)

    await ask(own, owner, settings, preview_max_live=1)


async def test_two_workers_never_take_the_same_preview(
    own: Database, settings: ApiSettings, owner: str
):
    asked = {await ask(own, owner, settings, preview_max_live=9) for _ in range(3)}

    taken = await asyncio.gather(*(take(own, f"w{n}") for n in range(6)))

    assert sorted(each.id for each in taken if each) == sorted(asked)


async def test_tenants_take_turns(own: Database, settings: ApiSettings, owner: str):
    first, second = [await ask(own, owner, settings) for _ in range(2)]
    others = await ask(own, await make_organization(own), settings)

    taken = [await take(own) for _ in range(3)]

    assert [each and each.id for each in taken] == [first, others, second]


async def test_a_worker_that_was_overtaken_changes_nothing(
    own: Database, settings: ApiSettings, owner: str
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None
    async with own.transaction() as tx:
        await service.cancel(tx, owner, preview_id)

    async with own.transaction() as tx:
        wanted = await lease.beat(tx, taken, "Once")
    await finish(own, taken)

    assert not wanted and await state(own, preview_id) == PreviewState.CANCELLED


async def test_a_foreign_preview_is_not_cancelled(own: Database, settings: ApiSettings, owner: str):
    preview_id = await ask(own, owner, settings)

    async with own.transaction() as tx:
        await service.cancel(tx, await make_organization(own), preview_id)

    assert await state(own, preview_id) == PreviewState.WAITING


@pytest.mark.parametrize(("told", "ends"), [(False, "waiting"), (True, "failed")])
async def test_a_worker_that_shuts_down_gives_back_what_nobody_read_of(
    own: Database, settings: ApiSettings, owner: str, told: bool, ends: str
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None

    async with own.transaction() as tx:
        await lease.give_back(tx, taken, told=told)

    assert await state(own, preview_id) == ends
    assert (await take(own, "another") is not None) is not told


async def test_previews_are_forgotten_after_an_hour(
    own: Database, settings: ApiSettings, owner: str
):
    old, young = [await ask(own, owner, settings) for _ in range(2)]
    await run(
        own,
        "UPDATE previews SET created_at = now() - interval '61 minutes' WHERE id = :id",
        id=old,
    )

    async with own.transaction() as tx:
        gone = await service.forget(tx, limit=10)

    assert gone == 1 and await state(own, young) == PreviewState.WAITING


async def answer_of(
    db: Database, owner: str, preview_id: str, previews: Previews | None = None
) -> tuple[str, Ended | None]:
    previews = previews or Previews(db)
    answer = previews.expect(owner, preview_id)
    text = "".join([piece async for piece in previews.follow(answer)])
    return text, answer.ended


async def test_an_answer_arrives_whole_though_no_notification_does(
    own: Database, settings: ApiSettings, owner: str
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None
    await finish(own, taken)

    text, ended = await answer_of(own, owner, preview_id)

    assert text == WHOLE.text and ended == Ended("stop", 3, 5)


async def test_a_piece_that_is_lost_is_made_up_for_and_none_comes_twice(
    own: Database, settings: ApiSettings, owner: str
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None
    previews = Previews(own)
    answer = previews.expect(owner, preview_id)
    for at, text in ((0, "Once"), (0, "Once"), (2, "ce upon"), (12, "time"), (-1, "")):
        told = Told(id=preview_id, at=max(at, 0), text=text)
        previews.heard(told.model_dump_json())
    heard = answer.text
    await finish(own, taken)

    text = "".join([piece async for piece in previews.follow(answer)])

    assert heard == "Once upon" and text == WHOLE.text


async def test_pieces_arrive_by_notification_before_the_end(
    own: Database, own_url: str, settings: ApiSettings, owner: str
):
    previews = Previews(own)
    long = "\N{GRINNING FACE}\0\n" * PIECE_CHARACTERS
    listens = asyncio.Event()

    def heard(payload: str | None) -> None:
        listens.set()
        previews.heard(payload)

    async with listening(own_url, {TOLD: heard}):
        await asyncio.wait_for(listens.wait(), 30)
        preview_id = await ask(own, owner, settings)
        answer = previews.expect(owner, preview_id)
        taken = await take(own)
        assert taken is not None

        async with own.transaction() as tx:
            await lease.tell(tx, taken, at=0, text=long)
        pieces = previews.follow(answer)
        said = ""
        while len(said) < len(long):
            said += await anext(pieces)
        await pieces.aclose()

    assert said == long


async def test_a_worker_hears_of_a_new_preview_and_of_one_that_was_given_up(
    own: Database, own_url: str, settings: ApiSettings, owner: str
):
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    async with listening(own_url, {WANTED: heard.put_nowait}):
        await asyncio.wait_for(heard.get(), 30)
        preview_id = await ask(own, owner, settings)
        asked = await asyncio.wait_for(heard.get(), 30)
        async with own.transaction() as tx:
            await service.cancel(tx, owner, preview_id)
        given_up = await asyncio.wait_for(heard.get(), 30)

    assert asked == given_up == preview_id


def late(owner: str, preview_id: str) -> str:
    return "UPDATE previews SET deadline_at = now() - interval '1 second' WHERE id = :id"


def silent(owner: str, preview_id: str) -> str:
    return "UPDATE previews SET beat_at = now() - interval '16 seconds' WHERE id = :id"


@pytest.mark.parametrize(
    ("begin", "spoil", "said"),
    [(False, late, "No worker was free"), (True, silent, "fell silent")],
    ids=["nobody takes it", "its worker dies"],
)
async def test_a_preview_that_nobody_will_end_ends(
    own: Database,
    settings: ApiSettings,
    owner: str,
    begin: bool,
    spoil: Callable[[str, str], str],
    said: str,
):
    preview_id = await ask(own, owner, settings)
    if begin:
        await take(own)
    await run(own, spoil(owner, preview_id), id=preview_id)

    with pytest.raises(Unavailable, match=said):
        await answer_of(own, owner, preview_id)

    assert await state(own, preview_id) == PreviewState.FAILED


@pytest.mark.parametrize(
    ("trouble", "status", "again"),
    [
        (Trouble("context_length_exceeded", "too long", "messages"), 400, None),
        (Trouble("model_not_found", "deleted", "model"), 404, None),
        (Trouble("preview_failed", "killed"), 500, "false"),
        (Trouble("service_unavailable", "away"), 503, "true"),
    ],
)
async def test_what_goes_wrong_on_the_worker_has_a_status(
    own: Database,
    settings: ApiSettings,
    owner: str,
    trouble: Trouble,
    status: int,
    again: str | None,
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None
    async with own.transaction() as tx:
        await lease.fail(tx, taken, trouble)

    with pytest.raises(ApiError) as caught:
        await answer_of(own, owner, preview_id)

    assert (caught.value.status, caught.value.param) == (status, trouble.param)
    assert caught.value.headers.get("x-should-retry") == again
    assert status != 500 or isinstance(caught.value, PreviewFailed)


async def test_whoever_stops_listening_ends_the_preview(
    own: Database, settings: ApiSettings, owner: str
):
    preview_id = await ask(own, owner, settings)
    taken = await take(own)
    assert taken is not None
    previews = Previews(own)
    answer = previews.expect(owner, preview_id)
    previews.heard(Told(id=preview_id, at=0, text="Once").model_dump_json())
    pieces = previews.follow(answer)

    first = await anext(pieces)
    await pieces.aclose()
    await previews.close()

    assert first == "Once" and await state(own, preview_id) == PreviewState.CANCELLED


async def test_an_answer_that_nobody_expects_any_more_is_not_kept(own: Database, owner: str):
    previews = Previews(own)
    answer = previews.expect(owner, "cmpl-1")

    del answer
    previews.heard(Told(id="cmpl-1", at=0, text="Once").model_dump_json())

    assert not list(previews._answers)


async def test_text_with_a_null_character_is_refused_before_a_worker_sees_it(
    own: Database, settings: ApiSettings, owner: str
):
    from sqlalchemy.exc import DataError

    with pytest.raises(DataError):
        await ask(own, owner, settings, QUESTION.model_copy(update={"prompt": "a\0b"}))


async def test_the_sweep_forgets_previews(own: Database, settings: ApiSettings, owner: str):
    from app.sweep import sweep_storage

    preview_id = await ask(own, owner, settings)
    async with own.transaction() as tx:
        old = update(Preview).where(Preview.id == preview_id)
        await tx.execute(old.values(created_at=datetime(2020, 1, 1, tzinfo=UTC)))

    await sweep_storage(own, file_retention_days=None, resume_retention_days=30)

    assert await run(own, "SELECT count(*) FROM previews") == 0
