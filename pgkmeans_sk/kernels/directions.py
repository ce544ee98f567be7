"""Rows scaled to length 1, for clustering by the angle between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.points import copy_row, dense_points, sparse_points


def to_directions(X: Any) -> Any:
    """Rows of ``X`` (n, d) divided by their lengths, in a copy; rows of zeros stay zero.

    A row's result depends on its values alone, not on the layout of the matrix, so that predicting
    it again gives the same label.
    """
    is_sparse = bool(sparse.issparse(X))  # kept apart, or type checkers think less of X
    if is_sparse:
        scaled = X.copy()
        scaled.sum_duplicates()
        lengths = np.empty(scaled.shape[0])
        fill_lengths(sparse_points(scaled), lengths)
        per_value = np.repeat(lengths, np.diff(scaled.indptr))
        scaled.data = (scaled.data / per_value).astype(scaled.dtype)
        return scaled
    lengths = np.empty(len(X))
    fill_lengths(dense_points(X), lengths)
    scaled = np.empty(X.shape, dtype=X.dtype)
    # In float64, a buffer at a time, and then rounded.
    return np.divide(X, lengths[:, np.newaxis], out=scaled, casting="same_kind")


@kernel
def fill_lengths(
    points,  # IN Points
    lengths,  # OUT (n,) float64; 1 for a row of zeros
):
    """Euclidean length of each row, without overflow or underflow of squares."""
    row = np.empty(points.n_features, np.float64)
    for i in range(lengths.size):
        copy_row(points, i, row)
        largest = 0.0
        for t in range(row.size):
            largest = max(largest, abs(row[t]))
        if largest == 0.0:
            lengths[i] = 1.0
            continue
        total = 0.0  # relative to the largest value: squares alone may overflow or vanish
        for t in range(row.size):
            total += (row[t] / largest) ** 2
        lengths[i] = largest * np.sqrt(total)
