"""What a study shows: a table of mean ± deviation over seeds, and curves with their bands."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl

from bench.result import markdown_row
from bench.study import Result

mpl.use("Agg")
from matplotlib import pyplot as plt

HEAD = (
    "method", "r", "learning rate", "held-out loss", "bump", "sharpness, worst", "sharpness, mean",
)  # fmt: skip
COST = ("passes", "time, ratio", "memory, MiB")
PLAIN = "LoRA"

Setting = tuple[int, float]
K = TypeVar("K")


def table(results: Sequence[Result], *, cost: bool = True) -> str:
    """Return a Markdown table, a row for each method and setting; times are against plain LoRA."""
    head = (*HEAD, *COST) if cost else HEAD
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for (r, rate), group in sorted(by(results, lambda each: setting(each)).items()):
        methods = by(group, lambda each: each.trial.method)
        plain = statistics.median(each.seconds for each in methods.get(PLAIN, group))
        for method, runs in methods.items():
            cells = [method, str(r) if r else "", f"{rate:g}", *_quality(runs)]
            lines.append(markdown_row([*cells, *_cost(runs, plain)] if cost else cells))
    return "\n".join(lines) + "\n"


def _quality(runs: Sequence[Result]) -> list[str]:
    return [
        spread([each.final for each in runs]),
        spread([each.bump for each in runs]),
        spread([each.sharpness_worst for each in runs]),
        spread([each.sharpness_mean for each in runs], digits=4),
    ]


def _cost(runs: Sequence[Result], plain_s: float) -> list[str]:
    return [
        str(runs[0].forwards),
        f"{statistics.median(each.seconds for each in runs) / plain_s:.2f}",
        f"{statistics.median(each.peak_bytes for each in runs) / 2**20:.0f}",
    ]


def wins(results: Sequence[Result], method: str, *, against: str = PLAIN) -> str:
    """Say in how many pairs of one setting and seed a method ends lower than another."""
    other = {
        (setting(each), each.trial.seed): each.final
        for each in results
        if each.trial.method == against
    }
    pairs = [
        (each.final, other[setting(each), each.trial.seed])
        for each in results
        if each.trial.method == method and (setting(each), each.trial.seed) in other
    ]
    won = sum(ours < theirs for ours, theirs in pairs)
    return f"{method} ends lower than {against} in {won} of {len(pairs)} pairs."


def curves(results: Sequence[Result], target: Path, *, title: str) -> None:
    """Draw the clean held-out losses: the mean over seeds, and all seeds as a band."""
    groups = sorted(by(results, lambda each: setting(each)).items())
    figure, axes = plt.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 3.4), sharey=True, squeeze=False
    )
    for axis, ((r, rate), group) in zip(axes[0], groups, strict=True):
        for method, runs in by(group, lambda each: each.trial.method).items():
            columns = list(zip(*(each.losses for each in runs), strict=True))
            steps = runs[0].steps
            (line,) = axis.plot(steps, [statistics.fmean(c) for c in columns], label=method, lw=1.2)
            axis.fill_between(
                steps, [min(c) for c in columns], [max(c) for c in columns],
                color=line.get_color(), alpha=0.12, lw=0,
            )  # fmt: skip
        axis.set_title(f"r = {r}, lr {rate:g}" if r else f"lr {rate:g}", fontsize=9)
        axis.set_xlabel("optimizer step")
    axes[0][0].set_ylabel("held-out loss, clean weights")
    axes[0][-1].legend(fontsize=6)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def setting(result: Result) -> Setting:
    return result.trial.r, result.trial.learning_rate


def spread(values: Sequence[float], *, digits: int = 3) -> str:
    """Return mean ± standard deviation; how many diverged is said, not averaged."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "diverged"
    deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
    lost = f" ({len(values) - len(finite)} diverged)" if len(finite) < len(values) else ""
    return f"{statistics.fmean(finite):.{digits}f} ± {deviation:.{digits}f}{lost}"


def by(results: Iterable[Result], key: Callable[[Result], K]) -> dict[K, list[Result]]:
    groups: dict[K, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups
