"""`basin pull` and `basin export` of archives that a test made, and the lines that serve them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import openai
import pytest

from app.client import downloads, serving
from app.client.errors import Code
from app.settings import ApiSettings
from tests.app.basin import Basin, basin_of
from tests.app.records import ready_blob, run
from tests.conftest import Api
from tests.e2e.jobs import create

CONFIG = {"peft_type": "LORA", "r": 8, "use_dora": False, "modules_to_save": None}
FILES = {"adapter_config.json": json.dumps(CONFIG).encode(), "big/weights.bin": bytes(3 << 20)}


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


def tar(files: dict[str, bytes], **links: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return packed.getvalue()


async def left(
    settings: ApiSettings, client: openai.OpenAI, training_file: str, archive: bytes
) -> str:
    """A job that has succeeded and left this archive."""
    from app.db import connected

    job = create(client, training_file).id
    async with connected(settings.database_url) as db:
        owner = await run(db, "SELECT organization_id FROM jobs WHERE id = :job", job=job)
        stored = await ready_blob(db, owner, archive)
        await run(
            db,
            "UPDATE jobs SET status = 'succeeded', adapter_blob_id = :blob WHERE id = :job",
            blob=stored.blob_id,
            job=job,
        )
    return job


@pytest.fixture
async def job(settings: ApiSettings, client: openai.OpenAI, training_file: str) -> str:
    return await left(settings, client, training_file, tar(FILES))


def test_an_adapter_is_downloaded_proven_and_unpacked(basin: Basin, job: str, tmp_path: Path):
    found = basin.json("pull", job, "-o", str(tmp_path / "out"))

    unpacked = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert unpacked == FILES and len(found["sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_there_is_not_written_over(basin: Basin, job: str, tmp_path: Path):
    answer = basin("pull", job, "-o", str(tmp_path), code=2)

    assert "there already" in answer.stderr and not list(tmp_path.iterdir())


def test_a_download_goes_on_by_itself_when_the_way_is_cut(
    basin: Basin, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from app.client.errors import Unreachable

    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    append, asked = downloads._append, []

    def cut_after_a_piece(server: Any, path: str, partial: Path, have: int, sha256: str) -> Any:
        asked.append(have)
        pieces = append(server, path, partial, have, sha256)
        yield next(pieces)
        if len(asked) < 3:
            pieces.close()
            raise Unreachable("The cable was pulled.")
        yield from pieces

    monkeypatch.setattr(downloads, "_append", cut_after_a_piece)

    basin("pull", job, "-o", str(tmp_path / "out"))

    assert asked[0] == 0 < asked[1] < asked[2]
    assert (tmp_path / "out" / "big" / "weights.bin").read_bytes() == FILES["big/weights.bin"]


@pytest.mark.parametrize(
    "archive",
    [
        tar({"../outside": b"x"}),
        tar({"/tmp/outside": b"x"}),
        tar({"a": b"x", "a/b": b"x"}),
        tar({}, link="/etc/passwd"),
        b"this is no tar" * 100,
    ],
    ids=["above", "absolute", "file-as-folder", "link", "no-tar"],
)
async def test_an_archive_that_reaches_outside_is_refused_and_leaves_nothing(
    archive: bytes,
    basin: Basin,
    settings: ApiSettings,
    client: openai.OpenAI,
    training_file: str,
    tmp_path: Path,
):
    job = await left(settings, client, training_file, archive)

    answer = basin("pull", job, "-o", str(tmp_path / "in" / "out"), code=Code.CORRUPT)

    assert "archive" in answer.stderr and "Traceback" not in answer.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_a_job_without_an_adapter_is_said(
    basin: Basin, client: openai.OpenAI, training_file: str, tmp_path: Path
):
    job = create(client, training_file).id

    document = basin.json("pull", job, "-o", str(tmp_path / "out"), code=Code.REFUSED)

    assert document["error"]["code"] == "not_ready" and "queued" in document["error"]["message"]


def test_a_base_that_is_not_here_is_asked_for(basin: Basin, job: str, tmp_path: Path):
    arguments = ("export", job, "--merge", "-o", str(tmp_path / "out"), "--models", str(tmp_path))

    answer = basin(*arguments, code=Code.FAILED)

    assert "--base" in answer.stderr and "tiny-llama" in answer.stderr


def lines(folder: Path, task: Any = "causal", **config: Any) -> serving.Lines:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return serving.of_adapter(folder, base="/models/my llama", name="bot", task=task)


def test_a_plain_adapter_is_served_beside_its_base(tmp_path: Path):
    found = lines(tmp_path)

    assert found.vllm == (
        f"vllm serve '/models/my llama' --enable-lora --lora-modules bot={tmp_path}"
    )
    assert f'PeftModel.from_pretrained(base, "{tmp_path}")' in found.python


@pytest.mark.parametrize(("r", "flag"), [(16, ""), (17, "--max-lora-rank 32"), (512, "512")])
def test_a_rank_above_what_vllm_expects_is_announced(r: int, flag: str, tmp_path: Path):
    found = lines(tmp_path, r=r)

    assert found.vllm is not None
    assert (flag in found.vllm) if flag else ("--max-lora-rank" not in found.vllm)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"r": 1024}, "512"),
    ],
)
def test_what_vllm_does_not_serve_is_to_be_merged(config: Any, why: str, tmp_path: Path):
    found = lines(tmp_path, **config)

    assert found.vllm is None and found.why_not is not None
    assert why in found.why_not and "--merge" in found.why_not


def test_other_tasks_are_served_from_python(tmp_path: Path):
    (tmp_path / "labels.json").write_text('["no", "yes"]')

    found = lines(tmp_path, task="classification")

    assert found.vllm is None and "--merge" not in str(found.why_not)
    assert "num_labels=2, id2label={0: 'no', 1: 'yes'}" in found.python
