"""`python -m worker.trainer.preview THREADS MAX_BYTES`: holds models, and answers what is asked.

A request is a JSON line on standard input, and so is what is said on standard output; the end of
the input is the end. What libraries print goes to standard error.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from queue import SimpleQueue

import torch

from worker import memory
from worker.dialogue import Answered, Piece, Refused, Said, Show, request
from worker.trainer.faults import RunError
from worker.trainer.generate import generate
from worker.trainer.loaded import Cache

NICE = 10
TOLD_APART = ("invalid_value", "context_length_exceeded", "service_unavailable")
OUT_OF_MEMORY = (
    "There was not enough memory to answer; ask for fewer tokens, or a smaller model, or try again"
    " when less runs on the worker."
)

Say = Callable[[Said], None]


class Inbox:
    """The questions, in order; what is to be stopped is stopped at once."""

    def __init__(self) -> None:
        self.shows: SimpleQueue[Show | None] = SimpleQueue()
        self._stops: dict[str, threading.Event] = {}

    def read(self) -> None:
        """Take requests until the input ends."""
        for line in sys.stdin.buffer:
            asked = request.validate_json(line)
            if isinstance(asked, Show):
                self._stops[asked.id] = threading.Event()
                self.shows.put(asked)
            elif asked.id in self._stops:
                self._stops[asked.id].set()
        for stop in list(self._stops.values()):
            stop.set()
        self.shows.put(None)

    def stop_of(self, show: Show) -> threading.Event:
        return self._stops[show.id]

    def done(self, show: Show) -> None:
        del self._stops[show.id]


def main() -> int:
    """Answer questions one after the other, until there are no more."""
    threads, max_bytes = map(int, sys.argv[1:])
    say = _take_output()
    _step_back()
    torch.set_num_threads(threads)
    inbox, cache = Inbox(), Cache(max_bytes)
    threading.Thread(target=inbox.read, daemon=True).start()
    while (show := inbox.shows.get()) is not None:
        received_at = time.monotonic()
        say(_answer(cache, show, inbox.stop_of(show), say, ends_at=received_at + show.limit_s))
        inbox.done(show)
    return 0


def _answer(
    cache: Cache, show: Show, stop: threading.Event, say: Say, *, ends_at: float
) -> Answered | Refused:
    """Answer one question; whatever goes wrong, the next one finds this process as before."""
    try:
        made = generate(
            cache.get(show),
            show.question,
            task=show.task,
            context_length=show.context_length,
            ends_at=ends_at,
            stop=stop,
            tell=lambda text: say(Piece(id=show.id, text=text)),
        )
    except RunError as error:
        code = error.code if error.code in TOLD_APART else "preview_failed"
        return Refused(id=show.id, code=code, message=error.message, param=error.param)
    except (torch.OutOfMemoryError, MemoryError) as error:
        traceback.print_exception(error)
        cache.clear()
        return Refused(id=show.id, code="preview_failed", message=OUT_OF_MEMORY)
    except Exception as error:  # noqa: BLE001  the process's edge: the caller is told
        traceback.print_exception(error)
        first_line = (str(error).splitlines() or [""])[0]
        message = f"The model could not answer ({type(error).__name__}): {first_line}"
        return Refused(id=show.id, code="preview_failed", message=message)
    return Answered(
        id=show.id,
        text=made.text,
        finish_reason=made.finish_reason,
        prompt_tokens=made.prompt_tokens,
        completion_tokens=made.completion_tokens,
    )


def _take_output() -> Say:
    """Keep standard output for ourselves: whatever prints from now on does so on the other."""
    ours = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(word: Said) -> None:
        ours.write(word.model_dump_json().encode() + b"\n")
        ours.flush()

    return say


def _step_back() -> None:
    """Let runs go first, with the processor and with memory."""
    os.nice(NICE)
    memory.set_score(memory.FIRST_TO_GO)


if __name__ == "__main__":
    sys.exit(main())
