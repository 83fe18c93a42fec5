"""Group-relative advantages: GRPO's of whole episodes, and GiGPO's of single steps beside.

DeepSeekMath (arXiv 2402.03300) compares the episodes of a group. GiGPO (arXiv 2505.10978) also
compares the steps of a group that began in the same state, its anchor.
"""

# Legend: S steps, those of all episodes, each episode's in order of time; E episodes; T the steps
# of the longest episode.

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["std", "none"]
EPSILON = 1e-6  # beside the standard deviation


@dataclass(frozen=True)
class Advantages:
    """What each step is worth beside the others, float64 of shape (S,), and how that came.

    `shared` counts the steps of the group that began in the same state, this one too.
    """

    episode: Tensor
    step: Tensor
    returned: Tensor
    shared: Tensor

    def total(self, *, episode_weight: float, step_weight: float) -> Tensor:
        """Return A = A^E + ω A^S (GiGPO, eq. 8), with a weight on either part."""
        return episode_weight * self.episode + step_weight * self.step


def group_in_group(
    rewards_S: Tensor,
    episodes_S: Tensor,
    groups_S: Tensor,
    states_S: Tensor,
    *,
    discount: float,
    normalization: Normalization,
) -> Advantages:
    """Return the advantages of every step.

    An episode's return counts once in its group, however many steps it has. One that is alone in
    its group, and a step that no other shares its state with, are worth nothing beside others: 0.

    Args:
        rewards_S: the reward of each step.
        episodes_S: which episode a step belongs to, from 0 without a gap.
        groups_S: which group its episode belongs to.
        states_S: a number for the state that it began in; equal means the same state.
        discount: γ of the returns that steps are compared by.
        normalization: whether differences are divided by the group's standard deviation.
    """
    rewards_S = rewards_S.double()
    count = int(episodes_S.max()) + 1
    returns_E = torch.zeros(count, dtype=torch.float64).index_add(0, episodes_S, rewards_S)
    groups_E = torch.empty(count, dtype=torch.long)
    groups_E[episodes_S] = groups_S
    episode_E = _relative(returns_E, groups_E, normalization)
    returned_S = _discounted(rewards_S, episodes_S, discount)
    anchors_S = _numbered(torch.stack([groups_S, states_S], dim=1))
    return Advantages(
        episode=episode_E[episodes_S],
        step=_relative(returned_S, anchors_S, normalization),
        returned=returned_S,
        shared=anchors_S.bincount()[anchors_S],
    )


def _relative(values: Tensor, groups: Tensor, normalization: Normalization) -> Tensor:
    """Return each value less its group's mean, over the unbiased standard deviation if asked to."""
    places = _numbered(groups)
    sizes = places.bincount()
    zeros = torch.zeros(len(sizes), dtype=values.dtype)
    means = zeros.index_add(0, places, values) / sizes
    centred: Tensor = values - means[places]
    if normalization == "none":
        return centred
    squares = zeros.index_add(0, places, centred**2)
    deviations: Tensor = (squares / (sizes - 1).clamp(min=1)).sqrt()
    return centred / (deviations[places] + EPSILON)


def _numbered(rows: Tensor) -> Tensor:
    """Return a number for each row, from 0; equal rows have the same."""
    numbers: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return numbers


def _discounted(rewards_S: Tensor, episodes_S: Tensor, discount: float) -> Tensor:
    """Return R_t = Σ_{k≥t} γ^{k−t} r_k within each episode."""
    lengths_E = episodes_S.bincount()
    order_S = episodes_S.argsort(stable=True)
    starts_E = lengths_E.cumsum(0) - lengths_E
    time_S = torch.arange(len(order_S)) - starts_E[episodes_S[order_S]]
    table_ET = torch.zeros(len(lengths_E), int(lengths_E.max()), dtype=rewards_S.dtype)
    table_ET[episodes_S[order_S], time_S] = rewards_S[order_S]
    for time in range(table_ET.shape[1] - 2, -1, -1):
        table_ET[:, time] += discount * table_ET[:, time + 1]
    returned_S = torch.empty_like(rewards_S)
    returned_S[order_S] = table_ET[episodes_S[order_S], time_S]
    return returned_S
