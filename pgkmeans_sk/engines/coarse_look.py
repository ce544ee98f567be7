"""When a pass looks at centres in 16-bit integers first, and which rows it looks at.

Whether it does changes its time and nothing else (``kernels/coarse.py``), so the choice may depend
on the clock:

* where the kernel is not there yet, passes go on without it until they have taken about as long as
  compiling it takes, once for a machine;
* the first pass of a kind then takes both ways in turn, chunk by chunk: which one is quicker
  depends on the processor and on the shape of the rows;
* from pass to pass, a bound tells for each row how far all other centres are at least. Rows that
  centres cannot have come near to since are not looked at, if a sample says that they are many.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import origin_step
from pgkmeans_sk.engines.dense_pass import DensePass
from pgkmeans_sk.engines.pruning import longest_move
from pgkmeans_sk.kernels.integer_sweep import are_quick
from pgkmeans_sk.kernels.integers import IntegerCenters, integer_centers, typical_length
from pgkmeans_sk.results import FloatArray

FEWEST_CENTERS = 32
"""Fewer are looked at in full about as fast as rows are rounded to integers."""
LEAST_WORK = 200_000_000
"""Multiplications in a pass, about 3 ms. With fewer, bringing the centres into integers counts."""
PATIENCE = 3.0
"""So many seconds of full passes go by before the kernel is compiled: about as long as that takes.
A kernel that lies on disk is used at once."""
SAMPLED_ROWS = 1024
"""Rows that say how many of all have to be looked at."""
MOST_IN_DOUBT = 0.8
"""With a larger share of rows to look at, finding out which costs more than it saves."""

_waited: dict[np.dtype[Any], float] = {}
"""Seconds of full passes, for each dtype of rows; ``PATIENCE`` where the kernel is there."""
_is_quicker: dict[tuple[Any, ...], bool] = {}
"""What the comparison said, for each kind of pass."""


class CoarseLook:
    """The choice for the rows ``X`` (n, d), which lie near ``origin`` (d,)."""

    def __init__(self, X: NDArray[Any], origin: NDArray[Any]) -> None:
        self._X, self._origin = X, origin
        # The centres of the last pass, and how far each row is from others than its own, at least.
        self._before: tuple[FloatArray, NDArray[Any]] | None = None

    @cached_property
    def _row_length(self) -> float:
        """The typical length of a row minus the origin."""
        return typical_length(self._X[:: origin_step(len(self._X))], self._origin)

    def is_for(self, centers: NDArray[np.floating]) -> bool:
        """Whether integers could help to find the nearest of ``centers`` (K, d)."""
        return (
            len(centers) >= FEWEST_CENTERS
            and len(self._X) * centers.size >= LEAST_WORK
            and are_quick()
        )

    def is_quick(self, centers: NDArray[np.floating]) -> bool:
        """Whether they are known to help."""
        return self.is_for(centers) and _is_quicker.get(self._kind_of(centers), False)

    def _kind_of(self, centers: NDArray[np.floating]) -> tuple[Any, ...]:
        """Passes of one kind are alike in which look is the quicker one."""
        return self._X.dtype, centers.shape[1], len(centers).bit_length()

    def look(
        self, dense: DensePass, centers: NDArray[np.floating], labels: NDArray[np.int32]
    ) -> bool:
        """Do the pass ``dense`` over rows that have ``labels``; False if nothing was done."""
        before, self._before = self._before, None
        integers = self._integers(dense, centers)
        if integers is None:
            return False
        lower, move = self._bounds(before, centers, labels)
        self._run(dense, centers, integers, lower, move)
        self._before = centers.astype(np.float64), lower
        return True

    def look_once(self, dense: DensePass, centers: NDArray[np.floating]) -> bool:
        """The same without thought of other passes."""
        integers = self._integers(dense, centers) if self.is_for(centers) else None
        if integers is None:
            return False
        self._run(dense, centers, integers, np.empty(0, dtype=self._X.dtype), -1.0)
        return True

    def forget(self) -> None:
        """Labels were set by others: what is known of the rows no longer holds."""
        self._before = None

    @contextmanager
    def waiting(self, centers: NDArray[np.floating]) -> Iterator[None]:
        """Within the block is a full pass that integers might have made shorter."""
        begin = perf_counter()
        yield
        if self._X.dtype in _waited and self.is_for(centers):
            _waited[self._X.dtype] += perf_counter() - begin

    def _integers(self, dense: DensePass, centers: NDArray[np.floating]) -> IntegerCenters | None:
        """The centres in integers, if they are to be used."""
        if not _is_quicker.get(self._kind_of(centers), True):
            return None
        integers = integer_centers(dense.packed, self._row_length)
        if integers is None:
            return None
        dtype = self._X.dtype
        if dtype not in _waited:
            _waited[dtype] = PATIENCE if dense.can_look_coarsely(integers) else 0.0
        return integers if _waited[dtype] >= PATIENCE else None

    def _run(
        self,
        dense: DensePass,
        centers: NDArray[np.floating],
        integers: IntegerCenters,
        lower: NDArray[Any],
        move: float,
    ) -> None:
        """The pass itself; the first of its kind compares."""
        kind = self._kind_of(centers)
        if kind in _is_quicker:
            dense.look_coarsely(integers, lower, move)
        else:
            _is_quicker[kind] = dense.compare_looks(integers, lower)

    def _bounds(
        self,
        before: tuple[FloatArray, NDArray[Any]] | None,
        centers: NDArray[np.floating],
        labels: NDArray[np.int32],
    ) -> tuple[NDArray[Any], float]:
        """Bounds (n,) of the pass before and the move since; a negative one: look at all rows."""
        if before is None or before[0].shape != centers.shape:
            return np.empty(len(self._X), dtype=self._X.dtype), -1.0
        lower, move = before[1], longest_move(centers, before[0])
        some = slice(None, None, 1 + (len(labels) - 1) // SAMPLED_ROWS)
        errors = self._X[some].astype(np.float64) - centers[labels[some]]
        distances = np.sqrt(np.einsum("it,it->i", errors, errors))
        share = float(np.mean(distances >= lower[some] - move))
        return lower, move if share <= MOST_IN_DOUBT else -1.0
