"""Episodes: who wrote which token, what an action was worth, and when an episode is over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.jobs.spec import ReinforcementSpec
from worker.environments.base import Failure, Outcome
from worker.environments.key_door import KeyDoor, KeyDoorArguments, expert
from worker.rundir import Placement
from worker.trainer.agent import advantages, spread_out, weights
from worker.trainer.episodes import INVALID_COST, Episode, play
from worker.trainer.prompts import Script

EPISODE = {"seed": 3}
GIGPO = ReinforcementSpec(
    algorithm="gigpo",
    grader=None,
    environment=None,
    group_size=2,
    temperature=1.0,
    max_completion_tokens=8,
    kl=0.0,
    clip=0.2,
    updates_per_rollout=1,
    normalization="none",
    step_discount=0.5,
    step_weight=1.0,
    episode_weight=1.0,
)


class Here:
    """Key-door worlds in this process, of which some break at a step."""

    def __init__(self, *, breaks: Mapping[int, int] | None = None) -> None:
        self.worlds = [KeyDoor(KeyDoorArguments()) for _ in range(4)]
        self._breaks = dict(breaks or {})  # slot → how many actions it takes

    def reset(self, episodes: Sequence[Mapping[str, object]]) -> list[Outcome | Failure]:
        self._taken = [0] * len(self.worlds)
        return [
            Failure("it broke") if self._breaks.get(slot) == 0 else world.reset(episode)
            for slot, (world, episode) in enumerate(zip(self.worlds, episodes, strict=False))
        ]

    def step(self, actions: Mapping[int, str]) -> dict[int, Outcome | Failure]:
        said: dict[int, Outcome | Failure] = {}
        for slot, action in actions.items():
            self._taken[slot] += 1
            broken = self._breaks.get(slot) == self._taken[slot]
            said[slot] = Failure("it broke") if broken else self.worlds[slot].step(action)
        return said


@pytest.fixture(scope="module")
def script(models_dir: Path) -> Script:
    from worker.trainer.model import load_tokenizer

    where = str(models_dir / "tiny-llama")
    tokenizer = load_tokenizer(Placement(source="folder", location=where, revision=None))
    return Script(tokenizer, KeyDoor.instructions, [tokenizer.eos_token_id])


def played(
    script: Script,
    *lines: Sequence[str],
    arena: Here | None = None,
    ends: bool = True,
    max_turns: int = 40,
    room: int = 10_000,
) -> list[Episode]:
    """Episodes of the same world, each by a list of actions."""
    said = [iter(line) for line in lines]
    arena = arena or Here()

    def sample(contexts: Mapping[int, list[int]]) -> dict[int, list[int]]:
        eos = [script.tokenizer.eos_token_id] if ends else []
        texts = [next(said[place], "wait") for place in contexts]
        ids = script.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {place: action + eos for place, action in zip(contexts, ids, strict=True)}

    return play(arena, [EPISODE] * len(lines), script, sample, max_turns=max_turns, room=room)


def way() -> list[str]:
    return expert(KeyDoorArguments(), EPISODE)


def test_an_episode_ends_where_the_goal_is_reached(script: Script):
    (episode,) = played(script, way())

    assert episode.success and episode.now is None and episode.failure is None
    assert [action.text for action in episode.actions] == way()
    assert episode.reward == 1.0 == episode.actions[-1].reward


def test_the_policy_owns_what_it_wrote_and_nothing_else(script: Script):
    (episode,) = played(script, way())

    for place, action in enumerate(way()):
        own = [token for token, owner in zip(episode.ids, episode.owners, strict=True)
               if owner == place]  # fmt: skip
        assert script.tokenizer.decode(own) == f"{action}</s>"
    seen = [token for token, owner in zip(episode.ids, episode.owners, strict=True) if owner < 0]
    assert "goal" in script.tokenizer.decode(seen) and "Assistant" in script.tokenizer.decode(seen)
    assert episode.owners[-1] == len(way()) - 1
    assert episode.length == len(episode.ids) - len(seen)


def test_an_episode_reads_as_the_dialogue_that_it_was(script: Script):
    (episode,) = played(script, way()[:2], max_turns=2)

    first, second = episode.actions
    assert script.tokenizer.decode(episode.prompt + episode.ids) == (
        f"<s>User: {script.instructions}\n\n{first.observation}\nAssistant: {first.text}</s>\n"
        f"User: {second.observation}\nAssistant: {second.text}</s>"
    )


def test_what_is_no_action_costs_and_changes_nothing(script: Script):
    (episode,) = played(script, ["dance", *way()])

    first, second = episode.actions[:2]
    assert not first.valid and second.valid
    assert first.state == second.state and first.reward == -INVALID_COST
    assert episode.success and episode.reward == pytest.approx(1.0 - INVALID_COST)


def test_episodes_of_one_world_begin_in_the_same_state(script: Script):
    one, other = played(script, way(), ["north", "south", "east", "west"] * 10)

    assert one.actions[0].state == other.actions[0].state
    assert one.prompt == other.prompt
    assert one.success and not other.success


def test_the_limit_of_actions_ends_an_episode(script: Script):
    (episode,) = played(script, ["wait"] * 9, max_turns=5)

    assert len(episode.actions) == 5 and not episode.success


def test_an_episode_ends_where_no_action_would_fit(script: Script):
    (episode,) = played(script, ["wait"] * 9, room=330)

    assert 0 < len(episode.actions) < 9
    assert len(episode.prompt) + len(episode.ids) <= 330 + len("wait</s>")
    assert episode.owners[-1] == len(episode.actions) - 1


def test_an_episode_that_begins_too_long_is_left_out_while_others_go_on(script: Script):
    class Wordy(Here):
        def reset(self, episodes: Sequence[Mapping[str, object]]) -> list[Outcome | Failure]:
            first, *others = super().reset(episodes)
            assert isinstance(first, Outcome)
            return [replace(first, observation="words " * 500), *others]

    wordy, other = played(script, way(), way(), arena=Wordy(), room=1000)

    assert wordy.failure is not None and "an action fits after 1000" in wordy.failure
    assert wordy.too_long and not wordy.actions
    assert other.success


def test_an_environment_that_breaks_ends_its_episode_alone(script: Script):
    whole, broken, unborn = played(script, way(), way(), way(), arena=Here(breaks={1: 2, 2: 0}))

    assert whole.success
    assert broken.failure == "it broke" and len(broken.actions) == 2
    assert unborn.failure == "it broke" and not unborn.actions and not unborn.ids


def test_a_broken_episode_is_compared_with_no_other(script: Script):
    episodes = played(
        script, way(), ["wait"] * 9, ["wait"] * 9, arena=Here(breaks={1: 3}), max_turns=len(way())
    )

    found = advantages(episodes, 3, GIGPO)

    assert found is not None
    lengths = [len(each.actions) for each in episodes]
    won, broken, lost = found.episode.split(lengths)
    assert not broken.any() and won[0] > 0 > lost[0]
    assert not found.total(**weights(GIGPO)).split(lengths)[1].any()
    assert won[0] == -lost[0] == pytest.approx((1.0 + len(way()) * INVALID_COST) / 2)


def test_advantages_stand_at_the_tokens_of_their_actions(script: Script):
    episodes = played(script, way(), ["wait", *way()])

    found = advantages(episodes, 2, GIGPO)

    assert found is not None
    total = found.total(**weights(GIGPO))
    spread = spread_out(total, episodes, width=2000)
    assert spread.shape == (2, 2000)
    first = 0
    for row, episode in zip(spread, episodes, strict=True):
        owners = torch.tensor(episode.owners)
        assert not row[: len(owners)][owners < 0].any() and not row[len(owners) :].any()
        for place in range(len(episode.actions)):
            assert (row[: len(owners)][owners == place] == total[first + place]).all()
        first += len(episode.actions)


def test_states_are_shared_within_a_group_alone(script: Script):
    episodes = played(script, way(), way(), way(), way())

    in_one = advantages(episodes, 4, GIGPO)
    in_two = advantages(episodes, 2, GIGPO)

    assert in_one is not None and in_two is not None
    assert set(in_one.shared.tolist()) == {4} and set(in_two.shared.tolist()) == {2}


def test_without_an_action_there_are_no_advantages(script: Script):
    episodes = played(script, way(), arena=Here(breaks={0: 0}))

    assert advantages(episodes, 1, GIGPO) is None


def test_grpo_weighs_no_steps():
    grpo: dict[str, Any] = {"algorithm": "grpo", "step_weight": None, "episode_weight": None}

    assert weights(GIGPO.model_copy(update=grpo)) == {"episode_weight": 1.0, "step_weight": 0.0}
