"""Two rooms, a key and a door, told in few words: small enough for the smallest of models."""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Interval

from worker.environments.base import Outcome, digest, seed_of

Cell = tuple[int, int]  # column and row, from the north-west corner

MOVES: dict[str, Cell] = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}
ACTIONS = (*MOVES, "take", "open")


@dataclass(frozen=True)
class KeyDoorArguments:
    """How large the grid is, and how many actions an episode has at most."""

    width: Annotated[int, Interval(ge=3, le=15)] = 5
    height: Annotated[int, Interval(ge=2, le=15)] = 3
    max_steps: Annotated[int, Interval(ge=1, le=1000)] = 40


@dataclass(frozen=True)
class World:
    """What stays as it is: a wall from north to south with a door in it, and the goal behind."""

    width: int
    height: int
    door: Cell
    goal: Cell


@dataclass(frozen=True)
class State:
    """What actions change; a key that is taken lies nowhere."""

    at: Cell
    key: Cell | None
    is_open: bool = False


def draw(arguments: KeyDoorArguments, seed: int) -> tuple[World, State]:
    """Return the world of a seed, and how it begins: agent and key on one side, goal on the other.

    It can always be solved: each side is one rectangle without obstacles, and no key can be lost.
    """
    dice = random.Random(seed)  # noqa: S311  a game, no secret
    wall = dice.randrange(1, arguments.width - 1)
    sides = [range(wall), range(wall + 1, arguments.width)]
    dice.shuffle(sides)
    near, far = ([(x, y) for x in side for y in range(arguments.height)] for side in sides)
    at, key = dice.sample(near, 2)
    door = (wall, dice.randrange(arguments.height))
    return World(arguments.width, arguments.height, door, dice.choice(far)), State(at, key)


def act(world: World, state: State, action: str) -> State | None:
    """Return the state after an action; None where it is none, or not possible."""
    if action in MOVES:
        at = _next(state.at, action)
        return replace(state, at=at) if _is_free(world, state, at) else None
    if action == "take" and state.at == state.key:
        return replace(state, key=None)
    beside = [_next(state.at, move) for move in MOVES]
    if action == "open" and state.key is None and not state.is_open and world.door in beside:
        return replace(state, is_open=True)
    return None


def expert(arguments: KeyDoorArguments, episode: Mapping[str, object]) -> list[str]:
    """Return a shortest sequence of actions that solves an episode."""
    world, start = draw(arguments, seed_of(episode))
    came_by: dict[State, tuple[State, str] | None] = {start: None}
    waiting = deque([start])
    while (state := waiting.popleft()).at != world.goal:
        for action in ACTIONS:
            after = act(world, state, action)
            if after is not None and after not in came_by:
                came_by[after] = (state, action)
                waiting.append(after)
    actions = []
    while (before := came_by[state]) is not None:
        state, action = before
        actions.append(action)
    return actions[::-1]


class KeyDoor:
    """Take the key, open the door, reach the goal: a reward of 1 there, and none before."""

    summary: ClassVar[str] = "A text grid: take the key, open the door, reach the goal"
    Arguments: ClassVar[type] = KeyDoorArguments
    instructions = (
        "Take the key, open the door in the wall, go to the goal."
        " Answer with one word: north, south, east, west, take or open."
    )

    def __init__(self, arguments: KeyDoorArguments) -> None:
        self._arguments = arguments

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        """Begin in the world of a seed."""
        self._world, self._state = draw(self._arguments, seed_of(episode))
        self._steps = 0
        return self._outcome(valid=True)

    def step(self, action: str) -> Outcome:
        """Do one of the actions, in whatever case it is written."""
        after = act(self._world, self._state, action.strip().lower())
        self._state = after or self._state
        self._steps += 1
        return self._outcome(valid=after is not None)

    def close(self) -> None:
        """Hold nothing."""

    def _outcome(self, *, valid: bool) -> Outcome:
        success = self._state.at == self._world.goal
        return Outcome(
            observation=describe(self._world, self._state),
            state=digest(asdict(self._world), asdict(self._state)),
            reward=float(success),
            done=success or self._steps >= self._arguments.max_steps,
            success=success,
            valid=valid,
        )


def describe(world: World, state: State) -> str:
    """Say where things are, seen from the agent: key 2 east 1 north; door 3 east; goal 4 east."""
    key = "held" if state.key is None else _way(state.at, state.key)
    door = f"{'open ' * state.is_open}{_way(state.at, world.door)}"
    return f"key {key}; door {door}; goal {_way(state.at, world.goal)}"


def _next(cell: Cell, move: str) -> Cell:
    east, south = MOVES[move]
    return cell[0] + east, cell[1] + south


def _is_free(world: World, state: State, cell: Cell) -> bool:
    if cell == world.door:
        return state.is_open
    column, row = cell
    return column != world.door[0] and 0 <= column < world.width and 0 <= row < world.height


def _way(start: Cell, end: Cell) -> str:
    east, south = end[0] - start[0], end[1] - start[1]
    across = [f"{abs(east)} {'east' if east > 0 else 'west'}"] if east else []
    along = [f"{abs(south)} {'south' if south > 0 else 'north'}"] if south else []
    return " ".join(across + along) or "here"
