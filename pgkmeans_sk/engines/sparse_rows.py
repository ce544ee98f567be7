"""What the CPU engine does with the rows of a CSR matrix in a pass over all of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.merging import row_dtype
from pgkmeans_sk.kernels.nearest_sparse import (
    SparseCenters,
    add_up_sparse,
    fill_columns,
    label_sparse,
    open_sparse_centers,
    sort_by_label,
)
from pgkmeans_sk.results import Assignment, FloatArray, IntArray
from pgkmeans_sk.threads import run_tasks

CHUNK_COLUMNS = 1024
"""Columns of centres that one task transposes."""
MAX_GROUPS = 64
"""Groups of clusters that are added up by one task each."""


class SparseRows:
    """Rows in CSR form and their weights; ``n_threads`` comes with each call."""

    def __init__(self, points: Any, weights: FloatArray, weight_step: int) -> None:
        self._points, self._weights, self._weight_step = points, weights, weight_step

    @property
    def n_stored(self) -> int:
        """How many values the rows have, all together."""
        return int(self._points.indptr[-1])

    @cached_property
    def _longest(self) -> int:
        return int(np.diff(self._points.indptr).max())

    def packed(self, centers: NDArray[np.floating], n_threads: int) -> SparseCenters:
        """``centers`` (K, d) as kernels read them."""
        packed = open_sparse_centers(centers, self._longest, self._points.data.dtype)
        n_features = centers.shape[1]

        def fill_chunk(c: int) -> None:
            first = c * CHUNK_COLUMNS
            last = min(n_features, first + CHUNK_COLUMNS)
            fill_columns(packed.rows, first, last, packed.starts.size, packed.columns)

        run_tasks(fill_chunk, -(-n_features // CHUNK_COLUMNS), n_threads)
        return packed

    def label(
        self, centers: SparseCenters, labels: NDArray[np.int32], bounds: IntArray, n_threads: int
    ) -> tuple[int, FloatArray]:
        """Set ``labels`` (n,); returns how many changed, and what each centre is good for (K,)."""
        n_chunks = len(bounds) - 1
        n_changed = np.zeros(n_chunks, dtype=np.int64)
        utilities = np.zeros((n_chunks, len(centers.rows)))

        def label_chunk(c: int) -> None:
            n_changed[c], _ = label_sparse(
                self._points, self._weights, self._weight_step, bounds[c], bounds[c + 1], centers,
                labels, utilities[c],
            )  # fmt: skip

        run_tasks(label_chunk, n_chunks, n_threads)
        return int(n_changed.sum()), utilities.sum(axis=0)

    def assignment(
        self, centers: SparseCenters, labels: NDArray[np.int32], n_changed: int, n_threads: int
    ) -> Assignment:
        """What ``labels`` (n,) mean for the clusters."""
        n_clusters = len(centers.rows)
        sums, sizes = np.zeros(centers.rows.shape), np.zeros(n_clusters)
        sq_errors, ends = np.zeros(n_clusters), np.empty(n_clusters, dtype=np.int64)
        order: NDArray[Any] = np.empty(len(labels), dtype=row_dtype(len(labels)))
        rows = self._weights, self._weight_step
        sort_by_label(*rows, labels, ends, order)
        # Each cluster is the work of one task: how clusters are grouped does not change a bit.
        shares = np.linspace(0, ends[-1], MAX_GROUPS + 1)[1:-1]
        bounds = np.unique([0, *np.searchsorted(ends, shares), n_clusters])

        def add_group(g: int) -> None:
            add_up_sparse(
                self._points, *rows, order, ends, bounds[g], bounds[g + 1], centers,
                sums, sizes, sq_errors,
            )  # fmt: skip

        run_tasks(add_group, len(bounds) - 1, n_threads)
        with np.errstate(invalid="ignore"):
            sums /= sizes[:, np.newaxis]  # 0 / 0 is not a number, as promised
        return Assignment(sums, sizes, sq_errors, n_changed)
