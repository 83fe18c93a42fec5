"""Uploads on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from app.files.schemas import FileOut, file_out
from app.files.service import UPLOAD_PURPOSES
from app.schemas import Asked, ExpiresAfter
from app.tables import File, Upload, UploadPart
from app.uploads.service import MAX_PARTS, status_of


class CreateUpload(Asked):
    """A file to come in parts, and how long it will be."""

    bytes: int = Field(ge=0)
    filename: str = Field(min_length=1, max_length=1024)
    mime_type: str = Field(max_length=256)
    purpose: str = Field(json_schema_extra={"enum": [*sorted(UPLOAD_PURPOSES)]})
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Asked):
    """The parts in their order; with `md5`, in hex, the whole is compared with it."""

    part_ids: list[str] = Field(max_length=MAX_PARTS)
    md5: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{32}$")


class UploadOut(BaseModel):
    """An upload, as OpenAI's client reads it."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileOut | None


class PartOut(BaseModel):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


def upload_out(upload: Upload, file: File | None = None) -> UploadOut:
    """Show an upload on the wire, with the file that it became."""
    return UploadOut(
        id=upload.id,
        object="upload",
        bytes=upload.size_bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.expires_at.timestamp()),
        filename=upload.filename,
        purpose=upload.purpose,
        status=status_of(upload),
        file=file_out(file) if file else None,
    )


def part_out(part: UploadPart) -> PartOut:
    """Show a part on the wire."""
    return PartOut(
        id=part.id,
        object="upload.part",
        created_at=int(part.created_at.timestamp()),
        upload_id=part.upload_id,
    )
