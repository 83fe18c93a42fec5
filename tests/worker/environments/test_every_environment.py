"""What holds for every environment, held to each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import inherited_environment
from tests.environments import needs_textworld
from tests.worker.environments.walks import CASES, NONSENSE, Case, follow, walk
from worker.environments.base import Outcome
from worker.environments.hosts import Hosts

pytestmark = [
    pytest.mark.usefixtures("games_dir"),
    # textworld leaves files open, and its interpreter knows other games better.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Game .* is not fully supported"),
]
MARKS = {"text-world": [needs_textworld], "alfworld": [needs_textworld, pytest.mark.shared]}
NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES]
INSTALLED = {"slippery-lake": "frozen-lake"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


def test_the_same_actions_lead_to_the_same(case: Case):
    for seed in range(case.walks):
        actions, said = walk(case, seed)

        assert follow(case, seed, actions) == said


def test_one_environment_plays_one_episode_after_another(case: Case):
    actions, said = walk(case, 1)
    environment = case.make()

    for seed in (0, 1, 1):
        again = [environment.reset({"seed": seed})]
    again += map(environment.step, actions)

    assert again == said
    environment.close()


def test_where_the_state_is_the_same_the_same_can_be_done(case: Case):
    led: dict[tuple[str, str], object] = {}
    for seed in range(case.walks if case.is_certain else 0):
        actions, said = walk(case, seed)
        for before, action, after in zip(said, actions, said[1:], strict=False):
            what = (after.state, after.reward, after.success, after.valid)
            assert led.setdefault((before.state, action), what) == what


def test_what_is_no_action_is_not_valid_and_changes_nothing(case: Case):
    for seed in range(case.walks):
        actions, said = walk(case, seed, steps=5)
        spoilt = [word for action in actions for word in (NONSENSE, action, "")]

        again = follow(case, seed, spoilt)

        assert [again[0], *again[2::3]] == said
        for before, nonsense in zip(said, again[1::3], strict=False):
            assert not nonsense.valid and nonsense.reward == 0
            assert (nonsense.state, nonsense.done) == (before.state, before.done)


def test_seeds_begin_in_different_states(case: Case):
    begun = [follow(case, seed, [])[0] for seed in range(3)]

    assert len({each.state for each in begun}) == 3


def test_an_episode_ends_after_so_many_actions_at_the_latest(case: Case):
    environment = case.make(max_steps=3)
    environment.reset({"seed": 1})

    said = [environment.step(NONSENSE) for _ in range(3)]

    assert [(each.done, each.success, each.reward) for each in said] == [
        *[(False, False, 0)] * 2,
        (True, False, 0),
    ]
    environment.close()


def test_states_are_the_same_in_every_process(name: str):
    def walked(hash_seed: str) -> list[Outcome]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.worker.environments.walks", name, "1"],
            env=inherited_environment() | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        return [Outcome(**each) for each in json.loads(done.stdout)]

    assert walked("1") == walked("2")


def test_what_a_process_of_its_own_says_is_the_same(name: str, case: Case, registered: Path):
    actions, said = walk(case, 1, steps=5)
    installed = INSTALLED.get(name, name)
    with Hosts(installed, case.arguments, slots=2, timeout_s=60) as hosts:
        there = [hosts.reset([{"seed": 1}] * 2)]
        there += [list(hosts.step(dict.fromkeys(range(2), each)).values()) for each in actions]

    assert there == [[each] * 2 for each in said]
