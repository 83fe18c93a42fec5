"""Environments of an operator's own: one with a process beside it, and one that fails."""

import subprocess
import zlib
from collections.abc import Mapping
from typing import ClassVar

from tests.worker.environments.misbehaving import Misbehaving
from worker.environments.base import Outcome
from worker.environments.key_door import ACTIONS, KeyDoor, KeyDoorArguments


class KeyDoorWithEngine(KeyDoor):
    """Key and door for a model that knows no words, and an engine that nobody ends."""

    summary: ClassVar[str] = "Two rooms, and a process in a session of its own"

    def __init__(self, arguments: KeyDoorArguments) -> None:
        super().__init__(arguments)
        subprocess.Popen(["sleep", "600"], start_new_session=True)

    def step(self, action: str) -> Outcome:
        """Take whatever is said for one of the actions."""
        return super().step(ACTIONS[zlib.crc32(action.encode()) % len(ACTIONS)])


class Unruly(Misbehaving):
    """Does at an episode's first action what its row says, whatever the action was."""

    summary: ClassVar[str] = "Hangs, crashes and says nonsense"

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        self._wrong = str(episode["do"])
        return super().reset({})

    def step(self, action: str) -> Outcome:
        return super().step(self._wrong if self._steps else "")
