"""A comparison through the whole service: every run trains, the numbers are those of its jobs."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.comparisons.test_comparisons_api import COMPARISONS, compare, upload

STEPS = 12


@pytest.fixture(scope="module")
def ended(http: httpx.Client, worker: Path) -> dict[str, Any]:
    """Two methods with two seeds, trained to their ends."""
    made = compare(
        http,
        upload(http),
        seeds=2,
        budget={"equal": "passes", "max_steps": STEPS},
        training={"learning_rate": 1e-2, "eval_steps": 4},
        evaluation={"sharpness": {"ascent_steps": 1, "directions": 2, "batches": 1}},
    ).json()
    deadline = time.monotonic() + 280
    while made["status"] == "running":
        assert time.monotonic() < deadline, worker.read_text()[-3000:]
        time.sleep(0.5)
        made = http.get(f"{COMPARISONS}/{made['id']}").json()
    return made


def last(http: httpx.Client, job_id: str, name: str) -> float:
    answer = http.get(f"/fine_tuning/jobs/{job_id}/metrics", params={"name": name}).json()
    value: float = answer["data"][0]["points"][-1][1]
    return value


def test_every_run_trains_and_the_verdict_is_about_their_losses(
    ended: dict[str, Any], http: httpx.Client
):
    assert ended["status"] == "succeeded" and ended["progress"] == {"jobs": 4, "finished": 4}
    losses: dict[str, list[float]] = {"LoRA": [], "MGPO": []}
    for job in ended["jobs"]:
        losses[job["method"]].append(last(http, job["id"], "valid_loss"))
    for method in ended["methods"]:
        assert method["valid_loss"]["n"] == 2
        assert method["valid_loss"]["mean"] == pytest.approx(sum(losses[method["name"]]) / 2)
    pairs = [other - first for first, other in zip(*losses.values(), strict=True)]
    assert ended["methods"][1]["against_first"]["difference"] == pytest.approx(sum(pairs) / 2)
    assert ended["verdict"].startswith("MGPO ends ")
    assert "noise" in ended["verdict"] and "2 seeds" in ended["verdict"]


def test_every_method_has_its_cost_its_sharpness_and_its_curve(ended: dict[str, Any]):
    for method in ended["methods"]:
        cost = method["cost"]
        assert cost["forward_backward_passes"] == STEPS and cost["peak_memory_bytes"] > 1 << 20
        assert cost["gpu_seconds"] == cost["seconds"] > 0 and cost["seconds_per_point"] > 0
        assert method["sharpness"]["worst"]["mean"] >= method["sharpness"]["mean"]["mean"]
        assert method["metrics"].keys() == {"valid_mean_token_accuracy"}
        assert [(point["step"], point["n"]) for point in method["curve"]] == [
            (0, 2), (4, 2), (8, 2), (12, 2)
        ]  # fmt: skip
        assert method["curve"][-1]["low"] < method["curve"][-1]["high"]


def test_both_methods_of_a_seed_begin_alike(ended: dict[str, Any], http: httpx.Client):
    """Same base and same rows first: only the first step, before any perturbation, can be equal."""
    firsts: dict[int, set[float]] = {1: set(), 2: set()}
    for job in ended["jobs"]:
        answer = http.get(
            f"/fine_tuning/jobs/{job['id']}/metrics", params={"name": "train_loss"}
        ).json()
        firsts[job["seed"]].add(answer["data"][0]["points"][0][1])

    assert {len(values) for values in firsts.values()} == {1} and firsts[1] != firsts[2]


def test_a_finished_run_has_a_report(ended: dict[str, Any], http: httpx.Client):
    report = http.get(f"/fine_tuning/jobs/{ended['jobs'][0]['id']}/report").json()

    assert report["findings"] == [] and report["healthy"] is True
    assert report["summary"].startswith(f"{STEPS} steps are done")
