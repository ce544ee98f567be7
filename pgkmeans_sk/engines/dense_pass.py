"""One assignment of dense rows: its sums, chunk by chunk, and the ways to come by the labels.

They differ in how many centres they look at and how closely, and in nothing else: the result has
the same bits. (One more way is to keep labels that somebody else has found.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import coarse_choice
from pgkmeans_sk.engines.chunks import add_in_order, sums_to_assignment
from pgkmeans_sk.kernels.bounds import GroupBounds
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
    ) -> None:
        self._rows, self._labels, self._centers, self._origin = rows, labels, centers, origin
        self._bounds, self._n_threads = bounds, n_threads
        self._collect = collect
        n_chunks, (n_centers, n_features) = len(bounds) - 1, centers.shape
        n_summed = n_centers if collect else 0
        self._sums = np.zeros((n_chunks, n_summed, n_features))
        self._sizes = np.zeros((n_chunks, n_summed))
        self._sq_errors = np.zeros((n_chunks, n_summed, 4))
        self._n_changed = np.zeros(n_chunks, dtype=np.int64)

    @cached_property
    def packed(self) -> PackedCenters:
        """The centres as kernels read them."""
        return pack_centers(self._centers, self._origin)

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
                *self._rows, start, stop, packed, self._collect, self._labels,
                *self._totals(c), utilities[c], lower, ALL_ROWS,
            )
        )  # fmt: skip
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
            *self._rows, start, stop, self.packed, integers, self._full_look, self._collect,
            lower, move, self._labels, *self._totals(c),
        )  # fmt: skip

    @cached_property
    def _full_look(self) -> int:
        """Where ``assign_dense`` is, for the kernel of ``look_coarsely``."""
        lower = np.empty(0, dtype=self._origin.dtype)
        known = self._rows, self.packed, lower, self._labels, self._totals(0)
        return coarse_choice.address_of_full_look(*known)

    def compare_looks(self, integers: IntegerCenters, lower: NDArray[Any]) -> bool:
        """``look_coarsely`` and ``look_at_all`` in turn; whether the former was quicker.

        A chunk of each comes first, in which kernels may have to be compiled.
        """
        nothing = np.empty(0)
        seconds = np.zeros(len(self._bounds) - 1)

        def run(c: int, start: int, stop: int) -> tuple[int, ...]:
            begin = perf_counter()
            found: tuple[int, ...]
            if c % 2:
                found = assign_dense(
                    *self._rows, start, stop, self.packed, self._collect, self._labels,
                    *self._totals(c), nothing, lower, ALL_ROWS,
                )  # fmt: skip
            else:
                arguments = self.coarse_arguments(c, start, stop, integers, lower, -1.0)
                found = assign_coarse(*arguments)
            seconds[c] = perf_counter() - begin
            return found

        self._over_chunks(run)
        return coarse_choice.first_was_quicker(seconds / np.diff(self._bounds))

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
        packed = pack_centers(self._centers, self._origin, order)
        integers = None if row_length is None else integer_panels(packed, row_length)
        integers = integers or no_integers()
        n_exact = np.zeros_like(self._n_changed)
        quick_centers = np.ascontiguousarray(self._centers).ravel()

        def run(c: int, start: int, stop: int) -> tuple[int, ...]:
            found: tuple[int, ...] = assign_pruned(
                *self._rows, start, stop, packed, integers, quick_centers, doubts, block_size,
                self._labels, *self._totals(c),
            )  # fmt: skip
            n_exact[c] = found[1]
            return found

        self._over_chunks(run)
        return int(n_exact.sum())

    def keep_labels(self) -> None:
        """Look at no centre but each row's own."""

        def add_chunk(c: int, start: int, stop: int) -> tuple[int, ...]:
            rows = np.ascontiguousarray(self._centers, dtype=np.float64)
            add_up(*self._rows, start, stop, rows, self._labels, *self._totals(c))
            return (0,)

        self._over_chunks(add_chunk)

    def assignment(self) -> Assignment:
        """What the pass has found, summed up."""
        sums, sizes, sq_errors = (
            add_in_order(part) for part in (self._sums, self._sizes, self._sq_errors)
        )
        n_changed = int(self._n_changed.sum())
        return sums_to_assignment(sums, sizes, sq_errors, n_changed, self._centers)
