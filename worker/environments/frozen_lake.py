"""Gymnasium's FrozenLake as text: reach the goal over ice, around the holes."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from worker.environments.base import EnvironmentUnavailable, Outcome, digest, seed_of

ACTIONS = ("left", "down", "right", "up")  # in Gymnasium's order
SIGNS = {b"S": "_", b"F": "_", b"H": "O", b"G": "G"}
AGENT = "P"


@dataclass(frozen=True)
class FrozenLakeArguments:
    """How the lake is; on slippery ice an action goes astray two times out of three."""

    size: Annotated[int, Interval(ge=2, le=12)] = 4
    frozen: Annotated[float, Interval(ge=0.5, le=1)] = 0.8
    is_slippery: bool = False
    max_steps: Annotated[int, Interval(ge=1, le=1000)] = 30


class FrozenLake:
    """Reach G and get 1, or fall into a hole and get nothing."""

    summary: ClassVar[str] = "Gymnasium's FrozenLake as text: cross the ice around the holes"
    Arguments: ClassVar[type] = FrozenLakeArguments
    instructions = (
        "Go to G over the ice; a hole ends it. P is you, _ ice, O a hole, G the goal."
        " Answer with one word: left, down, right or up."
    )

    def __init__(self, arguments: FrozenLakeArguments) -> None:
        if missing := self.lacking():
            raise EnvironmentUnavailable(missing)
        self._arguments = arguments

    @staticmethod
    def lacking() -> str | None:
        """Say what is to be installed."""
        missing = find_spec("gymnasium") is None
        return "FrozenLake needs gymnasium: pip install 'basin[agents]'." if missing else None

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        """Begin on the lake of a seed, which can be crossed; where one slips is its seed's too."""
        from gymnasium.envs.toy_text.frozen_lake import (  # noqa: PLC0415  not everybody has it
            FrozenLakeEnv,
            generate_random_map,
        )

        seed = seed_of(episode)
        size, frozen = self._arguments.size, self._arguments.frozen
        lake = generate_random_map(size=size, p=frozen, seed=seed)
        self._lake: Any = FrozenLakeEnv(desc=lake, is_slippery=self._arguments.is_slippery)
        self._lake.reset(seed=seed)
        self._steps = 0
        return self._outcome()

    def step(self, action: str) -> Outcome:
        """Go one field; at the edge one stays where one is."""
        self._steps += 1
        word = action.strip().lower()
        if word not in ACTIONS:
            return self._outcome(valid=False)
        _, reward, ended, _, _ = self._lake.step(ACTIONS.index(word))
        return self._outcome(reward=float(reward), ended=ended)

    def close(self) -> None:
        """Hold nothing."""

    def _outcome(self, *, reward: float = 0.0, ended: bool = False, valid: bool = True) -> Outcome:
        at = int(self._lake.s)
        lake = [[SIGNS[field] for field in line] for line in self._lake.desc]
        seen = deepcopy(lake)
        seen[at // len(lake)][at % len(lake)] = AGENT
        return Outcome(
            observation="\n".join(map(" ".join, seen)),
            state=digest(lake, at),
            reward=reward,
            done=ended or self._steps >= self._arguments.max_steps,
            success=reward > 0,
            valid=valid,
        )
