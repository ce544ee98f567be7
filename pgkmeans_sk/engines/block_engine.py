"""The engine for rows in blocks: what methods do, whoever carries the blocks.

A *carrier* (``stored_blocks.py``, ``dask_blocks.py``) brings blocks to where they are worked on;
here is what is done with them, and how what they tell is put together. Everything that is random or
that chooses between rows goes by their numbers, and sums keep to the order of ``chunks.py``: the
result is that of ``numba_cpu.py`` on the same rows, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import chunks, tiles
from pgkmeans_sk.engines.center_order import are_same
from pgkmeans_sk.engines.closest import best_chunks
from pgkmeans_sk.engines.draws import draw_by_weight, draw_numbers
from pgkmeans_sk.engines.moments import variance_of
from pgkmeans_sk.engines.node_members import members_taken, positions_taken, taken_ranges
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.numba_nodes import NodeRows
from pgkmeans_sk.kernels.points import dense_points
from pgkmeans_sk.kernels.vectors import vector_bytes
from pgkmeans_sk.results import (
    Assignment,
    Cut,
    FloatArray,
    IntArray,
    Nodes,
    SizeLimits,
    SmallLloyd,
    SmallStart,
    State,
)  # fmt: skip
from pgkmeans_sk.threads import effective_n_threads

GATHERED_NUMBERS = 2**25
"""Numbers in rows that may be brought into memory all together: 128 or 256 MiB. The plain trees and
the optimum of a line need all rows at once, and k-means++ looks at each of them many times."""
GATHERED_PER_CLUSTER = 64
"""So many rows for each cluster may be brought into memory in any case, as for a sample."""
SAMPLE_PER_CLUSTER = 128
"""Rows for each cluster in the sample from which k-means++ draws where there are more."""


class Carrier(Protocol):
    """Who has the rows, in tiles one after the other, and their labels."""

    name: str
    n_features: int
    dtype: Any
    starts: IntArray  # (n_tiles + 1,) number of each tile's first row, and of all rows
    is_weighted: bool

    @property
    def n_present(self) -> IntArray:
        """Rows of positive weight (n_tiles,)."""

    def each(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        per_tile: Sequence[Any] | None = None,
        labelled: bool = False,
    ) -> list[Any]:
        """``work(tile, *arguments)`` for each tile, or ``work(tile, *arguments, per_tile[i])``.

        A tile whose ``per_tile[i]`` is None is left out, and so is its result. With ``labelled``,
        tiles have the labels of the last ``assign``.
        """

    def add_up(self, total: tiles.Sum, bounds: IntArray) -> tiles.Totals:
        """The sum over all rows, in the order of ``chunks.py`` for chunks with these bounds."""

    def assign(
        self, total: tiles.AssignmentSum, bounds: IntArray, last: bool = False
    ) -> tiles.Totals:
        """The same for clusters, while rows are labelled; ``last`` is as in ``Engine.assign``."""

    def labels(self) -> Any:
        """Labels (n,) of the last ``assign``."""

    def with_rows(self, rows: NDArray[Any], weights: FloatArray | None) -> Carrier:
        """A carrier of the same rows followed by others."""

    def release(self) -> None:
        """Give up what is kept between passes."""


class BlockEngine:
    """Rows that a carrier has; what methods do is said in ``protocol``."""

    limits_sizes = False

    def __init__(self, carrier: Carrier, user_data: Any) -> None:
        self._carrier, self.user_data = carrier, user_data
        self.n_rows, self.n_features = int(carrier.starts[-1]), carrier.n_features
        self.dtype = np.dtype(carrier.dtype)
        self._node_rows: NodeRows | None = None
        # The centres of the labels, and what was found: a fit goes on where its start has ended.
        self._found: tuple[NDArray[np.floating], Assignment] | None = None

    @property
    def name(self) -> str:
        return f"{self._carrier.name}-dense-{8 * vector_bytes()}bit"

    @property
    def carrier(self) -> Carrier:
        """Who has the rows."""
        return self._carrier

    @property
    def labels(self) -> Any:
        return self._carrier.labels()

    def like_rows(self, values: NDArray[Any]) -> Any:
        return values

    @cached_property
    def total_weight(self) -> float:
        return float(sum(w.sum() for w in self._carrier.each(tiles.present_weights)))

    @cached_property
    def _origin(self) -> NDArray[Any]:
        """A point near the bulk of the rows; only rounding depends on it, labels do not."""
        some = np.arange(0, self.n_rows, chunks.origin_step(self.n_rows))
        return np.ascontiguousarray(chunks.medians(self._rows(some)[0]), dtype=self.dtype)

    # ---------------------------------------------------------------- passes over all rows

    def mean_variance(self) -> float:
        return self._mean_variance

    @cached_property
    def _mean_variance(self) -> float:
        bounds = chunks.chunk_bounds(self.n_rows, self.n_rows * self.n_features)
        total = tiles.MomentSum(self._origin.astype(np.float64))
        sums, squares, weight = self._carrier.add_up(total, bounds)
        return variance_of(sums, squares, float(weight[0]))

    def assign(self, centers: NDArray[np.floating], last: bool = False) -> Assignment:
        if self._found is not None and are_same(self._found[0], centers):
            return replace(self._found[1], n_changed=0)
        self._found = None  # until the pass is done
        self._n_clusters = len(centers)
        total = tiles.AssignmentSum(np.ascontiguousarray(centers), self._origin)
        bounds = chunks.pass_bounds(self.n_rows, centers)
        sums, sizes, sq_errors, n_changed = self._carrier.assign(total, bounds, last)
        found = chunks.sums_to_assignment(sums, sizes, sq_errors, int(n_changed[0]), centers)
        self._found = centers.copy(), found
        return found

    def utilities(
        self, centers: NDArray[np.floating], is_wanted: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        total = tiles.UtilitySum(np.ascontiguousarray(centers), self._origin)
        return self._carrier.add_up(total, chunks.pass_bounds(self.n_rows, centers))[0]

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        return np.concatenate(self._carrier.each(tiles.label_alone, centers, self._origin))

    def distances(self, centers: NDArray[np.floating]) -> Any:
        return np.concatenate(self._carrier.each(tiles.distances_to, centers))

    # ---------------------------------------------------------------- sets of rows

    def root(self) -> Nodes:
        rows, weights = self._all_present()
        return self._open(rows, weights, np.array([[0, len(rows)]]), None)

    def open_clusters(self, clusters: IntArray) -> Nodes:
        which = np.asarray(clusters, dtype=np.int64), self._n_clusters
        per_tile = np.array(self._carrier.each(tiles.count_members, *which, labelled=True))
        counts = per_tile.sum(axis=0)
        taken = members_taken(counts, self.n_features)
        wanted = _positions_in_tiles(per_tile, taken)
        rows, weights = _joined(
            self._carrier.each(tiles.take_members, *which, per_tile=wanted, labelled=True)
        )
        # They have come tile by tile, and cluster by cluster in each.
        owners = [
            np.repeat(np.arange(len(clusters)), [len(part) for part in parts]) for parts in wanted
        ]
        order = np.argsort(np.concatenate(owners), kind="stable")
        ranges, stand_for = taken_ranges(counts, taken)
        return self._open(
            rows[order],
            None if weights is None else weights[order],
            ranges,
            None if (taken == counts).all() else stand_for,
        )

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        assert self._node_rows is not None
        return self._node_rows.cut(nodes, fractions, rule, n_two_means)

    def _open(
        self,
        rows: NDArray[Any],
        weights: FloatArray | None,
        ranges: IntArray,
        stand_for: FloatArray | None,
    ) -> Nodes:
        """Nodes over ``rows`` in memory, node by node."""
        if not len(rows):
            rows, weights = np.zeros((1, self.n_features), dtype=self.dtype), None
        self._node_rows = NodeRows(
            dense_points(rows),
            np.ones(1) if weights is None else weights,
            0 if weights is None else 1,
            self.n_features,
            effective_n_threads(),
        )
        order = np.arange(ranges[-1, 1], dtype=np.int32)
        return self._node_rows.open(order, ranges, stand_for)

    # ---------------------------------------------------------------- single rows

    def _rows(
        self, numbers: IntArray, among_present: bool = False
    ) -> tuple[NDArray[Any], FloatArray | None]:
        """Rows and weights by rising numbers; counted among those of positive weight, if so."""
        carrier = self._carrier
        starts = np.append(0, np.cumsum(carrier.n_present)) if among_present else carrier.starts
        ends = np.searchsorted(numbers, starts)
        per_tile: list[Any] = [
            numbers[low:high] - start if low < high else None
            for low, high, start in zip(ends[:-1], ends[1:], starts[:-1], strict=True)
        ]
        if among_present:
            return _joined(carrier.each(tiles.take_present, per_tile=per_tile))
        return _joined(carrier.each(tiles.take_rows, per_tile=per_tile))

    def _all_present(self) -> tuple[NDArray[Any], FloatArray | None]:
        """All rows of positive weight, in memory."""
        return self._rows(np.arange(self._n_present), among_present=self._carrier.is_weighted)

    @property
    def _n_present(self) -> int:
        return int(self._carrier.n_present.sum())

    def fits_memory(self, n_clusters: int) -> bool:
        """Whether all rows may be brought into memory."""
        return fits_memory(self.n_rows, self.n_features, n_clusters)

    def small_start(
        self, n_clusters: int, plan: SmallStart, leaves: NDArray[np.floating] | None = None
    ) -> None:
        return None

    def small_lloyd(self, state: State, plan: SmallLloyd) -> None:
        return None

    def farthest_rows(self, centers: NDArray[np.floating], n_rows: int) -> NDArray[np.floating]:
        found = self._carrier.each(tiles.find_farthest, centers, n_rows, labelled=True)
        errors = np.concatenate([part[0] for part in found])
        rows = np.concatenate([part[1] for part in found])
        order = np.argsort(-errors, kind="stable")
        return rows[order[tiles.first_distinct(errors, rows, order, n_rows)]]

    def closest_rows(self, centers: NDArray[np.floating]) -> NDArray[np.floating]:
        found = self._carrier.each(tiles.find_closest, centers, labelled=True)
        errors, has_row, rows = zip(*found, strict=True)
        of_tile = best_chunks(np.array(errors), np.array(has_row))
        at = np.cumsum(has_row, axis=1) - 1
        owners = np.flatnonzero(np.any(has_row, axis=0))
        return np.array([rows[i][at[i, j]] for i, j in zip(of_tile[owners], owners, strict=True)])

    def draw_rows(self, n_rows: int, rng: np.random.RandomState) -> NDArray[np.floating]:
        weights = None
        if self._carrier.is_weighted:
            weights = np.concatenate(self._carrier.each(tiles.present_weights))
        drawn = draw_by_weight(weights, self._n_present, n_rows, rng)
        numbers, back = np.unique(drawn, return_inverse=True)
        return self._rows(numbers, among_present=self._carrier.is_weighted)[0][back]

    def draw_kmeans_plusplus(
        self, n_clusters: int, rng: np.random.RandomState
    ) -> NDArray[np.floating]:
        if self.fits_memory(n_clusters):
            every = np.arange(self.n_rows)
            return NumbaEngine(*self._rows(every)).draw_kmeans_plusplus(n_clusters, rng)
        n_rows = max(GATHERED_NUMBERS // self.n_features, SAMPLE_PER_CLUSTER * n_clusters)
        return self.sample(n_rows, rng).draw_kmeans_plusplus(n_clusters, rng)

    # ---------------------------------------------------------------- one column

    def line_optimum(self, n_clusters: int) -> FloatArray | None:
        if self.n_features != 1 or not self.fits_memory(n_clusters):
            return None
        return NumbaEngine(*self._rows(np.arange(self.n_rows))).line_optimum(n_clusters)

    # ---------------------------------------------------------------- fewer rows

    def sample(self, n_rows: int, rng: np.random.RandomState) -> NumbaEngine:
        drawn = draw_numbers(self._n_present, min(n_rows, self._n_present), rng)
        numbers = np.sort(drawn)
        return NumbaEngine(*self._rows(numbers, among_present=self._carrier.is_weighted))

    def extended(self, rows: NDArray[np.floating]) -> BlockEngine:
        added = np.array(rows, dtype=self.dtype, order="C")
        weights = None
        if self._carrier.is_weighted:
            present = np.concatenate(self._carrier.each(tiles.present_weights))
            weights = np.full(len(added), present.mean())
        return BlockEngine(self._carrier.with_rows(added, weights), self.user_data)

    def of_rows(self, rows: NDArray[np.floating]) -> NumbaEngine:
        return NumbaEngine(np.asarray(rows, dtype=self.dtype), None)

    def release(self) -> None:
        """Give up what the carrier keeps between passes, when no other pass will come."""
        self._carrier.release()

    # ---------------------------------------------------------------- what blocks cannot do

    def merge_rows(self, radius: float) -> Any:
        raise NotImplementedError("rows in blocks are not consolidated")

    def measure(self, centers: NDArray[np.floating]) -> Assignment:
        raise NotImplementedError("size limits need all rows in memory")

    def assign_within(
        self, centers: NDArray[np.floating], limits: SizeLimits, prices: FloatArray | None
    ) -> tuple[FloatArray, bool]:
        raise NotImplementedError("size limits need all rows in memory")


def fits_memory(n_rows: int, n_features: int, n_clusters: int) -> bool:
    """Whether so many rows may be brought into memory, all of them."""
    n_allowed = max(GATHERED_NUMBERS // n_features, GATHERED_PER_CLUSTER * n_clusters)
    return n_rows <= n_allowed


def _positions_in_tiles(counts: IntArray, taken: IntArray) -> list[list[IntArray]]:
    """For each tile the positions of each node's chosen members, of ``counts`` (n_tiles, m)."""
    ends = np.vstack([np.zeros((1, counts.shape[1]), dtype=np.int64), np.cumsum(counts, axis=0)])
    of_tiles: list[list[IntArray]] = [[] for _ in counts]
    for node, n_taken in enumerate(taken.tolist()):
        positions = positions_taken(int(ends[-1, node]), n_taken)
        cuts = np.searchsorted(positions, ends[:, node])
        for tile, parts in enumerate(of_tiles):
            parts.append(positions[cuts[tile] : cuts[tile + 1]] - ends[tile, node])
    return of_tiles


def _joined(parts: list[Any]) -> tuple[NDArray[Any], FloatArray | None]:
    """Rows and weights that have come in parts."""
    rows, weights = zip(*parts, strict=True)
    return np.concatenate(rows), None if weights[0] is None else np.concatenate(weights)
