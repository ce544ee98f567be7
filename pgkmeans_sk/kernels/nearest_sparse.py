"""Assignment and sums in one pass over sparse rows; labels mean the same as in ``nearest.py``.

For each row, ``|c_j|^2 - 2 x.c_j`` is gathered for all centres side by side, one stored value of
the row at a time, in float64. The work is nnz * K, whatever the number of columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.points import copy_row

EPS = float(np.finfo(np.float64).eps)


class SparseCenters(NamedTuple):
    """Centres as the kernel reads them."""

    columns: np.ndarray  # (d, K) float64, the centres transposed
    norms: np.ndarray  # (K,) float64


def transpose_centers(centers: np.ndarray) -> SparseCenters:
    columns = np.ascontiguousarray(centers.T, dtype=np.float64)
    return SparseCenters(columns, np.einsum("tj,tj->j", columns, columns))


@kernel
def squared_distance_to_column(row, columns, j):
    """The definition of the distance: features in order."""
    total = 0.0
    for t in range(row.size):
        difference = row[t] - columns[t, j]
        total += difference * difference
    return total


@kernel
def assign_sparse(
    points,  # IN SparsePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN SparseCenters
    collect,  # IN bool, whether to add to the sums below
    labels,  # INOUT (n,) int32
    sums,  # INOUT (K, d) float64, of w x
    sizes,  # INOUT (K,) float64, of w
    sq_errors,  # INOUT (K,) float64, of w |x - c|^2
    utilities,  # INOUT (K,) float64, of w (|x - second nearest|^2 - |x - c|^2)
):
    """Label rows ``start:stop`` and, if asked, add them to their clusters' sums.

    Returns how many labels changed, and how many points needed the exact look.
    """
    columns, norms = centers
    n_centers = norms.size
    score = np.empty(n_centers, np.float64)
    row = np.empty(columns.shape[0], np.float64)
    n_changed = 0
    n_exact = 0
    for i in range(start, stop):
        low, high = points.indptr[i], points.indptr[i + 1]
        for j in range(n_centers):
            score[j] = norms[j]
        norm = 0.0
        for k in range(low, high):
            value = np.float64(points.data[k])
            norm += value * value
            column = points.indices[k]
            for j in range(n_centers):
                score[j] -= 2.0 * value * columns[column, j]
        label = 0
        second = np.inf
        for j in range(1, n_centers):
            if score[j] < score[label]:
                second = score[label]
                label = j
            elif score[j] < second:
                second = score[j]
        # |c|^2 has a rounding error of d units, the products and the exact distance likewise.
        kappa = (4.0 * columns.shape[0] + 2.0 * (high - low) + 16.0) * EPS
        best = score[label]
        if not second - best > 2.0 * kappa * (norm + norms[label]):
            copy_row(points, i, row)
            n_exact += 1
            nearest = -1
            smallest = np.inf
            for j in range(n_centers):
                if not score[j] - best > 2.0 * kappa * (norm + norms[label] + norms[j]):
                    sq_dist = squared_distance_to_column(row, columns, j)
                    if sq_dist < smallest or nearest < 0:
                        nearest = j
                        smallest = sq_dist
            label = nearest
        if labels[i] != label:
            labels[i] = label
            n_changed += 1
        weight = weights[i * weight_step] if collect else 0.0
        if weight > 0.0:
            sizes[label] += weight
            sq_errors[label] += weight * max(score[label] + norm, 0.0)
            utilities[label] += weight * (second - best)
            for k in range(low, high):
                sums[label, points.indices[k]] += weight * points.data[k]
    return n_changed, n_exact
