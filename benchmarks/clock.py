"""How one fit is timed."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import TypeVar

from sklearn.exceptions import ConvergenceWarning

# OpenMP threads of the library that ran before keep spinning for up to 0.2 s (KMP_BLOCKTIME's
# default) and would be paid for by the next one.
SETTLE_SECONDS = 0.3
SHORTEST_TIMING = 0.2  # seconds; a fit of a few milliseconds is repeated until this much is spent

T = TypeVar("T")


def timed_fit(fit: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds of one fit (a short one: the median of several in a row) and the fit."""
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    seconds: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        while sum(seconds) < SHORTEST_TIMING and len(seconds) < 20:
            begin = time.perf_counter()
            fitted = fit()
            seconds.append(time.perf_counter() - begin)
    return median(seconds), fitted
