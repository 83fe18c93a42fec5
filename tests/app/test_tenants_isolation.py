"""Nobody reaches what belongs to another organization, by any route there is."""

import asyncio
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import func, text, update

from app.db import connected
from app.jobs import rollouts
from app.jobs.states import JobStatus
from app.keys.service import Scope
from app.tables import Attempt, Base, Job, LogChunk
from tests.app import records
from tests.app.comparisons.test_comparisons_api import compare
from tests.app.route_table import Route, closed_routes
from tests.app.test_jobs_api import submit
from tests.conftest import Api
from tests.factories import jsonl, rollout, turn
from tests.receiver import RECEIVER_HOST

ENVELOPE = {"message", "type", "param", "code"}
JOBS = "/fine_tuning/jobs"
EVENT_TYPES = ["fine_tuning.job.succeeded"]
CANARY = "canary"  # stands in all that the other organization wrote

# What a route with a required body is sent, by its method and path.
PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions"
BODIES: dict[str, Any] = {
    "POST /v1/uploads/{upload_id}/complete": {"part_ids": []},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": {"name": "ours"},
    f"POST {PERMISSIONS}": {"project_ids": ["org-nobody"]},
}
# What a route that takes bytes is sent.
UPLOADED: dict[str, Any] = {"POST /v1/uploads/{upload_id}/parts": {"data": b"ours"}}


@dataclass(frozen=True)
class Theirs:
    """The things of another organization; `ids` by the names that paths have for them."""

    organization_id: str
    ids: dict[str, str]


@dataclass(frozen=True)
class Ours:
    """Things of the one who asks."""

    file: str
    job: str
    model: str
    upload: str

    @property
    def job_body(self) -> dict[str, Any]:
        return {"model": "tiny-llama", "training_file": self.file}


ADDRESSED = [route for route in closed_routes() if route.parameters]
LISTS = [
    route
    for route in closed_routes()
    if not route.parameters and route.method == "GET" and route.path != "/v1/models"
]


@pytest.fixture(scope="module")
def theirs(api: Api) -> Theirs:
    return make_theirs(api)


@pytest.fixture(scope="module")
def nosy(api: Api) -> Iterator[httpx.Client]:
    """An administrator of another organization: not for want of a scope is anything refused."""
    with api.http(api.key("nosy", Scope.ADMIN)) as client:
        yield client


@pytest.fixture(scope="module")
def ours(api: Api, nosy: httpx.Client) -> Ours:
    upload = {"file": ("train.jsonl", jsonl(10))}
    file_id = nosy.post("/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
    job = submit(nosy, file_id).json()
    model = f"ft:tiny-llama:nosy:{job['id'][-8:]}"
    asyncio.run(succeed(api, job, model))
    about = {"filename": "x.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune", "bytes": 6}
    return Ours(file_id, job["id"], model, nosy.post("/uploads", json=about).json()["id"])


@pytest.mark.parametrize("route", ADDRESSED, ids=str)
def test_a_foreign_id_is_a_404_that_tells_nothing_and_changes_nothing(
    api: Api, nosy: httpx.Client, theirs: Theirs, route: Route
):
    before = snapshot(api, theirs)

    answer = nosy.request(
        route.method,
        api.url + route.at(ids_for(route, theirs)),
        json=BODIES.get(str(route)),
        files=UPLOADED.get(str(route)),
    )

    assert answer.status_code != 400 or "issing" not in answer.text, (
        f"{route} needs a body before it looks for its thing: put one into BODIES in {__file__}."
    )
    assert answer.status_code == 404, f"{route}: {answer.text}"
    if route.method != "HEAD":
        assert set(answer.json()["error"]) == ENVELOPE
    assert not traces(answer, theirs)
    assert before["jobs"] and before["files"] and before["upload_parts"]
    assert snapshot(api, theirs) == before


@pytest.mark.parametrize("route", LISTS, ids=str)
def test_a_list_shows_nothing_of_others_whatever_it_starts_after(
    api: Api, nosy: httpx.Client, theirs: Theirs, route: Route
):
    answers = [
        nosy.get(api.url + route.path, params={"after": after} if after else None)
        for after in (None, *(set(theirs.ids.values()) - {theirs.organization_id}))
    ]

    assert not [trace for answer in answers for trace in traces(answer, theirs)]
    assert {answer.status_code for answer in answers} <= {200, 404}


def test_models_of_others_are_not_listed(nosy: httpx.Client, theirs: Theirs):
    listed = nosy.get("/models")

    assert listed.json()["data"] and not traces(listed, theirs)


def test_the_owner_sees_what_others_do_not(api: Api, theirs: Theirs):
    """Else a 404 above would prove nothing. The operator is one who may see even organizations."""
    with api.http(api.key(f"{CANARY}-org", Scope.OPERATOR)) as owner:
        looks = [route for route in ADDRESSED if route.method in ("GET", "HEAD")]
        seen = {
            str(route): owner.request(route.method, api.url + route.at(ids_for(route, theirs)))
            for route in looks
        }

    assert {name: answer.status_code for name, answer in seen.items()} == dict.fromkeys(seen, 200)


# Where an id stands elsewhere than in a path, or in one beside an id of the caller's own.
BESIDE: dict[str, tuple[str, Callable[[Ours, str], tuple[str, str, Any]]]] = {
    "a file to train on": (
        "file_id",
        lambda ours, given: ("POST", JOBS, {"model": "tiny-llama", "training_file": given}),
    ),
    "a file to validate with": (
        "file_id",
        lambda ours, given: ("POST", JOBS, ours.job_body | {"validation_file": given}),
    ),
    "a model to go on from": (
        "model",
        lambda ours, given: ("POST", JOBS, ours.job_body | {"peft": {"from": given}}),
    ),
    "a file to compare with": (
        "file_id",
        lambda ours, given: ("GET", f"/files/{ours.file}/report?validation_file={given}", None),
    ),
    "a part of an upload": (
        "part_id",
        lambda ours, given: ("POST", f"/uploads/{ours.upload}/complete", {"part_ids": [given]}),
    ),
    "a checkpoint of a job": (
        "checkpoint_id",
        lambda ours, given: ("GET", f"{JOBS}/{ours.job}/checkpoints/{given}/adapter", None),
    ),
    "a permission for a model": (
        "permission_id",
        lambda ours, given: (
            "DELETE",
            f"/fine_tuning/checkpoints/{ours.model}/permissions/{given}",
            None,
        ),
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_anothers_is_answered_as_if_it_never_was(
    api: Api, nosy: httpx.Client, theirs: Theirs, ours: Ours, what: str
):
    kind, build = BESIDE[what]
    foreign = theirs.ids[kind]
    # As long as the real one: an answer may cut what it repeats.
    nothing = foreign[:4] + "".join("z" if c.isalnum() else c for c in foreign[4:])
    before = snapshot(api, theirs)

    answers = {}
    for given in (foreign, nothing):
        method, path, body = build(ours, given)
        answer = nosy.request(method, path, json=body)
        answers[given] = (answer.status_code, answer.text.replace(given, "…"))

    assert answers[foreign] == answers[nothing]
    assert answers[foreign][0] in (400, 404)
    assert snapshot(api, theirs) == before


def ids_for(route: Route, theirs: Theirs) -> dict[str, str]:
    unknown = set(route.parameters) - set(theirs.ids)
    assert not unknown, (
        f"{route} has the path parameter {unknown}, of which nobody knows whose it is: add a"
        f" foreign one to `ids` in make_theirs in {__file__}."
    )
    return theirs.ids


def traces(answer: httpx.Response, theirs: Theirs) -> list[str]:
    """What an answer tells of the others, besides the ids that were asked for."""
    told = answer.text + json.dumps(dict(answer.headers))
    named = (each for each in theirs.ids.values() if each != theirs.organization_id)
    for asked in sorted(named, key=len, reverse=True):
        told = told.replace(asked, "…")
    return [trace for trace in (CANARY, theirs.organization_id) if trace in told]


def make_theirs(api: Api) -> Theirs:
    """One of everything that a path can name, full of canaries."""
    key = api.key(f"{CANARY}-org", Scope.ADMIN)
    with api.http(key) as owner:
        upload = {"file": (f"{CANARY}.jsonl", jsonl(10))}
        file_id = owner.post("/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        job = submit(owner, file_id, suffix=CANARY, metadata={CANARY: CANARY}).json()
        model = f"ft:tiny-llama:{CANARY}:{job['id'][-8:]}"
        checkpoint_id = asyncio.run(succeed(api, job, model))
        going_on = submit(owner, file_id, peft={"from": model})
        assert going_on.json()["status"] == "queued", going_on.text
        compared = {"training_file": file_id, "validation_file": file_id}
        methods = [{"name": f"{CANARY}-{number}"} for number in range(2)]
        comparison_id = compare(owner, compared, methods=methods, name=CANARY).json()["id"]
        partner_id = asyncio.run(make_partner(api))
        path = PERMISSIONS.replace("{checkpoint:path}", model)
        shared = owner.post(api.url + path, json={"project_ids": [partner_id]}).json()
        about = {"filename": f"{CANARY}.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        upload_id = owner.post("/uploads", json=about | {"bytes": 6}).json()["id"]
        part = owner.post(f"/uploads/{upload_id}/parts", files={"data": CANARY.encode()}).json()
        hook = {"url": f"http://{RECEIVER_HOST}/{CANARY}", "event_types": EVENT_TYPES}
        webhook = owner.post("/webhook_endpoints", json=hook | {"name": CANARY}).json()
    ids = {
        "organization_id": job["organization_id"],
        "job_id": job["id"],
        "file_id": file_id,
        "checkpoint_id": checkpoint_id,
        "comparison_id": comparison_id,
        "name": f"{CANARY}.bin",
        "model": model,
        "checkpoint": model,
        "permission_id": shared["data"][0]["id"],
        "upload_id": upload_id,
        "part_id": part["id"],
        "key_id": key[3:15],
        "webhook_endpoint_id": webhook["id"],
    }
    return Theirs(job["organization_id"], ids)


async def succeed(api: Api, job: dict[str, Any], model: str) -> str:
    """Leave what a run leaves; return the checkpoint's id."""
    job_id, organization_id = job["id"], job["organization_id"]
    async with connected(api.settings.database_url) as db:
        adapter = await records.ready_blob(db, organization_id, archive_of(f"{CANARY}.bin"))
        kept = await records.ready_blob(db, organization_id, CANARY.encode())
        async with db.transaction() as tx:
            tx.add(LogChunk(job_id=job_id, attempt=1, text=CANARY))
            tx.add(Attempt(job_id=job_id, number=1, worker=CANARY, ended_at=func.now()))
            seen = rollout(1, turns=(turn(observation=CANARY, action=CANARY),))
            await rollouts.store(tx, job_id, 1, [seen])
            values = {"fine_tuned_model": model, "adapter_blob_id": adapter.blob_id}
            done = update(Job).where(Job.id == job_id)
            await tx.execute(done.values(status=JobStatus.SUCCEEDED, **values))
        return await records.make_checkpoint(db, job_id, kept.blob_id)


def archive_of(name: str) -> bytes:
    """A tar of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(CANARY)
        tar.addfile(member, io.BytesIO(CANARY.encode()))
    return packed.getvalue()


async def make_partner(api: Api) -> str:
    async with connected(api.settings.database_url) as db:
        return await records.make_organization(db)


def snapshot(api: Api, theirs: Theirs) -> dict[str, list[str]]:
    """Every row that belongs to the others, as text."""

    async def read() -> dict[str, list[str]]:
        async with connected(api.settings.database_url) as db, db.transaction() as tx:
            return {
                table: list(await tx.scalars(text(query), {"org": theirs.organization_id}))
                for table, query in queries().items()
            }

    return asyncio.run(read())


def queries() -> dict[str, str]:
    """How the rows of one organization are read out of each table."""
    own = "organization_id = :org"
    of_job = "job_id IN (SELECT id FROM jobs WHERE organization_id = :org)"
    of_upload = "upload_id IN (SELECT id FROM uploads WHERE organization_id = :org)"
    found = {"organizations": "id = :org"}
    for table in Base.metadata.tables.values():
        if "organization_id" in table.columns:
            found[table.name] = own
        elif "job_id" in table.columns:
            found[table.name] = of_job
        elif "upload_id" in table.columns:
            found[table.name] = of_upload
    return {
        name: f"SELECT row_to_json(t)::text FROM {name} t WHERE {which} ORDER BY 1"
        for name, which in found.items()
    }
