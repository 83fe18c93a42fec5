"""The process that an environment lives in: `python -m worker.environments.host PID MODULE:CLASS`.

It is told {"arguments": …} first and answers {"ready": INSTRUCTIONS} or {"unavailable": WHY}; then
{"reset": EPISODE} or {"step": ACTION}, answered with {"outcome": …} or {"failure": WHY}: a JSON
line each.
"""

import json
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, BinaryIO

from worker.environments.base import Environment, EnvironmentUnavailable
from worker.leash import die_with

MEMORY_BYTES = 4 << 30  # of addresses; what asks for more is told MemoryError
FILE_BYTES = 64 << 20  # the largest file that it may write

Message = Mapping[str, Any]


def main() -> None:
    """Serve one environment until nobody asks any more."""
    parent, target = sys.argv[1:]
    die_with(int(parent))
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, FILE_BYTES)):
        resource.setrlimit(limit, (most, most))
    asked, answers = _own_streams()
    environment = _make(target, json.loads(asked.readline())["arguments"], answers)
    if environment is None:
        return
    for line in asked:
        _say(answers, _answer(environment, json.loads(line)))
    environment.close()


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for the protocol; what anybody prints goes to stderr from here on."""
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return asked, answers


def _make(target: str, arguments: Message, answers: BinaryIO) -> Environment | None:
    """Make the environment and tell its instructions, or why there is none."""
    module, _, name = target.partition(":")
    try:
        kind = getattr(import_module(module), name)
        environment: Environment = kind(kind.Arguments(**arguments))
    except (EnvironmentUnavailable, ImportError) as error:
        _say(answers, {"unavailable": str(error)})
        return None
    _say(answers, {"ready": environment.instructions})
    return environment


def _answer(environment: Environment, message: Message) -> Message:
    """Do what is asked; whatever the environment raises ends its episode, and is told."""
    try:
        if "reset" in message:
            return {"outcome": asdict(environment.reset(message["reset"]))}
        return {"outcome": asdict(environment.step(message["step"]))}
    except Exception as error:  # noqa: BLE001  foreign code: told to the parent, which starts anew
        return {"failure": f"{type(error).__name__}: {error}"}


def _say(answers: BinaryIO, message: Message) -> None:
    answers.write(json.dumps(message, allow_nan=False).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
