"""Passes of one engine in 16-bit integers first, and which rows each of them looks at.

From pass to pass, a bound tells for each row how far all other centres are at least. Rows that
centres cannot have come near to since are not looked at, if a sample says that they are many.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import coarse_choice
from pgkmeans_sk.engines.chunks import origin_step
from pgkmeans_sk.engines.dense_pass import DensePass
from pgkmeans_sk.engines.pruning import longest_move
from pgkmeans_sk.kernels.integers import IntegerCenters, integer_centers, typical_length
from pgkmeans_sk.results import FloatArray

SAMPLED_ROWS = 1024
"""Rows that say how many of all have to be looked at."""
MOST_IN_DOUBT = 0.8
"""With a larger share of rows to look at, finding out which costs more than it saves."""


class CoarseLook:
    """The passes over the same ``n_rows`` rows of a ``dtype``; each of them brings the rows."""

    def __init__(self, n_rows: int, dtype: np.dtype[Any]) -> None:
        self._n_rows, self._dtype = n_rows, dtype
        self._row_length: float | None = None  # typical, of a row minus the origin
        # The centres of the last pass, and how far each row is from others than its own, at least.
        self._before: tuple[FloatArray, NDArray[Any]] | None = None

    def is_for(self, centers: NDArray[np.floating]) -> bool:
        """Whether integers could help to find the nearest of ``centers`` (K, d)."""
        return coarse_choice.is_large(self._n_rows, *centers.shape)

    def is_quick(self, centers: NDArray[np.floating]) -> bool:
        """Whether they are known to help."""
        return self.is_for(centers) and coarse_choice.quicker(self._kind_of(centers)) is True

    def _kind_of(self, centers: NDArray[np.floating]) -> coarse_choice.Kind:
        return coarse_choice.kind_of(self._dtype, *centers.shape)

    def look(
        self, dense: DensePass, centers: NDArray[np.floating], labels: NDArray[np.int32]
    ) -> bool:
        """Do the pass ``dense`` over rows that have ``labels``; False if nothing was done."""
        before, self._before = self._before, None
        integers = self._integers(dense, centers)
        if integers is None:
            return False
        lower, move = self._bounds(dense, before, centers, labels)
        self._run(dense, centers, integers, lower, move)
        self._before = centers.astype(np.float64), lower
        return True

    def look_once(self, dense: DensePass, centers: NDArray[np.floating]) -> bool:
        """The same without thought of other passes."""
        integers = self._integers(dense, centers)
        if integers is None:
            return False
        self._run(dense, centers, integers, np.empty(0, dtype=self._dtype), -1.0)
        return True

    def waiting(self, centers: NDArray[np.floating]) -> AbstractContextManager[None]:
        """Within the block is a full pass, after ``look`` has done nothing."""
        is_for = self.is_for(centers)
        return coarse_choice.patience.waiting(self._dtype) if is_for else nullcontext()

    def forget(self) -> None:
        """Labels were set by others: what is known of the rows no longer holds."""
        self._before = None

    def _integers(self, dense: DensePass, centers: NDArray[np.floating]) -> IntegerCenters | None:
        """The centres in integers, if they are to be used."""
        if not self.is_for(centers) or coarse_choice.quicker(self._kind_of(centers)) is False:
            return None
        if coarse_choice.patience.is_waiting(self._dtype):
            return None
        if self._row_length is None:
            some = dense.every_row(origin_step(self._n_rows))
            self._row_length = typical_length(some, dense.origin)
        integers = integer_centers(dense.packed, self._row_length)
        if integers is None:
            return None
        lower = np.empty(0, dtype=self._dtype)
        is_ready = coarse_choice.patience.is_ready(
            self._dtype, lambda: dense.coarse_arguments(0, 0, 0, integers, lower, -1.0)
        )
        return integers if is_ready else None

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
        if coarse_choice.quicker(kind) is None:
            coarse_choice.remember(kind, dense.compare_looks(integers, lower))
        else:
            dense.look_coarsely(integers, lower, move)

    def _bounds(
        self,
        dense: DensePass,
        before: tuple[FloatArray, NDArray[Any]] | None,
        centers: NDArray[np.floating],
        labels: NDArray[np.int32],
    ) -> tuple[NDArray[Any], float]:
        """Bounds (n,) of the pass before and the move since; a negative one: look at all rows."""
        if before is None or before[0].shape != centers.shape:
            return np.empty(self._n_rows, dtype=self._dtype), -1.0
        lower, move = before[1], longest_move(centers, before[0])
        step = 1 + (len(labels) - 1) // SAMPLED_ROWS
        errors = dense.every_row(step).astype(np.float64) - centers[labels[::step]]
        distances = np.sqrt(np.einsum("it,it->i", errors, errors))
        share = float(np.mean(distances >= lower[::step] - move))
        return lower, move if share <= MOST_IN_DOUBT else -1.0
