"""Jobs over HTTP, before a worker sees them."""

import re
from typing import Any

import httpx
import openai
import pytest

from app.db import Database
from app.ids import token
from app.tables import LogChunk
from tests.app.records import run

JOBS = "/fine_tuning/jobs"


def submit(http: httpx.Client, training_file: str, **body: Any) -> httpx.Response:
    return http.post(JOBS, json={"model": "tiny-llama", "training_file": training_file} | body)


@pytest.mark.parametrize("suffix", ["my model", "../../etc", "поезд 🚂!", "x" * 64])
def test_a_suffix_is_shown_as_it_was_sent(http: httpx.Client, training_file: str, suffix: str):
    assert submit(http, training_file, suffix=suffix).json()["suffix"] == suffix


async def test_more_values_than_an_answer_holds_are_asked_for_in_buckets(
    http: httpx.Client, training_file: str, db: Database
):
    job_id = submit(http, training_file).json()["id"]
    many = (
        "INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)"
        " SELECT :job, name, step, 1, step, 1.0, now() FROM generate_series(1, 100001) AS step,"
        " unnest(ARRAY['a', 'b']) AS name RETURNING 1"
    )
    await run(db, many, job=job_id)

    refused = http.get(f"{JOBS}/{job_id}/metrics")
    one = http.get(f"{JOBS}/{job_id}/metrics?name=a").json()["data"]
    buckets = http.get(f"{JOBS}/{job_id}/metrics?agg=minmax&points=10").json()["data"]

    assert refused.status_code == 400 and "agg=minmax" in refused.text
    assert refused.json()["error"]["param"] == "agg"
    assert [len(series["points"]) for series in one] == [100_001]
    assert [len(series["points"]) for series in buckets] == [10, 10]


async def test_a_log_of_many_pieces_is_read_whole_and_in_order(
    http: httpx.Client, training_file: str, db: Database
):
    job_id = submit(http, training_file).json()["id"]
    async with db.transaction() as tx:
        for number in range(250):
            tx.add(LogChunk(job_id=job_id, attempt=1, text=f"line {number} ü\n"))
            await tx.flush()

    answer = http.get(f"{JOBS}/{job_id}/logs")

    assert answer.text == "".join(f"line {number} ü\n" for number in range(250))
    assert answer.headers["content-type"].startswith("text/plain")


def test_everything_auto_is_resolved_and_shown(http: httpx.Client, training_file: str):
    job = submit(http, training_file, suffix="mine", seed=5).json()

    assert job["status"] == "queued" and job["seed"] == 5
    assert job["hyperparameters"] == {
        "n_epochs": 3,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    assert job["perturbation"]["type"] == "mgpo"
    assert job["training"]["learning_rate"] == pytest.approx(2e-4)
    assert job["training"]["max_length"] == 256
    assert job["progress"] == {"step": 0, "total_steps": 15}
    assert job["error"] is None


def test_the_old_top_level_hyperparameters_work(http: httpx.Client, training_file: str):
    job = submit(http, training_file, hyperparameters={"n_epochs": 2, "batch_size": 10}).json()

    assert job["progress"]["total_steps"] == 4


def test_the_word_auto_is_the_same_as_nothing(http: httpx.Client, training_file: str):
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}

    said = submit(http, training_file, hyperparameters=auto, seed=5)
    unsaid = submit(http, training_file, seed=5)

    assert said.status_code == 200, said.text
    assert said.json()["hyperparameters"] == unsaid.json()["hyperparameters"]


def test_alpha_follows_the_rank(http: httpx.Client, training_file: str):
    job = submit(http, training_file, peft={"r": 32}).json()

    assert job["peft"]["alpha"] == 64


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"peft": {"rank": 8}}, "peft.rank"),
        ({"peft": {"r": 0}}, "peft.r"),
        ({"perturbation": {"type": "magic"}}, "perturbation.type"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate"),
        ({"training": {"micro_batch_size": 3}}, "training.micro_batch_size"),
        ({"resources": {"gpus": 0}}, "resources.gpus"),
        ({"resources": {"gpus": 2, "zero_stage": 3}}, "resources.zero_stage"),
        ({"resources": {"gpus": 2, "offload": "optimizer"}}, "resources.offload"),
        ({"resources": {"zero_stage": 0, "offload": "optimizer"}}, "resources.offload"),
        (
            {"resources": {"gpus": 2}, "hyperparameters": {"batch_size": 5}},
            "hyperparameters.batch_size",
        ),
        (
            {"resources": {"gpus": 2}, "training": {"micro_batch_size": 4}},
            "training.micro_batch_size",
        ),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 21}}, "hyperparameters.batch_size"),
        ({"seed": -1}, "seed"),
        ({"suffix": "a\x1b[31m"}, "suffix"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"colour": "blue"}, "colour"),
        ({"model": "no-such-model"}, "model"),
        ({"model": "../tiny-llama"}, "model"),
    ],
)
def test_a_bad_value_is_a_400_that_names_it(
    http: httpx.Client, training_file: str, body: dict[str, Any], param: str
):
    answer = submit(http, training_file, **body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("gpus", "asked", "batch", "micro"),
    [(2, None, 4, 2), (3, None, 6, 2), (2, 20, 20, 5), (4, 12, 12, 3)],
)
def test_the_gpus_of_a_job_share_its_batch(
    http: httpx.Client, training_file: str, gpus: int, asked: int | None, batch: int, micro: int
):
    answer = submit(
        http,
        training_file,
        resources={"gpus": gpus, "zero_stage": 1},
        hyperparameters={"batch_size": asked or "auto"},
    )

    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["training"]["batch_size"] == batch and job["training"]["micro_batch_size"] == micro
    assert job["resources"] == {"gpus": gpus, "zero_stage": 1, "offload": None}


@pytest.mark.parametrize("multiplier", [5e-324, 1e-13, 0, -1])
def test_a_multiplier_that_leaves_no_learning_rate_is_refused(
    http: httpx.Client, training_file: str, multiplier: float
):
    body = {"model": "tiny-llama", "training_file": training_file}
    asked = {"hyperparameters": {"learning_rate_multiplier": multiplier}}

    response = http.post("/fine_tuning/jobs", json=body | asked)

    assert response.status_code == 400, response.text
    param: str = response.json()["error"]["param"]
    assert param == "hyperparameters.learning_rate_multiplier"


def test_a_learning_rate_that_is_not_a_number_is_refused(http: httpx.Client, training_file: str):
    body = (
        f'{{"model": "tiny-llama", "training_file": "{training_file}",'
        ' "training": {"learning_rate": NaN}}'
    )

    answer = http.post(JOBS, content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "training.learning_rate"


def test_malformed_json_and_unknown_routes_use_the_envelope(http: httpx.Client):
    malformed = http.post(JOBS, content=b"{", headers={"Content-Type": "application/json"})
    unknown = http.get("/nothing/here")
    wrong_method = http.put(JOBS)

    assert [answer.status_code for answer in (malformed, unknown, wrong_method)] == [400, 404, 405]
    for answer in (malformed, unknown, wrong_method):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("req_")


def test_another_tenants_files_cannot_be_trained_on(
    stranger: httpx.Client, http: httpx.Client, training_file: str
):
    own = stranger.post(
        "/files",
        files={"file": ("t.jsonl", http.get(f"/files/{training_file}/content").content)},
        data={"purpose": "fine-tune"},
    ).json()["id"]

    training = submit(stranger, training_file)
    validation = submit(stranger, own, validation_file=training_file)

    assert training.status_code == validation.status_code == 404
    assert validation.json()["error"]["param"] == "validation_file"


def test_another_tenants_job_does_not_exist(
    stranger: httpx.Client, http: httpx.Client, training_file: str
):
    job = submit(http, training_file).json()["id"]

    paths = ["", "/events", "/checkpoints", "/rollouts", "/metrics", "/logs", "/adapter"]

    assert {stranger.get(f"{JOBS}/{job}{path}").status_code for path in paths} == {404}
    assert stranger.post(f"{JOBS}/{job}/cancel").status_code == 404
    assert job not in stranger.get(JOBS).text


def test_a_queued_job_is_cancelled_at_once_and_twice_is_no_error(
    http: httpx.Client, training_file: str
):
    job = submit(http, training_file).json()["id"]

    once = http.post(f"{JOBS}/{job}/cancel").json()
    twice = http.post(f"{JOBS}/{job}/cancel")

    assert once["status"] == "cancelled" and once["finished_at"] is not None
    assert twice.status_code == 200
    assert http.get(f"{JOBS}/{job}/events").json()["data"][0]["message"].endswith("it started")


def test_events_are_told_of_one_type_alone_when_it_is_asked(http: httpx.Client, training_file: str):
    job = submit(http, training_file).json()["id"]

    told = {
        kind: http.get(f"{JOBS}/{job}/events", params={"type": kind}) for kind in ("message", "x")
    }
    steps = http.get(f"{JOBS}/{job}/events", params={"type": "metrics"}).json()["data"]

    assert {event["type"] for event in told["message"].json()["data"]} == {"message"}
    assert steps == [] and told["x"].status_code == 400


def test_waiting_jobs_know_their_place(http: httpx.Client, training_file: str):
    first, second = (submit(http, training_file).json() for _ in range(2))

    assert second["queue"]["ahead"] == first["queue"]["ahead"] + 1
    assert second["queue"]["position"] == second["queue"]["ahead"] + 1


def test_a_list_tells_of_waiting_jobs_what_each_tells_by_itself(
    http: httpx.Client, training_file: str
):
    waits, over = (submit(http, training_file).json()["id"] for _ in range(2))
    http.post(f"{JOBS}/{over}/cancel")

    listed = http.get(JOBS, params={"limit": 2}).json()["data"]

    assert [job["id"] for job in listed] == [over, waits]
    assert listed[0]["queue"] is None
    assert listed[1]["queue"] == http.get(f"{JOBS}/{waits}").json()["queue"]
    assert listed[1]["queue"]["reason"]


def test_jobs_are_listed_newest_first_and_paged(http: httpx.Client, training_file: str):
    ids = [submit(http, training_file).json()["id"] for _ in range(3)]

    page = http.get(JOBS, params={"limit": 2}).json()
    rest = http.get(JOBS, params={"limit": 1, "after": page["data"][-1]["id"]}).json()

    assert [job["id"] for job in page["data"]] == [ids[2], ids[1]] and page["has_more"]
    assert rest["data"][0]["id"] == ids[0]


def test_an_unfinished_job_has_no_adapter_yet(http: httpx.Client, training_file: str):
    job = submit(http, training_file).json()["id"]

    answer = http.get(f"{JOBS}/{job}/adapter")

    assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_ready"


@pytest.mark.parametrize("key", ["x", "nonsense", "sk-", "sk-" + "a" * 48, "Bearer"])
def test_a_wrong_key_is_a_401(http: httpx.Client, key: str):
    answer = http.get(JOBS, headers={"Authorization": f"Bearer {key}"})

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_openapi_page_shows_examples(http: httpx.Client):
    base = str(http.base_url).removesuffix("/v1/")

    schema = httpx.get(f"{base}/openapi.json").json()

    page = httpx.get(f"{base}/docs")
    assert page.status_code == 200
    assert schema["components"]["schemas"]["CreateJob"]["example"]["model"]


def test_the_openapi_page_loads_nothing_from_elsewhere(http: httpx.Client):
    base = str(http.base_url).removesuffix("/v1/")

    page = httpx.get(f"{base}/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert sources and all(source.startswith("/") for source in sources)
    assert {httpx.get(base + source).status_code for source in sources} == {200}


@pytest.mark.parametrize(
    "body", [{"metadata": {"team": "a\0b"}}, {"metadata": {"a\0b": "x"}}, {"suffix": "a\0"}]
)
def test_text_that_cannot_be_stored_is_a_400(
    http: httpx.Client, training_file: str, body: dict[str, Any]
):
    answer = submit(http, training_file, **body)

    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_value"


def test_an_id_that_cannot_be_one_is_a_404_or_400(http: httpx.Client):
    strange = http.get(f"{JOBS}/a%00b")
    after = http.get(JOBS, params={"after": "a\0b"})

    assert {strange.status_code, after.status_code} <= {400, 404}
    assert strange.headers["x-request-id"] and after.headers["x-request-id"]


def test_without_a_worker_the_service_is_not_ready(http: httpx.Client):
    base = str(http.base_url).removesuffix("/v1/")

    assert httpx.get(f"{base}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{base}/readyz").json()["database"] is True


def test_a_waiting_job_is_paused_at_once_and_waits_again_when_told(
    http: httpx.Client, training_file: str
):
    job = submit(http, training_file).json()["id"]

    paused = [http.post(f"{JOBS}/{job}/pause").json() for _ in range(2)]
    resumed = [http.post(f"{JOBS}/{job}/resume").json() for _ in range(2)]

    assert [each["status"] for each in paused] == ["paused", "paused"]
    assert [each["status"] for each in resumed] == ["queued", "queued"]
    assert paused[0]["queue"] is None and resumed[0]["queue"]["position"] >= 1


def test_a_paused_job_is_cancelled_at_once(http: httpx.Client, training_file: str):
    job = submit(http, training_file).json()["id"]
    http.post(f"{JOBS}/{job}/pause")

    cancelled = http.post(f"{JOBS}/{job}/cancel").json()

    assert cancelled["status"] == "cancelled"


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_job_that_is_over_is_neither_paused_nor_resumed(
    http: httpx.Client, training_file: str, verb: str
):
    job = submit(http, training_file).json()["id"]
    http.post(f"{JOBS}/{job}/cancel")

    answer = http.post(f"{JOBS}/{job}/{verb}")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_job_state"


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_another_tenants_job_cannot_be_held(
    http: httpx.Client, stranger: httpx.Client, training_file: str, verb: str
):
    job = submit(http, training_file).json()["id"]

    assert stranger.post(f"{JOBS}/{job}/{verb}").status_code == 404


def test_jobs_are_found_by_their_metadata(client: openai.OpenAI, training_file: str):
    team = token(8)
    ids = [
        client.fine_tuning.jobs.create(
            model="tiny-llama", training_file=training_file, metadata=metadata
        ).id
        for metadata in ({"team": team, "run": "1"}, {"team": team, "run": "2"}, {"run": "1"})
    ]

    both = client.fine_tuning.jobs.list(metadata={"team": team})
    one = client.fine_tuning.jobs.list(metadata={"team": team, "run": "1"})

    assert [job.id for job in both] == [ids[1], ids[0]]
    assert [job.id for job in one] == [ids[0]]
    for job_id in ids:
        client.fine_tuning.jobs.cancel(job_id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"method": {"type": "supervised", "dpo": {"colour": 1}}}, "method.dpo.colour"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    ],
)
def test_what_the_wire_knows_and_nobody_does_here_is_refused(
    http: httpx.Client, training_file: str, fields: dict[str, Any], param: str
):
    body = {"model": "tiny-llama", "training_file": training_file} | fields

    refused = http.post("/fine_tuning/jobs", json=body)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_method_may_come_with_what_the_others_would_need(http: httpx.Client, training_file: str):
    grader = {"type": "string_check", "name": "x", "input": "a", "operation": "eq"}
    method = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2}},
        "dpo": {"hyperparameters": {"beta": "auto"}},
        "reinforcement": {"grader": grader | {"reference": "a"}},
    }
    body = {"model": "tiny-llama", "training_file": training_file, "method": method}

    job = http.post("/fine_tuning/jobs", json=body).json()
    http.post(f"/fine_tuning/jobs/{job['id']}/cancel")

    assert job["method"]["type"] == "supervised" and job["hyperparameters"]["n_epochs"] == 2
