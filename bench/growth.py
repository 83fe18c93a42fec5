"""Draws how the time of each thing grows with the number of jobs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(costs_ms: Mapping[int, Mapping[str, Sequence[float]]], target: Path) -> None:
    """Draw medians over the number of jobs, each against its own with the fewest.

    What grows with the depth of a tree stays below the dotted line.
    """
    jobs = sorted(costs_ms)
    fewest = jobs[0]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for what, first in costs_ms[fewest].items():
        medians = [statistics.median(costs_ms[size][what]) for size in jobs]
        label = f"{what} ({medians[-1]:.2g} ms)"
        axes.plot(jobs, [each / statistics.median(first) for each in medians], "o-", label=label)
    axes.plot(jobs, [math.log(size, fewest) for size in jobs], "k:", label="logarithm")
    axes.set(xscale="log", xlabel="jobs, with 100 metric points each", ylabel="time, ratio")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    plt.close(figure)
