"""`python -m worker.trainer.warm ROOM`: imports what every run needs, waits, and becomes one run.

The folder of the run comes on standard input, which then ends; without one that is the end. READY
and BEGUN go to standard output. ROOM is a word as long as a folder's name can be: the arguments
that the system shows of a process cannot grow, and this one's are its run's in the end.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from worker import memory
from worker.rundir import BEGUN, READY, RunDir

TRAINER = "worker.trainer.__main__"
LATE = ("deepspeed",)  # accelerate imports it in the middle of any run


def main() -> int:
    """Be ready, then be the run that is named, as if it had been started now."""
    said = _take_output()
    own_score = memory.set_score(memory.FIRST_TO_GO)
    trainer = import_module(TRAINER)
    for name in LATE:
        if find_spec(name) is not None:
            import_module(name)
    gc.collect()
    os.write(said, READY)
    folder = os.fsdecode(sys.stdin.buffer.read())
    if not folder:
        return 0
    if own_score is not None:
        memory.set_score(own_score)
    _show([sys.executable, "-m", "worker.trainer", folder])
    sys.argv[1:] = [folder]
    _take_log(RunDir(Path(folder)).log)
    os.write(said, BEGUN)
    os.close(said)
    code: int = trainer.main()
    return code


def _take_output() -> int:
    """Keep standard output for ourselves: whatever prints from now on does so on the other."""
    ours = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return ours


def _show(arguments: Sequence[str]) -> None:
    """Write these arguments over our own, where `ps` reads them.

    Raises:
        ValueError: they are longer.
    """
    start = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "program_invocation_name").value
    room = sum(len(os.fsencode(word)) + 1 for word in sys.orig_argv)
    shown = b"".join(os.fsencode(word) + b"\0" for word in arguments)
    if start is None or len(shown) > room:
        raise ValueError(f"there is no room for {len(shown)} bytes of arguments")
    ctypes.memmove(start, shown.ljust(room, b"\0"), room)


def _take_log(log: Path) -> None:
    """Print into the log from now on, and read nothing more."""
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


if __name__ == "__main__":
    sys.exit(main())
