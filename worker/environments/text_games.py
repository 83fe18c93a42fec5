"""What games of the textworld package have in common, whichever engine plays them."""

from collections.abc import Callable
from typing import Any, Final

from worker.environments.base import Outcome, digest

NOTHING: Final = "Nothing happens."


class TextGame:
    """One game of textworld's, played by its admissible commands alone.

    What its parser would understand besides is not passed on: so what is not valid changes nothing.
    """

    def __init__(
        self,
        game: Any,
        *,
        name: str,
        max_steps: int,
        commands_are_told: bool,
        clean: Callable[[str], str] = str.strip,
        marks: tuple[str, ...] = (),
    ) -> None:
        """Take a started textworld.Environment; `name` tells its states from those of others.

        `marks` is how facts begin that tell of the past, on which nothing depends any more.
        """
        self._game = game
        self._name = name
        self._max_steps = max_steps
        self._commands_are_told = commands_are_told
        self._clean = clean
        self._marks = marks

    def begin(self, task: Callable[[Any], str], scene: Callable[[Any], str]) -> Outcome:
        """Start over; `task` and `scene` find what to do, and what is seen, in the first state."""
        self._state = self._game.reset()
        self._steps = 0
        return self._outcome(f"{scene(self._state)}\nTask: {task(self._state)}")

    def act(self, action: str) -> Outcome:
        """Give a command, written in whatever case and with whatever spaces."""
        self._steps += 1
        known = {_plain(command): command for command in self._state.admissible_commands}
        command = known.get(_plain(action))
        if command is None:
            return self._outcome(NOTHING, valid=False)
        self._state, _, _ = self._game.step(command)
        return self._outcome(self._clean(self._state.feedback))

    def close(self) -> None:
        """Let go of the engine."""
        self._game.close()

    def _outcome(self, seen: str, *, valid: bool = True) -> Outcome:
        state, won, lost = self._state, bool(self._state.won), bool(self._state.lost)
        facts = sorted(fact for fact in map(str, state.facts) if not fact.startswith(self._marks))
        if self._commands_are_told and not won:
            seen += f"\nCommands: {', '.join(state.admissible_commands)}"
        return Outcome(
            observation=seen,
            state=digest(self._name, won, lost, facts),
            reward=float(won),
            done=won or lost or self._steps >= self._max_steps,
            success=won,
            valid=valid,
        )


def _plain(command: str) -> str:
    return " ".join(command.lower().split())
