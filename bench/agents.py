"""Small agents for a bench: a LLaMA that has cloned random and a few expert episodes of a world."""

import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.bases import random_llama
from worker.environments.frozen_lake import ACTIONS as STEPS
from worker.environments.frozen_lake import FrozenLake, FrozenLakeArguments
from worker.environments.key_door import ACTIONS, KeyDoor, KeyDoorArguments, expert

Row = dict[str, Any]
FIRST_HELD_OUT = 1_000_000  # the seeds from here on are in no training file
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class World:
    """An environment, with what a bench of it needs.

    `clone_steps` are as many as make success rare but not zero.
    """

    name: str
    environment: Any
    arguments: Any
    actions: Sequence[str]
    solve: Callable[[Mapping[str, object]], list[str]]
    clone_steps: int

    @property
    def asked(self) -> Row:
        """Return the environment as a job asks for it."""
        most = self.arguments.max_steps
        return {"name": self.name, "args": asdict(self.arguments), "max_turns": most}


def worlds() -> dict[str, World]:
    """Return both worlds, small enough for two cores: a dozen actions at most."""
    grid = KeyDoorArguments(width=4, height=2, max_steps=12)
    lake = FrozenLakeArguments(max_steps=10)
    frozen = FrozenLake(lake)
    found = (
        World("key-door", KeyDoor(grid), grid, ACTIONS, partial(expert, grid), clone_steps=1500),
        World(
            "frozen-lake", frozen, lake, STEPS, partial(shortest, frozen, STEPS), clone_steps=300
        ),
    )
    return {world.name: world for world in found}


def shortest(environment: Any, actions: Sequence[str], episode: Mapping[str, object]) -> list[str]:
    """Return a shortest way to success, found by trying all actions in copies of the world."""
    start = environment.reset(episode)
    waiting: deque[tuple[Any, list[str]]] = deque([(deepcopy(environment), [])])
    seen = {start.state}
    while waiting:
        world, way = waiting.popleft()
        for action in actions:
            there = deepcopy(world)
            outcome = there.step(action)
            if outcome.success:
                return [*way, action]
            if not outcome.done and outcome.state not in seen:
                seen.add(outcome.state)
                waiting.append((there, [*way, action]))
    raise ValueError(f"{episode} cannot be solved")


def episodes(count: int, *, first: int = 0) -> list[Row]:
    return [{"episode": {"seed": seed}} for seed in range(first, first + count)]


def dialogues(world: World, count: int, *, expert_share: float) -> Iterator[Row]:
    """Yield episodes as chat rows: at random, and a share of them by the expert."""
    draw = random.Random(0)
    for seed in range(count):
        knows = draw.random() < expert_share
        way = iter(world.solve({"seed": seed}) if knows else ())
        outcome = world.environment.reset({"seed": seed})
        said = f"{world.environment.instructions}\n\n{outcome.observation}"
        messages = []
        while not outcome.done:
            action = next(way, None) or draw.choice(world.actions)
            messages += [_said("user", said), _said("assistant", action)]
            outcome = world.environment.step(action)
            said = outcome.observation
        yield {"messages": messages}


def untrained(world: World, folder: Path) -> Path:
    """Make the LLaMA that is to clone, and a tokenizer that knows the words of the world."""
    rows = [json.dumps(row) for row in dialogues(world, 200, expert_share=0.5)]
    return random_llama(folder, rows, **SHAPE)


def _said(role: str, content: str) -> Row:
    return {"role": role, "content": content}
