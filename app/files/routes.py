"""/v1/files"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app import audit, blobs
from app.errors import FileTooLarge
from app.files import service
from app.files.form import UploadForm
from app.files.schemas import DeletedOut, FileOut, file_out
from app.files.service import Label
from app.paging import ListOut, list_out
from app.web import After, Caller, Config, Db, Tx, Writer, blob_response

router = APIRouter(prefix="/v1/files", tags=["files"])

FORM_SLACK_BYTES = 64 << 10  # boundaries and the other fields
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "example": "fine-tune"},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileOut, openapi_extra=UPLOAD_BODY)
async def upload_file(request: Request, db: Db, settings: Config, caller: Writer) -> FileOut:
    """Upload a file: training data is checked line by line while it arrives."""
    length = request.headers.get("content-length", "")
    declared = int(length) - FORM_SLACK_BYTES if length.isdecimal() else 0
    limit = settings.max_file_bytes
    if declared > limit:
        raise FileTooLarge(f"The file is larger than {limit} bytes.", param="file")
    form = UploadForm(request.headers.get("content-type"), request.stream())
    file = await service.upload(
        db,
        caller,
        form.file(),
        lambda: Label(form.filename or "", form.fields.get("purpose")),
        max_bytes=limit,
        declared_bytes=max(declared, 0),
    )
    return file_out(file)


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


@router.get("/{file_id}/content")
async def get_content(request: Request, file_id: str, db: Db, caller: Caller) -> Response:
    """Download the file's bytes; ranges work."""
    async with db.transaction() as tx:
        file = await service.get(tx, caller.organization_id, file_id)
        stored = await blobs.describe(tx, file.blob_id)
    return blob_response(
        request, db, stored, media_type="application/octet-stream", filename=f"{file.id}.jsonl"
    )


@router.delete("/{file_id}", response_model=DeletedOut)
async def delete_file(file_id: str, tx: Tx, caller: Writer) -> DeletedOut:
    """Delete a file that no unfinished job reads."""
    audit.record(tx, caller, "file.deleted", file_id)
    await service.delete(tx, caller.organization_id, file_id)
    return DeletedOut(id=file_id, object="file", deleted=True)
