"""Key and door: every world can be solved, and what is told is enough to solve it by."""

from collections import Counter

import pytest

from worker.environments.base import Outcome
from worker.environments.key_door import ACTIONS, KeyDoor, KeyDoorArguments, draw, expert

SIZES = [(3, 2), (5, 3), (4, 6), (15, 15)]


def play(arguments: KeyDoorArguments, seed: int, actions: list[str]) -> list[Outcome]:
    world = KeyDoor(arguments)
    return [world.reset({"seed": seed}), *(world.step(action) for action in actions)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_seed_is_solved_by_a_shortest_way_and_rewarded_at_its_end_alone(
    width: int, height: int
):
    arguments = KeyDoorArguments(width=width, height=height, max_steps=1000)
    for seed in range(200 if width < 15 else 20):
        *before, last = play(arguments, seed, expert(arguments, {"seed": seed}))

        assert all(each.valid and not each.done and each.reward == 0 for each in before)
        assert (last.reward, last.done, last.success, last.valid) == (1, True, True, True)


def test_the_expert_takes_the_key_and_opens_the_door_once():
    arguments = KeyDoorArguments()
    for seed in range(100):
        done = Counter(expert(arguments, {"seed": seed}))

        assert (done["take"], done["open"]) == (1, 1)


def test_seeds_lead_to_different_worlds():
    assert len({draw(KeyDoorArguments(), seed) for seed in range(100)}) > 90


def test_a_wall_the_border_and_a_shut_door_are_not_walked_through():
    arguments = KeyDoorArguments(width=3, height=2)
    door, at = draw(arguments, 0)[0].door, draw(arguments, 0)[1].at
    toward = "east" if door[0] > at[0] else "west"

    said = play(arguments, 0, [toward, {"east": "west", "west": "east"}[toward]])

    assert [each.valid for each in said] == [True, False, False]
    assert len({each.state for each in said}) == 1


def test_an_action_is_read_in_any_case_and_nothing_more():
    (first, *_) = expert(KeyDoorArguments(), {"seed": 1})

    said = play(KeyDoorArguments(), 1, [f"{first} please", f" {first.upper()}\n"])

    assert [each.valid for each in said] == [True, False, True]


def test_an_episode_ends_unsolved_after_so_many_actions():
    *before, last = play(KeyDoorArguments(max_steps=3), 1, ["open", "nonsense", "open"])

    assert [each.done for each in before] == [False] * 3
    assert last.done and not last.success and last.reward == 0


def test_where_things_are_is_told_from_where_the_agent_is():
    arguments = KeyDoorArguments()
    actions = expert(arguments, {"seed": 3})

    told = [each.observation for each in play(arguments, 3, actions)]

    assert actions == ["north", "east", "take", "south", "west", "west", "open", "west", "west"]
    assert told[0] == "key 1 east 1 north; door 2 west; goal 3 west"
    assert told[2] == "key here; door 3 west 1 south; goal 4 west 1 south"
    assert told[7] == "key held; door open 1 west; goal 2 west"
    assert told[9] == "key held; door open 1 east; goal here"


@pytest.mark.parametrize("episode", [{}, {"seed": -1}, {"seed": "7"}, {"seed": True}])
def test_an_episode_needs_a_seed(episode: dict[str, object]):
    with pytest.raises(ValueError, match="seed"):
        KeyDoor(KeyDoorArguments()).reset(episode)


def test_its_words_are_few():
    words = set()
    for seed in range(50):
        for said in play(KeyDoorArguments(), seed, expert(KeyDoorArguments(), {"seed": seed})):
            words |= {word.strip(";") for word in said.observation.split()}

    assert {word for word in words if not word.isdigit()} <= {
        *ACTIONS, "key", "door", "goal", "held", "here",
    }  # fmt: skip
