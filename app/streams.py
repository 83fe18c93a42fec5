"""How many long requests run at once, so that a few slow clients do not hold what all need."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TooManyStreams


class Streams:
    """How many long requests of a kind, such as "event streams", are under way in this process."""

    def __init__(self, kind: str, *, per_key: int, in_all: int) -> None:
        self._kind = kind
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
                f"This key has {self._per_key} {self._kind} under way; wait until one has ended."
            )
        if self._held.total() >= self._in_all:
            raise TooManyStreams(f"The server is busy with {self._kind}; ask again soon.")
        self._held[key_id] += 1
        try:
            yield
        finally:
            self._held[key_id] -= 1
            if not self._held[key_id]:
                del self._held[key_id]
