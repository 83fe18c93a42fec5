"""Comparisons over HTTP, before a worker sees their jobs and as it leaves them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import httpx
import pytest

from app.comparisons.passes import PASSES_PER_STEP
from app.ids import token
from app.jobs.spec import PerturbationType
from app.jobs.states import JobStatus
from tests.app.records import run_now
from tests.app.test_jobs_api import submit as submit_job
from tests.conftest import Api
from tests.factories import jsonl

COMPARISONS = "/comparisons"
METHODS = [
    {"name": "LoRA", "perturbation": {"type": "none"}},
    {"name": "MGPO", "perturbation": {"type": "mgpo", "rho": 0.1}},
]
LOSSES = {"LoRA": [1.40, 1.36, 1.43], "MGPO": [1.33, 1.30, 1.36]}


@pytest.fixture(scope="module")
def org() -> str:
    return f"comparing-{token(6)}"


@pytest.fixture(scope="module")
def own(api: Api, org: str) -> Iterator[httpx.Client]:
    """A client of an organization that compares and does nothing else."""
    with api.http(api.key(org)) as client:
        yield client


@pytest.fixture(scope="module")
def files(own: httpx.Client) -> dict[str, str]:
    return upload(own)


def upload(http: httpx.Client) -> dict[str, str]:
    """Upload 20 rows to train on and 10 to validate on; return them as a body names them."""
    made = {}
    for name, rows in (("training_file", 20), ("validation_file", 10)):
        file = {"file": (f"{name}.jsonl", jsonl(rows))}
        answer = http.post("/files", files=file, data={"purpose": "fine-tune"})
        made[name] = answer.json()["id"]
    return made


def compare(http: httpx.Client, files: dict[str, str], **body: Any) -> httpx.Response:
    asked = {"model": "tiny-llama", "methods": METHODS, "budget": {"max_steps": 40}} | files | body
    return http.post(COMPARISONS, json=asked)


def job_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/fine_tuning/jobs/{job_id}").json()
    return found


def jobs_of(http: httpx.Client, made: dict[str, Any]) -> list[dict[str, Any]]:
    return [job_of(http, job["id"]) for job in made["jobs"]]


def end(api: Api, job_id: str, *, status: str = "succeeded", steps: int = 40) -> None:
    """Leave a job as a worker does after a minute on it."""
    run_now(
        api.settings,
        "UPDATE jobs SET status = :status, step = :steps, finished_at = now() WHERE id = :job",
        status=status,
        steps=steps,
        job=job_id,
    )
    run_now(
        api.settings,
        "INSERT INTO attempts (job_id, number, worker, started_at, ended_at)"
        " VALUES (:job, 1, 'w', now() - interval '60 seconds', now())",
        job=job_id,
    )


def measure(api: Api, job_id: str, name: str, values: dict[int, float]) -> None:
    for step, value in values.items():
        run_now(
            api.settings,
            "INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)"
            " VALUES (:job, :name, :step, 1, :step, :value, now())",
            job=job_id,
            name=name,
            step=step,
            value=value,
        )


def train_all(api: Api, made: dict[str, Any], losses: dict[str, list[float]] = LOSSES) -> None:
    """Have every job end with a loss, and with one on the way there."""
    for job in made["jobs"]:
        loss = losses[job["method"]][job["seed"] - 1]
        measure(api, job["id"], "valid_loss", {0: 2.4, 20: loss + 0.1, 40: loss})
        measure(api, job["id"], "memory_bytes", {1: 1e9, 2: 2e9})
        end(api, job["id"])


def test_every_method_runs_with_every_seed(own: httpx.Client, files: dict[str, str]):
    answer = compare(own, files, seeds=3, name="which?")

    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["object"] == "comparison" and made["id"].startswith("cmp-")
    assert (made["name"], made["status"], made["model"]) == ("which?", "running", "tiny-llama")
    assert made["progress"] == {"jobs": 6, "finished": 0}
    assert {(job["method"], job["seed"], job["status"]) for job in made["jobs"]} == {
        (name, seed, "queued") for name in ("LoRA", "MGPO") for seed in (1, 2, 3)
    }
    assert [method["name"] for method in made["methods"]] == ["LoRA", "MGPO"]
    assert made["verdict"].startswith("0 of 6 runs are over")
    assert own.get(f"{COMPARISONS}/{made['id']}").json() == made


def test_its_jobs_differ_in_the_method_and_the_seed_alone(own: httpx.Client, files: dict[str, str]):
    made = compare(own, files, seeds=[11, 5]).json()

    jobs = jobs_of(own, made)
    for job, told in zip(jobs, made["jobs"], strict=True):
        assert job["seed"] == told["seed"]
        assert job["perturbation"]["type"] == ("none" if told["method"] == "LoRA" else "mgpo")
        assert job["metadata"] == {"comparison": made["id"], "method": told["method"]}
        assert job["priority"] == -10 and job["progress"]["total_steps"] == 40
        assert job["evaluation"]["sharpness"]["rho"] == 0.05
    same = ("model", "training_file", "validation_file", "hyperparameters", "training", "peft")
    assert len({str([job[field] for field in same]) for job in jobs}) == 1
    assert {job["perturbation"]["rho"] for job in jobs} == {None, 0.1}


def test_single_jobs_go_before_those_of_a_comparison(own: httpx.Client, files: dict[str, str]):
    made = compare(own, files, seeds=1).json()

    single = submit_job(own, files["training_file"]).json()

    compared = job_of(own, made["jobs"][0]["id"])
    assert single["queue"]["position"] < compared["queue"]["position"]


def test_what_all_have_in_common_and_what_a_method_has_alone(
    own: httpx.Client, files: dict[str, str]
):
    made = compare(
        own,
        files,
        seeds=1,
        training={"learning_rate": 1e-3, "eval_steps": 7, "scheduler": "linear"},
        hyperparameters={"batch_size": 10},
        evaluation={"sharpness": None},
        priority=3,
        methods=[METHODS[0], METHODS[1] | {"training": {"learning_rate": 5e-4}}],
    ).json()

    plain, perturbed = jobs_of(own, made)

    rates = plain["training"]["learning_rate"], perturbed["training"]["learning_rate"]
    assert rates == (1e-3, 5e-4)
    for job in (plain, perturbed):
        assert job["training"]["eval_steps"] == 7 and job["training"]["scheduler"] == "linear"
        assert job["hyperparameters"]["batch_size"] == 10 and job["priority"] == 3
        assert job["evaluation"]["sharpness"] is None


def test_without_a_length_the_epochs_say_it(own: httpx.Client, files: dict[str, str]):
    made = compare(own, files, seeds=1, budget={}, hyperparameters={"n_epochs": 2}).json()

    assert {job["progress"]["total_steps"] for job in jobs_of(own, made)} == {10}


def test_at_equal_passes_a_start_that_takes_some_leaves_fewer_steps(
    own: httpx.Client, files: dict[str, str]
):
    """20 rows in micro-batches of 4 are 5 passes for LoRA-GA's first gradient."""
    methods = [METHODS[0], {"name": "GA", "peft": {"method": "lora_ga"}}]

    steps = {}
    for equal in ("steps", "passes"):
        budget = {"equal": equal, "max_steps": 40}
        made = compare(own, files, seeds=1, methods=methods, budget=budget).json()
        jobs = jobs_of(own, made)
        steps[equal] = [job["progress"]["total_steps"] for job in jobs]
        assert len({job["training"]["eval_steps"] for job in jobs}) == 1

    assert steps == {"steps": [40, 40], "passes": [40, 35]}


def test_a_budget_that_the_start_uses_up_is_refused(own: httpx.Client, files: dict[str, str]):
    methods = [METHODS[0], {"name": "GA", "peft": {"method": "lora_ga"}}]

    answer = compare(own, files, methods=methods, budget={"equal": "passes", "max_steps": 5})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "budget.max_steps"
    assert "The start of GA takes all 5" in answer.json()["error"]["message"]


def test_the_passes_of_every_perturbation_are_known():
    assert PASSES_PER_STEP.keys() == set(get_args(PerturbationType))


REFUSED = [
    ({"methods": METHODS[:1]}, "methods"),
    ({"methods": [METHODS[0], METHODS[0]]}, "methods.1.name"),
    ({"methods": [METHODS[0], {"name": "x", "peft": {"r": 0}}]}, "methods.1.peft.r"),
    ({"methods": [METHODS[0], {"name": "x", "perturbation": {"sigma": 1}}]},
     "methods.1.perturbation.sigma"),
    ({"methods": [METHODS[0], {"name": "x", "perturbation": {"type": "none", "rho": 1}}]},
     "methods.1.perturbation.rho"),
    ({"methods": [METHODS[0], {"name": "x", "perturbation": {"type": "random"},
                               "peft": {"method": "dora"}}]}, "methods.1.perturbation.type"),
    ({"methods": [METHODS[0], {"name": "x", "training": {"micro_batch_size": 3}}]},
     "methods.1.training.micro_batch_size"),
    ({"methods": [METHODS[0], {"name": "x", "training": {"max_steps": 3}}]},
     "methods.1.training.max_steps"),
    ({"methods": [METHODS[0], {"name": "x", "peft": {"from": "ft:nothing"}}]},
     "methods.1.peft.from"),
    ({"training": {"micro_batch_size": 3}}, "training.micro_batch_size"),
    ({"training": {"max_steps": 3}}, "training.max_steps"),
    ({"training": {"early_stopping": {}}}, "training.early_stopping"),
    ({"hyperparameters": {"batch_size": 21}}, "hyperparameters.batch_size"),
    ({"seeds": 0}, "seeds"),
    ({"seeds": 21}, "seeds"),
    ({"seeds": 1_000_000_000}, "seeds"),
    ({"seeds": [1, 2, 1]}, "seeds"),
    ({"seeds": [1, -2]}, "seeds.1"),
    ({"seeds": 20, "methods": [{"name": str(n)} for n in range(6)]}, "seeds"),
    ({"budget": {"max_steps": 0}}, "budget.max_steps"),
    ({"budget": {"equal": "money"}}, "budget.equal"),
    ({"validation_file": None}, "validation_file"),
    ({"surprise": 1}, "surprise"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_makes_no_sense_is_refused_by_name_and_leaves_no_job(
    own: httpx.Client, files: dict[str, str], body: dict[str, Any], param: str
):
    newest = own.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"]

    answer = compare(own, files, **body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert own.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"] == newest


def test_a_method_is_named_in_the_message_about_it(own: httpx.Client, files: dict[str, str]):
    methods = [METHODS[0], {"name": "noisy DoRA", "perturbation": {"type": "random"}}]
    methods[1]["peft"] = {"method": "dora"}

    error = compare(own, files, methods=methods).json()["error"]

    assert error["message"].startswith("noisy DoRA: The perturbation random does not go with dora")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nothing"}, 400, "model"),
        ({"training_file": "file-nothing"}, 404, "training_file"),
        ({"validation_file": "file-nothing"}, 404, "validation_file"),
    ],
)
def test_a_missing_model_or_file_is_told_as_for_a_job(
    own: httpx.Client, files: dict[str, str], body: dict[str, Any], status: int, param: str
):
    job = own.post("/fine_tuning/jobs", json={"model": "tiny-llama"} | files | body)

    answer = compare(own, files, **body)

    assert answer.status_code == job.status_code == status
    assert answer.json() == job.json() and answer.json()["error"]["param"] == param


def test_all_jobs_fit_into_the_quota_or_none_is_made(api: Api):
    org = f"few-{token(6)}"
    with api.http(api.key(org)) as http:
        files = upload(http)
        run_now(api.settings, "UPDATE organizations SET max_queued = 5 WHERE name = :org", org=org)

        refused = compare(http, files, seeds=3)
        queued = http.get("/fine_tuning/jobs").json()["data"]
        fits = compare(http, files, seeds=2)

    assert refused.status_code == 429 and refused.json()["error"]["code"] == "quota_exceeded"
    assert queued == []
    assert fits.status_code == 200 and fits.json()["progress"]["jobs"] == 4


def test_a_comparison_that_is_sent_again_is_made_once(own: httpx.Client, files: dict[str, str]):
    again = {"Idempotency-Key": token(12)}
    body = {"model": "tiny-llama", "methods": METHODS, "seeds": 1} | files

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda _: own.post(COMPARISONS, json=body, headers=again).json()["id"], range(4)
        )
    other = own.post(COMPARISONS, json=body | {"seeds": 2}, headers=again)

    assert len(set(answers)) == 1
    assert other.status_code == 400
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_means_intervals_significance_cost_and_curves_are_told(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    """By hand: LoRA's mean is 1.39667; the differences are −0.07, −0.06 and −0.07."""
    made = compare(own, files, seeds=3).json()
    train_all(api, made)

    done = own.get(f"{COMPARISONS}/{made['id']}").json()

    assert done["status"] == "succeeded" and done["progress"] == {"jobs": 6, "finished": 6}
    first, other = done["methods"]
    assert first["valid_loss"]["mean"] == pytest.approx(4.19 / 3)
    assert first["valid_loss"]["n"] == 3 and first["seeds"] == [1, 2, 3]
    assert first["valid_loss"]["low"] == pytest.approx(4.19 / 3 - 0.0872, abs=1e-4)
    assert first["against_first"] is None
    against = other["against_first"]
    assert against["difference"] == pytest.approx(-0.2 / 3) and against["significant"] is True
    assert (against["low"], against["high"]) == pytest.approx((-0.0810, -0.0523), abs=1e-4)
    assert against["p_value"] == pytest.approx(0.002491, abs=1e-6)
    assert first["cost"]["seconds"] == pytest.approx(60)
    assert first["cost"]["forward_backward_passes"] == 40
    assert first["cost"]["peak_memory_bytes"] == 2e9
    assert first["cost"]["seconds_per_point"] == pytest.approx(60 / ((2.4 - 4.19 / 3) * 100))
    steps = [(point["step"], point["n"]) for point in first["curve"]]
    assert steps == [(0, 3), (20, 3), (40, 3)]
    assert first["curve"][2]["low"] == pytest.approx(first["valid_loss"]["low"])
    assert done["verdict"] == (
        "MGPO ends lower than LoRA by 0.0667 (95 % CI 0.0523 … 0.081, 3 seeds, p = 0.0025):"
        " more than noise."
    )


def test_scores_and_sharpness_stand_beside_the_loss(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=2).json()
    for job in made["jobs"]:
        measure(api, job["id"], "valid_accuracy", {0: 0.1, 40: 0.5 + job["seed"] / 10})
        measure(api, job["id"], "valid_sharpness_worst", {40: 0.2})
        measure(api, job["id"], "valid_sharpness_mean", {40: 0.1})
    train_all(api, made)

    first = own.get(f"{COMPARISONS}/{made['id']}").json()["methods"][0]

    assert first["metrics"].keys() == {"valid_accuracy"}
    assert first["metrics"]["valid_accuracy"]["mean"] == pytest.approx(0.65)
    assert first["sharpness"]["worst"]["mean"] == pytest.approx(0.2)
    assert first["sharpness"]["mean"]["mean"] == pytest.approx(0.1)


def test_while_it_runs_the_curves_grow_and_the_verdict_waits(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=2).json()
    one, two = (job["id"] for job in made["jobs"] if job["method"] == "MGPO")
    measure(api, one, "valid_loss", {0: 2.4, 20: 1.5, 40: float("nan")})
    measure(api, two, "valid_loss", {0: 2.2})

    shown = own.get(f"{COMPARISONS}/{made['id']}").json()

    assert shown["status"] == "running" and "waits for the last one" in shown["verdict"]
    assert shown["methods"][0]["curve"] == [] and shown["methods"][0]["valid_loss"] is None
    start, later = shown["methods"][1]["curve"]
    assert start == {
        "step": 0,
        "mean": pytest.approx(2.3),
        "low": pytest.approx(2.3 - 1.2706, abs=1e-4),
        "high": pytest.approx(2.3 + 1.2706, abs=1e-4),
        "n": 2,
    }
    assert later == {"step": 20, "mean": 1.5, "low": None, "high": None, "n": 1}


def test_a_curve_of_many_evaluations_is_thinned_to_its_ends(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=1).json()
    run_now(
        api.settings,
        "INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)"
        " SELECT :job, 'valid_loss', step, 1, step, 1 + 1.0 / (step + 1), now()"
        " FROM generate_series(0, 5000) AS step",
        job=made["jobs"][0]["id"],
    )

    curve = own.get(f"{COMPARISONS}/{made['id']}").json()["methods"][0]["curve"]

    assert len(curve) == 300
    assert (curve[0]["step"], curve[-1]["step"]) == (0, 5000)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["succeeded", "failed", "succeeded", "succeeded"], "succeeded"),
        (["failed", "failed", "succeeded", "succeeded"], "failed"),
        (["failed", "failed", "succeeded", "cancelled"], "cancelled"),
        (["failed", "failed", "succeeded", "queued"], "running"),
    ],
    ids=" ".join,
)
def test_the_status_is_that_of_its_jobs(
    api: Api, own: httpx.Client, files: dict[str, str], statuses: list[str], status: str
):
    made = compare(own, files, seeds=2).json()
    jobs = sorted(made["jobs"], key=lambda job: job["method"])
    for job, each in zip(jobs, statuses, strict=True):
        end(api, job["id"], status=each)

    shown = own.get(f"{COMPARISONS}/{made['id']}").json()
    listed = own.get(COMPARISONS, params={"limit": 1}).json()["data"][0]

    assert shown["status"] == listed["status"] == status
    assert listed["progress"] == shown["progress"]


def test_cancelling_ends_what_is_not_over_and_twice_is_no_error(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=2).json()
    done = made["jobs"][0]["id"]
    end(api, done)

    once = own.post(f"{COMPARISONS}/{made['id']}/cancel")
    twice = own.post(f"{COMPARISONS}/{made['id']}/cancel")

    assert once.status_code == twice.status_code == 200, once.text
    assert once.json()["status"] == "cancelled"
    statuses = {job["id"]: job["status"] for job in twice.json()["jobs"]}
    assert statuses.pop(done) == "succeeded" and set(statuses.values()) == {"cancelled"}


def test_a_comparison_that_is_over_is_not_cancelled(
    api: Api, own: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=1).json()
    for job in made["jobs"]:
        end(api, job["id"])

    answer = own.post(f"{COMPARISONS}/{made['id']}/cancel")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_job_state"


def test_comparisons_are_listed_newest_first_and_paged(own: httpx.Client, files: dict[str, str]):
    ids = [compare(own, files, seeds=1).json()["id"] for _ in range(3)]

    page = own.get(COMPARISONS, params={"limit": 2}).json()
    rest = own.get(COMPARISONS, params={"limit": 1, "after": page["last_id"]}).json()

    assert [each["id"] for each in page["data"]] == ids[:0:-1] and page["has_more"]
    assert rest["data"][0]["id"] == ids[0]
    assert rest["data"][0]["method_names"] == ["LoRA", "MGPO"]


def test_another_organization_finds_nothing(
    own: httpx.Client, stranger: httpx.Client, files: dict[str, str]
):
    made = compare(own, files, seeds=1).json()["id"]

    assert stranger.get(f"{COMPARISONS}/{made}").status_code == 404
    assert stranger.post(f"{COMPARISONS}/{made}/cancel").status_code == 404
    assert stranger.get(COMPARISONS).json()["data"] == []
    assert job_of(own, own.get(f"{COMPARISONS}/{made}").json()["jobs"][0]["id"])["status"] == (
        JobStatus.QUEUED
    )
