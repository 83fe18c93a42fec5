"""A worker's hold on a preview: taken by one UPDATE, told of each second, ended once."""

from dataclasses import dataclass

from sqlalchemy import Select, Update, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Unavailable
from app.previews.spec import PIECE_CHARACTERS, TOLD, PreviewState, Question, Told
from app.tables import Preview


@dataclass(frozen=True)
class Taken:
    """A preview that this worker answers, and for how long it may."""

    id: str
    worker: str
    base_model: str
    blob_id: str | None
    question: Question
    limit_s: float


@dataclass(frozen=True)
class Answer:
    """What a model said to the end, and why it ended there."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer, for the caller; the code is that of an ApiError."""

    code: str | None
    message: str
    param: str | None = None


async def take(tx: AsyncSession, worker: str) -> Taken | None:
    """Take the next preview that waits, or none. Two workers never take the same one."""
    left_s = func.extract("epoch", Preview.deadline_at - func.now())
    taken = await tx.execute(
        update(Preview)
        .where(Preview.id == _next().scalar_subquery(), Preview.state == PreviewState.WAITING)
        .values(state=PreviewState.RUNNING, worker=worker, beat_at=func.now())
        .returning(Preview, left_s.label("left_s"))
    )
    row = taken.first()
    if row is None:
        return None
    preview: Preview = row[0]
    return Taken(
        id=preview.id,
        worker=worker,
        base_model=preview.base_model,
        blob_id=preview.blob_id,
        question=Question.model_validate(preview.question),
        limit_s=float(row.left_s),
    )


async def beat(tx: AsyncSession, taken: Taken, text: str) -> bool:
    """Write down how far the answer is; say whether anybody still waits for it."""
    held = _held(taken).values(beat_at=func.now(), text=text)
    return (await tx.execute(held.returning(Preview.id))).first() is not None


async def tell(tx: AsyncSession, taken: Taken, *, at: int, text: str) -> None:
    """Notify the API of a piece of the answer that begins `at` this character."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        piece = text[start : start + PIECE_CHARACTERS]
        await _notify(tx, Told(id=taken.id, at=at + start, text=piece))


async def finish(tx: AsyncSession, taken: Taken, answer: Answer) -> None:
    """End a preview with its answer, in full; one that was given up meanwhile stays so."""
    await _end(
        tx,
        taken,
        _held(taken).values(
            state=PreviewState.DONE,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        ),
    )


async def fail(tx: AsyncSession, taken: Taken, trouble: Trouble) -> None:
    """End a preview without an answer."""
    await _end(
        tx,
        taken,
        _held(taken).values(
            state=PreviewState.FAILED,
            error_code=trouble.code,
            error_message=trouble.message,
            error_param=trouble.param,
        ),
    )


async def give_back(tx: AsyncSession, taken: Taken, *, told: bool) -> None:
    """Let another worker answer; what was begun for the caller is not begun again."""
    if told:
        message = "The worker that answered is being shut down; ask again."
        await fail(tx, taken, Trouble(Unavailable.code, message))
        return
    again = _held(taken).values(state=PreviewState.WAITING, worker=None, beat_at=None)
    await tx.execute(again)


def _next() -> Select[str]:
    """Select what is next, and lock it: of the tenant that was served longest ago, the oldest."""
    served = (
        select(Preview.organization_id, func.max(Preview.beat_at).label("at"))
        .group_by(Preview.organization_id)
        .subquery()
    )
    return (
        select(Preview.id)
        .join(served, served.c.organization_id == Preview.organization_id)
        .where(Preview.state == PreviewState.WAITING, Preview.deadline_at > func.now())
        .order_by(served.c.at.nulls_first(), Preview.created_at, Preview.id)
        .limit(1)
        .with_for_update(of=Preview, skip_locked=True)
    )


def _held(taken: Taken) -> Update:
    return update(Preview).where(
        Preview.id == taken.id,
        Preview.worker == taken.worker,
        Preview.state == PreviewState.RUNNING,
    )


async def _end(tx: AsyncSession, taken: Taken, ending: Update) -> None:
    if (await tx.execute(ending.returning(Preview.id))).first() is not None:
        await _notify(tx, Told(id=taken.id))


async def _notify(tx: AsyncSession, told: Told) -> None:
    await tx.execute(select(func.pg_notify(TOLD, told.model_dump_json())))
