"""What can be wrong with a run, found in its curves: each with its steps and its evidence. Pure.

A finding has to stand out of the noise and to matter: every threshold has a part in standard
deviations of the noise and one relative to the loss.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from app.stability.curves import (
    SECOND_DIFFERENCE,
    TO_SIGMA,
    Curve,
    blocks,
    change,
    finite_start,
    means,
    noise,
    second_differences,
    smoothed,
)

Kind = Literal[
    "spike", "plateau", "divergence", "second_descent", "overfitting", "clamped_perturbation"
]
Severity = Literal["info", "warn", "error"]

FEWEST_STEPS = 20  # below, nothing but a value that is not finite can be told
FEWEST_EVALUATIONS = 6

SPIKE_REACH = 16  # points before and after, whose medians a spike stands over
SPIKE_SIGMAS, SPIKE_SHARE = 10.0, 0.15
SPIKE_GAP = 3
MOST_SPIKES = 5

BLOCKS = 20
RISE_SIGMAS = 6.0
DIVERGED_OF_FALL, DIVERGED_SHARE = 0.5, 0.1

PLATEAU_BLOCKS = 30
FLAT_OF_FALL, FLAT_SHARE = 0.02, 0.01
LONG_TAIL, LONG_MIDDLE = 0.4, 0.2

BUMP_SIGMAS, BUMP_SHARE, BUMP_OF_FALL = 5.0, 0.02, 0.05
FALLEN_BACK = 0.5

CLAMPED_SHARE, CLAMPED_LONG, CLAMPED_ALL = 0.5, 0.2, 0.9


@dataclass(frozen=True)
class Finding:
    """An event of a run: where in the steps, in which metric, and the numbers that show it."""

    kind: Kind
    severity: Severity
    first_step: int
    last_step: int
    metric: str
    evidence: str


def find(
    train: Curve, valid: Curve, *, grad_norm: Curve = (), clamped_share: Curve = ()
) -> list[Finding]:
    """Return all that is found in a run, by first step.

    Args:
        train: train_loss, as measured where the gradient is.
        valid: valid_loss at the clean weights; empty without a validation file.
        grad_norm: the norm of the gradients, to tell beside a spike.
        clamped_share: the share of modules whose perturbation stands at its bound.
    """
    sound = finite_start(train)
    found = [
        *not_finite(train, "train_loss"),
        *not_finite(valid, "valid_loss"),
        *spikes(sound, grad_norm),
        *lasting_rise(sound),
        *plateaus(sound),
        *second_descent(sound, finite_start(valid)),
        *overfitting(sound, finite_start(valid)),
        *clamped(clamped_share),
    ]
    return sorted(found, key=lambda finding: (finding.first_step, finding.last_step))


def not_finite(curve: Curve, metric: str) -> Iterator[Finding]:
    """Find the end of a loss: NaN or infinity."""
    sound = len(finite_start(curve))
    if sound == len(curve):
        return
    last = ", ".join(_short(point.mean) for point in curve[max(sound - 3, 0) : sound])
    yield Finding(
        kind="divergence",
        severity="error",
        first_step=curve[sound].first_step,
        last_step=curve[-1].last_step,
        metric=metric,
        evidence=f"{metric} is not finite from step {curve[sound].first_step} on;"
        f" the last values before: {last or 'none'}.",
    )


def spikes(train: Curve, grad_norm: Curve = ()) -> Iterator[Finding]:
    """Find short rises of the loss far above what stands before and after them.

    Of many, the highest MOST_SPIKES are returned; the first of them tells how many there are.
    """
    groups = _groups(_spike_heights(train))
    shown = sorted(sorted(groups, key=lambda group: -max(group.values()))[:MOST_SPIKES], key=min)
    for number, group in enumerate(shown):
        top = max(group, key=lambda place: group[place])
        first, last = train[min(group)].first_step, train[max(group)].last_step
        usual = train[top].high - group[top]
        evidence = (
            f"train_loss rose to {_short(train[top].high)} from about {_short(usual)} and came back"
            f"{_gradient_words(grad_norm, first, last)}."
        )
        if number == 0 and len(groups) > MOST_SPIKES:
            evidence += f" {len(groups)} spikes in all; the {MOST_SPIKES} highest are listed."
        yield Finding("spike", "warn", first, last, "train_loss", evidence)


def lasting_rise(train: Curve) -> Iterator[Finding]:
    """Find a loss that loses more than half of what it had won, and stays there to the end."""
    if len(train) < FEWEST_STEPS:
        return
    level = blocks(train, BLOCKS)
    lowest = min(level, key=lambda block: block.mean)
    end = median(means(level[-3:]))
    won = level[0].mean - lowest.mean
    sigma = noise(means(level))
    needed = max(RISE_SIGMAS * sigma, DIVERGED_OF_FALL * won, DIVERGED_SHARE * abs(lowest.mean))
    if min(end, *means(level[-2:])) - lowest.mean <= needed:
        return
    risen = lowest.mean + max((end - lowest.mean) / 8, 3 * sigma)
    behind = level[level.index(lowest) :]
    first = next(block.first_step for block in behind if block.mean > risen)
    yield Finding(
        kind="divergence",
        severity="error",
        first_step=first,
        last_step=train[-1].last_step,
        metric="train_loss",
        evidence=f"train_loss was about {_short(lowest.mean)} around step {lowest.last_step}, rose"
        f" from step {first} on, and is about {_short(end)} at the end; it began at about"
        f" {_short(level[0].mean)}.",
    )


def plateaus(train: Curve) -> Iterator[Finding]:
    """Find the longest stretch in which the loss can be shown not to have moved.

    At the end of a run, or in all of it, a long one counts; before a further fall, a shorter one.
    """
    if len(train) < 2 * FEWEST_STEPS:
        return
    level = blocks(train, PLATEAU_BLOCKS)
    values = means(level)
    fall = max(values[0] - min(values), 0.0)
    moved = fall > RISE_SIGMAS * noise(values) and fall > FLAT_SHARE * abs(values[0])
    margin = FLAT_OF_FALL * fall if moved else FLAT_SHARE * abs(median(values))
    start, stop = _longest_flat(values, margin=margin, sigma=noise(values))
    if start == stop:
        return
    whole = stop - start >= PLATEAU_BLOCKS - 1
    where = median(values[start:stop])
    falls_on = stop < PLATEAU_BLOCKS and where - min(values[stop:]) > 5 * margin
    if stop - start < (LONG_MIDDLE if falls_on else LONG_TAIL) * PLATEAU_BLOCKS:
        return
    first, last = level[start].first_step, level[stop - 1].last_step
    after = " and fell on only then" if falls_on else ""
    yield Finding(
        kind="plateau",
        severity="warn" if whole else "info",
        first_step=first,
        last_step=last,
        metric="train_loss",
        evidence=f"train_loss stayed at about {_short(where)}, within {_short(margin)}, from step"
        f" {first} to {last}: {(stop - start) / PLATEAU_BLOCKS:.0%} of the steps{after}.",
    )


def second_descent(train: Curve, valid: Curve) -> Iterator[Finding]:
    """Find a loss that rises again after its first fall, and falls once more.

    The bump is max_t (L_t − min_{s<t} L_s) of the smoothed clean loss. Without enough evaluations
    the training loss stands in, which is measured at the perturbed weights.
    """
    curve, metric = (valid, "valid_loss")
    if len(valid) < FEWEST_EVALUATIONS:
        curve, metric = (blocks(train, BLOCKS), "train_loss")
    if len(curve) < FEWEST_EVALUATIONS or len(train) < FEWEST_STEPS:
        return
    values = smoothed(means(curve), reach=len(curve) // 40)
    low, peak = _highest_rise(values)
    bump = values[peak] - values[low]
    back = min(values[peak:])
    if bump <= _matters(means(curve)) or values[peak] - back < FALLEN_BACK * bump:
        return
    first, last = curve[low].last_step, curve[values.index(back, peak)].first_step
    clean = "" if metric == "valid_loss" else ", measured where the gradient is taken,"
    yield Finding(
        kind="second_descent",
        severity="warn",
        first_step=first,
        last_step=last,
        metric=metric,
        evidence=f"{metric}{clean} fell to {_short(values[low])} by step {first}, rose again to"
        f" {_short(values[peak])} at step {curve[peak].first_step} (a bump of {_short(bump)}), and"
        f" fell to {_short(back)} by step {last}.",
    )


def overfitting(train: Curve, valid: Curve) -> Iterator[Finding]:
    """Find the evaluation from which the validation loss rises while the training loss falls."""
    if len(valid) < FEWEST_EVALUATIONS - 1 or len(train) < FEWEST_STEPS:
        return
    values = means(valid)
    best = values.index(min(values))
    after = values[best + 1 :]
    if len(after) < 2:
        return
    rise = median(after[-2:]) - values[best]
    if rise <= _matters(values) or rise < FALLEN_BACK * (max(after) - values[best]):
        return
    onset = valid[best].last_step
    there, end = _train_level(train, onset), _train_level(train, train[-1].last_step)
    if there - end <= 0.02 * abs(there):
        return
    yield Finding(
        kind="overfitting",
        severity="warn",
        first_step=onset,
        last_step=valid[-1].last_step,
        metric="valid_loss",
        evidence=f"valid_loss was lowest at step {onset} ({_short(values[best])}) and is"
        f" {_short(values[-1])} at step {valid[-1].last_step}, while train_loss fell from about"
        f" {_short(there)} to {_short(end)}.",
    )


def clamped(share: Curve) -> Iterator[Finding]:
    """Find the longest time in which most modules' perturbation stood at its bound."""
    share = finite_start(share)
    if len(share) < FEWEST_STEPS:
        return
    level = blocks(share, BLOCKS)
    start, stop = _longest_run([block.mean >= CLAMPED_SHARE for block in level])
    if stop - start < CLAMPED_LONG * BLOCKS:
        return
    typical = mean(means(level[start:stop]))
    first, last = level[start].first_step, level[stop - 1].last_step
    yield Finding(
        kind="clamped_perturbation",
        severity="warn" if typical >= CLAMPED_ALL else "info",
        first_step=first,
        last_step=last,
        metric="perturbation_clamped_share",
        evidence=f"From step {first} to {last} the adaptive scale of {typical:.0%} of the modules"
        " stood at its bound, on average.",
    )


def _spike_heights(train: Curve) -> dict[int, float]:
    """Return how far each spike's points stand over their surroundings, by place."""
    if len(train) < FEWEST_STEPS:
        return {}
    values = [point.high for point in train]
    bends = [abs(bend) for bend in second_differences(values)]
    found = {}
    for place in range(1, len(values) - 1):
        before = values[max(place - SPIKE_REACH, 0) : place]
        after = values[place + 1 : place + 1 + SPIKE_REACH]
        if min(len(before), len(after)) < 2 * SPIKE_GAP:
            continue
        usual = max(median(before), median(after))
        height = values[place] - usual
        if height <= SPIKE_SHARE * abs(usual):
            continue
        near = bends[max(place - 2 * SPIKE_REACH, 0) : place + 2 * SPIKE_REACH]
        if height > SPIKE_SIGMAS * TO_SIGMA * median(near) / SECOND_DIFFERENCE:
            found[place] = height
    return found


def _groups(heights: dict[int, float]) -> list[dict[int, float]]:
    """Take together what stands next to each other: one spike."""
    groups: list[dict[int, float]] = []
    for place, height in sorted(heights.items()):
        if groups and place - max(groups[-1]) <= SPIKE_GAP:
            groups[-1][place] = height
        else:
            groups.append({place: height})
    return groups


def _gradient_words(grad_norm: Curve, first: int, last: int) -> str:
    here = [point.high for point in grad_norm if first <= point.last_step <= last + 1]
    finite = [value for value in here if math.isfinite(value)]
    if not finite:
        return ""
    usual = median(means(finite_start(grad_norm)))
    return f", with a grad_norm of {_short(max(finite))} (median {_short(usual)})"


def _longest_flat(values: Sequence[float], *, margin: float, sigma: float) -> tuple[int, int]:
    """Return [start, stop) of the longest stretch whose change lies within ±margin for sure.

    Args:
        sigma: the noise of all values: in a short stretch it can look smaller by chance.
    """
    shortest = int(LONG_MIDDLE * len(values))
    for length in range(len(values), shortest - 1, -1):
        for start in range(len(values) - length + 1):
            rise, uncertain = change(values[start : start + length], sigma=sigma)
            if abs(rise) + uncertain <= margin:
                return _edges(values, start, start + length, within=margin + 2 * sigma)
    return 0, 0


def _edges(values: Sequence[float], start: int, stop: int, *, within: float) -> tuple[int, int]:
    """Return [start, stop) moved to where the values leave the middle of their stretch.

    A robust line does not see a few values that lie elsewhere, at either end.
    """
    middle = median(values[start:stop])
    level = [abs(value - middle) <= within for value in values]
    while not level[start]:
        start += 1
    while not level[stop - 1]:
        stop -= 1
    while start > 0 and level[start - 1]:
        start -= 1
    while stop < len(values) and level[stop]:
        stop += 1
    return start, stop


def _highest_rise(values: Sequence[float]) -> tuple[int, int]:
    """Return the places of the low and of the peak of the highest rise."""
    low, found = 0, (0, 0)
    for place, value in enumerate(values):
        if value < values[low]:
            low = place
        if value - values[low] > values[found[1]] - values[found[0]]:
            found = (low, place)
    return found


def _matters(values: Sequence[float]) -> float:
    """Return above what a rise of an evaluated loss is no noise, and worth a word."""
    lowest = min(values)
    return max(
        BUMP_SIGMAS * noise(values) * (1 + 5 / len(values)),  # few values tell less of their noise
        BUMP_SHARE * abs(lowest),
        BUMP_OF_FALL * (values[0] - lowest),
    )


def _train_level(train: Curve, step: int) -> float:
    """Return the usual training loss around a step, over a tenth of the run."""
    reach = max(len(train) // 20, 5)
    place = sum(point.last_step < step for point in train)
    start = max(min(place, len(train)) - reach, 0)
    return median(means(train[start : start + 2 * reach]))


def _longest_run(flags: Sequence[bool]) -> tuple[int, int]:
    """Return [start, stop) of the longest run of true ones."""
    best, start = (0, 0), 0
    for place, flag in enumerate(flags):
        if not flag:
            start = place + 1
        elif place + 1 - start > best[1] - best[0]:
            best = (start, place + 1)
    return best


def _short(value: float) -> str:
    return f"{value:.4g}"
