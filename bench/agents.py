"""Small agents for a bench: a LLaMA that has cloned random and a few expert episodes."""

import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bases import random_llama
from worker.environments import frozen_lake, key_door

Row = dict[str, Any]
Expert = Callable[[Mapping[str, object]], list[str]]
FIRST_HELD_OUT = 1_000_000  # the seeds from here on are in no training file
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class World:
    """An environment with what a bench of it needs."""

    name: str
    arguments: dict[str, Any]
    max_turns: int
    environment: Any
    actions: Sequence[str]
    expert: Expert


def key_doors() -> World:
    arguments = key_door.KeyDoorArguments(width=5, height=3, max_steps=20)
    return World(
        "key-door",
        {"width": 5, "height": 3, "max_steps": 20},
        20,
        key_door.KeyDoor(arguments),
        key_door.ACTIONS,
        lambda episode: key_door.expert(arguments, episode),
    )


def frozen_lakes() -> World:
    environment = frozen_lake.FrozenLake(frozen_lake.FrozenLakeArguments(max_steps=16))
    return World(
        "frozen-lake",
        {"size": 4, "frozen": 0.8, "is_slippery": False, "max_steps": 16},
        16,
        environment,
        frozen_lake.ACTIONS,
        lambda episode: shortest(environment, frozen_lake.ACTIONS, episode),
    )


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


def dialogues(world: World, count: int, *, expert_share: float, seed: int) -> Iterator[Row]:
    """Yield episodes as chat rows: at random, and a share of them by the expert."""
    draw = random.Random(seed)
    for number in range(count):
        episode = {"seed": number}
        knows = draw.random() < expert_share
        way = iter(world.expert(episode) if knows else ())
        outcome = world.environment.reset(episode)
        said = f"{world.environment.instructions}\n\n{outcome.observation}"
        messages = []
        for _ in range(world.max_turns):
            action = next(way, None) or draw.choice(world.actions)
            messages += [_said("user", said), _said("assistant", action)]
            outcome = world.environment.step(action)
            if outcome.done:
                break
            said = outcome.observation
        yield {"messages": messages}


def untrained(world: World, folder: Path) -> Path:
    """Make the LLaMA that clones, and a tokenizer that knows the words of the world."""
    rows = [json.dumps(row) for row in dialogues(world, 200, expert_share=0.5, seed=1)]
    return random_llama(folder, rows, **SHAPE)


def _said(role: str, content: str) -> Row:
    return {"role": role, "content": content}
