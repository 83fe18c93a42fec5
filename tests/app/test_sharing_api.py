"""Fine-tuned models: shared by permission, deleted, and read file by file."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import select, update

from app import blobs, fsck, tars
from app.db import Database
from app.ids import new_id, token
from app.jobs import defaults
from app.jobs.defaults import Facts
from app.jobs.schemas import CreateJob
from app.jobs.spec import DataSpec
from app.jobs.states import JobStatus
from app.keys.service import Scope
from app.tables import Checkpoint, Job, Organization
from tests.app.records import ready_blob, run
from tests.conftest import Api
from tests.factories import jsonl
from worker import archive

LONG = "a/" + "deep/" * 30 + "file.bin"
FILES = {"adapter_config.json": b'{"r": 8}', LONG: b"deep", "weights.safetensors": bytes(1234567)}


@dataclass(frozen=True)
class Tuned:
    """A job that succeeded, its model, and a checkpoint with its own."""

    job_id: str
    model: str
    checkpoint_id: str
    checkpoint_model: str
    tar: bytes

    @property
    def adapter(self) -> str:
        return f"/fine_tuning/jobs/{self.job_id}/adapter"

    @property
    def checkpoint_adapter(self) -> str:
        return f"/fine_tuning/jobs/{self.job_id}/checkpoints/{self.checkpoint_id}/adapter"


@pytest.fixture(scope="session")
def tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder: Path = tmp_path_factory.mktemp("adapter")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return b"".join(archive.pack(folder))


@pytest.fixture
async def tuned(http: httpx.Client, db: Database, organization: str, tar: bytes) -> Tuned:
    async with db.transaction() as tx:
        named = select(Organization.id).where(Organization.name == organization)
        organization_id = str(await tx.scalar(named))
    adapter = await ready_blob(db, organization_id, tar)
    half = await ready_blob(db, organization_id, tar)
    job_id = new_id("ftjob-")
    model = f"ft:tiny-llama:{organization_id}::{job_id[-8:]}"
    checkpoint = Checkpoint(
        id=new_id("ftckpt_"),
        job_id=job_id,
        step=5,
        metrics={},
        model=f"{model}:ckpt-step-5",
        blob_id=half.blob_id,
    )
    async with db.transaction() as tx:
        tx.add(_job(job_id, organization_id, model, adapter.blob_id))
        await tx.flush()
        tx.add(checkpoint)
    return Tuned(job_id, model, checkpoint.id, checkpoint.model, tar)


def _job(job_id: str, organization_id: str, model: str, blob_id: str) -> Job:
    body = CreateJob(model="tiny-llama", training_file="file-x")
    data = DataSpec(train_sha256="", train_rows=20, valid_sha256=None, valid_rows=0)
    facts = Facts(job_id=job_id, context_length=64, task="causal", data=data)
    spec = defaults.resolve(body, facts, seed=1)
    return Job(
        id=job_id,
        organization_id=organization_id,
        status=JobStatus.SUCCEEDED,
        model=body.model,
        training_file_id=body.training_file,
        method={},
        hyperparameters={},
        spec=spec.model_dump(mode="json"),
        total_steps=spec.total_steps,
        fine_tuned_model=model,
        adapter_blob_id=blob_id,
    )


@pytest.fixture(scope="module")
def admin(api: Api, organization: str) -> Iterator[httpx.Client]:
    with api.http(api.key(organization, Scope.ADMIN)) as client:
        yield client


@pytest.fixture(scope="module")
def partner_key(api: Api) -> str:
    return api.key(f"partner-{token(6)}", Scope.ADMIN)


@pytest.fixture(scope="module")
def partner(api: Api, partner_key: str) -> Iterator[httpx.Client]:
    with api.http(partner_key) as client:
        yield client


@pytest.fixture(scope="module")
def partner_id(partner: httpx.Client) -> str:
    file_id = upload(partner)
    body = {"model": "tiny-llama", "training_file": file_id}
    job = partner.post("/fine_tuning/jobs", json=body).json()
    partner.post(f"/fine_tuning/jobs/{job['id']}/cancel")
    return job["organization_id"]


def upload(http: httpx.Client) -> str:
    form = {"file": ("train.jsonl", jsonl(20))}
    return http.post("/files", files=form, data={"purpose": "fine-tune"}).json()["id"]


def permissions(model: str) -> str:
    return f"/fine_tuning/checkpoints/{model}/permissions"


def share(admin: httpx.Client, model: str, *project_ids: str) -> Any:
    answer = admin.post(permissions(model), json={"project_ids": list(project_ids)})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def go_on_from(http: httpx.Client, model: str, training_file: str) -> httpx.Response:
    body = {"model": "tiny-llama", "training_file": training_file, "peft": {"from": model}}
    return http.post("/fine_tuning/jobs", json=body)


def listed(http: httpx.Client) -> list[str]:
    return [model["id"] for model in http.get("/models").json()["data"]]


def test_a_model_is_nobody_elses_until_it_is_shared(
    admin: httpx.Client, partner: httpx.Client, partner_id: str, tuned: Tuned
):
    before = partner.get(tuned.adapter)
    share(admin, tuned.model, partner_id)
    after = partner.get(tuned.adapter)

    assert before.status_code == 404
    assert (after.status_code, after.content) == (200, tuned.tar)
    assert tuned.model in listed(partner)
    assert partner.get(f"/fine_tuning/jobs/{tuned.job_id}").status_code == 404
    assert partner.get(tuned.checkpoint_adapter).status_code == 404
    assert partner.delete(f"/models/{tuned.model}").status_code == 404


def test_a_shared_checkpoint_is_downloaded_and_trained_on(
    admin: httpx.Client, partner: httpx.Client, partner_id: str, tuned: Tuned
):
    training_file = upload(partner)
    refused = go_on_from(partner, tuned.checkpoint_model, training_file)
    share(admin, tuned.checkpoint_model, partner_id)

    job = go_on_from(partner, tuned.checkpoint_model, training_file)
    partner.post(f"/fine_tuning/jobs/{job.json()['id']}/cancel")

    assert refused.status_code == 400 and refused.json()["error"]["code"] == "model_not_found"
    assert job.status_code == 200, job.text
    assert job.json()["peft"]["from"] == tuned.checkpoint_model
    assert partner.get(tuned.checkpoint_adapter).content == tuned.tar
    assert partner.get(tuned.adapter).status_code == 404


def test_a_permission_taken_back_ends_it(
    admin: httpx.Client, partner: httpx.Client, partner_id: str, tuned: Tuned
):
    (permission,) = share(admin, tuned.model, partner_id)

    deleted = admin.delete(f"{permissions(tuned.model)}/{permission['id']}").json()

    assert deleted == {"id": permission["id"], "object": "checkpoint.permission", "deleted": True}
    assert partner.get(tuned.adapter).status_code == 404
    assert tuned.model not in listed(partner)


def test_sharing_twice_makes_one_permission(admin: httpx.Client, partner_id: str, tuned: Tuned):
    first = share(admin, tuned.model, partner_id)
    again = share(admin, tuned.model, partner_id, partner_id)

    assert first == again and first[0]["project_id"] == partner_id


def test_the_official_client_shares_lists_and_revokes(
    api: Api, organization: str, partner_id: str, tuned: Tuned
):
    with api.openai(api.key(organization, Scope.ADMIN)) as client:
        calls = client.fine_tuning.checkpoints.permissions
        calls.create(tuned.model, project_ids=[partner_id])
        found = list(calls.list(tuned.model))
        none = list(calls.list(tuned.model, project_id="org-x"))
        calls.delete(found[0].id, fine_tuned_model_checkpoint=tuned.model)
        left = list(calls.list(tuned.model))

    assert [each.project_id for each in found] == [partner_id]
    assert (none, left) == ([], [])


def test_permissions_are_paged_in_either_order(
    admin: httpx.Client, api: Api, partner_id: str, tuned: Tuned
):
    share(admin, tuned.model, partner_id)
    with api.http(api.key(f"third-{token(6)}")) as third:
        body = {"model": "tiny-llama", "training_file": upload(third)}
        third_id = third.post("/fine_tuning/jobs", json=body).json()["organization_id"]
    share(admin, tuned.model, third_id)
    path = permissions(tuned.model)

    newest = admin.get(path, params={"limit": 1}).json()
    rest = admin.get(path, params={"after": newest["last_id"]}).json()
    oldest = admin.get(path, params={"order": "ascending", "limit": 1}).json()

    assert newest["has_more"] and newest["data"][0]["project_id"] == third_id
    assert [each["project_id"] for each in rest["data"]] == [partner_id]
    assert oldest["data"] == rest["data"]


def test_only_an_admin_key_shares(http: httpx.Client, partner_id: str, tuned: Tuned):
    path = permissions(tuned.model)

    answers = [
        http.post(path, json={"project_ids": [partner_id]}),
        http.get(path),
        http.delete(f"{path}/cp_x"),
    ]

    assert [answer.status_code for answer in answers] == [403] * 3
    assert answers[0].json()["error"]["code"] == "insufficient_permissions"


def test_nobody_shares_what_is_anothers(
    admin: httpx.Client, partner: httpx.Client, partner_id: str, tuned: Tuned
):
    (permission,) = share(admin, tuned.model, partner_id)
    path = permissions(tuned.model)

    answers = [
        partner.post(path, json={"project_ids": [partner_id]}),
        partner.get(path),
        partner.delete(f"{path}/{permission['id']}"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 3
    assert admin.get(path).json()["data"] == [permission]


def test_a_project_that_is_not_there_is_refused(admin: httpx.Client, tuned: Tuned):
    refused = admin.post(permissions(tuned.model), json={"project_ids": ["org-none"]})

    assert refused.status_code == 400 and "org-none" in refused.text


async def test_a_deleted_model_is_gone_and_its_job_stays(
    http: httpx.Client,
    admin: httpx.Client,
    partner: httpx.Client,
    partner_id: str,
    training_file: str,
    tuned: Tuned,
    db: Database,
):
    share(admin, tuned.model, partner_id)
    find = "SELECT adapter_blob_id FROM jobs WHERE id = :id"
    blob_id = await run(db, find, id=tuned.job_id)

    deleted = http.delete(f"/models/{tuned.model}").json()

    assert deleted == {"id": tuned.model, "object": "model", "deleted": True}
    assert http.delete(f"/models/{tuned.model}").status_code == 404
    assert http.get(f"/models/{tuned.model}").status_code == 404
    assert http.get(tuned.adapter).status_code == partner.get(tuned.adapter).status_code == 404
    assert go_on_from(http, tuned.model, training_file).status_code == 400
    assert admin.get(permissions(tuned.model)).status_code == 404
    job = http.get(f"/fine_tuning/jobs/{tuned.job_id}").json()
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", tuned.model)
    assert await run(db, "SELECT state FROM blobs WHERE id = :id", id=blob_id) == "deleting"
    async with db.transaction() as tx:
        assert tuned.job_id not in [found.subject for found in await fsck.check(tx)]


def test_the_model_of_a_checkpoint_is_deleted_alone(http: httpx.Client, tuned: Tuned):
    deleted = http.delete(f"/models/{tuned.checkpoint_model}")

    assert deleted.status_code == 200
    assert http.get(tuned.checkpoint_adapter).status_code == 404
    assert http.get(tuned.adapter).status_code == 200


def test_a_model_that_a_job_goes_on_from_is_not_deleted(
    http: httpx.Client, training_file: str, tuned: Tuned
):
    job_id = go_on_from(http, tuned.model, training_file).json()["id"]

    refused = http.delete(f"/models/{tuned.model}")
    http.post(f"/fine_tuning/jobs/{job_id}/cancel")

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "model_in_use" and job_id in refused.text
    assert http.delete(f"/models/{tuned.model}").status_code == 200


def test_the_job_of_a_partner_keeps_a_model_and_is_not_named(
    http: httpx.Client,
    admin: httpx.Client,
    partner: httpx.Client,
    partner_id: str,
    tuned: Tuned,
):
    share(admin, tuned.model, partner_id)
    upload = {"file": ("train.jsonl", jsonl(10))}
    theirs = partner.post("/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
    job_id = go_on_from(partner, tuned.model, theirs).json()["id"]

    refused = http.delete(f"/models/{tuned.model}")
    partner.post(f"/fine_tuning/jobs/{job_id}/cancel")

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "model_in_use" and job_id not in refused.text


def test_a_base_model_is_the_operators(http: httpx.Client):
    refused = http.delete("/models/tiny-llama")

    assert refused.status_code == 400 and "operator" in refused.text
    assert http.get("/models/tiny-llama").status_code == 200


def test_the_official_client_deletes_a_model(client: openai.OpenAI, tuned: Tuned):
    assert client.models.delete(tuned.model).deleted is True


def test_models_are_described_to_who_may_use_them(
    http: httpx.Client,
    admin: httpx.Client,
    partner: httpx.Client,
    partner_id: str,
    stranger: httpx.Client,
    tuned: Tuned,
):
    names = [tuned.model, tuned.checkpoint_model]
    unshared = [partner.get(f"/models/{name}").status_code for name in names]
    for name in names:
        share(admin, name, partner_id)

    for name in names:
        mine, shared = (client.get(f"/models/{name}").json() for client in (http, partner))
        assert mine == shared and mine["id"] == name and mine["task"] == "causal"
        assert stranger.get(f"/models/{name}").status_code == 404
    assert unshared == [404, 404]


def test_one_file_comes_out_of_the_archive(http: httpx.Client, tuned: Tuned):
    files = http.get(f"{tuned.adapter}/files").json()["data"]

    assert {file["name"]: file["bytes"] for file in files} == {
        name: len(data) for name, data in FILES.items()
    }
    for name, data in FILES.items():
        assert http.get(f"{tuned.adapter}/files/{name}").content == data


def test_a_file_of_the_archive_has_ranges_and_an_etag(http: httpx.Client, tuned: Tuned):
    path = f"{tuned.adapter}/files/adapter_config.json"

    whole = http.get(path)
    head = http.head(path)
    middle = http.get(path, headers={"Range": "bytes=1-3"})
    beyond = http.get(path, headers={"Range": "bytes=8-"})
    known = http.get(path, headers={"If-None-Match": whole.headers["etag"]})
    other = http.get(f"{tuned.adapter}/files/{LONG}")

    assert whole.headers["content-length"] == head.headers["content-length"] == "8"
    assert (middle.status_code, middle.content) == (206, FILES["adapter_config.json"][1:4])
    assert middle.headers["content-range"] == "bytes 1-3/8"
    assert (beyond.status_code, known.status_code) == (416, 304)
    assert other.headers["etag"] != whole.headers["etag"]


@pytest.mark.parametrize("name", ["none", "../x", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "a"])
def test_a_name_that_is_not_in_the_archive_is_unknown(http: httpx.Client, tuned: Tuned, name: str):
    assert http.get(f"{tuned.adapter}/files/{name}").status_code == 404


def test_another_tenants_archive_does_not_exist(stranger: httpx.Client, tuned: Tuned):
    assert stranger.get(f"{tuned.adapter}/files").status_code == 404
    assert stranger.get(f"{tuned.adapter}/files/adapter_config.json").status_code == 404


async def test_what_is_no_tar_is_said_to_be_corrupt(db: Database, tuned: Tuned):
    owner = "SELECT organization_id FROM jobs WHERE id = :id"
    stored = await ready_blob(db, await run(db, owner, id=tuned.job_id), b"x" * 2000)

    with pytest.raises(blobs.CorruptBlob):
        await tars.entries(db, stored)


async def test_every_kind_of_entry_is_read_as_tarfile_does(db: Database, tuned: Tuned):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, data in (("ä.txt", b"umlaut"), ("empty", b""), ("x" * 150, bytes(512))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        made.addfile(_directory())
    owner = "SELECT organization_id FROM jobs WHERE id = :id"
    stored = await ready_blob(db, await run(db, owner, id=tuned.job_id), out.getvalue())

    found = await tars.entries(db, stored)

    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as read:
        expected = [(m.name, m.offset_data, m.size) for m in read if m.isreg()]
    assert [(each.name, each.start, each.size) for each in found] == expected


def _directory() -> tarfile.TarInfo:
    info = tarfile.TarInfo("folder")
    info.type = tarfile.DIRTYPE
    return info


@pytest.fixture(autouse=True, scope="module")
async def end_jobs(settings: Any) -> Any:
    """Leave no job in the queue for the modules that follow."""
    yield
    from app.db import connected

    async with connected(settings.database_url) as database, database.transaction() as tx:
        waits = Job.status == JobStatus.QUEUED
        await tx.execute(update(Job).where(waits).values(status=JobStatus.CANCELLED))
