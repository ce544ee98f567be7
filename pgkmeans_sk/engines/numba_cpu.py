"""The engine for arrays in host memory: serial Numba kernels over fixed chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pgkmeans_sk.engines import chunks
from pgkmeans_sk.engines.center_order import are_same
from pgkmeans_sk.engines.closest import closest_numbers, own_sq_errors
from pgkmeans_sk.engines.dense_pass import DensePass
from pgkmeans_sk.engines.draws import draw_by_weight, draw_numbers
from pgkmeans_sk.engines.looks import Looks
from pgkmeans_sk.engines.merging import merge_close_rows, row_dtype
from pgkmeans_sk.engines.moments import mean_variance
from pgkmeans_sk.engines.numba_lloyd import iterate_small_table
from pgkmeans_sk.engines.numba_nodes import NodeRows
from pgkmeans_sk.engines.numba_start import bounds_for_start, start_of_small_table
from pgkmeans_sk.engines.small_kernels import bounds_if_small
from pgkmeans_sk.engines.sparse_rows import SparseRows
from pgkmeans_sk.kernels import distances
from pgkmeans_sk.kernels.directions import to_directions
from pgkmeans_sk.kernels.nearest_sparse import SparseCenters
from pgkmeans_sk.kernels.points import dense_points, sparse_points
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
    Started,
    State,
)  # fmt: skip
from pgkmeans_sk.threads import effective_n_threads, run_tasks

if TYPE_CHECKING:
    from pgkmeans_sk.engines.numba_limits import RowsWithin

COPIED_BYTES = 3 * 2**24
"""Rows of up to 48 MiB whose columns lie side by side are copied for a fit: a pass over the copy
saves what copying a number takes."""
CLOSEST_CHUNK = 2**14
"""Rows in a chunk when the row closest to each centre is sought: 0.2 ms and more."""


def open_numba_engine(
    X: Any, sample_weight: NDArray[np.float64] | None, directions: bool = False
) -> NumbaEngine:
    """Open the engine over validated rows (see ``open_engine``)."""
    return NumbaEngine(to_directions(X) if directions else X, sample_weight)


class NumbaEngine:
    """Rows of a dense or CSR matrix, read where they are; what methods do is said in ``protocol``.

    Memory beyond the rows: 4 bytes a row for labels; a copy of up to 48 MiB of rows in Fortran
    order; one number a row, or more (``pruning.py``), while bounds are kept; while nodes are open
    12 bytes more for each of their rows; partial sums of at most 32 MiB or four times (n_clusters,
    n_features) in float64.
    """

    limits_sizes = True

    def __init__(self, X: Any, sample_weight: NDArray[np.float64] | None) -> None:
        self.user_data = self._X = X
        self.n_rows, self.n_features = X.shape
        self.dtype = X.dtype
        self._is_sparse = sparse.issparse(X)
        self._points: Any = sparse_points(X) if self._is_sparse else dense_points(X)
        self._sample_weight = sample_weight
        self._weights = np.ones(1) if sample_weight is None else sample_weight
        self._weight_step = 0 if sample_weight is None else 1
        self._n_threads = effective_n_threads()
        self._sparse_rows = SparseRows(self._points, self._weights, self._weight_step)
        self._is_new = True  # until the first assignment is done
        # Centres whose utilities a pass has found by the way, and these.
        self._utilities: tuple[NDArray[np.floating], FloatArray] | None = None
        # The centres of the labels, and what was found: a fit goes on where its start has ended.
        self._found: tuple[NDArray[np.floating], Assignment] | None = None

    @property
    def name(self) -> str:
        # The kernels follow from this; whether bounds rule centres out is a matter of time alone.
        return f"numba-{'csr' if self._is_sparse else 'dense'}-{8 * vector_bytes()}bit"

    @cached_property
    def _node_rows(self) -> NodeRows:
        self._gather_rows()
        return NodeRows(
            self._points, self._weights, self._weight_step, self.n_features, self._n_threads
        )

    def _gather_rows(self) -> None:
        """Bring the numbers of each row side by side, if that is cheap; only time depends on it."""
        if self._is_sparse or self._X.nbytes > COPIED_BYTES:
            return
        if self._points.column_step != 1 and self.n_features > 1:
            self._X = np.ascontiguousarray(self._X)
            self._points = dense_points(self._X)

    @cached_property
    def _looks(self) -> Looks:
        return Looks(self.n_rows, self.n_features, self.dtype)

    @property
    def labels(self) -> NDArray[np.int32]:
        return self._labels.copy()

    def like_rows(self, values: NDArray[Any]) -> Any:
        return values

    # ---------------------------------------------------------------- passes over all rows

    @cached_property
    def _labels(self) -> NDArray[np.int32]:
        return np.full(self.n_rows, -1, dtype=np.int32)

    @cached_property
    def _origin(self) -> NDArray[Any]:
        """A point near the bulk of the rows; only rounding depends on it, labels do not."""
        if self._is_sparse:
            return np.zeros(self.n_features, dtype=self.dtype)
        some_rows = self._X[:: chunks.origin_step(self.n_rows)]
        return np.ascontiguousarray(chunks.medians(some_rows), dtype=self.dtype)

    def _chunk_bounds(self, work: int, partial_bytes: int = 0) -> IntArray:
        """Bounds of the chunks; they depend on the shape of the problem alone."""
        return chunks.chunk_bounds(self.n_rows, work, partial_bytes)

    def _over_chunks(self, bounds: IntArray, task: Callable[[int, int, int], None]) -> None:
        """Call ``task(number, start, stop)`` for each chunk of rows."""
        run_tasks(lambda c: task(c, bounds[c], bounds[c + 1]), len(bounds) - 1, self._n_threads)

    def assign(self, centers: NDArray[np.floating], last: bool = False) -> Assignment:
        if self._found is not None and self._knows(centers):
            return replace(self._found[1], n_changed=0)
        if not self._is_new:
            self._gather_rows()  # a single pass would not gain by it
        self._found = self._utilities = None  # until the pass is done
        found = self._assign_sparse(centers) if self._is_sparse else self._assign(centers, last)
        self._found = centers.copy(), found
        return found

    def _knows(self, centers: NDArray[np.floating]) -> bool:
        """Whether the labels are those of ``centers``."""
        return self._found is not None and are_same(self._found[0], centers)

    def _assign(self, centers: NDArray[np.floating], last: bool) -> Assignment:
        """A pass over dense rows."""
        dense = self._dense_pass(centers, self._labels)
        utilities = self._looks.label(dense, centers, self._labels, last)
        if utilities is not None:
            self._utilities = centers.copy(), utilities
        found = dense.assignment()
        self._looks.learn(found)
        self._is_new = False
        return found

    def _dense_pass(
        self, centers: NDArray[np.floating], labels: NDArray[np.int32], collect: bool = True
    ) -> DensePass:
        """A pass over all rows, which replaces ``labels``."""
        bounds = chunks.pass_bounds(self.n_rows, centers)
        rows = self._points, self._weights, self._weight_step
        return DensePass(rows, labels, centers, self._origin, bounds, self._n_threads, collect)

    def _assign_sparse(self, centers: NDArray[np.floating]) -> Assignment:
        packed = self._sparse_rows.packed(centers, self._n_threads)
        n_changed, utilities = self._label_sparse(packed, self._labels)
        self._utilities = centers.copy(), utilities[np.newaxis]
        return self._sparse_rows.assignment(packed, self._labels, n_changed, self._n_threads)

    def _label_sparse(
        self, packed: SparseCenters, labels: NDArray[np.int32]
    ) -> tuple[int, FloatArray]:
        """Set ``labels``; returns how many changed, and the centres' utilities."""
        bounds = self._chunk_bounds(self._sparse_rows.n_stored * len(packed.rows))
        return self._sparse_rows.label(packed, labels, bounds, self._n_threads)

    def utilities(
        self, centers: NDArray[np.floating], is_wanted: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        if self._utilities is not None and are_same(self._utilities[0], centers):
            return np.array(chunks.add_in_order(self._utilities[1]))
        labels = np.empty(self.n_rows, dtype=np.int32)
        if self._is_sparse:
            packed = self._sparse_rows.packed(centers, self._n_threads)
            return self._label_sparse(packed, labels)[1]
        dense = self._dense_pass(centers, labels)
        if is_wanted is not None and self._knows(centers):
            found = dense.look_for_some(self._labels, is_wanted)
        else:
            found = dense.look_at_all(np.empty(0, dtype=self.dtype))
        return np.array(chunks.add_in_order(found))

    def nearest(self, centers: NDArray[np.floating]) -> NDArray[np.int32]:
        """Labels (n,) alone, by the same kernel as ``assign``."""
        labels = np.full(self.n_rows, -1, dtype=np.int32)
        if self._is_sparse:
            self._label_sparse(self._sparse_rows.packed(centers, self._n_threads), labels)
            return labels
        dense = self._dense_pass(centers, labels, collect=False)
        if not self._looks.coarse.look_once(dense, centers):
            dense.look_at_all(np.empty(0, dtype=self.dtype))
        return labels

    def distances(self, centers: NDArray[np.floating]) -> NDArray[np.floating]:
        columns = np.ascontiguousarray(centers.T, dtype=np.float64)
        result = np.empty((self.n_rows, len(centers)), dtype=self.dtype)

        def fill_chunk(c: int, start: int, stop: int) -> None:
            distances.fill_distances(self._points, start, stop, columns, result)

        self._over_chunks(self._chunk_bounds(self.n_rows * centers.size), fill_chunk)
        return result

    @property
    def total_weight(self) -> float:
        return self.n_rows if self._sample_weight is None else float(self._sample_weight.sum())

    def mean_variance(self) -> float:
        bounds = self._chunk_bounds(self.n_rows * self.n_features)
        rows = self._points, self._weights, self._weight_step
        return mean_variance(self._X, *rows, self._is_sparse, self._origin, bounds, self._n_threads)

    # ---------------------------------------------------------------- size limits

    @cached_property
    def _rows_within(self) -> RowsWithin:
        from pgkmeans_sk.engines.numba_limits import RowsWithin  # with kernels of its own

        return RowsWithin(self._points, self.n_rows, self._sample_weight, self._n_threads)

    def assign_within(
        self, centers: NDArray[np.floating], limits: SizeLimits, prices: FloatArray | None
    ) -> tuple[FloatArray, bool]:
        # Before the search, so that it takes no memory beside its own.
        self._found = None
        if not self._is_sparse:
            self._looks.forget()
        found = self._labels.copy()
        if self._sample_weight is not None and not self._sample_weight.all():
            found[:] = self.nearest(centers)  # counts for rows of weight 0
        found, prices, changed = self._rows_within.assign(
            centers, limits, self._labels, found, prices,
            lambda labels: self._measure(centers, labels).inertia,
        )  # fmt: skip
        self._labels[:] = found
        return prices, changed

    def measure(self, centers: NDArray[np.floating]) -> Assignment:
        return self._measure(centers, self._labels)

    def _measure(self, centers: NDArray[np.floating], labels: NDArray[np.int32]) -> Assignment:
        """What ``labels`` mean for the clusters."""
        if self._is_sparse:
            packed = self._sparse_rows.packed(centers, self._n_threads)
            return self._sparse_rows.assignment(packed, labels, 0, self._n_threads)
        dense = self._dense_pass(centers, labels)
        dense.keep_labels()
        return dense.assignment()

    # ---------------------------------------------------------------- sets of rows

    def _present(self) -> NDArray[Any]:
        """Numbers of the rows of positive weight."""
        rows: NDArray[Any] = np.arange(self.n_rows, dtype=row_dtype(self.n_rows))
        return rows if self._sample_weight is None else rows[self._sample_weight > 0]

    def root(self) -> Nodes:
        rows = self._present()
        return self._node_rows.open(rows, np.array([[0, len(rows)]]))

    def open_clusters(self, clusters: IntArray) -> Nodes:
        return self._node_rows.open_clusters(self._labels, clusters)

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        return self._node_rows.cut(nodes, fractions, rule, n_two_means)

    def small_start(
        self, n_clusters: int, plan: SmallStart, leaves: NDArray[np.floating] | None = None
    ) -> Started | None:
        bounds = bounds_for_start(self.n_rows, self.n_features, n_clusters)
        if self._is_sparse or bounds is None:
            return None
        self._gather_rows()
        rows = self._points, self._weights, self._weight_step
        about = self._present(), bounds, self._origin
        return start_of_small_table(rows, *about, n_clusters, plan, leaves)

    def small_lloyd(self, state: State, plan: SmallLloyd) -> tuple[State, int, bool] | None:
        bounds = bounds_if_small(self.n_rows, *state.centers.shape[::-1])
        if self._is_sparse or bounds is None:
            return None
        self._gather_rows()
        rows = self._points, self._weights, self._weight_step
        found = iterate_small_table(rows, self._labels, self._origin, state, bounds, plan)
        if found is None:
            return None
        self._labels[:] = found.labels
        self._utilities = None
        self._looks.forget()
        self._found = found.state.centers.copy(), found.state.assignment
        return found.state, found.n_iter, found.converged

    # ---------------------------------------------------------------- single rows

    def _rows(self, numbers: IntArray) -> NDArray[np.floating]:
        """Copies of single rows, dense."""
        rows = self._X[numbers]
        return np.asarray(rows.toarray() if self._is_sparse else rows, dtype=self.dtype)

    def farthest_rows(self, centers: NDArray[np.floating], n_rows: int) -> NDArray[np.floating]:
        bounds = self._chunk_bounds(self.n_rows * self.n_features)
        errors = own_sq_errors(self._points, self._labels, centers, bounds, self._n_threads)
        if self._sample_weight is not None:
            errors[self._sample_weight == 0] = 0.0
        numbers = np.argsort(-errors, kind="stable")[: np.count_nonzero(errors)]
        seen: dict[bytes, int] = {}
        for number in numbers:
            row = self._rows(np.array([number])) + 0.0  # -0.0 and 0.0 are one value
            seen.setdefault(row.tobytes(), number)
            if len(seen) == n_rows:
                break
        return self._rows(np.fromiter(seen.values(), dtype=np.int64))

    def closest_rows(self, centers: NDArray[np.floating]) -> NDArray[np.floating]:
        bounds = self._chunk_bounds(chunks.CHUNK_WORK // CLOSEST_CHUNK * self.n_rows)
        labelled = self._points, self._weights, self._weight_step, self._labels
        return self._rows(closest_numbers(*labelled, centers, bounds, self._n_threads))

    def draw_rows(self, n_rows: int, rng: np.random.RandomState) -> NDArray[np.floating]:
        if self._sample_weight is None:
            return self._rows(draw_by_weight(None, self.n_rows, n_rows, rng))
        candidates = np.flatnonzero(self._sample_weight > 0)
        weights = self._sample_weight[candidates]
        # Too few rows: repeated, repaired later.
        return self._rows(candidates[draw_by_weight(weights, len(candidates), n_rows, rng)])

    def draw_kmeans_plusplus(
        self, n_clusters: int, rng: np.random.RandomState
    ) -> NDArray[np.floating]:
        from sklearn.cluster import kmeans_plusplus  # 0.15 s that other starts need not wait for

        centers, _ = kmeans_plusplus(
            self._X, n_clusters, sample_weight=self._sample_weight, random_state=rng
        )
        return np.asarray(centers, dtype=self.dtype)

    # ---------------------------------------------------------------- one column

    def line_optimum(self, n_clusters: int) -> FloatArray | None:
        if self.n_features != 1:
            return None
        from pgkmeans_sk.engines.line_optimum import optimal_centers  # with kernels of its own

        column = self._X.toarray() if self._is_sparse else self._X
        centers = optimal_centers(np.ravel(column), self._sample_weight, n_clusters)
        return None if centers is None else centers[:, np.newaxis]

    # ---------------------------------------------------------------- fewer rows

    def _over(self, X: Any, sample_weight: NDArray[np.float64] | None) -> NumbaEngine:
        """An engine of the same kind over other rows."""
        return NumbaEngine(X, sample_weight)

    def sample(self, n_rows: int, rng: np.random.RandomState) -> NumbaEngine:
        weights = self._sample_weight
        if weights is None:
            numbers = np.sort(draw_numbers(self.n_rows, min(n_rows, self.n_rows), rng))
            return self._over(self._X[numbers], None)
        candidates = np.flatnonzero(weights > 0)
        drawn = draw_numbers(len(candidates), min(n_rows, len(candidates)), rng)
        numbers = candidates[np.sort(drawn)]
        return self._over(self._X[numbers], weights[numbers])

    def extended(self, rows: NDArray[np.floating]) -> NumbaEngine:
        added: Any = np.asarray(rows, dtype=self.dtype)
        if self._is_sparse:
            X = sparse.vstack([self._X, sparse.csr_matrix(added)], format="csr")
        else:
            X = np.concatenate([self._X, added])
        weights = self._sample_weight
        if weights is not None:
            weights = np.concatenate([weights, np.full(len(rows), weights[weights > 0].mean())])
        return self._over(X, weights)

    def of_rows(self, rows: NDArray[np.floating]) -> NumbaEngine:
        return self._over(np.asarray(rows, dtype=self.dtype), None)

    def merge_rows(self, radius: float) -> tuple[NumbaEngine, float]:
        merged = merge_close_rows(self._X, self._points, self._weights, self._weight_step, radius)
        if merged is None:
            return self, 0.0
        rows, weights, lost = merged
        return self._over(rows, weights), lost
