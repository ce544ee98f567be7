"""Rows in blocks that have been looked at: what an estimator asks of them before it opens them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgkmeans_sk.engines.protocol import Engine


@dataclass(frozen=True)
class BlockRows:
    """Checked rows and weights; they stand in for arrays where only shape and dtype matter."""

    data: Any  # as the user gave them
    shape: tuple[int, int]
    dtype: np.dtype[Any]  # of the work: float32 or float64
    open: Callable[[Callable[[Any], Any] | None], Engine]
    """Opens an engine; every block goes through the argument when it is read."""
