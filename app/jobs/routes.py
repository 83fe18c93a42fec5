"""/v1/fine_tuning/jobs"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from app import audit, tars
from app.errors import NotFound
from app.estimates import service as estimates
from app.estimates.schemas import EstimateOut
from app.jobs import service
from app.jobs.events import EventType
from app.jobs.schemas import (
    AdapterFilesOut,
    AttemptsOut,
    CheckpointOut,
    CreateJob,
    EventOut,
    JobOut,
    MetricsOut,
    RolloutsOut,
    adapter_files_out,
    attempt_out,
    checkpoint_out,
    event_out,
    job_out,
    rollouts_out,
)
from app.jobs.shown import Showing
from app.jobs.states import JobStatus
from app.jobs.stream import Live, Position
from app.jobs.submissions import Request as Submitted
from app.paging import ListOut, list_json, list_out
from app.web import (
    STREAM,
    WATCHER,
    After,
    Caller,
    Config,
    Db,
    EventStream,
    Limit,
    MayRepeat,
    ReadTx,
    Ring,
    Tx,
    Writer,
    blob_response,
    downloads,
)


async def _name_job(request: Request) -> None:
    """Have every log line of a request name its job."""
    if job_id := request.path_params.get("job_id"):
        structlog.contextvars.bind_contextvars(job_id=job_id)


router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], dependencies=[Depends(_name_job)]
)
JSON, TAR, BYTES = "application/json", "application/x-tar", "application/octet-stream"
ARCHIVE, ONE_FILE = downloads(TAR), downloads(BYTES)
# One of a stream; `data` is JSON.
MESSAGE = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
METADATA = re.compile(r"metadata\[(.+)\]")


async def _live(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


async def _showing(request: Request) -> Showing:
    showing: Showing = request.app.state.showing
    return showing


Shown = Annotated[Showing, Depends(_showing)]


async def _metadata(request: Request) -> dict[str, str]:
    """Read metadata[key]=value from the query."""
    found = ((METADATA.fullmatch(name), value) for name, value in request.query_params.items())
    return {match[1]: value for match, value in found if match}


async def _submission(body: CreateJob, caller: Writer, sent: MayRepeat) -> Submitted:
    """Name the request, so that a client that sends it again is told of the first job."""
    return sent.submission(caller, body)


@router.post("", response_model=JobOut | EstimateOut)
async def create_job(
    body: CreateJob,
    request: Annotated[Submitted, Depends(_submission)],
    db: Db,
    settings: Config,
    bell: Ring,
    showing: Shown,
    *,
    dry_run: Annotated[bool, Query(description="Estimate it, and submit nothing.")] = False,
) -> JobOut | EstimateOut:
    """Submit a fine-tuning job; what was left out comes back resolved."""
    if dry_run:
        return await estimates.estimate(db, request.by.organization_id, body, settings=settings)
    async with db.transaction() as tx:
        job = await service.submit(tx, request, body, settings=settings, bell=bell)
    return job_out(job, await showing.lookout.see_one(job))


@router.get("", response_model=ListOut[JobOut])
async def list_jobs(
    db: Db,
    caller: Caller,
    showing: Shown,
    metadata: Annotated[dict[str, str], Depends(_metadata)],
    *,
    status: Annotated[JobStatus | None, Query(description="All by default.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> Response:
    """List your jobs, newest first; metadata[key]=value keeps those that carry it."""
    page = await service.list_jobs(
        db,
        caller.organization_id,
        status=status,
        metadata=metadata,
        after=after,
        limit=limit,
        showing=showing,
    )
    places = await showing.places(page.data)
    shown = {job.id: job.json(places) for job in page.data}
    return Response(list_json(shown, has_more=page.has_more), media_type=JSON)


@router.get("/{job_id}", response_model=JobOut)
async def get_job(job_id: str, db: Db, caller: Caller, showing: Shown) -> Response:
    """Show a job: status, progress, place in the queue, the resolved spec."""
    job = await service.show(db, caller.organization_id, job_id, showing=showing)
    return Response(job.json(await showing.places([job])), media_type=JSON)


@router.post("/{job_id}/cancel", response_model=JobOut)
async def cancel_job(job_id: str, tx: Tx, caller: Writer) -> JobOut:
    """Stop a job: now if it waits, within seconds if it runs."""
    audit.record(tx, caller, "job.cancelled", job_id)
    return job_out(await service.cancel(tx, caller.organization_id, job_id))


@router.post("/{job_id}/pause", response_model=JobOut)
async def pause_job(job_id: str, tx: Tx, caller: Writer) -> JobOut:
    """Hold a job: now if it waits, after its current step and a checkpoint if it runs."""
    audit.record(tx, caller, "job.paused", job_id)
    return job_out(await service.pause(tx, caller.organization_id, job_id))


@router.post("/{job_id}/resume", response_model=JobOut)
async def resume_job(job_id: str, tx: Tx, caller: Writer, bell: Ring) -> JobOut:
    """Let a paused job wait for a worker again; it goes on from its last checkpoint."""
    audit.record(tx, caller, "job.resumed", job_id)
    job = await service.resume(tx, caller.organization_id, job_id, bell=bell)
    return job_out(job, await service.queue_place(tx, job))


@router.get("/{job_id}/events", response_model=ListOut[EventOut])
async def list_events(
    job_id: str,
    db: Db,
    caller: Caller,
    *,
    kind: Annotated[EventType | None, Query(alias="type", description="All by default.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> ListOut[EventOut]:
    """List what happened to a job, newest first."""
    page = await service.list_events(
        db, caller.organization_id, job_id, kind=kind, after=after, limit=limit
    )
    return list_out([event_out(event) for event in page.data], has_more=page.has_more)


@router.get("/{job_id}/checkpoints", response_model=ListOut[CheckpointOut])
async def list_checkpoints(
    job_id: str, tx: ReadTx, caller: Caller, after: After = None, limit: Limit = 10
) -> ListOut[CheckpointOut]:
    """List the adapters kept from the middle of the run, latest first."""
    page = await service.list_checkpoints(
        tx, caller.organization_id, job_id, after=after, limit=limit
    )
    return list_out([checkpoint_out(item) for item in page.data], has_more=page.has_more)


@router.get("/{job_id}/rollouts", response_model=RolloutsOut)
async def list_rollouts(
    job_id: str,
    tx: ReadTx,
    caller: Caller,
    *,
    step: Annotated[int | None, Query(ge=0, lt=2**63, description="All by default.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> RolloutsOut:
    """List what a run by reinforcement sampled, newest step first: what was said, and its worth."""
    page, groups = await service.list_rollouts(
        tx, caller.organization_id, job_id, step=step, after=after, limit=limit
    )
    return rollouts_out(page, groups)


@router.get("/{job_id}/attempts", response_model=AttemptsOut)
async def list_attempts(job_id: str, tx: ReadTx, caller: Caller) -> AttemptsOut:
    """List every try at a job: where it ran, how far it came and how it ended."""
    attempts = await service.list_attempts(tx, caller.organization_id, job_id)
    return AttemptsOut(object="list", data=[attempt_out(attempt) for attempt in attempts])


@router.get("/{job_id}/metrics", response_model=MetricsOut)
async def get_metrics(
    job_id: str,
    tx: ReadTx,
    caller: Caller,
    *,
    name: Annotated[list[str] | None, Query(description="May stand several times.")] = None,
    points: Annotated[int, Query(ge=1, le=10_000)] = 500,
    agg: Literal["minmax", "raw"] = "raw",
) -> MetricsOut:
    """Read a job's metrics by optimizer step: every value, or buckets that keep spikes."""
    series = await service.metrics(
        tx,
        caller.organization_id,
        job_id,
        names=name or [],
        points=points if agg == "minmax" else None,
    )
    return MetricsOut(object="list", data=series)


@router.get(
    "/{job_id}/stream",
    status_code=200,  # the documentation cannot read it off the response's class
    response_class=EventStream,
    responses={200: {"content": {EventStream.media_type: {"schema": MESSAGE}}}},
    dependencies=[WATCHER],
)
async def stream_job(
    job_id: str,
    db: Db,
    caller: Caller,
    live: Annotated[Live, Depends(_live)],
    *,
    after: Annotated[str | None, Query(description="As the header Last-Event-ID.")] = None,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last message received: go on after it.")
    ] = None,
) -> Response:
    """Watch a job as server-sent events: status, event and metrics, and in the end done.

    Without Last-Event-ID all that was said is told first. A step that a later attempt takes again
    is told again, with that attempt.
    """
    position = Position.parse(last_event_id or after)
    async with db.reading() as tx:
        await service.get(tx, caller.organization_id, job_id)
    return EventStream(live.watch(caller.organization_id, job_id, position, key_id=caller.key_id))


@router.get("/{job_id}/logs", response_class=PlainTextResponse, dependencies=[STREAM])
async def get_logs(job_id: str, db: Db, caller: Caller) -> Response:
    """Read what the run printed."""
    async with db.reading() as tx:
        await service.get(tx, caller.organization_id, job_id)
    pages = service.log_pages(db, job_id)
    return StreamingResponse(pages, media_type=PlainTextResponse.media_type)


@router.head("/{job_id}/adapter", operation_id="describe_adapter", **ARCHIVE)
@router.get("/{job_id}/adapter", operation_id="download_adapter", **ARCHIVE)
async def get_adapter(request: Request, job_id: str, db: Db, caller: Caller) -> Response:
    """Download the adapter as a tar: ranges, ETag (its sha256) and HEAD work."""
    async with db.reading() as tx:
        stored = await service.adapter(tx, caller.organization_id, job_id)
    return blob_response(request, db, stored, media_type=TAR, filename=f"{job_id}.tar")


@router.get("/{job_id}/adapter/files", response_model=AdapterFilesOut)
async def list_adapter_files(job_id: str, db: Db, caller: Caller) -> AdapterFilesOut:
    """List the files in the adapter's archive."""
    async with db.reading() as tx:
        stored = await service.adapter(tx, caller.organization_id, job_id)
    return adapter_files_out(await tars.entries(db, stored))


@router.head(
    "/{job_id}/adapter/files/{name:path}", operation_id="describe_adapter_file", **ONE_FILE
)
@router.get("/{job_id}/adapter/files/{name:path}", operation_id="download_adapter_file", **ONE_FILE)
async def get_adapter_file(
    request: Request, job_id: str, name: str, db: Db, caller: Caller
) -> Response:
    """Download one file out of the adapter's archive: ranges, ETag and HEAD work."""
    async with db.reading() as tx:
        stored = await service.adapter(tx, caller.organization_id, job_id)
    entry = next((each for each in await tars.entries(db, stored) if each.name == name), None)
    if entry is None:
        raise NotFound(f"The adapter of {job_id} has no file {name!r}.", param="name")
    return blob_response(
        request,
        db,
        stored,
        media_type=BYTES,
        filename=PurePosixPath(entry.name).name.replace('"', ""),
        window=(entry.start, entry.size),
    )


@router.head(
    "/{job_id}/checkpoints/{checkpoint_id}/adapter",
    operation_id="describe_checkpoint_adapter",
    **ARCHIVE,
)
@router.get(
    "/{job_id}/checkpoints/{checkpoint_id}/adapter",
    operation_id="download_checkpoint_adapter",
    **ARCHIVE,
)
async def get_checkpoint_adapter(
    request: Request, job_id: str, checkpoint_id: str, db: Db, caller: Caller
) -> Response:
    """Download the adapter of a checkpoint as a tar."""
    async with db.reading() as tx:
        stored = await service.checkpoint_adapter(tx, caller.organization_id, job_id, checkpoint_id)
    return blob_response(request, db, stored, media_type=TAR, filename=f"{checkpoint_id}.tar")
