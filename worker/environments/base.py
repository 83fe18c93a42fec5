"""What an environment is, and what it says: the one interface that agents act through."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Outcome:
    """What an environment says after a reset or an action.

    `state` is a hash of the state that the agent is in now: equal if and only if the state is the
    same. `valid` is whether the action was understood and possible.
    """

    observation: str
    state: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True


@dataclass(frozen=True)
class Failure:
    """An episode that its environment broke off: it hung, crashed or said nonsense."""

    reason: str


class EnvironmentUnavailable(Exception):
    """No environment of this kind can be made here; the message says what to install or set."""


class Environment(Protocol):
    """A world to act in, by texts: the same arguments, episode and actions lead to the same.

    `summary` is a line for lists, `Arguments` a frozen dataclass with a default for each field, and
    `instructions` what an agent is told first: what to do, and how to write which actions. A class
    may have a static `lacking() -> str | None` besides, which says without importing much what is
    missing here for it to run.
    """

    summary: ClassVar[str]
    Arguments: ClassVar[type]
    instructions: str

    def __init__(self, arguments: Any) -> None:
        """Make the environment.

        Raises:
            EnvironmentUnavailable: something is missing on this machine.
        """

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        """Begin the episode of a row, such as {"seed": 7}."""

    def step(self, action: str) -> Outcome:
        """Act; what is no action here leaves the state as it is, and is not valid."""

    def close(self) -> None:
        """Let go of whatever is held."""


def digest(*state: object) -> str:
    """Return a hash of a state, given as what JSON can say: the same in every process."""
    told = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(told.encode(), digest_size=DIGEST_BYTES).hexdigest()


def seed_of(episode: Mapping[str, object]) -> int:
    """Return the seed of an episode.

    Raises:
        ValueError: it has none, or one that is no whole number from 0.
    """
    seed = episode.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f'an episode is told by its seed, such as {{"seed": 7}}, not {seed!r}')
    return seed
