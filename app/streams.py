"""How many long requests run at once, so that a few slow clients do not hold what all need."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TooManyStreams


class Streams:
    """How many long requests are under way in this process: downloads, uploads, event streams."""

    def __init__(self, *, per_key: int, in_all: int) -> None:
        self._per_key = per_key
        self._in_all = in_all
        self._held: Counter[str] = Counter()

    @contextmanager
    def slot(self, key_id: str) -> Iterator[None]:
        """Hold a place for one, as long as the block lasts.

        Raises:
            TooManyStreams: the key has as many as it may, or the process has.
        """
        if self._held[key_id] >= self._per_key:
            raise TooManyStreams(
                f"This key has {self._per_key} uploads, downloads and streams under way; wait"
                " until one has ended."
            )
        if self._held.total() >= self._in_all:
            raise TooManyStreams("The server is busy with uploads and downloads; ask again soon.")
        self._held[key_id] += 1
        try:
            yield
        finally:
            self._held[key_id] -= 1
            if not self._held[key_id]:
                del self._held[key_id]
