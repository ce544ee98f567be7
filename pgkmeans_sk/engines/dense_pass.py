"""One assignment of dense rows: its sums, chunk by chunk, and the ways to come by the labels.

They differ in how many centres they look at and how closely, and in nothing else: the result has
the same bits. (One more way is to keep labels that somebody else has found.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import coarse_choice
from pgkmeans_sk.engines.chunks import add_in_order, sums_to_assignment
from pgkmeans_sk.kernels.bounds import GroupBounds, no_bounds
from pgkmeans_sk.kernels.coarse import assign_coarse
from pgkmeans_sk.kernels.integer_panels import integer_panels, no_integers
from pgkmeans_sk.kernels.integers import IntegerCenters
from pgkmeans_sk.kernels.nearest import (
    ALL_ROWS,
    PackedCenters,
    add_up,
    assign_dense,
    pack_centers,
)  # fmt: skip
from pgkmeans_sk.kernels.pruned import assign_pruned
from pgkmeans_sk.kernels.second_pass import assign_again
from pgkmeans_sk.results import Assignment, FloatArray, IntArray
from pgkmeans_sk.threads import run_tasks


class DensePass:
    """A pass over all rows.

    Parameters
    ----------
    rows : tuple
        Points, weights and weight step, as kernels take them.
    labels : ndarray of shape (n,), int32
        The labels so far, which the pass replaces.
    centers : ndarray of shape (K, d)
        Where to assign.
    origin : ndarray of shape (d,)
        A point near the rows, of their dtype.
    bounds : ndarray of shape (n_chunks + 1,), int64
        Where chunks begin and end.
    n_threads : int
        On how many threads chunks may run.
    collect : bool
        Whether there are to be sums, and not labels alone.
    n_open : int
        So many chunks, the first ones, are labelled for somebody else to add up: what the pass
        has for their sums means nothing.
    """

    def __init__(
        self,
        rows: tuple[Any, FloatArray, int],
        labels: NDArray[np.int32],
        centers: NDArray[np.floating],
        origin: NDArray[Any],
        bounds: IntArray,
        n_threads: int,
        collect: bool = True,
        n_open: int = 0,
    ) -> None:
        self._rows, self._labels, self._centers, self.origin = rows, labels, centers, origin
        self._bounds, self._n_threads = bounds, n_threads
        self._collect, self._n_open = collect, n_open
        n_chunks, (n_centers, n_features) = len(bounds) - 1, centers.shape
        n_summed = n_centers if collect else 0
        self._sums = np.zeros((n_chunks, n_summed, n_features))
        self._sizes = np.zeros((n_chunks, n_summed))
        self._sq_errors = np.zeros((n_chunks, n_summed, 4))
        self._n_changed = np.zeros(n_chunks, dtype=np.int64)

    @cached_property
    def packed(self) -> PackedCenters:
        """The centres as kernels read them."""
        return pack_centers(self._centers, self.origin)

    def every_row(self, step: int) -> NDArray[np.floating]:
        """Each ``step``-th row, the first one included: a view (m, d), read-only."""
        points = self._rows[0]
        size = points.base.itemsize
        return np.lib.stride_tricks.as_strided(
            points.base,
            (1 + (len(self._labels) - 1) // step, points.n_features),
            (size * step * points.row_step, size * points.column_step),
            writeable=False,
        )

    def _collects(self, c: int) -> bool:
        """Whether chunk ``c`` is to be added up."""
        return self._collect and c >= self._n_open

    def _over_chunks(self, task: Callable[[int, int, int], Any]) -> None:
        """Call ``task(number, start, stop)`` for each chunk; it returns how many labels changed."""
        bounds = self._bounds.tolist()

        def run(c: int) -> None:
            self._n_changed[c] = task(c, bounds[c], bounds[c + 1])[0]

        run_tasks(run, len(bounds) - 1, self._n_threads)

    def _totals(self, c: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Sums, sizes and squared errors of chunk ``c``, for a kernel to add to."""
        return self._sums[c], self._sizes[c], self._sq_errors[c]

    def look_at_all(self, lower: NDArray[Any]) -> FloatArray:
        """Sweep over all centres; returns their utilities, chunk by chunk.

        ``lower`` (n,) is given a distance for each row that no centre but its own is nearer than;
        (0,) if nobody wants to know.
        """
        packed, utilities = self.packed, np.zeros_like(self._sizes)
        self._over_chunks(
            lambda c, start, stop: assign_dense(
                *self._rows, start, stop, packed, self._collects(c), self._labels,
                *self._totals(c), utilities[c], lower, ALL_ROWS,
            )
        )  # fmt: skip
        return utilities

    def look_for_some(self, known: NDArray[np.int32], is_wanted: NDArray[np.bool_]) -> FloatArray:
        """``look_at_all`` for rows whose ``known`` (n,) labels are of wanted clusters (K,).

        Returns the utilities of these, chunk by chunk; labels of other rows are not set.
        """
        packed, utilities = self.packed, np.zeros((len(self._bounds) - 1, len(is_wanted)))
        no_bounds = np.empty(0, dtype=self.origin.dtype)

        def run(c: int, start: int, stop: int) -> tuple[int, ...]:
            listed = start + np.flatnonzero(is_wanted[known[start:stop]])
            found: tuple[int, ...] = assign_dense(
                *self._rows, 0, len(listed), packed, False, self._labels, *self._totals(c),
                utilities[c], no_bounds, listed,
            )  # fmt: skip
            return found

        self._over_chunks(run)
        return utilities

    def look_coarsely(
        self, integers: IntegerCenters, lower: NDArray[Any], move: float = -1.0
    ) -> None:
        """Sweep in integers, and once more where these leave a doubt.

        ``lower`` (n,) is as in ``look_at_all``; with a ``move`` it is that of the last pass, and
        rows for which it outlasts the move are left out.
        """
        self._over_chunks(
            lambda c, start, stop: assign_coarse(
                *self.coarse_arguments(c, start, stop, integers, lower, move)
            )
        )

    def coarse_arguments(
        self,
        c: int,
        start: int,
        stop: int,
        integers: IntegerCenters,
        lower: NDArray[Any],
        move: float,
    ) -> tuple[Any, ...]:
        """What the kernel of ``look_coarsely`` is given for chunk ``c``."""
        return (
            *self._rows, start, stop, self.packed, integers, self._full_look, self._collects(c),
            lower, move, self._labels, *self._totals(c),
        )  # fmt: skip

    @cached_property
    def _full_look(self) -> int:
        """Where ``assign_dense`` is, for the kernel of ``look_coarsely``."""
        lower = np.empty(0, dtype=self.origin.dtype)
        known = self._rows, self.packed, lower, self._labels, self._totals(0)
        return coarse_choice.address_of_full_look(*known)

    def compare_looks(self, integers: IntegerCenters, lower: NDArray[Any]) -> bool:
        """``look_coarsely`` and ``look_at_all`` in turn; whether the former was quicker.

        A run of each comes first, in which kernels may have to be compiled. A run is a chunk, or a
        part of one where there are few.
        """
        nothing = np.empty(0)
        n_chunks = len(self._bounds) - 1
        n_parts = -(-coarse_choice.COMPARED_RUNS // n_chunks)
        seconds = np.zeros((n_chunks, n_parts))
        n_rows = np.zeros((n_chunks, n_parts))

        def run(c: int, start: int, stop: int) -> tuple[int, ...]:
            ends = np.linspace(start, stop, n_parts + 1).astype(np.int64).tolist()
            n_changed = 0
            for part, (first, end) in enumerate(pairwise(ends)):
                begin = perf_counter()
                if (c * n_parts + part) % 2:
                    found = assign_dense(
                        *self._rows, first, end, self.packed, self._collects(c), self._labels,
                        *self._totals(c), nothing, lower, ALL_ROWS,
                    )  # fmt: skip
                else:
                    arguments = self.coarse_arguments(c, first, end, integers, lower, -1.0)
                    found = assign_coarse(*arguments)
                seconds[c, part], n_rows[c, part] = perf_counter() - begin, end - first
                n_changed += found[0]
            return (n_changed,)

        self._over_chunks(run)
        return coarse_choice.first_was_quicker((seconds / np.maximum(n_rows, 1.0)).ravel())

    def look_again(self, lower: NDArray[Any], move: float) -> None:
        """Sweep only for rows whose ``lower`` of the last pass does not outlast a ``move``."""
        packed = self.packed
        self._over_chunks(
            lambda c, start, stop: assign_again(
                *self._rows, start, stop, packed, lower, move, self._labels, *self._totals(c)
            )
        )

    def look_at_doubts(
        self,
        doubts: GroupBounds,
        order: NDArray[np.int32],
        block_size: int,
        row_length: float | None = None,
    ) -> int:
        """Look only at groups of centres that their bounds do not rule out.

        Values are found in integers if a ``row_length`` is given, that of nearly all rows minus the
        origin. Returns how many rows needed the exact look.
        """
        packed = pack_centers(self._centers, self.origin, order)
        integers = None if row_length is None else integer_panels(packed, row_length)
        looked_up = packed, integers or no_integers(), self._quick_centers, doubts, block_size
        n_exact = np.zeros_like(self._n_changed)

        def run(c: int, start: int, stop: int) -> tuple[int, ...]:
            found: tuple[int, ...] = assign_pruned(
                *self._rows, start, stop, *looked_up, self._labels, *self._totals(c)
            )
            n_exact[c] = found[1]
            return found

        self._over_chunks(run)
        return int(n_exact.sum())

    @property
    def _quick_centers(self) -> NDArray[Any]:
        """The centres in the precision of the data, one after the other."""
        return np.ascontiguousarray(self._centers).ravel()

    def typical_doubt_arguments(self) -> tuple[Any, ...]:
        """Arguments like those of the kernel of ``look_at_doubts``, for no rows."""
        looked_up = self.packed, no_integers(), self._quick_centers, no_bounds(), 1
        return *self._rows, 0, 0, *looked_up, self._labels, *self._totals(0)

    def keep_labels(self) -> None:
        """Look at no centre but each row's own."""

        def add_chunk(c: int, start: int, stop: int) -> tuple[int, ...]:
            rows = np.ascontiguousarray(self._centers, dtype=np.float64)
            add_up(*self._rows, start, stop, rows, self._labels, *self._totals(c))
            return (0,)

        self._over_chunks(add_chunk)

    @property
    def n_changed(self) -> int:
        """How many labels have changed."""
        return int(self._n_changed.sum())

    def sums_of_chunks(self) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """Sums, sizes and squared errors of each chunk that is not open."""
        return [self._totals(c) for c in range(self._n_open, len(self._bounds) - 1)]

    def assignment(self) -> Assignment:
        """What the pass has found, summed up."""
        sums, sizes, sq_errors = (
            add_in_order(part) for part in (self._sums, self._sizes, self._sq_errors)
        )
        return sums_to_assignment(sums, sizes, sq_errors, self.n_changed, self._centers)
