"""Assignment within size limits for the engine of ``numba_cpu.py``: which rows take part, and when.

From few rows to all: prices that balance a quarter of the rows are nearly right for all of them, so
that few rows, about sqrt(K n), are left to be handed on one by one. Each row goes where it costs
least at these prices, over all K clusters; then chains mend the sizes, and keep every row where it
costs least. What comes out is optimal for these centres (up to rounding, and to a rest where
weights are unequal).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.merging import row_dtype
from pgkmeans_sk.kernels import cheapest as kernels
from pgkmeans_sk.kernels.points import Points
from pgkmeans_sk.kernels.size_limits import balance
from pgkmeans_sk.kernels.transfers import link_cluster, open_graph
from pgkmeans_sk.results import FloatArray, IntArray, SizeLimits
from pgkmeans_sk.threads import run_tasks

COARSENING = 4
"""Each level has this many times fewer rows than the next."""
COARSEST_ROWS = 16
"""Rows per cluster, at least, on any level."""
WARM_EXCESS = 2.0
"""From so much excess on, relative to sqrt(K n), fewer rows are balanced first."""
MAX_CHUNKS = 64
CHUNK_WORK = 1_000_000


def chunk_ends(n_rows: int, n_wanted: int) -> IntArray:
    """Bounds of the chunks; they depend on the shape of the problem alone."""
    n_chunks = max(1, min(n_wanted, MAX_CHUNKS, n_rows))
    return np.linspace(0, n_rows, n_chunks + 1).astype(np.int64)


@dataclass
class _Level:
    """Some of the rows, with their labels."""

    numbers: NDArray[Any]  # (m,) which rows
    weights: FloatArray  # (m,)
    smallest: float  # limits of a cluster's weight among these rows
    largest: float
    tolerance: float
    own: NDArray[np.int32]  # (m,)
    own_distances: FloatArray  # (m,) squared


class RowsWithin:
    """The rows of positive weight, ready to be assigned within limits.

    If all weights are equal, rows count 1 and so do the limits.
    """

    def __init__(
        self, points: Points, n_rows: int, sample_weight: FloatArray | None, n_threads: int
    ) -> None:
        self.points, self.n_threads = points, n_threads
        weights = np.ones(n_rows) if sample_weight is None else sample_weight
        kind = row_dtype(n_rows)
        self.numbers: NDArray[Any] = np.flatnonzero(weights > 0.0).astype(kind)
        weights = weights[self.numbers]
        self.heaviest = float(weights.max())
        self.are_equal = float(weights.min()) == self.heaviest
        self.weights = np.ones(len(weights)) if self.are_equal else weights
        shuffled = np.random.RandomState(0).permutation(len(self.numbers))
        self._shuffled: NDArray[Any] = shuffled[: len(shuffled) // COARSENING].astype(kind)

    def assign(
        self,
        centers: NDArray[np.floating],
        limits: SizeLimits,
        before: NDArray[np.int32],
        others: NDArray[np.int32],
        prices: FloatArray | None,
        inertia_of: Callable[[NDArray[np.int32]], float],
    ) -> tuple[NDArray[np.int32], FloatArray, bool]:
        """Labels (n,), prices (K,), and whether they are not those of ``before``.

        Rows of weight 0 get the label of ``others`` (n,). See ``Engine.assign_within``.
        """
        first = prices is None
        start = np.zeros(len(centers)) if prices is None else prices
        search = PricedAssignment(self, centers, limits, start)
        others[self.numbers] = search.solve(None if first else before[self.numbers])
        if first or inertia_of(others) < inertia_of(before):
            return others, search.prices, True
        return before, search.prices, False

    def sample(self, n_rows: int) -> NDArray[Any]:
        """Positions in ``numbers`` of up to a quarter, in order; smaller samples are in larger."""
        return np.sort(self._shuffled[:n_rows])

    def limits(self, limits: SizeLimits, n_clusters: int) -> tuple[float, float]:
        """Limits in the unit of ``weights``; a cluster of no row is none, if there are enough."""
        smallest, largest = limits.smallest, min(limits.largest, self.heaviest * len(self.weights))
        if self.are_equal:
            enough = 1 if len(self.weights) >= n_clusters else 0
            smallest = max(enough, round(smallest / self.heaviest))
            largest = round(largest / self.heaviest)
        return float(smallest), float(min(largest, self.weights.sum()))


class PricedAssignment:
    """The search for labels and prices for one set of centres."""

    def __init__(
        self,
        rows: RowsWithin,
        centers: NDArray[np.floating],
        limits: SizeLimits,
        prices: FloatArray,
    ) -> None:
        self._rows, self._n_clusters = rows, len(centers)
        exact = np.ascontiguousarray(centers, dtype=np.float64)
        self._columns, self._norms = (
            np.ascontiguousarray(exact.T),
            np.einsum("jt,jt->j", exact, exact),
        )
        self._limits = rows.limits(limits, self._n_clusters)
        self.prices = prices.copy()

    # ---------------------------------------------------------------- levels

    def solve(self, own: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Labels (m,) of the rows of positive weight, in place of ``own`` or from nothing."""
        labels = self._solve_level(None, own, cold=own is None)
        smallest, largest = self._limits
        sizes = np.bincount(labels, self._rows.weights, minlength=self._n_clusters)
        counts = np.bincount(labels, minlength=self._n_clusters)
        leeway = 0.0 if self._rows.are_equal else self._rows.heaviest
        kernels.enforce_limits(
            self._rows.points, self._rows.numbers, self._rows.weights, self._columns, self._norms,
            labels, sizes, counts, smallest, largest, leeway,
        )  # fmt: skip
        return labels

    def _solve_level(
        self, positions: NDArray[Any] | None, own: NDArray[np.int32] | None, cold: bool
    ) -> NDArray[np.int32]:
        """Balance the rows at ``positions``, all for None; the prices found stay behind."""
        n_rows = len(self._rows.numbers if positions is None else positions)
        n_fewer = n_rows // COARSENING
        can_coarsen = n_fewer >= COARSEST_ROWS * self._n_clusters
        if cold and can_coarsen:
            self._solve_level(self._rows.sample(n_fewer), None, cold)
        level = self._open(positions, own)
        self._choose(level)
        usual = level.weights.mean() * np.sqrt(self._n_clusters * n_rows)
        if not cold and can_coarsen and self._excess(level) > WARM_EXCESS * usual:
            self._solve_level(self._rows.sample(n_fewer), None, False)
            self._choose(level)
        if self._excess(level) > level.tolerance:
            self._balance(level)
        return level.own

    def _open(self, positions: NDArray[Any] | None, own: NDArray[np.int32] | None) -> _Level:
        """A level of the rows at ``positions``; ``own`` are their labels, if any."""
        numbers, weights = self._rows.numbers, self._rows.weights
        smallest, largest = self._limits
        if positions is not None:
            numbers, weights = numbers[positions], weights[positions]
            share = weights.sum() / self._rows.weights.sum()
            smallest, largest = smallest * share, largest * share
            if self._rows.are_equal:
                smallest, largest = np.floor(smallest), np.ceil(largest)
        n_rows = len(numbers)
        return _Level(
            numbers, weights, float(smallest), float(largest),
            0.5 if self._rows.are_equal else 1e-6 * float(weights.mean()),
            np.full(n_rows, -1, dtype=np.int32) if own is None else own, np.empty(n_rows),
        )  # fmt: skip

    # ---------------------------------------------------------------- rows

    def _choose(self, level: _Level) -> None:
        """Each row goes to its cheapest cluster of all."""
        n_rows = len(level.own)
        ends = chunk_ends(n_rows, n_rows * self._columns.size // CHUNK_WORK)

        def choose(c: int) -> None:
            kernels.choose_cheapest(
                self._rows.points, level.numbers, ends[c], ends[c + 1], self._columns, self._norms,
                self.prices, level.own, level.own_distances,
            )  # fmt: skip

        run_tasks(choose, len(ends) - 1, self._rows.n_threads)

    # ---------------------------------------------------------------- clusters

    def _sizes_and_quotas(self, level: _Level) -> tuple[FloatArray, FloatArray]:
        """What clusters weigh, and what they should weigh at their prices."""
        sizes: Any = np.bincount(level.own, level.weights, minlength=self._n_clusters)
        quotas: Any = np.clip(sizes, level.smallest, level.largest)
        quotas[self.prices > 0.0] = level.largest
        quotas[self.prices < 0.0] = level.smallest
        return sizes, quotas

    def _excess(self, level: _Level) -> float:
        """Weight that has to leave the clusters it is in, or to come to others."""
        sizes, quotas = self._sizes_and_quotas(level)
        too_much = float(np.maximum(sizes - quotas, 0.0).sum())
        return max(too_much, float(np.maximum(quotas - sizes, 0.0).sum()))

    def _balance(self, level: _Level) -> None:
        """Hand rows on until quotas are met or nobody can."""
        graph = cast(Any, open_graph)(
            self._rows.points, level.numbers, self._columns, self._norms, level.weights, level.own,
            level.own_distances, self.prices, *self._sizes_and_quotas(level),
        )  # fmt: skip
        order = np.argsort(level.own, kind="stable").astype(graph.later.dtype)
        counts = np.bincount(level.own, minlength=self._n_clusters)
        ends = np.append(0, np.cumsum(counts))

        def link_rows(cluster: int) -> None:
            link_cluster(graph, cluster, order[ends[cluster] : ends[cluster + 1]])

        run_tasks(link_rows, self._n_clusters, self._rows.n_threads)
        balance(graph, level.smallest, level.largest, level.tolerance)
        self.prices = graph.prices[:-1] - graph.prices[-1]
