"""A worker's previewer: where it runs, how long it keeps a process, what it leaves."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app import blobs
from app.db import Database
from app.errors import UnknownModel
from app.ids import new_id
from app.previews import lease, service
from app.previews.live import Previews
from app.previews.spec import Question
from app.settings import ApiSettings, inherited_environment
from app.tables import Worker
from tests.app.records import make_organization, run
from tests.previews import make_adapter, model_processes, publish
from worker import archive
from worker.dialogue import Answered, Piece, Refused, Said, Show
from worker.previewer import preview, preview_device
from worker.rundir import Placement
from worker.shelf import Shelf, own_folder
from worker.talker import Gone, Talker

QUESTION = Question(
    messages=None, prompt="Hello", max_tokens=8, temperature=0, top_p=1, seed=None, stop=()
)


@pytest.mark.parametrize(
    ("setting", "devices", "expected"),
    [
        ("cpu", ["0", "1"], "cpu"),
        ("cuda", ["2", "3"], "2"),
        ("auto", ["2", "3"], "2"),
        ("auto", ["cpu"], "cpu"),
        ("off", ["0"], None),
    ],
)
def test_a_preview_leaves_the_gpus_alone_unless_told_otherwise(
    setting: str, devices: list[str], expected: str | None
):
    assert preview_device(setting, devices) == expected


def test_a_gpu_that_is_not_there_is_refused_at_the_start():
    with pytest.raises(ValueError, match="this worker has no GPU"):
        preview_device("cuda", ["cpu", "cpu"])


def show(models_dir: Path, *, limit_s: float = 100, max_tokens: int = 8) -> Show:
    base = Placement(source="folder", location=str(models_dir / "tiny-llama"), revision=None)
    return Show(
        id=new_id("cmpl-"),
        base=base,
        task="causal",
        trained=None,
        context_length=256,
        question=QUESTION.model_copy(update={"max_tokens": max_tokens}),
        limit_s=limit_s,
    )


@pytest.fixture
async def talker(tmp_path: Path) -> AsyncIterator[Talker]:
    found = Talker(inherited_environment(), ["1", str(1 << 30)], tmp_path / "log.txt")
    yield found
    await found.end()


async def words(talker: Talker, asked: Show) -> list[Said]:
    return [word async for word in talker.ask(asked)]


async def test_a_process_that_hangs_is_stopped_and_the_next_question_has_another(
    talker: Talker, models_dir: Path
):
    await words(talker, show(models_dir))
    (hung,) = model_processes(os.getpid())
    os.kill(hung.pid, signal.SIGSTOP)

    with pytest.raises(Gone, match="was stopped"):
        await words(talker, show(models_dir, limit_s=-9.5))

    assert not hung.is_running()
    assert isinstance((await words(talker, show(models_dir)))[-1], Answered)


async def test_what_was_left_of_an_answer_is_not_taken_for_the_next(
    talker: Talker, models_dir: Path
):
    first = talker.ask(show(models_dir, max_tokens=200))
    assert isinstance(await anext(first), Piece)
    await first.aclose()

    asked = show(models_dir)
    said = await words(talker, asked)

    assert {word.id for word in said} == {asked.id} and isinstance(said[-1], Answered)


async def test_a_model_that_cannot_be_loaded_leaves_the_process_as_it_was(
    talker: Talker, models_dir: Path
):
    await words(talker, show(models_dir))
    broken = Placement(source="folder", location=str(models_dir / "broken-llama"), revision=None)

    (said,) = await words(talker, show(models_dir).model_copy(update={"base": broken}))

    assert isinstance(said, Refused) and "cannot be read" in said.message and talker.running


@asynccontextmanager
async def previewer(
    settings: ApiSettings, data: Path, *, idle_s: float = 300
) -> AsyncIterator[ApiSettings]:
    """A previewer of our own, in this process."""
    mine = settings.model_copy(update={"data_dir": data, "preview_timeout_s": 250})
    shutdown = threading.Event()
    task = asyncio.create_task(
        preview(
            mine,
            inherited_environment(),
            worker="here",
            device="cpu",
            shutdown=shutdown,
            idle_s=idle_s,
        )
    )
    try:
        yield mine
    finally:
        shutdown.set()
        await task


async def ask(db: Database, settings: ApiSettings, owner: str, model: str) -> str:
    previews = Previews(db)
    answer = previews.expect(owner, new_id("cmpl-"))
    async with db.transaction() as tx:
        await service.ask(
            tx,
            owner,
            settings,
            preview_id=answer.preview_id,
            model=model,
            question=QUESTION,
        )
    return "".join([piece async for piece in previews.follow(answer)])


@pytest.fixture
async def owner(db: Database) -> AsyncIterator[str]:
    row = Worker(id=new_id("here-"), hostname="here", devices={"all": ["cpu"], "preview": "cpu"})
    async with db.transaction() as tx:
        tx.add(row)
    yield await make_organization(db)
    await run(db, "DELETE FROM workers WHERE id = :id", id=row.id)


def children() -> list[psutil.Process]:
    return model_processes(os.getpid())


async def until(ready: Callable[[], bool]) -> None:
    while not ready():
        await asyncio.sleep(0.1)


async def test_a_process_that_nobody_asks_gives_its_memory_back(
    db: Database, settings: ApiSettings, owner: str, tmp_path: Path
):
    async with previewer(settings, tmp_path, idle_s=0.5) as mine:
        first = await ask(db, mine, owner, "tiny-llama")
        await asyncio.wait_for(until(lambda: not children()), 30)
        again = await ask(db, mine, owner, "tiny-llama")

    assert first == again and not children()
    assert list(mine.previews_dir.iterdir()) == []


async def test_a_model_that_is_deleted_while_its_preview_waits_is_told(
    db: Database, settings: ApiSettings, owner: str, models_dir: Path, tmp_path: Path
):
    adapter = await asyncio.to_thread(make_adapter, models_dir / "tiny-llama", tmp_path / "a")
    name = await publish(db, owner, "tiny-llama", adapter)
    asked = asyncio.create_task(ask(db, settings, owner, name))
    query = "SELECT count(*) FROM previews WHERE model = :m"
    while not await run(db, query, m=name):
        await asyncio.sleep(0.1)
    statement = (
        "UPDATE blobs SET state = 'deleting' WHERE id ="
        " (SELECT blob_id FROM previews WHERE model = :m)"
    )
    await run(db, statement, m=name)

    async with previewer(settings, tmp_path):
        with pytest.raises(UnknownModel, match="deleted meanwhile"):
            await asked


async def test_the_shelf_keeps_the_last_few_and_fetches_none_twice(
    db: Database, owner: str, tmp_path: Path
):
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    blobs_made = []
    for _ in range(5):
        stored = await blobs.write(db, owner, archive.stream(source))
        async with db.transaction() as tx:
            await blobs.seal(tx, stored)
        blobs_made.append(stored.blob_id)
    (tmp_path / "shelf").mkdir()
    shelf = Shelf(tmp_path / "shelf")

    first = await shelf.get(db, blobs_made[0])
    inode = first.stat().st_ino
    for blob_id in [*blobs_made[1:4], blobs_made[0], blobs_made[4]]:
        await shelf.get(db, blob_id)

    kept = {path.name for path in (tmp_path / "shelf").iterdir()}
    assert kept == {blobs_made[0], *blobs_made[2:]} and first.stat().st_ino == inode


def test_a_folder_of_the_living_is_left_alone(tmp_path: Path):
    (tmp_path / "dead-1").mkdir()

    with own_folder(tmp_path, "one") as one, own_folder(tmp_path, "two"):
        kept = {path.name for path in tmp_path.iterdir()}
        assert one.exists()

    assert kept == {"one", "two"} and list(tmp_path.iterdir()) == []


async def test_a_worker_takes_over_what_another_gave_back(
    db: Database, settings: ApiSettings, owner: str, tmp_path: Path
):
    asked = asyncio.create_task(ask(db, settings, owner, "tiny-llama"))
    taken = None
    while taken is None:
        async with db.transaction() as tx:
            taken = await lease.take(tx, "shuts-down")
        await asyncio.sleep(0.05)
    async with db.transaction() as tx:
        await lease.give_back(tx, taken, told=False)

    async with previewer(settings, tmp_path):
        assert await asked
