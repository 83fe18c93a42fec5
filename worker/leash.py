"""Runs a command that dies with its parent: `python -m worker.leash PARENT_PID COMMAND…`."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
OWN_PID = "{pid}"  # in the command: this process, which the command becomes


def main() -> None:
    """Die with the parent from here on, and become the command.

    A command that starts leashed processes itself names itself as their parent by {pid}.
    """
    parent, *command = sys.argv[1:]
    die_with(int(parent))
    command = [str(os.getpid()) if word == OWN_PID else word for word in command]
    os.execvp(command[0], command)  # noqa: S606  an argv list, no shell


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL on the death of the parent, of its thread that started this.

    The parent may have died before the kernel was asked, hence the look at its pid.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent is gone")


if __name__ == "__main__":
    main()
