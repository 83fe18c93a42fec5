"""Large files in parts, over HTTP and through the official client."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, select

from app.blobs import purge
from app.db import Database
from app.sweep import sweep_storage
from app.tables import Blob, UploadPart
from tests.app.records import run
from tests.factories import jsonl

ROWS = jsonl(60)
CUTS = (0, 1000, 2500, len(ROWS))
PIECES = [ROWS[start:stop] for start, stop in pairwise(CUTS)]


def announce(http: httpx.Client, size: int = len(ROWS), **fields: Any) -> Any:
    body = {
        "bytes": size,
        "filename": "train.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    }
    answer = http.post("/uploads", json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def add(http: httpx.Client, upload_id: str, data: bytes) -> httpx.Response:
    return http.post(f"/uploads/{upload_id}/parts", files={"data": ("part", data)})


def add_all(http: httpx.Client, upload_id: str) -> list[str]:
    return [add(http, upload_id, piece).json()["id"] for piece in PIECES]


def complete(http: httpx.Client, upload_id: str, part_ids: list[str], **fields: Any) -> Any:
    return http.post(f"/uploads/{upload_id}/complete", json={"part_ids": part_ids} | fields)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_parts_sent_at_once_and_out_of_order_become_one_file(http: httpx.Client):
    upload = announce(http)
    with ThreadPoolExecutor(3) as pool:
        backwards = list(pool.map(lambda piece: add(http, upload["id"], piece), PIECES[::-1]))
    part_ids = [answer.json()["id"] for answer in backwards][::-1]

    done = complete(http, upload["id"], part_ids, md5=hashlib.md5(ROWS).hexdigest()).json()

    assert (upload["status"], done["status"]) == ("pending", "completed")
    assert upload["expires_at"] - upload["created_at"] == 3600
    file = done["file"]
    assert (file["bytes"], file["rows"], file["purpose"]) == (len(ROWS), 60, "fine-tune")
    assert file["sha256"] == hashlib.sha256(ROWS).hexdigest()
    assert http.get(f"/files/{file['id']}/content").content == ROWS


def test_the_official_client_uploads_in_chunks(client: openai.OpenAI):
    upload = client.uploads.upload_file_chunked(
        file=io.BytesIO(ROWS).getvalue(),
        filename="train.jsonl",
        bytes=len(ROWS),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=1500,
        md5=hashlib.md5(ROWS).hexdigest(),
    )

    assert upload.status == "completed" and upload.file is not None
    assert client.files.content(upload.file.id).read() == ROWS


async def test_a_completed_upload_keeps_no_parts(http: httpx.Client, db: Database):
    upload_id = announce(http)["id"]
    part_ids = add_all(http, upload_id)
    async with db.transaction() as tx:
        parts = select(UploadPart.blob_id).where(UploadPart.upload_id == upload_id)
        blob_ids = list(await tx.scalars(parts))

    complete(http, upload_id, part_ids)
    await purge(db)

    async with db.transaction() as tx:
        left = select(func.count()).select_from(Blob).where(Blob.id.in_(blob_ids))
        assert (len(blob_ids), await tx.scalar(left)) == (3, 0)


def test_completing_again_returns_the_same_file(http: httpx.Client):
    upload_id = announce(http)["id"]
    part_ids = add_all(http, upload_id)

    first = complete(http, upload_id, part_ids).json()
    again = complete(http, upload_id, part_ids).json()

    assert again == first


def test_completing_twice_at_once_makes_one_file(http: httpx.Client):
    upload_id = announce(http, filename="once.jsonl")["id"]
    part_ids = add_all(http, upload_id)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: complete(http, upload_id, part_ids).json(), range(4)))

    names = [file["filename"] for file in http.get("/files").json()["data"]]
    assert done == [done[0]] * 4 and done[0]["status"] == "completed"
    assert names.count("once.jsonl") == 1


def test_what_is_refused_leaves_the_upload_as_it_was(http: httpx.Client):
    upload_id = announce(http)["id"]
    a, b, c = add_all(http, upload_id)

    wrong = complete(http, upload_id, [b, a, c])
    unlike = complete(http, upload_id, [a, b, c], md5="0" * 32)
    short = complete(http, upload_id, [a, b])
    twice = complete(http, upload_id, [a, b, b])
    strange = complete(http, upload_id, [a, b, "part_x"])
    no_md5 = complete(http, upload_id, [a, b, c], md5="md5")
    right = complete(http, upload_id, [a, b, c])

    assert code(wrong) == code(unlike) == (400, "invalid_file")
    assert unlike.json()["error"]["param"] == "md5"
    for answer, what in ((short, "2500"), (twice, "twice"), (strange, "part_x")):
        assert code(answer) == (400, "invalid_value") and what in answer.text
    assert no_md5.status_code == 400
    assert right.json()["status"] == "completed"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u202eb", "x" * 256])
def test_a_name_that_cannot_be_shown_is_refused_before_the_first_part(
    http: httpx.Client, name: str
):
    about = {"bytes": 6, "mime_type": "text/jsonl", "purpose": "fine-tune", "filename": name}

    refused = http.post("/uploads", json=about)

    assert code(refused) == (400, "invalid_value")
    assert refused.json()["error"]["param"] == "filename"


def test_bad_training_data_is_refused_with_its_lines(http: httpx.Client):
    data = b"not json\n" * 10
    upload_id = announce(http, len(data))["id"]
    part_id = add(http, upload_id, data).json()["id"]

    refused = complete(http, upload_id, [part_id])

    assert code(refused) == (400, "invalid_file") and "line 1" in refused.text


def test_an_empty_file_needs_no_parts(http: httpx.Client):
    upload_id = announce(http, 0, purpose="assistants")["id"]

    done = complete(http, upload_id, []).json()

    assert (done["status"], done["file"]["bytes"]) == ("completed", 0)


def test_a_cancelled_upload_takes_no_part_and_is_not_completed(http: httpx.Client):
    upload_id = announce(http)["id"]
    part_ids = add_all(http, upload_id)

    first = http.post(f"/uploads/{upload_id}/cancel").json()
    again = http.post(f"/uploads/{upload_id}/cancel").json()

    assert first["status"] == again["status"] == "cancelled"
    assert code(add(http, upload_id, b"x")) == (400, "invalid_upload_state")
    assert code(complete(http, upload_id, part_ids)) == (400, "invalid_upload_state")


def test_a_completed_upload_is_not_cancelled(http: httpx.Client):
    upload_id = announce(http)["id"]
    complete(http, upload_id, add_all(http, upload_id))

    refused = http.post(f"/uploads/{upload_id}/cancel")

    assert code(refused) == (400, "invalid_upload_state")


async def test_an_upload_ends_after_its_hour_and_the_sweep_drops_its_parts(
    http: httpx.Client, db: Database
):
    upload_id = announce(http)["id"]
    part_ids = add_all(http, upload_id)
    await run(
        db,
        "UPDATE uploads SET expires_at = now() - interval '2 hours' WHERE id = :id",
        id=upload_id,
    )

    refused = complete(http, upload_id, part_ids)
    swept = await sweep_storage(db, file_retention_days=None, resume_retention_days=30)

    assert code(refused) == (400, "invalid_upload_state") and "expired" in refused.text
    assert swept.uploads == 1 and swept.blobs >= 3
    assert await run(db, "SELECT status FROM uploads WHERE id = :id", id=upload_id) == "expired"
    assert (
        await run(db, "SELECT count(*) FROM upload_parts WHERE upload_id = :id", id=upload_id) == 0
    )


def test_a_part_has_a_most_and_so_have_all_together(http: httpx.Client):
    upload_id = announce(http, 10)["id"]
    part = bytes(33 << 20)

    too_large = add(http, upload_id, bytes((64 << 20) + 1))
    first = add(http, upload_id, part)
    too_many = add(http, upload_id, part)

    assert code(too_large) == code(too_many) == (413, "file_too_large")
    assert first.status_code == 200
    http.post(f"/uploads/{upload_id}/cancel")


def test_the_file_of_an_upload_expires_as_was_asked(http: httpx.Client):
    expires = {"anchor": "created_at", "seconds": 7200}
    upload_id = announce(http, expires_after=expires)["id"]

    file = complete(http, upload_id, add_all(http, upload_id)).json()["file"]

    assert file["expires_at"] - file["created_at"] == 7200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": -1}, "bytes"),
        ({"purpose": "fun"}, "purpose"),
        ({"colour": "red"}, "colour"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds"),
    ],
)
def test_an_upload_that_cannot_be_is_refused(
    http: httpx.Client, fields: dict[str, Any], param: str
):
    body = {"bytes": 1, "filename": "x", "mime_type": "text/jsonl", "purpose": "fine-tune"}

    refused = http.post("/uploads", json=body | fields)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_an_upload_that_is_announced_too_large_is_refused(http: httpx.Client):
    body = {"filename": "x", "mime_type": "text/jsonl", "purpose": "fine-tune"}

    largest = http.post("/uploads", json=body | {"bytes": 8 << 30})
    refused = http.post("/uploads", json=body | {"bytes": (8 << 30) + 1})

    assert largest.status_code == 200
    assert code(refused) == (413, "file_too_large")


def test_another_tenants_upload_does_not_exist(http: httpx.Client, stranger: httpx.Client):
    upload_id = announce(http)["id"]
    part_ids = add_all(http, upload_id)

    answers = [
        add(stranger, upload_id, b"x"),
        complete(stranger, upload_id, part_ids),
        stranger.post(f"/uploads/{upload_id}/cancel"),
    ]

    assert [code(answer) for answer in answers] == [(404, "not_found")] * 3
    assert complete(http, upload_id, part_ids).json()["status"] == "completed"
