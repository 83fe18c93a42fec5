"""How long the rows of a file are where a run cuts them: tokens, steps and padding follow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.jobs.spec import TrainSpec

OBSERVED = 64  # tokens that an environment says in a turn, about

Spread = Sequence[Sequence[int]]  # number, how often: ascending


@dataclass(frozen=True)
class Rows:
    """The rows of a file that are left of it, cut at a length.

    `mean` and `longest` are the tokens that go in; `cut` are cut, `dropped` keep no answer.
    """

    rows: int
    mean: float
    longest: int
    cut: int
    dropped: int
    spread: Spread

    def padded(self, micro_batch_size: int) -> float:
        """Return how long a micro-batch is on average: as its longest row, E[max of m rows]."""
        total = sum(count for _, count in self.spread)
        below, expected = 0, 0.0
        for length, count in self.spread:
            upto = below + count
            chance = (upto / total) ** micro_batch_size - (below / total) ** micro_batch_size
            expected += length * chance
            below = upto
        return expected


def counted(tokens: Mapping[str, Any], *, rows: int, limit: int) -> Rows:
    """Return what a file's report says of its rows, for a run that cuts them at `limit` tokens.

    Where a share of them was counted only, it stands for all.
    """
    share = rows / max(tokens["counted_rows"], 1)
    dropped = _at_least(tokens["learned_from"], limit)
    kept_spread = _without_longest(_cut(tokens["read"], limit), dropped)
    kept = sum(count for _, count in kept_spread)
    total = sum(length * count for length, count in kept_spread)
    return Rows(
        rows=max(rows - round(dropped * share), 0),
        mean=total / kept if kept else 0.0,
        longest=max((length for length, _ in _cut(tokens["lengths"], limit)), default=0),
        cut=round(_at_least(tokens["lengths"], limit + 1) * share),
        dropped=round(dropped * share),
        spread=kept_spread,
    )


def unsaid(count: int) -> dict[str, Any]:
    """Return what stands for a report's tokens of episodes: all is said by the environment."""
    nothing = [[0, count]]
    told = {"lengths": nothing, "read": nothing, "learned_from": nothing}
    return {"estimated": True, "counted_rows": count, "max_length": None} | told


def written(spec: TrainSpec) -> int:
    """Return how many tokens a policy writes in a rollout, at most; none where it is taught."""
    policy = spec.reinforcement
    if policy is None:
        return 0
    turns = 1 if policy.environment is None else policy.environment.max_turns
    return policy.max_completion_tokens * turns


def rolled_out(found: Rows, spec: TrainSpec, *, limit: int) -> Rows:
    """Return the rollouts of rows that ask: longer by half of what may be written."""
    policy = spec.reinforcement
    if policy is None:
        return found
    turns = 0 if policy.environment is None else policy.environment.max_turns
    most = written(spec) + turns * OBSERVED
    spread = [[min(length + most // 2, limit), count] for length, count in found.spread]
    total = sum(count for _, count in spread)
    mean = sum(length * count for length, count in spread) / total if total else 0.0
    return replace(found, spread=spread, mean=mean, longest=min(found.longest + most, limit))


def assumed(*, rows: int, mean: float, limit: int) -> Rows:
    """Return rows of which the mean is known only: half of them twice as long as the others."""
    short, long = max(round(mean * 2 / 3), 1), max(round(mean * 4 / 3), 1)
    spread = [[min(short, limit), 1], [min(long, limit), 1]]
    longest = min(math.ceil(2 * mean), limit)
    return Rows(rows=rows, mean=mean, longest=longest, cut=0, dropped=0, spread=spread)


def _at_least(spread: Spread, limit: int) -> int:
    return sum(count for number, count in spread if number >= limit)


def _cut(spread: Spread, limit: int) -> list[list[int]]:
    kept = [[length, count] for length, count in spread if length < limit]
    if cut := _at_least(spread, limit):
        kept.append([limit, cut])
    return kept


def _without_longest(spread: list[list[int]], dropped: int) -> list[list[int]]:
    """Leave out rows that are dropped: they were cut, and are among the longest."""
    left = [list(pair) for pair in spread]
    while left and dropped:
        taken = min(left[-1][1], dropped)
        left[-1][1] -= taken
        dropped -= taken
        if not left[-1][1]:
            left.pop()
    return left
