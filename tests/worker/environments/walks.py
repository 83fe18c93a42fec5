"""Random walks through an environment: `python -m tests.worker.environments.walks NAME SEED`."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.environments import alfworld, frozen_lake, key_door, text_world
from worker.environments.base import Environment, Outcome

NONSENSE = "dance on the table"


def commands(outcome: Outcome) -> list[str]:
    """What a text game says that one can do."""
    return outcome.observation.rpartition("Commands: ")[2].split(", ")


@dataclass(frozen=True)
class Case:
    """An environment, how it is set up, and what can be done where it says so."""

    kind: type[Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    actions: Callable[[Outcome], list[str]] = commands
    walks: int = 2
    is_certain: bool = True  # an action leads from a state to one other

    def make(self, **arguments: Any) -> Environment:
        environment: Environment = self.kind(self.kind.Arguments(**self.arguments | arguments))
        return environment


CASES = {
    "key-door": Case(key_door.KeyDoor, actions=lambda _: list(key_door.ACTIONS), walks=20),
    "frozen-lake": Case(
        frozen_lake.FrozenLake, actions=lambda _: list(frozen_lake.ACTIONS), walks=20
    ),
    "slippery-lake": Case(
        frozen_lake.FrozenLake,
        {"is_slippery": True},
        actions=lambda _: list(frozen_lake.ACTIONS),
        walks=20,
        is_certain=False,
    ),
    "text-world": Case(text_world.TextWorld, {"rooms": 2}),
    "alfworld": Case(alfworld.AlfWorld, {"split": "valid_seen"}, walks=1),
}


def walk(case: Case, seed: int, *, steps: int = 12) -> tuple[list[str], list[Outcome]]:
    """Walk at random until the episode ends: the actions, and what was said from the reset on."""
    dice = random.Random(seed)
    environment = case.make()
    said = [environment.reset({"seed": seed})]
    actions: list[str] = []
    while len(actions) < steps and not said[-1].done:
        actions.append(dice.choice(case.actions(said[-1])))
        said.append(environment.step(actions[-1]))
    environment.close()
    return actions, said


def follow(case: Case, seed: int, actions: list[str]) -> list[Outcome]:
    environment = case.make()
    said = [environment.reset({"seed": seed}), *map(environment.step, actions)]
    environment.close()
    return said


if __name__ == "__main__":
    name, seed = sys.argv[1:]
    print(json.dumps([asdict(each) for each in walk(CASES[name], int(seed))[1]]))
