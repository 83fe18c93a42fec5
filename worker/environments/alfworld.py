"""ALFWorld's household tasks, from a folder of its games; textworld's engine plays them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from app.settings import GAMES_DIR, inherited_games_dir
from worker.environments.base import EnvironmentUnavailable, Outcome, seed_of
from worker.environments.text_games import TextGame

FOLDER = "alfworld"
GAME = "game.tw-pddl"
UNSUPPORTED = ("movable", "Sliced")  # kinds of games that ALFWorld leaves out itself
INTRODUCTION = "-= Welcome to TextWorld, ALFRED! =-"
TASK = "Your task is to: "
# The engine keeps what is no more, the domain what was looked at, and the planner what follows.
MARKS = ("not_", "checked(", "new-axiom@")

Split = Literal["train", "valid_seen", "valid_unseen"]
Kind = Literal[
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place",
]  # fmt: skip


@dataclass(frozen=True)
class AlfWorldArguments:
    """Which games there are; null is every kind."""

    split: Split = "train"
    kind: Kind | None = None
    commands_are_told: bool = True
    max_steps: Annotated[int, Interval(ge=1, le=1000)] = 50


class AlfWorld:
    """Do what a household asks for: a reward of 1 then, and none before."""

    summary: ClassVar[str] = "ALFWorld: household tasks, from the operator's folder of games"
    Arguments: ClassVar[type] = AlfWorldArguments
    instructions = (
        "You are in a household, and act by text. Do the task."
        " Answer with one command, and nothing else."
    )

    def __init__(self, arguments: AlfWorldArguments) -> None:
        if missing := self.lacking():
            raise EnvironmentUnavailable(missing)
        self._arguments = arguments
        self._games = games(inherited_games_dir(), arguments)
        self._game: TextGame | None = None
        self._loaded: Path | None = None

    @staticmethod
    def lacking() -> str | None:
        """Say what is to be installed or set."""
        if any(find_spec(name) is None for name in ("textworld", "fast_downward")):
            return "ALFWorld needs textworld[pddl]: pip install 'basin[agents]'."
        folder = inherited_games_dir()
        if folder is None or not (folder / FOLDER).is_dir():
            return f"ALFWorld's games are missing: put json_2.1.1 into {GAMES_DIR}/{FOLDER}."
        return None

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        """Begin the game of this number; after the last one comes the first again."""
        file = self._games[seed_of(episode) % len(self._games)]
        if self._game is None or file != self._loaded:
            self.close()
            self._game, self._loaded = self._load(file), file
        return self._game.begin(task=_task, scene=_scene)

    def step(self, action: str) -> Outcome:
        """Give one of the game's commands."""
        assert self._game is not None
        return self._game.act(action)

    def close(self) -> None:
        """Let go of the game."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _load(self, file: Path) -> TextGame:
        from textworld import EnvInfos  # noqa: PLC0415  half a second, and not everybody has it
        from textworld.envs import PddlEnv  # noqa: PLC0415

        game = PddlEnv(EnvInfos(won=True, lost=True, facts=True, admissible_commands=True))
        game.load(json.loads(file.read_bytes()))
        for info, name in zip(game._entity_infos.values(), names(game._entity_infos), strict=True):
            info.name = name
        return TextGame(
            game,
            name=file.parent.relative_to(file.parents[2]).as_posix(),
            max_steps=self._arguments.max_steps,
            commands_are_told=self._arguments.commands_are_told,
            marks=MARKS,
        )


def games(folder: Path | None, arguments: AlfWorldArguments) -> Sequence[Path]:
    """Return the games of a split and kind, in an order that is the same everywhere.

    Raises:
        EnvironmentUnavailable: there is none.
    """
    found = sorted(
        (path for path in (folder or Path()).joinpath(FOLDER).rglob(GAME) if _is(path, arguments)),
        key=Path.as_posix,
    )
    if not found:
        kind = f" of the kind {arguments.kind}" if arguments.kind else ""
        raise EnvironmentUnavailable(
            f"{GAMES_DIR}/{FOLDER} has no game{kind} in a folder {arguments.split}."
        )
    return found


def names(identifiers: Iterable[str]) -> list[str]:
    """Return what ALFWorld calls things: of pot_bar__minus_00… and its like the first is pot 2.

    They are numbered by identifier, downwards, as in its own demangler: its walkthroughs fit.
    """
    given = list(identifiers)
    kinds = {each: _kind(each) for each in given}
    left = Counter(kinds.values())
    called = {}
    for each in sorted(given):
        kind = kinds[each]
        called[each] = f"{kind} {left[kind]}" if "_bar_" in each else kind
        left[kind] -= 1
    return [called[each] for each in given]


def _kind(identifier: str) -> str:
    kind, bar, _ = identifier.partition("_bar_")
    return f"{kind}basin" if bar and "basin" in identifier else kind


def _is(path: Path, arguments: AlfWorldArguments) -> bool:
    task = path.parent.parent
    supported = not any(word in task.name for word in UNSUPPORTED)
    in_split = task.parent.name == arguments.split
    return supported and in_split and task.name.startswith(arguments.kind or "")


def _task(state: Any) -> str:
    told: str = state.feedback.partition(TASK)[2]
    return told.strip()


def _scene(state: Any) -> str:
    told: str = state.feedback.partition(TASK)[0]
    return told.replace(INTRODUCTION, "").strip()
