"""When a kernel that saves time is worth the time to compile it.

Passes go on without it until they have taken about as long as compiling it takes; then it is
compiled, once for a machine. Whoever waits so long loses at most as much again as the best that
could have been done. What lies on disk is used at once, also if another process has put it there
in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from pgkmeans_sk.kernels.compile import lies_ready

PATIENCE = 5.0
"""So many seconds of passes go by before a kernel is compiled: about as long as that takes."""
CHECK_EVERY = 1.0
"""After so many of these seconds, see whether another process has put it there."""


class Patience:
    """What this process knows of one kernel, for each dtype of rows."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        # Seconds of passes that it might have made shorter; infinity once it is used.
        self._waited: dict[np.dtype[Any], float] = {}
        # How many of them had gone by when it was last looked for on disk.
        self._checked: dict[np.dtype[Any], float] = {}

    def is_waiting(self, dtype: np.dtype[Any]) -> bool:
        """Whether passes are known to go on without the kernel."""
        waited = self._waited.get(dtype, np.inf)
        return waited < PATIENCE and waited - self._checked[dtype] < CHECK_EVERY

    def is_ready(self, dtype: np.dtype[Any], arguments: Callable[[], tuple[Any, ...]]) -> bool:
        """Whether the kernel for such ``arguments`` is there, or was waited for long enough."""
        if self.is_waiting(dtype):
            return False
        waited = self._waited.get(dtype, 0.0)
        if waited < np.inf and (waited >= PATIENCE or lies_ready(self._kernel, *arguments())):
            waited = np.inf
        self._checked[dtype] = self._waited[dtype] = waited
        return waited == np.inf

    @contextmanager
    def waiting(self, dtype: np.dtype[Any]) -> Iterator[None]:
        """Within the block is a pass that the kernel might have made shorter."""
        begin = perf_counter()
        yield
        if dtype in self._waited:
            self._waited[dtype] += perf_counter() - begin
