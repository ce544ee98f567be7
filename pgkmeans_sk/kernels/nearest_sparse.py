"""Labels of sparse rows, and the sums over their clusters; a label means what ``nearest.py`` says.

``|c_j|^2 - 2 x.c_j`` is gathered for all centres side by side, one stored value of a row at a time
(``sparse_scores.py``), in the precision of the data. The work is nnz * K, whatever the number of
columns. Rows whose two best values are too close (Note [Error bound] of ``nearest.py``, with as
many products as the row has values) are looked at again: first at the centres in question with the
same formula in float64, then, if a doubt is left, with the definition.

Sums are taken cluster by cluster: the rows of a cluster one after the other, while its centre and
its sum stay in the cache. No chunk of rows needs sums of its own, which may outgrow the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.errors import sq_error, squared_distance
from pgkmeans_sk.kernels.sparse_scores import lanes_of, n_lanes, row_scores, two_least_of_lanes
from pgkmeans_sk.kernels.sweep import padding
from pgkmeans_sk.kernels.vectors import SUM_BLOCK

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
LARGEST = float(np.finfo(np.float64).max) / 8
"""If |x|^2 and |c|^2 are below it, no value here overflows."""
COLUMN_BLOCK = 16
"""Columns of centres that are transposed at once."""
NEAR = 0.01
"""A squared error below this share of |c|^2 is added up over all columns: see add_up_sparse."""


class SparseCenters(NamedTuple):
    """Centres as the kernel reads them."""

    rows: np.ndarray  # (K, d) float64
    norms: np.ndarray  # (K,) float64, their squared norms
    columns: np.ndarray  # (d * S,) of the data's dtype, centres times -2, feature by feature
    starts: np.ndarray  # (S,) of the data's dtype, (1 - kappa) |c|^2; the largest number in padding
    kappa: float  # error of a row with as many values as any
    smallest: float
    largest: float  # squared norm of a row from which on the fast values may overflow
    are_small: bool  # whether no norm is so large that sums in float64 may overflow


def share_of_error(n_values: int, n_features: int, dtype: np.dtype) -> float:
    """Kappa for rows of ``n_values`` stored values."""
    blocks = min(n_values, SUM_BLOCK) + -(-n_values // SUM_BLOCK)
    return float((blocks + 16) * np.finfo(dtype).eps) + 4.0 * n_features * EPS


def open_sparse_centers(centers: np.ndarray, n_values: int, dtype: np.dtype) -> SparseCenters:
    """Everything but ``columns``, which ``fill_columns`` fills.

    ``n_values`` is how many values are stored in the longest row.
    """
    n_centers, n_features = centers.shape
    lanes = lanes_of(dtype)
    n_places = -(-n_centers // lanes) * lanes
    rows = np.ascontiguousarray(centers, dtype=np.float64)
    with np.errstate(over="ignore"):
        norms = np.einsum("jt,jt->j", rows, rows)
    kappa = share_of_error(n_values, n_features, dtype)
    largest = float(np.finfo(dtype).max) / 8
    starts = np.full(n_places, padding(dtype), dtype=dtype)
    if norms.max() < largest:
        starts[:n_centers] = (1.0 - kappa) * norms
    else:
        largest = 0.0  # no row is certain
    smallest = float(np.finfo(dtype).tiny) * (n_features + 8)
    columns = np.empty(n_features * n_places, dtype=dtype)
    are_small = bool(norms.max() < LARGEST)
    return SparseCenters(rows, norms, columns, starts, kappa, smallest, largest, are_small)


@kernel
def fill_columns(
    rows,  # IN (K, d) float64
    start,  # IN first column of this chunk
    stop,  # IN one past the last
    n_places,  # IN S
    columns,  # OUT (d * S,) float
):
    """Transpose centres, times -2; a block of columns at a time, so that rows are read in lines."""
    for first in range(start, stop, COLUMN_BLOCK):
        end = min(stop, first + COLUMN_BLOCK)
        for j in range(rows.shape[0]):
            for t in range(first, end):
                columns[np.uintp(t * n_places + j)] = -2.0 * rows[np.uintp(j), np.uintp(t)]
        for t in range(first, end):
            for j in range(rows.shape[0], n_places):
                columns[np.uintp(t * n_places + j)] = 0.0


@part
def spread(
    points,  # IN SparsePoints
    i,  # IN which row
    row,  # INOUT (1, d) float64, zeros; holds the row afterwards
):
    """Write a row's values where they belong."""
    for k in range(np.int64(points.indptr[i]), np.int64(points.indptr[i + 1])):
        row[0, np.uintp(points.indices[np.uintp(k)])] = points.data[np.uintp(k)]


@part
def clear(
    points,  # IN SparsePoints
    i,  # IN which row
    row,  # INOUT (1, d) float64, holds the row; zeros afterwards
):
    """Take a row's values back."""
    for k in range(np.int64(points.indptr[i]), np.int64(points.indptr[i + 1])):
        row[0, np.uintp(points.indices[np.uintp(k)])] = 0.0


@part
def nearest_of(
    points,  # IN SparsePoints
    i,  # IN which row
    norm,  # IN float64, its squared norm
    centers,  # IN SparseCenters
    scores,  # IN (S,) float
    limit,  # IN float64, centres with a higher score are farther for certain
    row,  # WORK (1, d) float64, zeros
    close,  # WORK (K,) int64
    exact,  # WORK (K,) float64
):
    """The definition of a label; centres that are farther for certain are not looked at."""
    rows, norms = centers.rows, centers.norms
    n_centers, n_features = rows.shape
    low, high = np.int64(points.indptr[i]), np.int64(points.indptr[i + 1])
    n_close = 0
    for j in range(n_centers):
        close[n_close] = j
        n_close += not scores[j] > limit
    # |c|^2 has a rounding error of d units, the products and the exact distance likewise.
    kappa = (4.0 * n_features + 2.0 * (high - low) + 16.0) * EPS
    trusted = centers.are_small and norm < LARGEST
    threshold = np.inf
    if trusted:
        for c in range(n_close):
            j = close[c]
            product = 0.0
            for k in range(low, high):
                product += points.data[np.uintp(k)] * rows[j, np.uintp(points.indices[np.uintp(k)])]
            error = kappa * (norm + norms[j]) + (n_features + 8) * TINY
            exact[c] = norms[j] - 2.0 * product - error  # at least
            threshold = min(threshold, exact[c] + 2.0 * error)
    nearest = np.int64(-1)
    smallest = np.inf
    spread(points, i, row)
    for c in range(n_close):
        if trusted and exact[c] > threshold:
            continue
        sq_dist = squared_distance(row[0], rows, close[c])
        if sq_dist < smallest or nearest < 0:
            nearest = close[c]
            smallest = sq_dist
    clear(points, i, row)
    return nearest


@kernel
def label_sparse(
    points,  # IN SparsePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN SparseCenters
    labels,  # INOUT (n,) int32
    utilities,  # INOUT (K,) float64, of w (|x - second nearest|^2 - |x - c|^2)
):
    """Label rows ``start:stop``; returns how many labels changed, and how many near ties."""
    data, indices, indptr = points.data, points.indices, points.indptr
    columns, starts, norms = centers.columns, centers.starts, centers.norms
    n_centers, n_features = centers.rows.shape
    lanes = n_lanes(columns)
    scores = np.empty(starts.size, columns.dtype)
    least, following = np.empty(lanes, columns.dtype), np.empty(lanes, columns.dtype)
    place = np.empty(lanes, np.int32)
    row = np.zeros((1, n_features), np.float64)
    close, exact = np.empty(n_centers, np.int64), np.empty(n_centers, np.float64)
    eps = np.float64(np.finfo(columns.dtype).eps)
    n_changed = 0
    n_exact = 0
    for i in range(start, stop):
        low, high = np.int64(indptr[i]), np.int64(indptr[i + 1])
        count = high - low
        row_scores(data, indices, low, count, columns, starts, scores)
        two_least_of_lanes(scores, least, following, place)
        norm = 0.0
        for k in range(low, high):
            value = np.float64(data[np.uintp(k)])
            norm += value * value
        best, second = least[0], following[0]
        lane = 0
        for l in range(1, lanes):
            second = min(second, max(best, least[l]), following[l])
            lane = l if least[l] < best else lane
            best = min(best, least[l])
        label = min(
            np.int64(place[lane]), n_centers - 1
        )  # where sums overflow, it may be any place
        blocks = min(count, SUM_BLOCK) + (count + SUM_BLOCK - 1) // SUM_BLOCK
        kappa = (blocks + 16) * eps + 4.0 * n_features * EPS
        margin = 2.0 * kappa * norm + (kappa + centers.kappa) * norms[label] + centers.smallest
        trusted = norm < centers.largest
        if not (trusted and np.float64(second) - np.float64(best) > margin):
            limit = np.float64(best) + margin if trusted else np.inf
            label = nearest_of(points, i, norm, centers, scores, limit, row, close, exact)
            n_exact += 1
        if labels[i] != label:
            labels[i] = label
            n_changed += 1
        weight = weights[i * weight_step]
        if weight > 0.0:
            utilities[label] += weight * (np.float64(second) - np.float64(best))
    return n_changed, n_exact


@kernel
def sort_by_label(
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    labels,  # IN (n,) int32
    ends,  # OUT (K,) int64, rows of cluster j are order[ends[j - 1] : ends[j]]
    order,  # OUT (n,) int32 or int64, rows of positive weight, cluster by cluster
):
    """Rows of each cluster, in the order of their numbers."""
    ends[:] = 0
    for i in range(labels.size):
        ends[np.uintp(labels[i])] += weights[i * weight_step] > 0.0
    total = 0
    for j in range(ends.size):
        ends[j], total = total, total + ends[j]
    for i in range(labels.size):
        if weights[i * weight_step] > 0.0:
            label = np.uintp(labels[i])
            order[np.uintp(ends[label])] = i
            ends[label] += 1


@kernel
def add_up_sparse(
    points,  # IN SparsePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    order,  # IN as by sort_by_label
    ends,  # IN (K,) int64
    start,  # IN first cluster of this chunk
    stop,  # IN one past the last
    centers,  # IN SparseCenters
    sums,  # INOUT (K, d) float64, of w x
    sizes,  # INOUT (K,) float64, of w
    sq_errors,  # INOUT (K,) float64, of w |x - c|^2
):
    """Add the rows of clusters ``start:stop`` to their sums.

    ``|x - c|^2`` is what the row's values contribute, plus |c|^2 of the other columns: |c|^2 minus
    that of the row's columns. Where a row lies on its centre, only rounding errors would be left of
    that difference; such errors are added up over all columns, and so are those of short rows.
    """
    data, indices, indptr = points.data, points.indices, points.indptr
    rows, norms = centers.rows, centers.norms
    n_features = rows.shape[1]
    row = np.zeros((1, n_features), np.float64)
    flat = rows.ravel()
    for j in range(start, stop):
        norm = norms[j]
        for place in range(ends[j - 1] if j else 0, ends[j]):
            i = np.int64(order[np.uintp(place)])
            weight = weights[i * weight_step]
            low, high = np.int64(indptr[i]), np.int64(indptr[i + 1])
            error, covered = 0.0, 0.0
            for k in range(low, high):
                x = np.float64(data[np.uintp(k)])
                at = np.uintp(np.uintp(j * n_features) + np.uintp(indices[np.uintp(k)]))
                c = flat[at]
                error += (x - c) * (x - c)
                covered += c * c
                sums[np.uintp(j), np.uintp(indices[np.uintp(k)])] += weight * x
            error += norm - covered
            if n_features <= 4 * (high - low) or not error > NEAR * norm:
                spread(points, i, row)
                error = sq_error(flat, j * n_features, row, 0, n_features)
                clear(points, i, row)
            sizes[j] += weight
            sq_errors[j] += weight * error
