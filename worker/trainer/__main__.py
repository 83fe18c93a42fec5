"""`python -m worker.trainer RUN_DIR`: one process, one run."""

import signal
import sys
import threading
import traceback
from pathlib import Path

from worker.rundir import RunDir
from worker.trainer.faults import explain
from worker.trainer.recipe import train


def main() -> int:
    """Train the run; a failure is an event for the user and a traceback in the log."""
    run = RunDir(Path(sys.argv[1]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        train(run, stop)
    except Exception as error:  # noqa: BLE001  the run's edge: whatever it is, the user is told
        traceback.print_exception(error)
        run.append_event(explain(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
