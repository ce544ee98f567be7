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
TINY = float(np.finfo(np.float64).tiny)
LARGEST = float(np.finfo(np.float64).max) / 8
"""If |x|^2 and |c|^2 are below it, no value here overflows."""


class SparseCenters(NamedTuple):
    """Centres as the kernel reads them."""

    rows: np.ndarray  # (K, d) float64
    columns: np.ndarray  # (d, K) float64, the same transposed
    norms: np.ndarray  # (K,) float64
    are_small: bool  # whether no norm is so large that sums may overflow


def transpose_centers(centers: np.ndarray) -> SparseCenters:
    """Bring ``centers`` (K, d) into the form that ``assign_sparse`` reads."""
    rows = np.ascontiguousarray(centers, dtype=np.float64)
    with np.errstate(over="ignore"):
        norms = np.einsum("jt,jt->j", rows, rows)
    return SparseCenters(rows, np.ascontiguousarray(rows.T), norms, bool(norms.max() < LARGEST))


@kernel
def squared_distance(
    row,  # IN (d,) float64
    rows,  # IN (K, d) float64, the centres
    j,  # IN which centre
):
    """The definition of the distance: features in order."""
    total = 0.0
    for t in range(row.size):
        difference = row[t] - rows[j, t]
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
    sq_errors,  # INOUT (K, 4) float64, of w |x - c|^2, in four parts
    utilities,  # INOUT (K,) float64, of w (|x - second nearest|^2 - |x - c|^2); (0,): not wanted
):
    """Label rows ``start:stop`` and, if asked, add them to their clusters' sums.

    Returns how many labels changed, and how many points needed the exact look.
    """
    rows, columns, norms, are_small = centers
    n_centers, n_features = rows.shape
    score = np.empty(n_centers, np.float64)
    row = np.empty(n_features, np.float64)
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
        kappa = (4.0 * n_features + 2.0 * (high - low) + 16.0) * EPS
        best = score[label]
        margin = 2.0 * kappa * (norm + norms[label]) + (n_features + 8) * TINY
        no_overflow = are_small and norm < LARGEST
        if not (no_overflow and second - best > margin):
            copy_row(points, i, row)
            n_exact += 1
            nearest = -1
            smallest = np.inf
            for j in range(n_centers):
                if no_overflow and score[j] - best > margin + 2.0 * kappa * norms[j]:
                    continue
                sq_dist = squared_distance(row, rows, j)
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
            if n_features <= 4 * n_centers * (high - low):
                # No more work than the scores were; their difference would leave rounding errors
                # where a row lies on its centre.
                copy_row(points, i, row)
                sq_error = squared_distance(row, rows, label)
            else:
                sq_error = max(score[label] + norm, 0.0)
            sq_errors[label, 0] += weight * sq_error
            if utilities.size:
                utilities[label] += weight * (second - best)
            for k in range(low, high):
                sums[label, points.indices[k]] += weight * points.data[k]
    return n_changed, n_exact
