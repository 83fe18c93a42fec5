"""Text adventures of Microsoft's TextWorld, each made on this machine from a seed."""

import fcntl
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Interval

from app.settings import inherited_games_dir
from worker.environments.base import EnvironmentUnavailable, Outcome, digest, seed_of
from worker.environments.text_games import TextGame

FOLDER = "text-world"
GAME = "game.z8"
KEPT = 500  # games in a folder, of 0.4 MB; further ones are made anew each time
# What an interpreter adds: a prompt with a status line, and in the end what else one could do.
ADDED = re.compile(r"\n(>\s*(-=.*)?|\s*\*\*\* .* \*\*\*.*)$", re.DOTALL)
BLANK_LINES = re.compile(r"\n{2,}")


@dataclass(frozen=True)
class TextWorldArguments:
    """How large the world is, and in how many actions its quest can be solved."""

    rooms: Annotated[int, Interval(ge=1, le=10)] = 3
    objects: Annotated[int, Interval(ge=2, le=20)] = 4
    quest_length: Annotated[int, Interval(ge=1, le=6)] = 3
    commands_are_told: bool = True
    max_steps: Annotated[int, Interval(ge=1, le=1000)] = 30


class TextWorld:
    """Solve the quest: a reward of 1 then, and none before."""

    summary: ClassVar[str] = "TextWorld: text adventures with a quest, made from seeds"
    Arguments: ClassVar[type] = TextWorldArguments
    instructions = (
        "You play a text adventure. Do the task. Answer with one command, and nothing else."
    )

    def __init__(self, arguments: TextWorldArguments) -> None:
        if missing := self.lacking():
            raise EnvironmentUnavailable(missing)
        self._arguments = arguments
        self._game: TextGame | None = None

    @staticmethod
    def lacking() -> str | None:
        """Say what is to be installed."""
        missing = find_spec("textworld") is None
        return "TextWorld needs textworld: pip install 'basin[agents]'." if missing else None

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        """Begin the game of a seed; it is made if it was not."""
        import textworld  # noqa: PLC0415  half a second, and not everybody has it

        seed, arguments = seed_of(episode), self._arguments
        self.close()
        asked = textworld.EnvInfos(
            won=True, lost=True, facts=True, admissible_commands=True, objective=True,
            description=True,
        )  # fmt: skip
        with game_file(arguments, seed, folder=games_folder()) as file:
            self._game = TextGame(
                textworld.start(str(file), asked),
                name=_name(arguments, seed),
                max_steps=arguments.max_steps,
                commands_are_told=arguments.commands_are_told,
                clean=clean,
            )
            return self._game.begin(
                task=lambda state: " ".join(state.objective.split()),
                scene=lambda state: clean(state.description),
            )

    def step(self, action: str) -> Outcome:
        """Give one of the game's commands."""
        assert self._game is not None
        return self._game.act(action)

    def close(self) -> None:
        """Let go of the game."""
        if self._game is not None:
            self._game.close()
            self._game = None


def games_folder() -> Path:
    """Return where games are kept: where the operator made a folder for them, or for a while."""
    games = inherited_games_dir()
    kept = games / FOLDER if games else None
    folder = kept if kept and kept.is_dir() else Path(tempfile.gettempdir()) / FOLDER
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def game_file(arguments: TextWorldArguments, seed: int, *, folder: Path) -> Iterator[Path]:
    """Give the game of a seed from the folder; one that is not there is made, and kept."""
    kept = folder / _name(arguments, seed)
    if not (kept / GAME).is_file() and sum(1 for _ in folder.iterdir()) >= KEPT:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as aside:
            make(arguments, seed, Path(aside) / GAME)
            yield Path(aside) / GAME
        return
    with _one_of_a_run(kept.name):
        if not (kept / GAME).is_file():
            _make_and_keep(arguments, seed, kept)
    yield kept / GAME


@contextmanager
def _one_of_a_run(name: str) -> Iterator[None]:
    """Let one process at a time pass: those of a run, which a group plays in, share a TMPDIR."""
    with (Path(tempfile.gettempdir()) / f"{FOLDER}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_and_keep(arguments: TextWorldArguments, seed: int, kept: Path) -> None:
    """Make a game aside, and put it into its place whole."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as aside:
        made = Path(aside) / "made"
        make(arguments, seed, made / GAME)
        with suppress(OSError):  # a process of another run was first
            made.rename(kept)


def make(arguments: TextWorldArguments, seed: int, file: Path) -> None:
    """Make a game and compile it: one to three seconds."""
    from textworld import GameOptions  # noqa: PLC0415  half a second, and not everybody has it
    from textworld.generator import compile_game, make_game  # noqa: PLC0415

    options = GameOptions()
    options.seeds = seed
    options.nb_rooms = arguments.rooms
    options.nb_objects = arguments.objects
    options.quest_length = arguments.quest_length
    options.path = str(file)
    compile_game(make_game(options), options)


def clean(text: str) -> str:
    """Return what a game said, without what its interpreter adds and without empty lines."""
    return BLANK_LINES.sub("\n", ADDED.sub("", text.strip())).strip()


def _name(arguments: TextWorldArguments, seed: int) -> str:
    """Name a game by all that it is made from."""
    world = arguments.rooms, arguments.objects, arguments.quest_length
    return digest(version("textworld"), *world, seed)
