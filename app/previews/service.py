"""Previews as the API sees them: asked, looked at, given up, forgotten."""

from datetime import timedelta

from sqlalchemy import case, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import (
    InvalidRequest,
    ModelNotFound,
    PreviewsOff,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from app.files.conversation import check_messages
from app.files.parse import BadRow
from app.jobs import sources
from app.jobs.spec import Task
from app.models import catalog
from app.models.catalog import BaseModel
from app.previews.spec import WANTED, PreviewState, Question
from app.settings import ApiSettings
from app.tables import Preview, Worker
from app.workers.service import ALIVE

LIVE = (PreviewState.WAITING, PreviewState.RUNNING)
FORGOTTEN_AFTER = text("interval '1 hour'")
SILENCE = text("interval '15 seconds'")  # of a worker that says each second how far it is
RETRY_AFTER_S = 5
_LATE = (Preview.state == PreviewState.WAITING) & (Preview.deadline_at < func.now())
_SILENT = (Preview.state == PreviewState.RUNNING) & (Preview.beat_at < func.now() - SILENCE)
NO_WORKER = "No worker that previews models is alive; start one with `basin worker`, and ask again."
LATE = "No worker was free to answer in time; ask again."
SILENT = "The worker that answered fell silent; ask again."


async def ask(
    tx: AsyncSession,
    organization_id: str,
    settings: ApiSettings,
    *,
    preview_id: str,
    model: str,
    question: Question,
) -> None:
    """Let a question wait for a worker, who hears of it at the commit.

    Raises:
        InvalidRequest: the messages are none, or the model writes no text.
        PreviewsOff: the operator offers no previews.
        RateLimited: the organization asks too many at once.
        Unavailable: no worker is there to answer.
        UnknownModel: none of that name is offered to the caller.
    """
    if settings.preview == "off":
        raise PreviewsOff("This server previews no models: its operator has turned that off.")
    _check_messages(question)
    base, blob_id = await _find(tx, organization_id, settings, model)
    await _check_worker(tx)
    await _check_live(tx, organization_id, most=settings.preview_max_live)
    tx.add(
        Preview(
            id=preview_id,
            organization_id=organization_id,
            model=model,
            base_model=base.name,
            blob_id=blob_id,
            question=question.model_dump(mode="json"),
            deadline_at=func.now() + timedelta(seconds=settings.preview_timeout_s),
        )
    )
    await _ring(tx, preview_id)


async def look(tx: AsyncSession, organization_id: str, preview_id: str) -> Preview:
    """Return a preview as it stands; one that nobody will end any more ends here."""
    mine = (Preview.id == preview_id) & (Preview.organization_id == organization_id)
    stuck = case((_LATE, LATE), (_SILENT, SILENT))
    row = (await tx.execute(select(Preview, stuck).where(mine))).one()
    preview: Preview = row[0]
    if row[1] is not None:
        failed = {"state": PreviewState.FAILED, "error_code": Unavailable.code}
        ending = update(Preview).where(mine, _LATE | _SILENT)
        await tx.execute(ending.values(failed | {"error_message": row[1]}))
        await tx.refresh(preview)
    return preview


async def cancel(tx: AsyncSession, organization_id: str, preview_id: str) -> None:
    """End a preview that nobody waits for any more; its worker hears of it at the commit."""
    ended = await tx.execute(
        update(Preview)
        .where(
            Preview.id == preview_id,
            Preview.organization_id == organization_id,
            Preview.state.in_(LIVE),
        )
        .values(state=PreviewState.CANCELLED)
        .returning(Preview.id)
    )
    if ended.first() is not None:
        await _ring(tx, preview_id)


async def forget(tx: AsyncSession, *, limit: int) -> int:
    """Delete some previews that were asked long ago, whatever became of them."""
    old = select(Preview.id).where(Preview.created_at < func.now() - FORGOTTEN_AFTER).limit(limit)
    gone = delete(Preview).where(Preview.id.in_(old.with_for_update(skip_locked=True)))
    return len(list(await tx.scalars(gone.returning(Preview.id))))


def _check_messages(question: Question) -> None:
    if question.messages is None:
        return
    try:
        check_messages(list(question.messages), name="messages")
    except BadRow as error:
        raise InvalidRequest(
            f"The conversation cannot be read: {error}.", param="messages"
        ) from error


async def _find(
    tx: AsyncSession, organization_id: str, settings: ApiSettings, model: str
) -> tuple[BaseModel, str | None]:
    """Return the base of a model and the bytes of what was trained on it, if anything was."""
    base = _base(settings, model)
    if base is not None:
        _check_task(model, base.task)
        return base, None
    try:
        source = await sources.find(tx, organization_id, model)
    except ModelNotFound as error:
        message = f"The model {model!r} does not exist, or is not yours."
        raise UnknownModel(message, param="model") from error
    _check_task(model, source.task)
    base = _base(settings, source.base_model)
    if base is None:
        raise InvalidRequest(
            f"{model} was trained on {source.base_model}, which is not offered here any more;"
            " the operator can put it back.",
            param="model",
        )
    return base, source.blob_id


def _base(settings: ApiSettings, name: str) -> BaseModel | None:
    offered = catalog.base_models(settings.models_dir, settings.hub_revisions, settings.hub_tasks)
    return next((base for base in offered if base.name == name), None)


def _check_task(model: str, task: Task) -> None:
    if task == "classification":
        raise InvalidRequest(
            f"{model} chooses a label and writes no text, so there is nothing to preview; download"
            " the adapter, whose card says how to load it.",
            param="model",
        )


async def _check_worker(tx: AsyncSession) -> None:
    ready = Worker.devices["preview"].astext.is_distinct_from(None)
    query = select(Worker.id).where(ALIVE, ready).limit(1)
    if (await tx.scalars(query)).first() is None:
        raise Unavailable(NO_WORKER)


async def _check_live(tx: AsyncSession, organization_id: str, *, most: int) -> None:
    """Count what waits and runs, one request of an organization after the other."""
    turn = func.hashtextextended(f"previews of {organization_id}", 0)
    await tx.execute(select(func.pg_advisory_xact_lock(turn)))
    query = select(func.count(Preview.id)).where(
        Preview.organization_id == organization_id,
        Preview.state.in_(LIVE),
        Preview.deadline_at > func.now(),
    )
    if (await tx.execute(query)).scalar_one() >= most:
        raise RateLimited(
            f"{most} previews of your organization wait or run, and no more may at once; ask again"
            f" in {RETRY_AFTER_S} s.",
            retry_after_s=RETRY_AFTER_S,
        )


async def _ring(tx: AsyncSession, preview_id: str) -> None:
    await tx.execute(select(func.pg_notify(WANTED, preview_id)))
