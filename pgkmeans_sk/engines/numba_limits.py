"""Assignment within size limits for the engine of ``numba_cpu.py``: which rows take part, and when.

From few rows to all: prices that balance a quarter of the rows are nearly right for all of them, so
that few rows, about sqrt(K n), are left to be handed on one by one. Each round ends with a look at
all rows at the prices found: those that another cluster costs less move there, whether it was
among their candidates or not, and the next round mends the sizes. When none moves, the assignment
is optimal for these centres (up to rounding, and to a rest where weights are unequal).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.merging import row_dtype
from pgkmeans_sk.kernels import candidates as kernels
from pgkmeans_sk.kernels.points import Points
from pgkmeans_sk.kernels.row_heaps import N_CANDIDATES, open_graph
from pgkmeans_sk.kernels.size_limits import balance
from pgkmeans_sk.results import FloatArray, IntArray, SizeLimits
from pgkmeans_sk.threads import run_tasks

COARSENING = 4
"""Each level has this many times fewer rows than the next."""
COARSEST_ROWS = 16
"""Rows per cluster, at least, on any level."""
WARM_EXCESS = 2.0
"""From so much excess on, relative to sqrt(K n), fewer rows are balanced first."""
BORDER_ROWS = 32
"""Rows per cluster, at least, whose cheapest move is known from the beginning."""
TIE_PENALTY = 1e-9
COARSE_ROUNDS, FINE_ROUNDS = 3, 40
MAX_CHUNKS = 64
CHUNK_WORK = 1_000_000


def chunk_ends(n_rows: int, n_wanted: int) -> IntArray:
    """Bounds of the chunks; they depend on the shape of the problem alone."""
    n_chunks = max(1, min(n_wanted, MAX_CHUNKS, n_rows))
    return np.linspace(0, n_rows, n_chunks + 1).astype(np.int64)


@dataclass
class _Level:
    """Some of the rows, with their candidates and labels."""

    numbers: NDArray[Any]  # (m,) which rows
    weights: FloatArray  # (m,)
    smallest: float  # limits of a cluster's weight among these rows
    largest: float
    tolerance: float
    candidates: NDArray[np.int32]  # (m, c)
    distances: FloatArray  # (m, c) squared
    bounds: FloatArray  # (m,)
    scans: NDArray[np.int32]  # (m,) number of the prices that the row was looked at with
    own: NDArray[np.int32]  # (m,)
    own_distances: FloatArray  # (m,)
    margins: FloatArray  # (m,)
    stuck: NDArray[np.bool_]  # (K + 1,) clusters that no row could leave since the last gain
    least_excess: float = np.inf


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
        self._scans: list[FloatArray] = []
        self.prices = prices.copy()

    # ---------------------------------------------------------------- levels

    def solve(self, own: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Labels (m,) of the rows of positive weight, in place of ``own`` or from nothing."""
        labels = self._solve_level(None, own, cold=own is None, n_rounds=FINE_ROUNDS)
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
        self,
        positions: NDArray[Any] | None,
        own: NDArray[np.int32] | None,
        cold: bool,
        n_rounds: int,
    ) -> NDArray[np.int32]:
        """Balance the rows at ``positions``, all for None; the prices found stay behind."""
        n_rows = len(self._rows.numbers if positions is None else positions)
        n_fewer = n_rows // COARSENING
        can_coarsen = n_fewer >= COARSEST_ROWS * self._n_clusters
        if cold and can_coarsen:
            self._solve_level(self._rows.sample(n_fewer), None, cold, COARSE_ROUNDS)
        level = self._open(positions, own)
        for n_round in range(n_rounds):
            self._choose(level)
            sizes, quotas = self._sizes_and_quotas(level)
            excess = float(np.maximum(sizes - quotas, 0.0).sum())
            excess = max(excess, float(np.maximum(quotas - sizes, 0.0).sum()))
            if excess <= level.tolerance:
                break
            if excess < level.least_excess - level.tolerance:
                level.least_excess = excess
                level.stuck[:] = False
            usual = level.weights.mean() * np.sqrt(self._n_clusters * n_rows)
            if n_round == 0 and not cold and can_coarsen and excess > WARM_EXCESS * usual:
                self._solve_level(self._rows.sample(n_fewer), None, False, COARSE_ROUNDS)
                continue
            if not self._balance(level, sizes, quotas):
                break
        return level.own

    def _open(self, positions: NDArray[Any] | None, own: NDArray[np.int32] | None) -> _Level:
        """A level of the rows at ``positions``, looked at; ``own`` are their labels, if any."""
        numbers, weights = self._rows.numbers, self._rows.weights
        smallest, largest = self._limits
        if positions is not None:
            numbers, weights = numbers[positions], weights[positions]
            share = weights.sum() / self._rows.weights.sum()
            smallest, largest = smallest * share, largest * share
            if self._rows.are_equal:
                smallest, largest = np.floor(smallest), np.ceil(largest)
        n_rows = len(numbers)
        level = _Level(
            numbers, weights, float(smallest), float(largest),
            0.5 if self._rows.are_equal else 1e-6 * float(weights.mean()),
            np.empty((n_rows, N_CANDIDATES), dtype=np.int32), np.empty((n_rows, N_CANDIDATES)),
            np.empty(n_rows), np.empty(n_rows, dtype=np.int32),
            np.full(n_rows, -1, dtype=np.int32) if own is None else own,
            np.empty(n_rows), np.empty(n_rows), np.zeros(self._n_clusters + 1, dtype=bool),
        )  # fmt: skip
        self._look(level, np.arange(n_rows))
        return level

    # ---------------------------------------------------------------- rows

    def _over(self, n_rows: int, task: Callable[[int, int], None]) -> None:
        """Call ``task(start, stop)`` for chunks of so many rows."""
        ends = chunk_ends(n_rows, n_rows * self._columns.size // CHUNK_WORK)
        run_tasks(lambda c: task(ends[c], ends[c + 1]), len(ends) - 1, self._rows.n_threads)

    def _look(self, level: _Level, which: IntArray, penalties: FloatArray | float = 0.0) -> None:
        """Find the candidates of the rows ``which`` at the present prices, plus ``penalties``."""
        prices = self.prices + penalties

        def look_at(start: int, stop: int) -> None:
            kernels.find_candidates(
                self._rows.points, level.numbers, which, start, stop, self._columns, self._norms,
                prices, level.candidates, level.distances, level.bounds,
            )  # fmt: skip

        self._over(len(which), look_at)
        level.scans[which] = len(self._scans)
        self._scans.append(self.prices.copy())  # penalties count as rounding

    def _choose(self, level: _Level) -> None:
        """Each row goes to its cheapest cluster of all."""
        doubtful = np.ones(len(level.own), dtype=bool)
        for _ in range(3):  # looked at again, a row is in no doubt; a third time is rounding
            falls = np.array([(self.prices - before).min() for before in self._scans])
            kernels.choose_cheapest(
                level.candidates, level.distances, level.bounds + falls[level.scans], self.prices,
                level.own, level.own_distances, level.margins, doubtful,
            )  # fmt: skip
            if not doubtful.any():
                break
            self._look(level, np.flatnonzero(doubtful))

    # ---------------------------------------------------------------- clusters

    def _sizes_and_quotas(self, level: _Level) -> tuple[FloatArray, FloatArray]:
        """What clusters weigh, and what they should weigh at their prices."""
        sizes: Any = np.bincount(level.own, level.weights, minlength=self._n_clusters)
        quotas: Any = np.clip(sizes, level.smallest, level.largest)
        quotas[self.prices > 0.0] = level.largest
        quotas[self.prices < 0.0] = level.smallest
        return sizes, quotas

    def _balance(self, level: _Level, sizes: FloatArray, quotas: FloatArray) -> bool:
        """Hand rows on until quotas are met or nobody can; returns whether anything changed."""
        before = np.abs(np.append(sizes - quotas, quotas.sum() - sizes.sum())).sum()
        bands = self._bands(level, before)
        graph = cast(Any, open_graph)(
            level.candidates, level.distances, level.weights, level.own, level.own_distances,
            self.prices, sizes, quotas,
        )  # fmt: skip
        stuck = np.zeros(self._n_clusters + 1, dtype=bool)
        is_stuck = balance(graph, level.smallest, level.largest, level.tolerance, bands, stuck)
        self.prices, excess = graph.prices[:-1] - graph.prices[-1], graph.excess
        del graph  # with its heaps, which take most of the memory
        if is_stuck:
            # Sets of clusters can take turns in being stuck: hence out of all that were.
            level.stuck |= stuck
            return self._open_exits(level, excess)
        return bool(np.abs(excess).sum() < before - level.tolerance)

    def _bands(self, level: _Level, excess: float) -> FloatArray:
        """Costs up to which entries are handed over: of few rows at first, then four times more."""
        wanted = BORDER_ROWS * self._n_clusters + 2 * excess / level.weights.mean()
        n_bands = max(0, int(np.ceil(np.log(len(level.margins) / wanted) / np.log(4))))
        counts = (wanted * 4.0 ** np.arange(n_bands)).astype(np.int64)
        return np.append(np.partition(level.margins, counts)[counts], np.inf)

    def _open_exits(self, level: _Level, excess: FloatArray) -> bool:
        """Raise the prices of clusters that no row can leave, until as many as should will."""
        inside, exits = level.stuck[:-1], np.empty(len(level.own))

        def look_at(start: int, stop: int) -> None:
            kernels.find_exits(
                self._rows.points, level.numbers, start, stop, self._columns, self._norms,
                self.prices, level.own, inside, exits,
            )  # fmt: skip

        self._over(len(exits), look_at)
        order = np.argsort(exits, kind="stable")
        surplus = np.maximum(excess[level.stuck], 0.0).sum()
        last = np.searchsorted(np.cumsum(level.weights[order]), surplus - level.tolerance)
        leaving = order[: last + 1]
        leaving = leaving[exits[leaving] < np.inf]
        if not len(leaving):
            return False
        raised = max(exits[leaving[-1]], 0.0)
        self.prices[inside] += raised
        # Of clusters that cost the same, those that lack rows come first.
        scale = max(level.distances[:, 0].mean(), np.abs(self.prices).max()) or 1.0
        lack = excess[:-1] < -level.tolerance
        self._look(level, leaving, np.where(lack, 0.0, TIE_PENALTY * scale))
        level.own[leaving] = level.candidates[leaving, 0]
        return True
