"""Group-relative advantages have the properties that GRPO and GiGPO promise."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.trainer.advantages import EPSILON, Advantages, group_in_group

Step = tuple[float, int]  # a reward, and the state it began in
Group = list[list[Step]]


def advantages(*groups: Group, discount: float = 0.95, normalization: Any = "none") -> Advantages:
    """Of groups of episodes, each a list of steps, one after the other."""
    rewards: list[float] = []
    owners: list[tuple[int, int, int]] = []
    episodes = [(place, episode) for place, group in enumerate(groups) for episode in group]
    for number, (group, episode) in enumerate(episodes):
        for reward, state in episode:
            rewards.append(reward)
            owners.append((number, group, state))
    of_episode, of_group, states = torch.tensor(owners).T
    return group_in_group(
        torch.tensor(rewards),
        of_episode,
        of_group,
        states,
        discount=discount,
        normalization=normalization,
    )


def close(found: torch.Tensor, expected: Sequence[float], tolerance: float = 1e-9) -> bool:
    return torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=tolerance)


def episodes(*, states: int) -> st.SearchStrategy[Group]:
    reward = st.sampled_from([0.0, 0.0, 0.0, -0.1, 1.0, 10.0])
    step = st.tuples(reward, st.integers(0, states - 1))
    return st.lists(st.lists(step, min_size=1, max_size=6), min_size=1, max_size=6)


def test_three_returns_from_one_state_are_compared_with_their_mean():
    found = advantages([[(9.025, 5)], [(10.0, 5)], [(0.0, 5)]])

    assert close(found.step, [2.68, 3.66, -6.34], tolerance=0.006)
    assert found.shared.tolist() == [3, 3, 3]


def test_returns_are_discounted_from_each_step_on():
    found = advantages([[(0.0, 1), (-0.1, 2), (1.0, 3)], [(2.0, 4)]], discount=0.5)

    assert close(found.returned, [0.2, 0.4, 1.0, 2.0])


def test_an_episode_counts_once_in_its_group_however_long_it_is():
    won = [(0.0, place) for place in range(2)] + [(10.0, 2)]
    lost = [(0.0, 100 + place) for place in range(15)]

    found = advantages([won, lost])

    assert close(found.episode, [5.0] * 3 + [-5.0] * 15)


def test_an_episode_is_compared_by_its_whole_return_without_discount():
    found = advantages([[(1.0, 1), (1.0, 2)], [(0.0, 3)]], discount=0.0)

    assert close(found.episode, [1.0, 1.0, -1.0])


def test_one_that_is_alone_in_its_group_is_worth_nothing_beside_others():
    for normalization in ("std", "none"):
        found = advantages([[(7.0, 1), (1.0, 2)]], normalization=normalization)

        assert found.episode.tolist() == found.step.tolist() == [0.0, 0.0]


def test_the_deviation_is_unbiased():
    found = advantages([[(1.0, 1)], [(3.0, 1)]], normalization="std")

    assert close(found.episode, [-1 / (2**0.5 + EPSILON), 1 / (2**0.5 + EPSILON)])


def test_a_group_in_which_all_get_the_same_gives_no_signal():
    found = advantages([[(1.0, 1)], [(1.0, 1)], [(1.0, 1)]], normalization="std")

    assert found.episode.tolist() == found.step.tolist() == [0.0] * 3


def test_the_same_state_of_another_group_is_not_compared():
    found = advantages([[(1.0, 1)], [(0.0, 2)]], [[(5.0, 1)], [(5.0, 2)]])

    assert found.step.tolist() == [0.0] * 4
    assert found.shared.tolist() == [1] * 4


def test_a_state_that_an_episode_comes_back_to_is_compared_with_itself():
    found = advantages([[(0.0, 1), (0.0, 2), (1.0, 1)]], discount=0.5)

    assert close(found.step, [0.25 - 0.625, 0.0, 1.0 - 0.625])


def test_of_two_ways_from_a_state_the_one_that_led_on_is_better():
    found = advantages([[(0.0, 1), (1.0, 2)], [(0.0, 1), (0.0, 3)]])

    assert found.step[0] > 0 > found.step[2]
    assert found.step[1] == found.step[3] == 0.0


@given(episodes(states=3))
def test_without_the_step_part_it_is_grpo(group: Group):
    found = advantages(group, normalization="std")

    returns = torch.tensor([sum(reward for reward, _ in steps) for steps in group]).double()
    spread = returns.std() if len(group) > 1 else torch.tensor(0.0)
    grpo = (returns - returns.mean()) / (spread + EPSILON)
    expected = torch.repeat_interleave(grpo, torch.tensor([len(steps) for steps in group]))
    assert torch.allclose(found.total(episode_weight=1.0, step_weight=0.0), expected, atol=1e-5)


@given(episodes(states=3))
def test_without_the_deviation_it_is_leave_one_out_times_n_minus_1_over_n(group: Group):
    found = advantages(group)

    returns = [sum(reward for reward, _ in steps) for steps in group]
    size = len(group)
    for place, steps in enumerate(group):
        others = returns[:place] + returns[place + 1 :]
        rloo = returns[place] - sum(others) / (size - 1) if others else 0.0
        start = sum(len(each) for each in group[:place])
        part = found.episode[start : start + len(steps)]
        assert close(part, [rloo * (size - 1) / size] * len(steps), tolerance=1e-6)


@given(episodes(states=3))
def test_where_all_states_differ_steps_are_not_compared(group: Group):
    number = iter(range(1000))
    apart = [[(reward, next(number)) for reward, _ in steps] for steps in group]

    found = advantages(apart, normalization="std")

    assert not found.step.any()


@given(episodes(states=2), st.randoms())
def test_permuting_rollouts_permutes_advantages(group: Group, random: Any):
    order = list(range(len(group)))
    random.shuffle(order)

    found = advantages(group, normalization="std")
    permuted = advantages([group[place] for place in order], normalization="std")

    parts = found.total(episode_weight=1.0, step_weight=1.0).split([len(steps) for steps in group])
    expected = torch.cat([parts[place] for place in order])
    assert torch.allclose(
        permuted.total(episode_weight=1.0, step_weight=1.0), expected, atol=1e-6, rtol=1e-6
    )


@given(episodes(states=2))
def test_advantages_of_the_steps_from_a_state_add_up_to_nothing(group: Group):
    found = advantages(group)

    states = torch.tensor([state for steps in group for _, state in steps])
    for state in states.unique():
        assert found.step[states == state].sum() == pytest.approx(0.0, abs=1e-6)


def test_steps_may_lie_mixed_as_long_as_each_episode_is_in_order():
    rewards = torch.tensor([0.0, 0.0, 1.0, 2.0])
    found = group_in_group(
        rewards,
        torch.tensor([0, 1, 0, 1]),
        torch.zeros(4, dtype=torch.long),
        torch.tensor([1, 1, 2, 3]),
        discount=0.5,
        normalization="none",
    )

    assert close(found.returned, [0.5, 1.0, 1.0, 2.0])
    assert close(found.step, [-0.25, 0.25, 0.0, 0.0])
