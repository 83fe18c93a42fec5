"""/v1/files"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from app import audit, blobs
from app.errors import FileTooLarge, InvalidRequest
from app.files import reports, service
from app.files.form import UploadForm
from app.files.schemas import DeletedOut, FileOut, ReportOut, file_out
from app.files.service import UPLOAD_PURPOSES, Label
from app.models import catalog
from app.paging import ListOut, list_out
from app.schemas import ExpiresAfter
from app.tables import File
from app.web import (
    FORM_SLACK_BYTES,
    STREAM,
    After,
    Caller,
    Config,
    Db,
    Tx,
    Writer,
    blob_response,
    declared_bytes,
    downloads,
    form_body,
)

router = APIRouter(prefix="/v1/files", tags=["files"])

ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")
BYTES = "application/octet-stream"
CONTENT = downloads(BYTES)
UPLOAD_BODY = form_body(
    ["file", "purpose"],
    {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": sorted(UPLOAD_PURPOSES), "example": "fine-tune"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
)


@router.post("", response_model=FileOut, openapi_extra=UPLOAD_BODY, dependencies=[STREAM])
async def upload_file(request: Request, db: Db, settings: Config, caller: Writer) -> FileOut:
    """Upload a file: training data is checked line by line while it arrives."""
    declared = max(declared_bytes(request) - FORM_SLACK_BYTES, 0)
    limit = settings.max_file_bytes
    if declared > limit:
        raise FileTooLarge(f"The file is larger than {limit} bytes.", param="file")
    form = UploadForm(request.headers.get("content-type"), request.stream())
    file = await service.upload(
        db,
        caller,
        form.file(),
        lambda: _label(form),
        max_bytes=limit,
        declared_bytes=declared,
        purpose_so_far=lambda: form.fields.get("purpose"),
    )
    return file_out(file)


def _label(form: UploadForm) -> Label:
    asked = {
        name: form.fields[f"expires_after[{name}]"]
        for name in ("anchor", "seconds")
        if f"expires_after[{name}]" in form.fields
    }
    lifetime_s = None
    if asked:
        try:
            lifetime_s = ExpiresAfter.model_validate_strings(asked).seconds
        except ValidationError as error:
            raise InvalidRequest(
                "expires_after has the anchor created_at, and 3600 to 2592000 seconds.",
                param="expires_after",
            ) from error
    return Label(form.filename or "", form.fields.get("purpose"), lifetime_s)


@router.get("", response_model=ListOut[FileOut])
async def list_files(
    tx: Tx,
    caller: Caller,
    *,
    purpose: str | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=0, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> ListOut[FileOut]:
    """List your files, newest first."""
    page = await service.list_files(
        tx, caller.organization_id, purpose=purpose, after=after, limit=limit, order=order
    )
    return list_out([file_out(file) for file in page.data], has_more=page.has_more)


@router.get("/{file_id}", response_model=FileOut)
async def get_file(file_id: str, tx: Tx, caller: Caller) -> FileOut:
    """Describe one file."""
    return file_out(await service.get(tx, caller.organization_id, file_id))


@router.head("/{file_id}/content", operation_id="describe_file_content", **CONTENT)
@router.get("/{file_id}/content", operation_id="download_file", **CONTENT)
async def get_content(request: Request, file_id: str, db: Db, caller: Caller) -> Response:
    """Download the file's bytes: ranges, ETag and HEAD work."""
    async with db.transaction() as tx:
        file = await service.get(tx, caller.organization_id, file_id)
        stored = await blobs.describe(tx, file.blob_id)
    return blob_response(
        request, db, stored, media_type=BYTES, filename=f"{file.id}{_ending(file)}"
    )


def _ending(file: File) -> str:
    """Return how a download's name ends: what was checked to be rows, or what the name says."""
    if file.rows is not None:
        return ".jsonl"
    ending = PurePosixPath(file.filename).suffix
    return ending if ENDING.fullmatch(ending) else ""


@router.get("/{file_id}/report", response_model=ReportOut, dependencies=[STREAM])
async def get_report(
    file_id: str,
    db: Db,
    settings: Config,
    caller: Caller,
    *,
    model: Annotated[str | None, Query(description="A base model to measure rows by.")] = None,
    validation_file: Annotated[str | None, Query(description="A file to compare with.")] = None,
) -> ReportOut:
    """Look for what is doubtful in a training file; kept once it was made."""
    base = None
    if model:
        base = catalog.find(model, settings.models_dir, settings.hub_revisions, settings.hub_tasks)
    found = await reports.get(
        db, caller.organization_id, file_id, base=base, validation_file=validation_file
    )
    named = {"file_id": file_id, "model": model, "validation_file": validation_file}
    return ReportOut.model_validate({"object": "file.report"} | named | found)


@router.delete("/{file_id}", response_model=DeletedOut)
async def delete_file(file_id: str, tx: Tx, caller: Writer) -> DeletedOut:
    """Delete a file that no unfinished job reads."""
    audit.record(tx, caller, "file.deleted", file_id)
    await service.delete(tx, caller.organization_id, file_id)
    return DeletedOut(id=file_id, object="file", deleted=True)
