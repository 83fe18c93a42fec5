"""Files over HTTP: stored whole or not at all."""

import hashlib

import httpx
import pytest
from sqlalchemy import func, select

from app.blobs import purge
from app.db import Database
from app.tables import Blob, BlobChunk
from tests.conftest import MAX_FILE_BYTES
from tests.factories import jsonl


def upload(http: httpx.Client, data: bytes, purpose: str = "fine-tune") -> httpx.Response:
    return http.post("/files", files={"file": ("train.jsonl", data)}, data={"purpose": purpose})


async def stored_bytes(db: Database) -> tuple[int, int]:
    """How many blobs and chunks there are once a sweep has been."""
    await purge(db)
    async with db.transaction() as tx:
        blobs = await tx.scalar(select(func.count()).select_from(Blob))
        chunks = await tx.scalar(select(func.count()).select_from(BlobChunk))
    assert blobs is not None and chunks is not None
    return blobs, chunks


@pytest.mark.parametrize(
    ("filename", "ending"),
    [
        ("step_metrics.csv", ".csv"),
        ("model.tar.gz", ".gz"),
        ("none", ""),
        ('a.b"; filename="c', ""),
        ("a.поезд", ""),
    ],
)
def test_a_download_is_named_by_its_id_and_ends_as_the_file_did(
    http: httpx.Client, filename: str, ending: str
):
    form = {"file": (filename, b"a,b")}
    file_id = http.post("/files", files=form, data={"purpose": "assistants"}).json()["id"]

    told = http.get(f"/files/{file_id}/content").headers["content-disposition"]

    assert told == f'attachment; filename="{file_id}{ending}"'


def test_an_uploaded_file_comes_back_byte_for_byte(http: httpx.Client):
    data = jsonl(20_000)

    file = upload(http, data).json()
    content = http.get(f"/files/{file['id']}/content")

    assert file["bytes"] == len(data) and file["rows"] == 20_000
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert content.content == data


def test_the_order_of_the_form_fields_does_not_matter(http: httpx.Client):
    form = {"purpose": (None, b"fine-tune"), "file": ("train.jsonl", jsonl(10))}

    assert http.post("/files", files=form).status_code == 200


async def test_a_refused_file_leaves_nothing_behind(http: httpx.Client, db: Database):
    before = await stored_bytes(db)

    answer = upload(http, jsonl(18_000) + b"not json\n")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_file"
    assert "line 18001: not JSON" in answer.json()["error"]["message"]
    assert await stored_bytes(db) == before


async def test_a_file_over_the_cap_is_413_and_leaves_nothing(http: httpx.Client, db: Database):
    before = await stored_bytes(db)
    data = jsonl(10) + b"\n" * MAX_FILE_BYTES

    declared = upload(http, data)

    assert declared.status_code == 413
    assert declared.json()["error"]["code"] == "file_too_large"
    assert await stored_bytes(db) == before


async def test_a_stream_of_unknown_length_is_cut_at_the_cap(http: httpx.Client, db: Database):
    before = await stored_bytes(db)
    head = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    pieces = iter([head, *[b"\n" * (1 << 20)] * 4, b"\r\n--b--\r\n"])

    answer = http.post(
        "/files", content=pieces, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert answer.status_code == 413
    assert await stored_bytes(db) == before


@pytest.mark.parametrize(
    ("data", "purpose", "told"),
    [
        (b"", "fine-tune", "empty"),
        (jsonl(9), "fine-tune", "at least 10"),
        (jsonl(10), "world-domination", "Invalid purpose"),
    ],
)
def test_a_bad_upload_says_what_to_do(http: httpx.Client, data: bytes, purpose: str, told: str):
    answer = upload(http, data, purpose)

    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"--b\r\n", "multipart/form-data; boundary=b"),
        (b"garbage", "multipart/form-data; boundary=b"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
    ],
)
def test_a_body_that_is_no_form_is_a_400(http: httpx.Client, body: bytes, content_type: str):
    answer = http.post("/files", content=body, headers={"Content-Type": content_type})

    assert answer.status_code == 400, answer.text


def test_files_are_listed_newest_first_and_paged(http: httpx.Client):
    ids = [upload(http, jsonl(10)).json()["id"] for _ in range(3)]

    first = http.get("/files", params={"limit": 2}).json()
    second = http.get("/files", params={"limit": 1, "after": first["last_id"]}).json()

    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    assert second["data"][0]["id"] == ids[0]


def test_files_are_listed_oldest_first_and_by_purpose(http: httpx.Client):
    ids = [upload(http, b"x", "vision").json()["id"] for _ in range(3)]

    first = http.get("/files", params={"purpose": "vision", "order": "asc", "limit": 2}).json()
    rest = http.get(
        "/files", params={"purpose": "vision", "order": "asc", "after": first["last_id"]}
    ).json()

    assert [file["id"] for file in first["data"] + rest["data"]] == ids
    assert first["has_more"] and not rest["has_more"]


def test_a_file_expires_when_it_is_told_to(http: httpx.Client):
    expires = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    form = {"file": ("train.jsonl", jsonl(10))}

    file = http.post("/files", files=form, data={"purpose": "fine-tune"} | expires).json()

    assert file["expires_at"] - file["created_at"] == 3600
    assert upload(http, jsonl(10)).json()["expires_at"] is None


@pytest.mark.parametrize(
    "asked",
    [
        {"anchor": "created_at"},
        {"seconds": "3600"},
        {"anchor": "now", "seconds": "3600"},
        {"anchor": "created_at", "seconds": "3599"},
        {"anchor": "created_at", "seconds": "2592001"},
        {"anchor": "created_at", "seconds": "soon"},
    ],
)
def test_an_expiry_that_cannot_be_is_refused(http: httpx.Client, asked: dict[str, str]):
    fields = {f"expires_after[{name}]": value for name, value in asked.items()}
    form = {"file": ("train.jsonl", jsonl(10))}

    refused = http.post("/files", files=form, data={"purpose": "fine-tune"} | fields)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "expires_after"


@pytest.mark.parametrize("accept", ["application/binary", "application/json", "text/html", "x"])
def test_content_comes_whatever_accept_says(http: httpx.Client, training_file: str, accept: str):
    answer = http.get(f"/files/{training_file}/content", headers={"Accept": accept})

    assert (answer.status_code, answer.content) == (200, jsonl(20))


def test_a_deleted_file_is_gone(http: httpx.Client):
    file_id = upload(http, jsonl(10)).json()["id"]

    assert http.delete(f"/files/{file_id}").json()["deleted"] is True
    assert http.get(f"/files/{file_id}").status_code == 404


def test_a_file_that_a_job_reads_cannot_be_deleted(http: httpx.Client, training_file: str):
    job = http.post(
        "/fine_tuning/jobs", json={"model": "tiny-llama", "training_file": training_file}
    ).json()

    refused = http.delete(f"/files/{training_file}")
    http.post(f"/fine_tuning/jobs/{job['id']}/cancel")

    assert refused.status_code == 400
    assert job["id"] in refused.json()["error"]["message"]
    assert http.delete(f"/files/{training_file}").status_code == 200


def test_another_tenants_file_does_not_exist(stranger: httpx.Client, training_file: str):
    assert stranger.get(f"/files/{training_file}").status_code == 404
    assert stranger.get(f"/files/{training_file}/content").status_code == 404
    assert stranger.delete(f"/files/{training_file}").status_code == 404
    assert training_file not in stranger.get("/files").text
