"""Runs a command that dies with its parent: `python -m worker.leash PARENT_PID COMMAND…`."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
OWN_PID = "{pid}"  # in the command: this process, which the command becomes


def main() -> None:
    """Ask the kernel for SIGKILL on the parent's death, then become the command.

    The parent may have died before the kernel was asked, hence the look at its pid. A command that
    starts leashed processes itself names itself as their parent by {pid}.
    """
    parent, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    command = [str(os.getpid()) if word == OWN_PID else word for word in command]
    os.execvp(command[0], command)  # noqa: S606  an argv list, no shell


if __name__ == "__main__":
    main()
