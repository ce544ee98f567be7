"""Rows that lie close together, merged into their weighted means: arrays for consolidation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pgkmeans_sk.kernels import consolidate
from pgkmeans_sk.results import FloatArray

LARGEST_MERGED_SHARE = 0.9
"""If more rows than this are left, merging costs a copy of them and spares little."""


def row_dtype(n_rows: int) -> type:
    """The smallest type that holds numbers of rows."""
    return np.int32 if n_rows < 2**31 else np.int64


def merge_close_rows(
    X: Any, points: Any, weights: FloatArray, weight_step: int, radius: float
) -> tuple[Any, FloatArray, float] | None:
    """Means of the rows that share a cell of diagonal ``radius``; 0 merges equal rows only.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, d)
        The rows.
    points : Points
        The same as kernels read them.
    weights : ndarray of shape (n,) or (1,), float64
        Weights, or one for all rows, with ``weight_step`` 1 or 0.
    radius : float
        Diagonal of a cell, in the units of the rows.

    Returns
    -------
    rows : ndarray or CSR matrix of shape (m, d)
        The means, of positive weight.
    weights : ndarray of shape (m,), float64
        Their weights.
    lost : float
        Weighted sum of squared distances of the rows to their means.

    None instead if more than ``LARGEST_MERGED_SHARE`` of the rows would be left.
    """
    n_rows, n_features = X.shape
    table_size = 2 ** int(np.ceil(np.log2(1.25 * n_rows + 2)))
    table = np.full(table_size, -1, dtype=row_dtype(n_rows))
    groups: NDArray[Any] = np.empty(n_rows, dtype=row_dtype(n_rows))
    # Cells with this side have the radius as their diagonal.
    inverse_side = np.sqrt(n_features) / radius if radius > 0.0 else 0.0
    n_groups = consolidate.group_rows(points, n_rows, inverse_side, table, groups)
    del table
    if n_groups > LARGEST_MERGED_SHARE * n_rows:
        return None
    if sparse.issparse(X):
        return _merge_sparse(X, weights, groups, n_groups)
    means, totals = np.zeros((n_groups, n_features)), np.zeros(n_groups)
    lost = consolidate.merge_groups(points, weights, weight_step, groups, means, totals)
    kept = totals > 0.0
    return means[kept].astype(X.dtype), totals[kept], lost


def _merge_sparse(
    X: Any, weights: FloatArray, groups: NDArray[Any], n_groups: int
) -> tuple[Any, FloatArray, float]:
    """Means of groups as sparse rows: a product of sparse matrices."""
    n_rows = X.shape[0]
    weights = np.broadcast_to(weights, n_rows)
    totals: Any = np.bincount(groups, weights, minlength=n_groups)
    kept = np.flatnonzero(totals > 0.0)
    shares = np.divide(weights, totals[groups], out=np.zeros(n_rows), where=weights > 0)
    rows = X.astype(np.float64)
    membership = sparse.csr_matrix((shares, (groups, np.arange(n_rows))), shape=(n_groups, n_rows))
    means: Any = (membership @ rows)[kept]
    before = float(weights @ np.ravel(rows.multiply(rows).sum(axis=1)))
    after = float(totals[kept] @ np.ravel(means.multiply(means).sum(axis=1)))
    return means.astype(X.dtype), totals[kept], max(before - after, 0.0)
