"""Episodes: a policy and an environment in turns, as one sequence of tokens each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worker.environments.base import Failure, Outcome
from worker.trainer.prompts import Script

INVALID_COST = 0.1  # of an action that is none, before returns are discounted (GiGPO, app. E)
# From the contexts of the episodes that go on, by their places, to what the policy writes next.
Sample = Callable[[Mapping[int, list[int]]], dict[int, list[int]]]


class Arena(Protocol):
    """Several environments that are asked at once; `worker.environments.hosts.Hosts` is one."""

    def reset(self, episodes: Sequence[Mapping[str, object]]) -> list[Outcome | Failure]: ...

    def step(self, actions: Mapping[int, str]) -> dict[int, Outcome | Failure]: ...


@dataclass(frozen=True)
class Action:
    """What was done in a state that looked like this, and what came of it."""

    observation: str
    state: str
    text: str
    reward: float
    valid: bool


@dataclass
class Episode:
    """One rollout: `owners` has for each token of `ids` the action it belongs to, or −1."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    success: bool = False
    failure: str | None = None
    now: Outcome | None = None  # None when it is over
    too_long: bool = False  # not even the first action would fit

    @property
    def reward(self) -> float:
        return sum(action.reward for action in self.actions)

    @property
    def length(self) -> int:
        """How many tokens the policy wrote."""
        return sum(owner >= 0 for owner in self.owners)

    def act(self, tokens: Sequence[int], text: str, outcome: Outcome | Failure) -> None:
        """Note an action and what the environment made of it."""
        assert self.now is not None
        self._append(tokens, owner=len(self.actions))
        if isinstance(outcome, Failure):
            self.actions.append(Action(self.now.observation, self.now.state, text, 0.0, valid=True))
            self.failure, self.now = outcome.reason, None
            return
        reward = outcome.reward - (0.0 if outcome.valid else INVALID_COST)
        before = self.now
        self.actions.append(Action(before.observation, before.state, text, reward, outcome.valid))
        self.success = outcome.success
        self.now = None if outcome.done else outcome

    def see(self, tokens: Sequence[int]) -> None:
        """Note what the environment says, which nobody learns to say."""
        self._append(tokens, owner=-1)

    def _append(self, tokens: Sequence[int], *, owner: int) -> None:
        self.ids += tokens
        self.owners += [owner] * len(tokens)


def play(
    arena: Arena,
    asked: Sequence[Mapping[str, object]],
    script: Script,
    sample: Sample,
    *,
    max_turns: int,
    room: int,
) -> list[Episode]:
    """Play episodes to their ends, all of them turn by turn, and return them in order.

    Args:
        room: how many tokens a context may have for another action to fit; a longer episode ends.
    """
    episodes = [_begun(script, outcome, room) for outcome in arena.reset(asked)]
    written: dict[int, list[int]] = {}
    for _ in range(max_turns):
        for place, tokens in written.items():
            _go_on(episodes[place], script, tokens, room)
        going = [place for place, episode in enumerate(episodes) if episode.now is not None]
        if not going:
            break
        written = sample({place: episodes[place].prompt + episodes[place].ids for place in going})
        actions = {place: script.said(tokens) for place, tokens in written.items()}
        for place, outcome in arena.step(actions).items():
            episodes[place].act(written[place], actions[place], outcome)
    return episodes


def _begun(script: Script, outcome: Outcome | Failure, room: int) -> Episode:
    if isinstance(outcome, Failure):
        return Episode(script.opening(""), failure=outcome.reason)
    prompt = script.opening(outcome.observation)
    if len(prompt) > room:
        why = f"it begins with {len(prompt)} tokens, and an action fits after {room}"
        return Episode(prompt, failure=why, too_long=True)
    return Episode(prompt, now=outcome)


def _go_on(episode: Episode, script: Script, written: Sequence[int], room: int) -> None:
    """Show what an action led to, if the episode goes on and another action would fit."""
    if episode.now is None:
        return
    seen = script.answer(episode.now.observation, ended=written)
    if len(episode.prompt) + len(episode.ids) + len(seen) > room:
        episode.now = None
    else:
        episode.see(seen)
