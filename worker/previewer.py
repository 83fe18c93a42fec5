"""Answers previews, one at a time: takes one, has a process of its own generate, tells of it."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from app.blobs import BlobGone
from app.db import Database, connected
from app.errors import ModelNotFound, PreviewFailed, Unavailable, UnknownModel
from app.listen import listening
from app.models import catalog
from app.previews import lease
from app.previews.lease import Answer, Taken, Trouble
from app.previews.spec import WANTED
from app.settings import Settings
from worker import launcher
from worker.dialogue import Answered, Piece, Refused, Said, Show
from worker.rundir import Placement
from worker.shelf import Shelf, own_folder
from worker.talker import Gone, Talker

log = structlog.get_logger()

LOOK_S = 1.0  # for what waits, where no notification came
BEAT_S = 1.0
TELL_S = 0.05  # pieces of so long are told of together
AWAY_S = 1.0  # between two tries at a database that is away
END_TRIES = 10  # a second apart; longer, and the API takes the worker for dead
STOP_S = 10.0  # for an answer to break off that nobody waits for
IDLE_S = 300.0  # then the models' memory is given back
DATABASE_AWAY = (OperationalError, InterfaceError)


@dataclass
class Bell:
    """Rings with the ids of previews to look at."""

    rung: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self, _preview_id: str | None) -> None:
        self.rung.set()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next ring, or after a while."""
        try:
            await asyncio.wait_for(self.rung.wait(), timeout_s)
        except TimeoutError:
            return
        self.rung.clear()


@dataclass
class Room:
    """What answering needs."""

    db: Database
    settings: Settings
    worker: str
    talker: Talker
    shelf: Shelf
    bell: Bell
    shutdown: threading.Event


@dataclass
class Telling:
    """How much of an answer was made, and how much of it the API was told."""

    text: str = ""
    told: int = 0
    wanted: bool = True
    ended: bool = False


def preview_device(setting: str, devices: Sequence[str]) -> str | None:
    """Return the device that previews run on: cpu, the index of a GPU, or None for no previews.

    Raises:
        ValueError: a GPU is asked for that the worker does not have.
    """
    gpu = next((device for device in devices if device != "cpu"), None)
    if setting == "cuda" and gpu is None:
        raise ValueError("BASIN_PREVIEW=cuda, but this worker has no GPU; say cpu, auto or off")
    if setting == "off":
        return None
    return gpu if setting in ("auto", "cuda") and gpu is not None else "cpu"


async def preview(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    worker: str,
    device: str,
    shutdown: threading.Event,
    idle_s: float = IDLE_S,
) -> None:
    """Answer previews until told to stop; leave no process and no file behind."""
    bell = Bell()
    with own_folder(settings.previews_dir, worker) as folder:
        talker = Talker(
            _environment(environment, device=device, threads=settings.preview_threads),
            [str(settings.preview_threads), str(settings.preview_cache_bytes)],
            folder / "log.txt",
        )
        async with (
            connected(settings.database_url) as db,
            listening(settings.database_url, {WANTED: bell.ring}),
        ):
            room = Room(db, settings, worker, talker, Shelf(folder), bell, shutdown)
            try:
                await _serve(room, idle_s=idle_s)
            finally:
                await talker.end()


def _environment(inherited: Mapping[str, str], *, device: str, threads: int) -> dict[str, str]:
    """Return what the models' process may know: no setting or secret, and no way to the hub."""
    environment = launcher.train_environment(inherited, devices=[device], offline=True)
    return environment | {"OMP_NUM_THREADS": str(threads)}


async def _serve(room: Room, *, idle_s: float) -> None:
    used_at = time.monotonic()
    while not room.shutdown.is_set():
        try:
            async with room.db.transaction() as tx:
                taken = await lease.take(tx, room.worker)
            if taken is not None:
                await _answer(room, taken)
                used_at = time.monotonic()
                continue
        except SQLAlchemyError as error:
            log.warning("preview.postponed", error=str(error))
            await asyncio.sleep(AWAY_S)
        except Exception:  # a bug of ours ends one preview, not all that come
            log.exception("previewer.failed")
            await asyncio.sleep(AWAY_S)
        if room.talker.running and time.monotonic() - used_at >= idle_s:
            log.info("previewer.idle")
            await room.talker.end()
        await room.bell.wait(LOOK_S)


async def _answer(room: Room, taken: Taken) -> None:
    """See one preview to its end."""
    log.info("preview.taken", preview_id=taken.id)
    telling = Telling()
    beside = asyncio.create_task(_tell(room, taken, telling))
    try:
        ending: Answered | Trouble | None = await _generate(room, taken, telling)
    finally:
        telling.ended = True
        await asyncio.wait([beside])
    log.info("preview.ended", preview_id=taken.id, how=type(ending).__name__)
    for tries_left in reversed(range(END_TRIES)):
        try:
            await _end(room, taken, ending, told=bool(telling.text))
            return
        except DATABASE_AWAY:
            if not tries_left:
                raise
            await asyncio.sleep(AWAY_S)


async def _end(room: Room, taken: Taken, ending: Answered | Trouble | None, *, told: bool) -> None:
    async with room.db.transaction() as tx:
        match ending:
            case Answered():
                answer = Answer(
                    ending.text,
                    ending.finish_reason,
                    ending.prompt_tokens,
                    ending.completion_tokens,
                )
                await lease.finish(tx, taken, answer)
            case Trouble():
                await lease.fail(tx, taken, ending)
            case None if room.shutdown.is_set():
                await lease.give_back(tx, taken, told=told)


async def _generate(room: Room, taken: Taken, telling: Telling) -> Answered | Trouble | None:
    """Return how the model answered; None when it was not let to the end."""
    try:
        show = await _prepare(room, taken)
        if show is None:
            return Trouble(UnknownModel.code, "The model was deleted meanwhile.", "model")
        async with aclosing(room.talker.ask(show)) as words:
            return await _listen(room, taken, telling, words)
    except Gone as gone:
        return Trouble(PreviewFailed.code, str(gone))
    except ModelNotFound as error:
        return Trouble(PreviewFailed.code, f"On the worker: {error.message}", "model")
    except DATABASE_AWAY:
        return Trouble(Unavailable.code, "The database was away; ask again.")
    except Exception as error:  # the caller is told whatever it is, and the next one is answered
        log.exception("preview.not_prepared", preview_id=taken.id)
        message = f"The worker could not prepare the model ({type(error).__name__}): {error}."
        return Trouble(PreviewFailed.code, message)


async def _listen(
    room: Room, taken: Taken, telling: Telling, words: AsyncGenerator[Said]
) -> Answered | Trouble | None:
    """Follow an answer; leave it where the worker is shut down, or where it does not stop."""
    stopped_at: float | None = None
    following = asyncio.ensure_future(anext(words))
    try:
        while True:
            await asyncio.wait([following], timeout=BEAT_S)
            if room.shutdown.is_set():
                return None
            if not telling.wanted and stopped_at is None:
                stopped_at = time.monotonic()
                await room.talker.stop(taken.id)
            if stopped_at is not None and time.monotonic() - stopped_at > STOP_S:
                await room.talker.end()
                return None
            if following.done():
                if (ending := _hear(telling, following.result())) is not None:
                    return ending
                following = asyncio.ensure_future(anext(words))
    finally:
        following.cancel()
        await asyncio.wait([following])


def _hear(telling: Telling, word: Said) -> Answered | Trouble | None:
    """Take a word of the answer; return it when it is the last one."""
    match word:
        case Piece(text=text):
            telling.text += text
            return None
        case Refused(code=code, message=message, param=param):
            return Trouble(code, message, param)
        case Answered():
            return word


async def _tell(room: Room, taken: Taken, telling: Telling) -> None:
    """Tell of pieces soon after they come, and of life each second, until the answer ends."""
    beat_at = 0.0
    while not telling.ended and telling.wanted:
        due = time.monotonic() - beat_at >= BEAT_S or room.bell.rung.is_set()
        try:
            async with room.db.transaction() as tx:
                text = telling.text
                if due:
                    room.bell.rung.clear()
                    telling.wanted = await lease.beat(tx, taken, text)
                await lease.tell(tx, taken, at=telling.told, text=text[telling.told :])
        except DATABASE_AWAY as error:
            log.warning("preview.telling_postponed", preview_id=taken.id, error=str(error.orig))
            await asyncio.sleep(AWAY_S)
            continue
        telling.told = len(text)
        beat_at = time.monotonic() if due else beat_at
        await asyncio.sleep(TELL_S)


async def _prepare(room: Room, taken: Taken) -> Show | None:
    """Find the base and fetch what was trained on it; None when that was deleted."""
    settings = room.settings
    base = catalog.find(
        taken.base_model, settings.models_dir, settings.hub_revisions, settings.hub_tasks
    )
    trained: Path | None = None
    if taken.blob_id is not None:
        try:
            trained = await room.shelf.get(room.db, taken.blob_id)
        except BlobGone:
            return None
    return Show(
        id=taken.id,
        base=Placement(source=base.source, location=base.location, revision=base.revision),
        task=base.task,
        trained=str(trained) if trained else None,
        context_length=base.context_length,
        question=taken.question,
        limit_s=taken.limit_s,
    )
