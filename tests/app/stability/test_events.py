"""Known events are found where they are, and noise is none."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.stability.curves import Point, curve_of
from app.stability.events import MOST_SPIKES, Finding, find
from tests.app.stability.curves import (
    NOISES,
    SHAPES,
    evaluations,
    losses,
    train_curve,
    valid_curve,
)

STEPS = 400
HEALTHY = SHAPES["exponential"]


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def healthy_losses(seed: int = 0, *, sigma: float = 0.03) -> list[float]:
    return losses(HEALTHY, steps=STEPS, sigma=sigma, seed=seed)


def found(train: list[Point], valid: list[Point] | None = None, **others: list[Point]) -> Finding:
    """The one finding there is."""
    everything = find(train, valid or evaluations(HEALTHY, count=10, steps=STEPS), **others)
    assert len(everything) == 1, everything
    return everything[0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    noise=st.sampled_from(sorted(NOISES)),
    sigma=st.sampled_from([0.005, 0.02, 0.05, 0.1]),
    steps=st.sampled_from([30, 100, 400, 1500]),
    count=st.sampled_from([2, 5, 10, 40]),
    seed=st.integers(0, 10_000),
)
def test_a_healthy_run_has_no_finding_worse_than_a_plateau(
    shape: str, noise: str, sigma: float, steps: int, count: int, seed: int
):
    train = train_curve(losses(SHAPES[shape], steps=steps, sigma=sigma, seed=seed, noise=noise))
    valid = evaluations(SHAPES[shape], count=count, steps=steps, sigma=sigma / 20, seed=seed)

    findings = find(train, valid)

    assert not [finding for finding in findings if finding.severity != "info"]


def test_noise_about_a_falling_loss_is_no_finding_in_nineteen_of_twenty_runs():
    with_findings = [
        (shape, seed)
        for shape in SHAPES
        for seed in range(50)
        if find(
            train_curve(losses(SHAPES[shape], steps=STEPS, sigma=0.1, seed=seed)),
            evaluations(SHAPES[shape], count=10, steps=STEPS, seed=seed),
        )
    ]

    assert len(with_findings) <= 0.05 * 50 * len(SHAPES), with_findings


def test_noise_about_a_loss_that_stands_still_is_at_most_a_plateau():
    def still(_: float) -> float:
        return 2.0

    everything = [
        finding.kind
        for seed in range(60)
        for finding in find(
            train_curve(losses(still, steps=STEPS, sigma=0.1, seed=seed)),
            evaluations(still, count=20, steps=STEPS, sigma=0.005, seed=seed),
        )
    ]

    assert set(everything) <= {"plateau"}


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("at", [20, 150, 380])
@pytest.mark.parametrize("seed", range(3))
def test_a_spike_is_found_at_its_steps(width: int, at: int, seed: int):
    values = healthy_losses(seed)
    for place in range(at, at + width):
        values[place] *= 1.8

    finding = found(train_curve(values))

    assert (finding.kind, finding.severity, finding.metric) == ("spike", "warn", "train_loss")
    assert (finding.first_step, finding.last_step) == (at + 1, at + width)
    assert f"{max(values[at : at + width]):.4g}" in finding.evidence


def test_a_spike_tells_of_the_gradient_there():
    values = healthy_losses()
    values[200] += 2
    gradients = [1.0] * STEPS
    gradients[200] = 37.5

    finding = found(train_curve(values), grad_norm=train_curve(gradients))

    assert "grad_norm of 37.5 (median 1)" in finding.evidence


def test_of_many_spikes_the_highest_are_told_and_all_are_counted():
    values = healthy_losses()
    for number, place in enumerate(range(40, 360, 40)):
        values[place] += 1 + number

    spikes = find(train_curve(values), [])

    assert [spike.first_step for spike in spikes] == [161, 201, 241, 281, 321]
    assert len(spikes) == MOST_SPIKES and "8 spikes in all" in spikes[0].evidence


def test_a_spike_within_a_bucket_of_a_long_run_is_found():
    values = healthy_losses()
    points = [
        Point(10 * place + 1, 10 * place + 10, value * 0.95, value * 1.05, value)
        for place, value in enumerate(values)
    ]
    hit = points[250]
    points[250] = Point(hit.first_step, hit.last_step, hit.low, hit.high + 3, hit.mean + 0.3)

    spike = found(points, evaluations(HEALTHY, count=10, steps=10 * STEPS))

    assert (spike.kind, spike.first_step, spike.last_step) == ("spike", 2501, 2510)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_divergence_from_there_on(value: float):
    values = [*healthy_losses()[:120], value]

    finding = next(f for f in find(train_curve(values), []) if f.kind == "divergence")

    assert (finding.severity, finding.first_step, finding.last_step) == ("error", 121, 121)
    assert f"{values[119]:.4g}" in finding.evidence


def test_a_run_that_is_not_finite_at_once_is_a_divergence_without_a_curve():
    findings = find(train_curve([math.nan]), valid_curve([2.0, math.nan], steps=1))

    assert kinds(findings) == ["divergence", "divergence"]
    assert "before: none" in findings[0].evidence and "before: 2" in findings[1].evidence


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_rises_and_stays_up_is_a_divergence_from_where_it_rose(seed: int):
    values = healthy_losses(seed)
    for place in range(250, STEPS):
        values[place] += min((place - 250) / 40, 1) * 1.5

    findings = find(train_curve(values), [])

    rise = next(finding for finding in findings if finding.kind == "divergence")
    assert rise.severity == "error" and rise.last_step == STEPS
    assert abs(rise.first_step - 250) <= STEPS // 20


def test_a_loss_that_only_rises_is_a_divergence_from_the_start():
    values = losses(lambda done: 2 + 3 * done, steps=STEPS, sigma=0.03, seed=1)

    rise = found(train_curve(values))

    assert rise.kind == "divergence" and rise.first_step <= STEPS // 5


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_stops_falling_in_the_middle_is_a_plateau_there(seed: int):
    def held(done: float) -> float:
        return 3 - 2 * min(done, 0.3) / 0.3 * 0.5 - (max(done - 0.7, 0) / 0.3)

    values = losses(held, steps=STEPS, sigma=0.01, seed=seed)

    plateau = found(train_curve(values), evaluations(held, count=10, steps=STEPS))

    assert (plateau.kind, plateau.severity) == ("plateau", "info")
    assert abs(plateau.first_step - 120) <= 30 and abs(plateau.last_step - 280) <= 30
    assert "fell on only then" in plateau.evidence


def test_a_loss_that_has_ended_falling_long_before_the_run_is_a_plateau_to_the_end():
    def early(done: float) -> float:
        return 1 + 2 * max(0.4 - done, 0)

    values = losses(early, steps=STEPS, sigma=0.01, seed=1)

    plateau = found(train_curve(values), evaluations(early, count=10, steps=STEPS))

    assert (plateau.kind, plateau.severity, plateau.last_step) == ("plateau", "info", STEPS)
    assert abs(plateau.first_step - 160) <= 30


def test_a_run_that_learns_nothing_is_a_plateau_of_all_its_steps():
    values = losses(lambda _: 2.0, steps=STEPS, sigma=0.01, seed=1)

    plateau = found(train_curve(values), evaluations(lambda _: 2.0, count=10, steps=STEPS))

    assert (plateau.kind, plateau.severity) == ("plateau", "warn")
    assert (plateau.first_step, plateau.last_step) == (1, STEPS)


def bumpy(done: float) -> float:
    """Down to step 120, up again to 200, and down."""
    if done < 0.3:
        return 3 - 3 * done
    return 2.1 + 2 * (done - 0.3) if done < 0.5 else 2.5 - 1.6 * (done - 0.5)


@pytest.mark.parametrize("count", [10, 20, 100])
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_rises_and_falls_again_is_a_second_descent(count: int, seed: int):
    values = losses(bumpy, steps=STEPS, sigma=0.02, seed=seed)
    valid = evaluations(bumpy, count=count, steps=STEPS, sigma=0.003, seed=seed)

    bump = found(train_curve(values), valid)

    assert (bump.kind, bump.severity, bump.metric) == ("second_descent", "warn", "valid_loss")
    assert abs(bump.first_step - 120) <= 25 and bump.last_step >= 300
    measured = float(bump.evidence.partition("a bump of ")[2].partition(")")[0])
    assert measured == pytest.approx(0.4, abs=0.06)


def test_without_evaluations_the_second_descent_shows_in_the_training_loss():
    findings = find(train_curve(losses(bumpy, steps=STEPS, sigma=0.02, seed=1)), [])

    assert kinds(findings) == ["second_descent"]
    assert findings[0].metric == "train_loss"
    assert "where the gradient is taken" in findings[0].evidence


@pytest.mark.parametrize("count", [6, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_over_fitting_begins_at_the_lowest_validation_loss(count: int, seed: int):
    def turning(done: float) -> float:
        return 2 - 2 * done if done < 0.4 else 1.2 + 0.7 * (done - 0.4)

    values = healthy_losses(seed)
    valid = evaluations(turning, count=count, steps=STEPS, sigma=0.002, seed=seed)

    finding = found(train_curve(values), valid)

    assert (finding.kind, finding.severity, finding.metric) == ("overfitting", "warn", "valid_loss")
    assert abs(finding.first_step - 160) <= STEPS / count and finding.last_step == STEPS


def test_a_validation_loss_that_rises_with_the_training_loss_is_no_over_fitting():
    def turning(done: float) -> float:
        return 2 - 2 * done if done < 0.4 else 1.2 + 0.9 * (done - 0.4)

    findings = find(
        train_curve(losses(turning, steps=STEPS, sigma=0.02, seed=1)),
        evaluations(turning, count=10, steps=STEPS),
    )

    assert "overfitting" not in kinds(findings)


@pytest.mark.parametrize(("share", "severity"), [(0.7, "info"), (0.97, "warn")])
def test_a_perturbation_at_its_bound_is_found_where_it_is(share: float, severity: str):
    shares = [0.1] * 100 + [share] * 200 + [0.1] * 100

    finding = found(train_curve(healthy_losses()), clamped_share=train_curve(shares))

    assert (finding.kind, finding.severity) == ("clamped_perturbation", severity)
    assert (finding.first_step, finding.last_step) == (101, 300)
    assert f"{share:.0%}" in finding.evidence


def test_a_perturbation_that_is_at_its_bound_now_and_then_is_no_finding():
    shares = [0.9 if step % 50 < 10 else 0.2 for step in range(STEPS)]

    findings = find(train_curve(healthy_losses()), [], clamped_share=train_curve(shares))

    assert not findings


def test_several_events_are_told_by_their_first_step():
    def turning(done: float) -> float:
        return 2 - 2 * done if done < 0.4 else 1.2 + 0.7 * (done - 0.4)

    values = healthy_losses()
    values[299] += 2
    shares = [0.95] * STEPS

    findings = find(
        train_curve(values),
        evaluations(turning, count=10, steps=STEPS),
        clamped_share=train_curve(shares),
    )

    assert kinds(findings) == ["clamped_perturbation", "overfitting", "spike"]


@pytest.mark.parametrize("steps", range(0, 20, 3))
def test_a_few_steps_are_judged_by_no_more_than_their_finiteness(steps: int):
    wild = curve_of(range(steps), [(-10.0) ** step for step in range(steps)])

    assert not find(wild, [])


def test_a_loss_of_nothing_divides_nothing():
    nothing = curve_of(range(100), [0.0] * 100)

    assert set(kinds(find(nothing, nothing, grad_norm=nothing))) <= {"plateau"}
