"""Has a trainer process merge an adapter into its base, and tells how far it is.

The API and the command line know no ML library; what needs one runs as a program of its own.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.client.errors import ClientError, Corrupt
from app.client.session import Session
from app.settings import inherited_environment

MODULE = "worker.trainer.export"
LAST_LINES = 10


def merge(
    session: Session,
    adapter: Path,
    *,
    base: Path,
    target: Path,
    task: str,
    dtype: str,
) -> dict[str, Any]:
    """Write the merged model to `target`, which appears whole; return how it was proven.

    Raises:
        Corrupt: it answers otherwise than the base under the adapter.
        ClientError: this machine cannot do it.
    """
    if find_spec("torch") is None:
        raise ClientError(
            "Merging needs PyTorch, and it is not installed here.",
            hint="pip install 'basin[train]', or export without --merge.",
        )
    argv = [sys.executable, "-m", MODULE, str(adapter), str(base), str(target)]
    argv += ["--task", task, "--dtype", dtype]
    with tempfile.TemporaryFile("w+") as errors, _bar(session) as progress:
        bar = progress.add_task("starting", total=None)
        with subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=inherited_environment() | QUIET,
        ) as process:
            assert process.stdout is not None
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = json.loads(line)
                if "stage" in last:
                    progress.update(
                        bar, description=last["stage"], completed=last["done"], total=last["of"]
                    )
        errors.seek(0)
        return _result(last, process.returncode, log=errors.read())


# A GPU of this machine may be training; what a merge takes is memory, not speed.
QUIET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _result(last: dict[str, Any], code: int, *, log: str) -> dict[str, Any]:
    """Return what the program said last, or raise it."""
    if "proof" in last:
        proof: dict[str, Any] = last["proof"]
        return proof
    if "refused" in last:
        raise Corrupt(last["refused"])
    if "failed" in last:
        raise ClientError(last["failed"])
    end = "\n".join(log.splitlines()[-LAST_LINES:])
    raise ClientError(f"Merging ended with exit code {code}.\n{end}")


def _bar(session: Session) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=session.errors,
        transient=True,
        disable=not session.errors.is_terminal,
    )
