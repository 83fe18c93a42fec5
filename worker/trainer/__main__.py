"""`python -m worker.trainer RUN_DIR`: one run, or one rank of it."""

import gc
import signal
import sys
import threading
import traceback
from pathlib import Path

from worker.rundir import RunDir
from worker.trainer import distributed
from worker.trainer.faults import explain
from worker.trainer.recipe import train


def main() -> int:
    """Train the run; a failure is an event for the user and a traceback in the log."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    gc.freeze()  # what the libraries made stays: no collection has to look at a million objects
    distributed.join()
    ranked = distributed.is_ranked()
    run = RunDir(Path(sys.argv[1]), quiet=not distributed.is_first())
    try:
        train(run, stop)
    except Exception as error:  # noqa: BLE001  the run's edge: whatever it is, the user is told
        traceback.print_exception(error)
        say = run.append_first_failure if ranked else run.append_event
        say(explain(error, run.read_spec()))
        return 1
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
