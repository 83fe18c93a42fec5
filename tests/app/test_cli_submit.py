"""`basin submit`, `basin estimate` and `basin compare`: what is sent, and what comes back."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from app.client.compare import contest
from app.client.errors import Code
from app.client.submit import job_body
from tests.app.basin import Basin, basin_of, scripted
from tests.app.comparisons.test_comparisons_api import train_all
from tests.app.test_reinforcement_api import ASKED, EPISODES, GRADER
from tests.conftest import Api
from tests.factories import jsonl, to_jsonl
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(20))
    return str(path)


def made(make: Any, **given: Any) -> dict[str, Any]:
    """Make a body of some options, the others left out."""
    body: dict[str, Any] = make(**(dict.fromkeys(make.__signature__.parameters) | given))
    return body


def test_a_job_is_submitted_with_its_files_uploaded(basin: Basin, rows: str):
    job = basin.json(
        "submit",
        *("-m", "tiny-llama", "-f", rows, "--validation", rows, "--method", "dora", "--r", "4"),
        *("--perturbation", "mgpo", "--rho", "0.1", "--epochs", "2", "--batch-size", "5"),
        *("--set", "training.eval_steps=3", "--metadata", "team=search", "--suffix", "s"),
    )

    assert (job["peft"]["method"], job["peft"]["r"]) == ("dora", 4)
    assert job["perturbation"]["rho"] == 0.1 and job["training"]["eval_steps"] == 3
    assert job["hyperparameters"] | {"n_epochs": 2, "batch_size": 5} == job["hyperparameters"]
    assert job["metadata"] == {"team": "search"} and job["training_file"].startswith("file-")
    assert job["validation_file"].startswith("file-")


def test_following_a_new_job_ends_with_its_outcome(basin: Basin, rows: str):
    over = {"id": "ftjob-1", "status": "cancelled", "attempt": 0, "queue": None}
    over |= {"progress": {"step": 0, "total_steps": 3}, "estimated_finish": None}
    jobs = "/v1/fine_tuning/jobs"
    stream = b"event: status\ndata: %s\n\n" % json.dumps(over).encode()
    stream += b'event: done\ndata: {"status": "cancelled"}\n\n'
    answers: dict[str, list[Any]] = {jobs: [over], f"{jobs}/ftjob-1": [over]}
    answers[f"{jobs}/ftjob-1/stream"] = [stream]

    with scripted(answers) as (other, script):
        answer = other("submit", "-m", "m", "-f", "file-1", "--follow", code=Code.CANCELLED)

    assert "ftjob-1 was cancelled" in answer.stdout
    assert script.asked[0][2]["Idempotency-Key"]


@pytest.mark.parametrize("as_file", [True, False])
def test_a_job_learns_from_a_graders_rewards(basin: Basin, tmp_path: Path, as_file: bool):
    rows, grader = tmp_path / "prompts.jsonl", tmp_path / "grader.json"
    rows.write_bytes(to_jsonl(ASKED))
    grader.write_text(json.dumps(GRADER))

    job = basin.json(
        *("submit", "-m", "tiny-llama", "-f", str(rows), "--learn", "reinforcement"),
        *("--grader", str(grader) if as_file else json.dumps(GRADER), "--group-size", "4"),
        *("--epochs", "2"),
    )

    told = job["method"]["reinforcement"]
    assert told["grader"] == GRADER | {"tolerance": 0.0} and told["environment"] is None
    assert (told["algorithm"], told["group_size"]) == ("grpo", 4)
    assert told["hyperparameters"]["n_epochs"] == 2


def test_a_job_learns_in_an_environment(basin: Basin, tmp_path: Path):
    rows = tmp_path / "episodes.jsonl"
    rows.write_bytes(to_jsonl(EPISODES))

    job = basin.json(
        *("submit", "-m", "tiny-llama", "-f", str(rows), "--learn", "reinforcement"),
        *("--environment", "key-door", "--algorithm", "gigpo"),
        *("--set", "method.reinforcement.environment.args.width=4"),
    )

    told = job["method"]["reinforcement"]
    assert (told["environment"]["name"], told["environment"]["args"]["width"]) == ("key-door", 4)
    assert (told["algorithm"], told["step_discount"]) == ("gigpo", 0.95)


@pytest.mark.parametrize(
    ("grader", "why"),
    [("nowhere.json", "nowhere.json"), ('{"type": ', "the grader"), (".", ".")],
)
def test_a_grader_that_cannot_be_read_is_a_wrong_command_line(basin: Basin, grader: str, why: str):
    arguments = ("submit", "-m", "tiny-llama", "-f", "file-1", "--learn", "reinforcement")

    answer = basin(*arguments, "--grader", grader, code=2)

    assert why in answer.stderr and "--grader" in answer.stderr


def test_a_field_that_the_server_does_not_know_is_named(basin: Basin, rows: str):
    arguments = ("submit", "-m", "tiny-llama", "-f", rows, "--set", "peft.rnak=4")

    words = basin(*arguments, code=Code.REFUSED)
    document = basin.json(*arguments, code=Code.REFUSED)

    assert "peft.rnak" in words.stderr
    assert document["error"]["param"] == "peft.rnak"


def test_a_file_that_is_nowhere_is_a_wrong_command_line(basin: Basin):
    answer = basin("submit", "-m", "tiny-llama", "-f", "nowhere.jsonl", code=2)

    assert "nowhere.jsonl" in answer.stderr


def test_a_body_from_a_file_is_the_ground_that_options_lie_on(tmp_path: Path):
    path = tmp_path / "body.json"
    asked = {"model": "a", "training_file": "file-1", "peft": {"r": 2, "alpha": 3}, "seed": 1}
    path.write_text(json.dumps(asked))

    body = made(job_body, from_=path, peft_r=4, model="b", set_=["seed=9", "suffix=none of it"])

    assert body == {
        "model": "b",
        "training_file": "file-1",
        "peft": {"r": 4, "alpha": 3},
        "seed": 9,
        "suffix": "none of it",
    }


def test_a_body_comes_from_stdin_too(basin: Basin, rows: str):
    text = json.dumps({"model": "tiny-llama", "training_file": rows})

    assert basin.json("submit", "--from", "-", stdin=text)["model"] == "tiny-llama"


def test_hyperparameters_go_into_the_method_where_there_is_one(tmp_path: Path):
    path = tmp_path / "body.json"
    path.write_text('{"model": "a", "training_file": "f", "method": {"type": "supervised"}}')

    body = made(job_body, from_=path, hyperparameters_n_epochs=4)

    assert body["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 4}},
    }


@pytest.mark.parametrize(
    "given",
    [{}, {"model": "m"}, {"set_": ["no equals sign"]}, {"set_": ["model=m", "model.x=1"]}],
)
def test_what_makes_no_body_is_a_wrong_command_line(given: dict[str, Any]):
    with pytest.raises(typer.BadParameter):
        made(job_body, **given)


def test_an_estimate_is_asked_for_with_the_same_options_and_read_aloud():
    found = {
        "object": "fine_tuning.estimate",
        "steps": 30,
        "tokens": {"per_epoch": 1000, "total": 3000},
        "memory": {"low_bytes": 1 << 20, "expected_bytes": 2 << 20, "high_bytes": 3 << 30},
        "time": {"low_s": 60.0, "expected_s": 90.0, "high_s": 3700.0},
        "queue": {
            "wait_low_s": None,
            "wait_expected_s": None,
            "wait_high_s": None,
            "reason": "no worker is there",
        },
        "basis": {"finished_jobs": 0, "words": "no finished job yet"},
        "fits": {
            "verdict": False,
            "words": "It fits on no worker.",
            "workers": [],
            "advice": [
                {"change": {"training.max_length": 64}, "expected_bytes": 1 << 20, "fits": True}
            ],
        },
        "warnings": ["Rows are cut."],
    }
    with scripted({"/v1/fine_tuning/jobs": [found]}) as (basin, script):
        words = basin("estimate", "-m", "m", "-f", "file-1", "--r", "4", code=Code.FAILED).stdout
        document = basin.json("estimate", "-m", "m", "-f", "file-1", code=Code.FAILED)

    assert "2.0 MiB (1.0 MiB to 3.0 GiB)" in words and "1:30 (1:00 to 1:01:40)" in words
    assert "It fits on no worker." in words and "Rows are cut." in words
    assert "training.max_length 64: 1.0 MiB, which fits" in words
    assert document == found
    assert script.asked[0][1] == "/v1/fine_tuning/jobs?dry_run=true"
    assert script.asked[0][3] == {"model": "m", "training_file": "file-1", "peft": {"r": 4}}


def test_methods_of_a_comparison_are_read():
    asked = {"model": "m", "training_file": "file-1", "methods": ["lora", "dora+mgpo"]}

    body = made(contest, **asked, seeds="7,8", budget_equal="passes")

    assert body["methods"] == [
        {"name": "lora", "peft": {"method": "lora"}, "perturbation": {"type": "none"}},
        {"name": "dora+mgpo", "peft": {"method": "dora"}, "perturbation": {"type": "mgpo"}},
    ]
    assert body["seeds"] == [7, 8] and body["budget"] == {"equal": "passes"}
    assert made(contest, **asked)["seeds"] == 3
    with pytest.raises(typer.BadParameter, match="lara"):
        made(contest, **asked | {"methods": ["lara"]})


def test_a_comparison_is_followed_and_its_verdict_printed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.client.compare.POLL_S", 0.01)
    running = {
        "id": "cmp-1",
        "status": "running",
        "progress": {"jobs": 2, "finished": 0},
        "jobs": [{"id": "ftjob-1", "method": "lora", "seed": 1, "status": "running"}],
        "methods": [],
        "verdict": None,
    }
    spread = {"mean": 1.5, "low": 1.25, "high": 1.75, "std": 0.1, "n": 3}
    lora = {
        "name": "lora",
        "seeds": [1, 2, 3],
        "valid_loss": spread,
        "metrics": {"valid_accuracy": spread},
        "against_first": None,
        "cost": {"seconds": 61, "seconds_per_point": 4},
        "sharpness": {"worst": spread | {"mean": 8.5}},
    }
    against = {"difference": -0.25, "low": -0.5, "high": -0.125}
    against |= {"p_value": 0.01, "adjusted_p_value": 0.02}
    mgpo = lora | {"name": "lora+mgpo", "against_first": against}
    ended = running | {"status": "succeeded", "methods": [lora, mgpo], "verdict": "MGPO is better."}
    answers: dict[str, Any] = {
        "/v1/comparisons": [running],
        "/v1/comparisons/cmp-1": [running, ended],
    }
    arguments = ("compare", "-m", "m", "-f", "file-1", "--method", "lora", "--method", "lora+mgpo")

    with scripted(answers) as (basin, script):
        words = basin(*arguments).stdout
        document = basin.json(*arguments)

    assert "1.5 [1.25, 1.75]" in words and "-0.25 [-0.5, -0.125]" in words and "1:01" in words
    assert "0.02" in words and "0.01" not in words and "8.5 [" in words and "0:04" in words
    assert "MGPO is better." in words and "valid_accuracy" in words
    assert document["verdict"] == "MGPO is better."
    assert script.asked[0][3]["seeds"] == 3


def test_a_comparison_runs_to_its_end_on_a_server(
    api: Api, rows: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.client.compare.POLL_S", 0.1)
    key = api.key("comparing by command")
    losses = {"lora": [1.5, 1.4], "lora+mgpo": [1.2, 1.15]}

    def train() -> None:
        with api.http(key) as http:
            wait_until(lambda: bool(http.get("/comparisons").json()["data"]), timeout_s=60)
            listed = http.get("/comparisons").json()["data"][0]
            train_all(api, http.get(f"/comparisons/{listed['id']}").json(), losses)

    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train)
        found = basin_of(api, key).json(
            *("compare", "-m", "tiny-llama", "-f", rows, "--validation", rows),
            *("--method", "lora", "--method", "lora+mgpo", "--seeds", "2", "--max-steps", "40"),
        )
        trained.result()

    assert (found["status"], found["progress"]) == ("succeeded", {"jobs": 4, "finished": 4})
    assert [(each["name"], each["seeds"]) for each in found["methods"]] == [
        ("lora", [1, 2]),
        ("lora+mgpo", [1, 2]),
    ]
    means = [each["valid_loss"]["mean"] for each in found["methods"]]
    assert means == pytest.approx([1.45, 1.175]) and "lora+mgpo" in found["verdict"]
