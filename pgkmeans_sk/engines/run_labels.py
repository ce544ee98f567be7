"""Labels and sums of a run of rows in a tile, in integers first where that is quicker."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import coarse_choice
from pgkmeans_sk.engines.chunks import origin_step
from pgkmeans_sk.kernels.coarse import assign_coarse
from pgkmeans_sk.kernels.integers import IntegerCenters, integer_centers, typical_length
from pgkmeans_sk.kernels.nearest import ALL_ROWS, PackedCenters, assign_dense, pack_centers
from pgkmeans_sk.kernels.points import DensePoints
from pgkmeans_sk.results import FloatArray


class RunCenters:
    """The centres of one pass over rows in tiles.

    Parameters
    ----------
    centers : ndarray of shape (K, d)
        Where to assign.
    origin : ndarray of shape (d,)
        A point near the rows, of their dtype.
    """

    def __init__(self, centers: NDArray[np.floating], origin: NDArray[Any]) -> None:
        # What came from another process may be read-only: another type, for which kernels would
        # have to be compiled once more.
        self._centers, self._origin = np.array(centers), np.array(origin)
        self._integers: IntegerCenters | None = None
        self._has_tried = False

    @cached_property
    def packed(self) -> PackedCenters:
        """The centres as kernels read them."""
        return pack_centers(self._centers, self._origin)

    def label(
        self,
        X: NDArray[Any],
        rows: tuple[DensePoints, FloatArray, int],
        start: int,
        stop: int,
        labels: NDArray[np.int32],
        totals: tuple[NDArray[Any], ...] | None = None,
    ) -> int:
        """Set ``labels[start:stop]``; returns how many changed.

        ``rows`` are those of ``X`` (m, d), as kernels take them. Their sums are added to
        ``totals``: (K, d), (K,) and (K, 4), see ``nearest.add_up``.
        """
        n_features = X.shape[1]
        nothing = np.empty(0), np.empty(0, dtype=X.dtype)
        collect = totals is not None
        if totals is None:
            totals = np.empty((0, n_features)), np.empty(0), np.empty((0, 4))

        def fully(begin: int, end: int) -> int:
            arguments = *rows, begin, end, self.packed, collect, labels, *totals, *nothing, ALL_ROWS
            return int(assign_dense(*arguments)[0])

        def arguments_of(begin: int, end: int) -> tuple[Any, ...]:
            known = rows, self.packed, nothing[1], labels, totals
            full_look = coarse_choice.address_of_full_look(*known)
            return (
                *rows, begin, end, self.packed, integers, full_look, collect, nothing[1], -1.0,
                labels, *totals,
            )  # fmt: skip

        def coarsely(begin: int, end: int) -> int:
            return int(assign_coarse(*arguments_of(begin, end))[0])

        n_centers = len(self._centers)
        if not coarse_choice.is_large(stop - start, n_centers, n_features, is_run=True):
            return fully(start, stop)
        kind = coarse_choice.kind_of(X.dtype, n_centers, n_features)
        if coarse_choice.quicker(kind) is False:
            return fully(start, stop)
        patience = coarse_choice.patience
        integers = None if patience.is_waiting(X.dtype) else self._in_integers(X)
        if integers is None or not patience.is_ready(X.dtype, lambda: arguments_of(0, 0)):
            with patience.waiting(X.dtype):
                return fully(start, stop)
        if coarse_choice.quicker(kind):
            return coarsely(start, stop)
        return self._compare(kind, start, stop, fully, coarsely)

    def _in_integers(self, X: NDArray[Any]) -> IntegerCenters | None:
        """The centres in integers, for rows like those of the first tile."""
        if not self._has_tried:
            row_length = typical_length(X[:: origin_step(len(X))], self._origin)
            self._integers, self._has_tried = integer_centers(self.packed, row_length), True
        return self._integers

    @staticmethod
    def _compare(kind: coarse_choice.Kind, start: int, stop: int, fully: Any, coarsely: Any) -> int:
        """Both ways in turn, to know which one to take from now on."""
        ends = np.linspace(start, stop, coarse_choice.COMPARED_RUNS + 1).astype(np.int64)
        seconds = np.zeros(coarse_choice.COMPARED_RUNS)
        changed = 0
        for number, (begin, end) in enumerate(pairwise(ends.tolist())):
            now = perf_counter()
            changed += (fully if number % 2 else coarsely)(begin, end)
            seconds[number] = perf_counter() - now
        coarse_choice.remember(kind, coarse_choice.first_was_quicker(seconds))
        return changed
