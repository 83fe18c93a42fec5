"""/v1/uploads"""

from fastapi import APIRouter, Request

from app import audit
from app.errors import FileTooLarge
from app.files.form import UploadForm
from app.uploads import service
from app.uploads.schemas import (
    CompleteUpload,
    CreateUpload,
    PartOut,
    UploadOut,
    part_out,
    upload_out,
)
from app.uploads.service import PART_BYTES, NewUpload
from app.web import FORM_SLACK_BYTES, STREAM, Config, Db, Tx, Writer, declared_bytes, form_body

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

PART_BODY = form_body(["data"], {"data": {"type": "string", "format": "binary"}})


@router.post("", response_model=UploadOut)
async def create_upload(body: CreateUpload, tx: Tx, caller: Writer, settings: Config) -> UploadOut:
    """Announce a file, of up to 8 GiB, that comes in parts within an hour."""
    asked = NewUpload(
        filename=body.filename,
        mime_type=body.mime_type,
        purpose=body.purpose,
        size_bytes=body.bytes,
        file_lifetime_s=body.expires_after.seconds if body.expires_after else None,
    )
    upload = await service.create(
        tx, caller.organization_id, asked, max_bytes=settings.max_upload_bytes
    )
    audit.record(tx, caller, "upload.created", upload.id, {"bytes": upload.size_bytes})
    return upload_out(upload)


@router.post(
    "/{upload_id}/parts", response_model=PartOut, openapi_extra=PART_BODY, dependencies=[STREAM]
)
async def add_part(request: Request, upload_id: str, db: Db, caller: Writer) -> PartOut:
    """Add a part of up to 64 MiB; several may come at once, in any order."""
    if declared_bytes(request) > PART_BYTES + FORM_SLACK_BYTES:
        raise FileTooLarge(f"A part has at most {PART_BYTES} bytes.", param="data")
    form = UploadForm(request.headers.get("content-type"), request.stream(), part="data")
    return part_out(await service.add_part(db, caller, upload_id, form.file()))


@router.post("/{upload_id}/complete", response_model=UploadOut)
async def complete_upload(
    upload_id: str, body: CompleteUpload, db: Db, caller: Writer
) -> UploadOut:
    """Make a file of the parts, in the order given; training data is checked now."""
    upload, file = await service.complete(db, caller, upload_id, body.part_ids, body.md5)
    return upload_out(upload, file)


@router.post("/{upload_id}/cancel", response_model=UploadOut)
async def cancel_upload(upload_id: str, tx: Tx, caller: Writer) -> UploadOut:
    """Drop an upload and its parts."""
    audit.record(tx, caller, "upload.cancelled", upload_id)
    return upload_out(await service.cancel(tx, caller.organization_id, upload_id))
