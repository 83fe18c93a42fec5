"""What runs say of their methods, in numbers and in words."""

import math
import random
from collections.abc import Mapping, Sequence

import pytest
from scipy import stats

from app.comparisons.results import Result, results
from app.comparisons.verdict import verdict
from app.jobs.states import JobStatus
from tests.app.comparisons.made import run_of, runs_of, spec_of

CLEAR = {"LoRA": [1.40, 1.36, 1.43, 1.38, 1.41], "MGPO": [1.33, 1.30, 1.36, 1.33, 1.35]}
NOISE = {"LoRA": [1.40, 1.36, 1.43, 1.38, 1.41], "MGPO": [1.36, 1.42, 1.38, 1.43, 1.38]}


def words(losses: Mapping[str, Sequence[float | None]]) -> str:
    names, runs = runs_of(losses)
    return verdict(results(names, runs), finished=sum(run.over for run in runs), jobs=len(runs))


def second(losses: Mapping[str, Sequence[float | None]]) -> Result:
    return results(*runs_of(losses))[1]


def test_a_clear_difference_is_more_than_noise():
    against = second(CLEAR).against_first

    assert against is not None and against.significant
    assert words(CLEAR) == (
        "MGPO ends lower than LoRA by 0.062 (95 % CI 0.0516 … 0.0724, 5 seeds, p < 0.0001):"
        " more than noise."
    )


def test_noise_is_called_noise_with_the_seeds_that_would_tell():
    against = second(NOISE).against_first

    assert against is not None and not against.significant
    assert words(NOISE) == (
        "MGPO ends lower than LoRA by 0.002 (95 % CI −0.0633 … 0.0673, 5 seeds, p = 0.94): within"
        " noise. A difference this small would take more than 1000 seeds to show, if there is one."
    )


def test_a_difference_that_might_be_one_is_told_how_many_seeds_it_takes():
    likely = {"LoRA": [1.40, 1.36, 1.43], "MGPO": [1.36, 1.35, 1.38]}

    assert "within noise. 3 seeds cannot tell; about 6 would be needed" in words(likely)


def test_higher_is_told_to_be_higher():
    worse = {"LoRA": CLEAR["MGPO"], "MGPO": CLEAR["LoRA"]}

    assert words(worse).startswith("MGPO ends higher than LoRA by 0.062 (95 % CI 0.0516 … 0.0724")


def test_one_seed_cannot_be_told_from_noise():
    against = second({"LoRA": [1.4], "MGPO": [1.0]}).against_first

    assert against is not None and against.significant is False
    assert against.found.p_value is None
    assert "that cannot be told from noise" in words({"LoRA": [1.4], "MGPO": [1.0]})


def test_equal_runs_are_told_to_be_equal():
    assert words({"LoRA": [1.4, 1.3], "rho 0": [1.4, 1.3]}) == (
        "rho 0 ends exactly where LoRA does, 2 seeds."
    )


def test_several_methods_are_corrected_for_and_told_so():
    losses = {**CLEAR, "again": [1.38, 1.36, 1.41, 1.37, 1.39]}
    names, runs = runs_of(losses)

    _, clear, again = results(names, runs)

    assert clear.against_first is not None and again.against_first is not None
    expected = stats.ttest_rel(losses["again"], losses["LoRA"]).pvalue
    assert again.against_first.found.p_value == pytest.approx(expected)
    assert clear.against_first.adjusted_p == pytest.approx(
        2 * (clear.against_first.found.p_value or math.nan)
    )
    assert "after Holm's correction for 2 comparisons" in words(losses)


def test_nothing_is_significant_before_the_last_run_is_over():
    losses = {"LoRA": [*CLEAR["LoRA"], 1.4], "MGPO": [*CLEAR["MGPO"], None]}

    against = second(losses).against_first

    assert against is not None and (against.adjusted_p or 1) < 0.05 and not against.significant
    assert words(losses).startswith("11 of 12 runs are over. The verdict waits")


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_runs_that_come_to_nothing_do_not_count_and_are_told(status: JobStatus):
    names, runs = runs_of(CLEAR)
    runs[7] = run_of(1, 3, 1.0, status=status, end={})

    found = results(names, runs)

    assert found[1].seeds == [1, 2, 4, 5] and found[1].missing == 1
    assert found[1].against_first is not None and found[1].against_first.found.n == 4
    said = verdict(found, finished=10, jobs=10)
    assert said.startswith("1 of 5 runs of MGPO ended without a loss and do not count")


def test_a_loss_that_is_no_number_does_not_count():
    names, runs = runs_of({"LoRA": [1.4, math.nan], "MGPO": [1.3, 1.2]})

    first, _ = results(names, runs)

    assert first.seeds == [1] and first.missing == 1


def test_without_the_first_method_there_is_nothing_to_compare():
    names, runs = runs_of(CLEAR)
    runs[:5] = [run_of(0, seed, 1.0, status=JobStatus.FAILED, end={}) for seed in range(1, 6)]

    found = results(names, runs)

    assert found[1].against_first is None and found[0].loss is None
    assert "there is nothing to compare" in verdict(found, finished=10, jobs=10)


def test_a_method_without_a_run_is_told_to_have_none():
    names, runs = runs_of(CLEAR)
    runs[5:] = [run_of(1, seed, 1.0, status=JobStatus.FAILED, end={}) for seed in range(1, 6)]

    assert "MGPO has no run to compare" in verdict(results(names, runs), finished=10, jobs=10)


def test_scores_and_sharpness_come_as_means_of_what_was_measured():
    end = {"valid_loss": 1.0, "valid_accuracy": 0.9, "valid_sharpness_worst": 0.2}
    runs = [
        run_of(0, 1, 1.0, end=end),
        run_of(0, 2, 1.0, end=end | {"valid_accuracy": 0.7}),
        run_of(1, 1, 1.0),
        run_of(1, 2, 1.0),
    ]

    first, other = results(["a", "b"], runs)

    assert first.scores["valid_accuracy"].mean == pytest.approx(0.8)
    assert first.scores.keys() == {"valid_accuracy"} and first.sharpness.keys() == {"worst"}
    assert (other.scores, other.sharpness) == ({}, {})


def test_the_cost_is_that_of_a_run_and_of_a_point():
    """By hand: from 2.0 to 1.5 are 50 points, and a run takes 60 s."""
    runs = [
        run_of(0, 1, 1.4, peak_memory_bytes=3e9),
        run_of(0, 2, 1.6, seconds=60.0),
        run_of(1, 1, 2.5),
        run_of(1, 2, 2.5),
    ]

    first, risen = results(["a", "b"], runs)

    assert first.cost is not None and risen.cost is not None
    assert first.cost.seconds == 60 and first.cost.gpu_seconds == 120
    assert first.cost.forward_backward_passes == 100
    assert first.cost.peak_memory_bytes == 3e9
    assert first.cost.seconds_per_point == pytest.approx(1.2)
    assert risen.cost.seconds_per_point is None


def test_the_passes_of_lora_gas_start_are_counted():
    """24 rows in micro-batches of 2 are 12, of which it takes 8: 4 steps of two each."""
    spec = spec_of(peft={"method": "lora_ga"}, training={"micro_batch_size": 2})

    (method,) = results(["a"], [run_of(0, 1, 1.0, spec=spec)])

    assert method.cost is not None and method.cost.forward_backward_passes == 104


def test_alike_methods_are_told_apart_in_one_comparison_of_twenty():
    draw = random.Random(3)

    def drawn() -> list[float]:
        return [draw.gauss(1.4, 0.03) for _ in range(5)]

    found = [second({"a": drawn(), "b": drawn()}).against_first for _ in range(1000)]

    false = sum(against is not None and against.significant for against in found)
    assert 25 <= false <= 75
