"""`basin demo`: the package's demo, as `make demo` runs it."""

import os
import sys
from importlib.util import find_spec

import typer

from app.client.errors import Code
from app.settings import inherited_environment

NEEDED = ("demo", "openai", "torch")
# Its options are its own: they are passed on, --help too.
PASSED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def demo(context: typer.Context) -> None:
    """Fine-tune a small model twice in front of you, LoRA and LoRA-MGPO; --help has its options."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: pip install 'basin[demo]'.", file=sys.stderr)
        raise typer.Exit(Code.FAILED)
    argv = [sys.executable, "-m", "demo", *context.args]
    os.execve(sys.executable, argv, inherited_environment())  # noqa: S606  argv, no shell
