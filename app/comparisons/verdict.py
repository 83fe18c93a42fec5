"""What a comparison has found, in words that say when a difference is noise. Pure."""

from collections.abc import Sequence

from app.comparisons.inference import MOST_SEEDS, POWER, Difference, seeds_needed
from app.comparisons.results import Against, Result

LEAST_P = 1e-4


def verdict(results: Sequence[Result], *, finished: int, jobs: int) -> str:
    """Return the sentences on every method against the first one, and on what is missing."""
    if finished < jobs:
        return (
            f"{finished} of {jobs} runs are over. The verdict waits for the last one: who looks"
            " again and again finds differences that are none."
        )
    first, *others = results
    sentences = [_missing(result) for result in results if result.missing]
    if first.loss is None:
        sentences.append(f"No run of {first.name} ended with a loss: there is nothing to compare.")
        return " ".join(sentences)
    sentences += [_against(first, other, tests=_tests(others)) for other in others]
    return " ".join(sentences)


def _missing(result: Result) -> str:
    runs = result.missing + len(result.seeds)
    return (
        f"{result.missing} of {runs} runs of {result.name} ended without a loss and do not count:"
        " what is said of it holds for the others alone."
    )


def _against(first: Result, other: Result, *, tests: int) -> str:
    against = other.against_first
    if against is None:
        return f"{other.name} has no run to compare with {first.name}'s."
    found = against.found
    who = f"{other.name} ends {_direction(found)} than {first.name}"
    if found.mean == 0 and found.std in (None, 0):
        return f"{other.name} ends exactly where {first.name} does{_seeds(found)}."
    if found.low is None or found.high is None:
        return (
            f"{who} by {_number(abs(found.mean))}, with one seed: that cannot be told from noise."
            " Ask for 3 seeds or more."
        )
    numbers = f"{who} by {_number(abs(found.mean))} ({_interval(found)}, {_p(against, tests)})"
    if against.significant:
        return f"{numbers}: more than noise."
    return f"{numbers}: within noise. {_wanted(found)}"


def _wanted(found: Difference) -> str:
    """Say how many seeds would tell."""
    needed = seeds_needed(found)
    if needed is None:
        return (
            f"A difference this small would take more than {MOST_SEEDS} seeds to show, if there is"
            " one."
        )
    if needed <= found.n:
        return f"{found.n} seeds cannot tell; a few more may."
    return (
        f"{found.n} seeds cannot tell; about {needed} would be needed to show a difference of this"
        f" size in {100 * POWER:.0f} % of the cases."
    )


def _direction(found: Difference) -> str:
    return "lower" if found.mean < 0 else "higher"


def _interval(found: Difference) -> str:
    """Write the interval in the direction of the difference."""
    assert found.low is not None and found.high is not None
    ends = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    return f"95 % CI {_number(ends[0])} … {_number(ends[1])}{_seeds(found)}"


def _seeds(found: Difference) -> str:
    return f", {found.n} seed{'s' if found.n > 1 else ''}"


def _p(against: Against, tests: int) -> str:
    p = against.adjusted_p
    assert p is not None
    shown = f"p = {p:.2g}" if p >= LEAST_P else f"p < {LEAST_P:.4f}"
    return f"{shown} after Holm's correction for {tests} comparisons" if tests > 1 else shown


def _tests(others: Sequence[Result]) -> int:
    """Return how many p-values were corrected for."""
    found = [other.against_first for other in others]
    return sum(against is not None and against.adjusted_p is not None for against in found)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
