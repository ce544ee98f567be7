"""How far a piece of work is, for whoever wants to be told, and how long its parts take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""``(name, done, total)``: a part that is being done, and sizes; at the end, the name is ""."""


class Clock:
    """Measures how long each part takes, and tells the caller how far the work is.

    Parameters
    ----------
    progress : callable or None
        Whom to tell.
    total : int
        The size of all parts.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, total

    @contextmanager
    def timed(self, name: str, size: int) -> Iterator[Timing]:
        """The time that the block takes, for a part of this size."""
        self.tell(name)
        timing = Timing()
        begin = time.perf_counter()
        yield timing
        timing.seconds = time.perf_counter() - begin
        self.add(size)

    def tell(self, name: str, n_more: int = 0) -> None:
        """Tell which part is being done; ``n_more`` is done beside what was added."""
        if self._progress is not None:
            self._progress(name, self._done + n_more, self._total)

    def add(self, size: int) -> None:
        """Add a part that is done."""
        self._done += size

    def finish(self) -> None:
        """Tell that all is done."""
        self._done = self._total
        self.tell("")


@dataclass
class Timing:
    """Seconds of a block, known when it is over."""

    seconds: float = 0.0
