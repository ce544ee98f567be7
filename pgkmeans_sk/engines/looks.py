"""Which of its ways to look at centres each pass over dense rows takes, from first to last.

All ways give the same labels and sums (``dense_pass.py``). They differ in time, and in what they
leave for the next pass: bounds for each row, or the centres' utilities.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import origin_step
from pgkmeans_sk.engines.coarse_look import CoarseLook
from pgkmeans_sk.engines.dense_pass import DensePass
from pgkmeans_sk.engines.pruning import Pruning, longest_move, patience
from pgkmeans_sk.kernels.bounds import GroupBounds
from pgkmeans_sk.results import Assignment, FloatArray

MOST_ROWS = 0.999
"""The share of rows that are to be short enough for integers."""
SECOND_PASS_CENTERS = 32
"""Fewer are all looked at again as fast as it is found out whether that is needed."""


class Looks:
    """The choice for passes over the same rows; each of them brings the rows.

    Parameters
    ----------
    n_rows, n_features : int
        Shape of the rows.
    dtype : dtype
        That of their numbers.
    """

    def __init__(self, n_rows: int, n_features: int, dtype: np.dtype[Any]) -> None:
        self._n_rows, self._dtype = n_rows, dtype
        self.pruning = Pruning(n_rows, n_features, n_rows * n_features * dtype.itemsize)
        self.coarse = CoarseLook(n_rows, dtype)
        self.typical_distance = np.nan  # of a row to its centre, in the last pass
        self._row_length: float | None = None  # what nearly all rows are at most long
        self._is_new = True
        # What a first pass over all centres tells by the way: these centres, with how far each row
        # is from others than its own, at least.
        self._before: tuple[FloatArray, NDArray[Any]] | None = None

    def label(
        self, dense: DensePass, centers: NDArray[np.floating], labels: NDArray[np.int32], last: bool
    ) -> FloatArray | None:
        """Do the pass ``dense``, which sets ``labels``.

        Returns the utilities of the centres, chunk by chunk, if the pass has found them.
        """
        before, self._before = self._before, None
        pruning, utilities = self.pruning, None

        def look_at_all() -> int:
            nonlocal utilities
            utilities = self._look_at_all(dense, centers, labels, last)
            return 0

        is_quick = self.coarse.is_quick(centers)
        pays = centers.dtype == self._dtype and pruning.is_for(centers, is_quick)
        # New bounds help the next pass only; but integers help this one.
        if not pays or (last and not pruning.has_bounds and not pruning.takes_integers):
            pruning.forget()
            if last and before is not None and before[0].shape == centers.shape:
                dense.look_again(before[1], longest_move(centers, before[0]))
            else:
                look_at_all()
        else:
            doubts = None
            if patience.is_ready(self._dtype, dense.typical_doubt_arguments):
                doubts = pruning.bounds_for(centers, self._scale(dense), is_quick)
            if doubts is not None:
                self.coarse.forget()
                pruning.timed(centers, True, partial(self._look_at_doubts, dense, doubts))
            else:
                with patience.waiting(self._dtype):
                    pruning.timed(centers, False, look_at_all)
        self._is_new = False
        return utilities

    def _length(self, dense: DensePass) -> float:
        """What nearly all rows are at most long, minus the origin."""
        if self._row_length is None:
            some = dense.every_row(origin_step(self._n_rows)).astype(np.float64) - dense.origin
            lengths = np.sqrt(np.einsum("it,it->i", some, some))
            self._row_length = float(np.quantile(lengths, MOST_ROWS))
        return self._row_length

    def _scale(self, dense: DensePass) -> float:
        """A distance in the order of that of a row to its centre."""
        is_known = 0.0 < self.typical_distance < np.inf
        return self.typical_distance if is_known else self._length(dense)

    def _look_at_doubts(self, dense: DensePass, doubts: GroupBounds) -> int:
        """Look where bounds leave a doubt; returns how many rows integers have left to others."""
        pruning = self.pruning
        length = self._length(dense) if pruning.takes_integers else None
        n_exact = dense.look_at_doubts(doubts, pruning.order, pruning.block_size, length)
        return n_exact if pruning.takes_integers else 0

    def _look_at_all(
        self, dense: DensePass, centers: NDArray[np.floating], labels: NDArray[np.int32], last: bool
    ) -> FloatArray | None:
        """Look at all centres; in integers first where that is quicker."""
        if self.coarse.look(dense, centers, labels):
            return None
        # A batch of a stream has two passes, first and last: the first makes the other cheap.
        prepares_last = self._is_new and not last and len(centers) >= SECOND_PASS_CENTERS
        lower = np.empty(self._n_rows if prepares_last else 0, dtype=self._dtype)
        with self.coarse.waiting(centers):
            utilities = dense.look_at_all(lower)
        if prepares_last:
            self._before = centers.astype(np.float64), lower
        return utilities

    def learn(self, found: Assignment) -> None:
        """Take note of what a pass has found."""
        mean = found.inertia / max(found.sizes.sum(), 1e-300)
        self.typical_distance = float(np.sqrt(mean))

    def forget(self) -> None:
        """Labels were set by others: what is known of the rows no longer holds."""
        self._before = None
        self.pruning.forget()
        self.coarse.forget()
