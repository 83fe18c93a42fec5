"""`basin files` and `basin models` against a real server."""

import hashlib
from pathlib import Path

import pytest

from app.client.errors import Code, Unreachable
from app.client.session import Session
from tests.app.basin import Basin, basin_of
from tests.conftest import Api
from tests.factories import chat_row, jsonl, to_jsonl

MIB = 1 << 20


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(20))
    return path


def large(path: Path, mib: int) -> Path:
    """Write rows of together a little more than so many MiB."""
    row = chat_row(1)
    row["messages"][0]["content"] = "x" * (MIB // 16)
    path.write_bytes(to_jsonl([row] * (16 * mib)))
    return path


def test_a_file_is_uploaded_listed_shown_downloaded_and_deleted(
    basin: Basin, rows: Path, tmp_path: Path
):
    file = basin.json("files", "upload", str(rows), "--expires-days", "1")
    listed = basin("files", "list").stdout
    shown = basin.json("files", "show", file["id"])
    basin("files", "download", file["id"], "-o", str(tmp_path / "back.jsonl"))
    basin("files", "delete", file["id"])

    assert file["id"] in listed and "rows.jsonl" in listed
    assert shown["expires_at"] - shown["created_at"] == 86400
    assert (tmp_path / "back.jsonl").read_bytes() == rows.read_bytes()
    basin("files", "show", file["id"], code=Code.REFUSED)


def test_a_large_file_goes_in_parts_and_arrives_whole(basin: Basin, tmp_path: Path):
    path = large(tmp_path / "large.jsonl", 4)

    file = basin.json("files", "upload", str(path), "--part-mib", "1")

    assert file["bytes"] == path.stat().st_size > 4 * MIB
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_part_whose_way_was_cut_is_sent_again(
    basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from app.client import uploads

    path = large(tmp_path / "large.jsonl", 2)
    send, cuts = uploads._part_once, iter([True, False, True])

    def unreliable(session: Session, at: str, data: bytes) -> str:
        if next(cuts, False):
            raise Unreachable("The cable was pulled.")
        return send(session, at, data)

    monkeypatch.setattr(uploads, "_part_once", unreliable)

    answer = basin("files", "upload", str(path), "--part-mib", "1", "--json")

    assert hashlib.sha256(path.read_bytes()).hexdigest() in answer.stdout
    assert answer.stderr.count("The part is sent again") == 2


def test_a_file_that_is_no_training_data_is_refused_by_line(basin: Basin, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_text("not JSON\n" * 20)

    answer = basin("files", "upload", str(path), code=Code.REFUSED)
    check = basin.json("files", "check", str(path), code=Code.FAILED)

    assert "1" in answer.stderr and "Traceback" not in answer.stderr
    assert check["problems"] and check["file"] == "bad.jsonl"


def test_a_file_is_reported_on_for_a_model(basin: Basin, rows: Path, models_dir: Path):
    file = basin.json("files", "upload", str(rows))["id"]

    fits = basin.json("files", "report", file, "--model", "tiny-llama")
    not_for = basin("files", "report", file, "--model", "tiny-bert", code=Code.FAILED)
    here = basin.json("files", "check", str(rows), "--model", str(models_dir / "tiny-llama"))

    assert fits["rows"] == here["rows"] == 20
    assert "error" in not_for.stdout


def test_a_download_that_was_cut_short_goes_on(basin: Basin, rows: Path, tmp_path: Path):
    file = basin.json("files", "upload", str(rows))
    data, sha256 = rows.read_bytes(), file["sha256"]
    partial = tmp_path / f".back.jsonl.{sha256[:16]}.part"
    partial.write_bytes(data[:100])

    basin("files", "download", file["id"], "-o", str(tmp_path / "back.jsonl"))

    assert (tmp_path / "back.jsonl").read_bytes() == data and not partial.exists()


def test_a_download_that_is_not_what_the_server_has_is_not_kept(
    basin: Basin, rows: Path, tmp_path: Path
):
    file = basin.json("files", "upload", str(rows))
    partial = tmp_path / f".back.jsonl.{file['sha256'][:16]}.part"
    partial.write_bytes(b"?" * 100)

    answer = basin("files", "download", file["id"], "-o", str(tmp_path / "b"), code=Code.OK)
    again = basin(
        "files", "download", file["id"], "-o", str(tmp_path / "back.jsonl"), code=Code.CORRUPT
    )

    assert answer.stdout.strip() == str(tmp_path / "b")
    assert "sha256" in again.stderr and not partial.exists()
    assert not (tmp_path / "back.jsonl").exists()


def test_models_are_listed_and_shown(basin: Basin):
    bases = basin.json("models", "list", "--base")["data"]
    words = basin("models", "show", "tiny-t5").stdout

    assert {"tiny-llama", "tiny-t5"} <= {model["id"] for model in bases}
    assert "seq2seq" in words
    basin("models", "delete", "tiny-t5", code=Code.REFUSED)
