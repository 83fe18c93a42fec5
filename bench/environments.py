"""What environments cost in processes of their own, and how often agents of a group meet.

A group plays one episode at random, each agent in a slot, as a policy that knows nothing does.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from app.environments.arguments import check_arguments
from app.environments.catalog import runnable
from app.environments.installed import installed
from bench.result import JsonFile, Line, Target, alone, compared, report
from worker.environments import frozen_lake, key_door
from worker.environments.base import Environment, Failure, Outcome
from worker.environments.hosts import Hosts

FAST = Target(sign="≤", bound=1.5)
WORDS: Mapping[str, tuple[str, ...]] = {
    "key-door": key_door.ACTIONS,
    "frozen-lake": frozen_lake.ACTIONS,
}


def main(
    name: Annotated[list[str] | None, typer.Option(help="Of those that run here.")] = None,
    slots: Annotated[int, typer.Option(help="Agents of a group.")] = 8,
    rounds: Annotated[int, typer.Option(help="Groups, each with a seed of its own.")] = 5,
    steps: Annotated[int, typer.Option(help="Actions of an agent at most.")] = 20,
    json_file: JsonFile = None,
) -> None:
    """Start the slots, play so many groups, and play the same in this process."""
    lines = [line for each in name or runnable() for line in _measure(each, slots, rounds, steps)]
    report(lines, json_file, title=f"{slots} agents, {rounds} groups, at most {steps} actions")


def _measure(name: str, slots: int, rounds: int, steps: int) -> Iterator[Line]:
    arguments = check_arguments(name, {})
    began = time.perf_counter()
    with Hosts(name, arguments, slots=slots, timeout_s=300) as hosts:
        target = FAST if name == "key-door" else None
        started = time.perf_counter() - began
        yield alone(f"{name}: start {slots} processes", "s", [started], target=target)
        groups = [_play(hosts, name, slots, seed=seed, steps=steps) for seed in range(rounds)]
    alone_in_here = [_play_here(name, arguments, seed=seed, steps=steps) for seed in range(rounds)]
    yield alone(f"{name}: begin an episode in all", "s", [group["reset_s"] for group in groups])
    yield compared(
        f"{name}: actions of all together",
        "1/s",
        ours=[group["actions_s"] for group in groups],
        theirs=alone_in_here,
        against="one in this process",
    )
    yield alone(
        f"{name}: actions from a state that others, or it, were in too",
        "%",
        [group["shared"] * 100 for group in groups],
    )


def _play(hosts: Hosts, name: str, slots: int, *, seed: int, steps: int) -> dict[str, float]:
    """Let a group play one episode at random."""
    dice = random.Random(seed)
    began = time.perf_counter()
    at = dict(enumerate(map(_told, hosts.reset([{"seed": seed}] * slots))))
    reset_s = time.perf_counter() - began
    began, met = time.perf_counter(), Counter[str]()
    for _ in range(steps):
        going = {slot: outcome for slot, outcome in at.items() if not outcome.done}
        if not going:
            break
        met.update(outcome.state for outcome in going.values())
        said = hosts.step({slot: _act(name, going[slot], dice) for slot in going})
        at |= {slot: _told(each) for slot, each in said.items()}
    return {
        "reset_s": reset_s,
        "actions_s": met.total() / (time.perf_counter() - began),
        "shared": sum(times for times in met.values() if times > 1) / met.total(),
    }


def _play_here(name: str, arguments: dict[str, Any], *, seed: int, steps: int) -> float:
    """Return how many actions a second one environment does without a process of its own."""
    kind = installed()[name].load()
    environment: Environment = kind(kind.Arguments(**arguments))
    dice, outcome, done = random.Random(seed), environment.reset({"seed": seed}), 0
    began = time.perf_counter()
    while done < steps and not outcome.done:
        outcome = environment.step(_act(name, outcome, dice))
        done += 1
    spent = time.perf_counter() - began
    environment.close()
    return done / spent


def _act(name: str, outcome: Outcome, dice: random.Random) -> str:
    words = WORDS.get(name) or outcome.observation.rpartition("Commands: ")[2].split(", ")
    return dice.choice(words)


def _told(said: Outcome | Failure) -> Outcome:
    if isinstance(said, Failure):
        raise TypeError(said.reason)
    return said


if __name__ == "__main__":
    typer.run(main)
