"""Environments that do what none should, on being told to by an action."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from worker.environments.base import EnvironmentUnavailable, Outcome

GARBAGE = {"garble": b"garbage\n", "garble endlessly": b"x" * (32 << 20)}


@dataclass(frozen=True)
class Arguments:
    """When it does not even start."""

    start: str = "well"


class Misbehaving:
    """Counts the actions of an episode, unless an action says otherwise."""

    summary: ClassVar[str] = "Does what none should"
    Arguments: ClassVar[type] = Arguments
    instructions = "Say what to do wrong."

    def __init__(self, arguments: Arguments) -> None:
        match arguments.start:
            case "unavailable":
                raise EnvironmentUnavailable("Set BASIN_GAMES_DIR.")
            case "crash":
                raise RuntimeError("no luck")

    def reset(self, episode: Mapping[str, object]) -> Outcome:
        self._steps = 0
        return self.step(str(episode.get("do", "")))

    def step(self, action: str) -> Outcome:
        self._steps += 1
        said = getattr(self, f"_{action.partition(' ')[0]}", self._nothing)(action)
        return Outcome(observation=f"{self._steps} {said}".strip(), state=str(self._steps))

    def close(self) -> None: ...

    def _nothing(self, action: str) -> str:
        return ""

    def _sleep(self, action: str) -> str:
        time.sleep(float(action.split()[1]))
        return "slept"

    def _raise(self, action: str) -> str:
        raise KeyError("lamp")

    def _lament(self, action: str) -> str:
        raise ValueError("no luck " * 500_000)

    def _exit(self, action: str) -> str:
        sys.exit("I am leaving")

    def _segfault(self, action: str) -> str:
        ctypes.string_at(0)
        return "never"

    def _print(self, action: str) -> str:
        print('{"failure": "printed"}', flush=True)
        ctypes.CDLL(None).puts(b"printed by a library in C")
        subprocess.run(["echo", "printed by a program"], check=True)
        return f"read {sys.stdin.read()!r}"

    def _garble(self, action: str) -> str:
        """Write past the protocol, to whatever pipe there is."""
        for number in range(3, 20):
            try:
                if str(Path(f"/proc/self/fd/{number}").readlink()).startswith("pipe:"):
                    os.write(number, GARBAGE[action])
            except OSError:
                continue
        return "garbled"

    def _eat(self, action: str) -> str:
        return f"{len(bytearray(16 << 30))}"

    def _flood(self, action: str) -> str:
        with Path(f"{os.environ['TMPDIR']}/flood").open("wb") as file:
            file.writelines(bytes(1 << 20) for _ in range(1 << 10))
        return "flooded"

    def _fork(self, action: str) -> str:
        return f"pid {subprocess.Popen(['sleep', '600']).pid}"

    def _pid(self, action: str) -> str:
        return f"pid {os.getpid()}"

    def _secrets(self, action: str) -> str:
        return " ".join(os.environ)


class NotANumber(Misbehaving):
    """Rewards with what is no number."""

    def step(self, action: str) -> Outcome:
        return Outcome(observation="", state="", reward=float(action or 0))
