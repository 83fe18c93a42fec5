"""Files on the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.paging import Listed
from app.tables import File


class FileOut(Listed):
    """A file, as OpenAI's client reads it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "file-6Jw1…",
                "object": "file",
                "bytes": 120000,
                "created_at": 1760000000,
                "expires_at": None,
                "filename": "train.jsonl",
                "purpose": "fine-tune",
                "status": "processed",
                "sha256": "9f86d081…",
                "rows": 200,
            }
        }
    )

    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    sha256: str
    rows: int | None


class DeletedOut(BaseModel):
    """The receipt of a deletion."""

    id: str
    object: Literal["file"]
    deleted: bool


class TokensOut(BaseModel):
    """Tokens of a row; `max_length` is where a run on the base cuts unless it is asked otherwise.

    Estimated are those of a base without tokenizer.json, and the markers of a chat template.
    """

    estimated: bool
    counted_rows: int
    min: int
    median: int
    p95: int
    max: int
    context_length: int | None
    max_length: int | None
    truncated: int
    dropped: int


class LabelOut(BaseModel):
    label: str
    rows: int


class FindingOut(BaseModel):
    """One thing to know; `pairs` are repeats: the first line, and the line that repeats it."""

    code: str
    severity: Literal["info", "warn", "error"]
    count: int
    lines: list[int]
    pairs: list[tuple[int, int]]
    message: str


class ReportOut(BaseModel):
    """What a training file is like, errors first."""

    object: Literal["file.report"]
    file_id: str
    model: str | None
    validation_file: str | None
    rows: int
    format: str | None
    tokens: TokensOut | None
    labels: list[LabelOut]
    findings: list[FindingOut]


def file_out(file: File) -> FileOut:
    """Show a row on the wire."""
    return FileOut(
        id=file.id,
        object="file",
        bytes=file.size_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.filename,
        purpose=file.purpose,
        status="processed",
        sha256=file.sha256,
        rows=file.rows,
    )
