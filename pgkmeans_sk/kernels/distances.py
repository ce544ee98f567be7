"""Distances that are wanted themselves, not only their order: transform, farthest rows, moments."""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.points import DensePoints, add_row, copy_row, sq_dist_at
from pgkmeans_sk.kernels.steps import new_vector, weight_of


@kernel
def fill_sq_row(
    row,  # IN (d,) float64
    columns,  # IN (d, K) float64, the centres transposed
    sq_dist,  # OUT (K,) float64
):
    """Squared distances of one row to all centres, side by side; each is that of ``nearest.py``."""
    for j in range(sq_dist.size):
        sq_dist[j] = 0.0
    for t in range(row.size):
        x = row[t]
        for j in range(sq_dist.size):
            difference = x - columns[t, j]
            sq_dist[j] += difference * difference


def fill_sq_distances(points, i, columns, norms, row, sq_dist):
    """``sq_dist = |x_i - c_j|^2`` for all j; ``row`` (d,) is room to work in."""
    raise NotImplementedError("only inside kernels")


@overload(fill_sq_distances)
def _fill_sq_distances(points, i, columns, norms, row, sq_dist):
    def dense(points, i, columns, norms, row, sq_dist):
        copy_row(points, i, row)
        fill_sq_row(row, columns, sq_dist)

    def sparse(points, i, columns, norms, row, sq_dist):
        for j in range(sq_dist.size):
            sq_dist[j] = norms[j]
        norm = 0.0
        for k in range(points.indptr[i], points.indptr[i + 1]):
            value = np.float64(points.data[k])
            norm += value * value
            column = points.indices[k]
            for j in range(sq_dist.size):
                sq_dist[j] -= 2.0 * value * columns[column, j]
        for j in range(sq_dist.size):
            sq_dist[j] = max(sq_dist[j] + norm, 0.0)

    return dense if points.instance_class is DensePoints else sparse


@kernel
def fill_distances(
    points,  # IN Points
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    columns,  # IN (d, K) float64, the centres transposed
    distances,  # OUT (n, K) float
):
    """Distances to all centres: roots of the squared distances of ``nearest.py``."""
    n_features, n_centers = columns.shape
    row = np.empty(n_features, np.float64)
    sq_dist = np.empty(n_centers, np.float64)
    for i in range(start, stop):
        copy_row(points, i, row)
        fill_sq_row(row, columns, sq_dist)
        for j in range(n_centers):
            distances[i, j] = np.sqrt(sq_dist[j])


@kernel
def fill_sq_errors(
    points,  # IN Points
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN (K, d) float64
    labels,  # IN (n,) int32
    sq_errors,  # OUT (n,) float64
):
    """Squared distance of each row to its own centre."""
    n_features = centers.shape[1]
    row = np.empty(n_features, np.float64)
    for i in range(start, stop):
        copy_row(points, i, row)
        total = 0.0
        for t in range(n_features):
            difference = row[t] - centers[labels[i], t]
            total += difference * difference
        sq_errors[i] = total


@kernel
def find_closest(
    points,  # IN Points
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN (K * d,) float64
    norms,  # IN (K,) float64, their squared norms
    labels,  # IN (n,) int32
    sq_errors,  # INOUT (K,) float64, infinite at first; the least of each cluster
    numbers,  # INOUT (K,) int64, -1 at first; the row that has it
):
    """The row of each cluster that is nearest to its centre; the first one of equally near rows."""
    n_features = points.n_features
    for i in range(start, stop):
        if weight_of(weights, weight_step, i) > 0.0:
            label = np.uintp(labels[i])
            sq_error = sq_dist_at(points, i, centers, label * np.uintp(n_features), norms[label])
            if sq_error < sq_errors[label] or numbers[label] < 0:
                sq_errors[label] = sq_error
                numbers[label] = i


@kernel
def add_moments(
    points,  # IN Points
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    origin,  # IN (d,) float64, a point near the data
    sums,  # INOUT (d,) float64, of w (x - origin)
    squares,  # INOUT (d,) float64, of w (x - origin)^2
):
    """First and second moments of each column about ``origin``; returns the weight."""
    total = 0.0
    row = new_vector(origin.size, np.float64)
    for i in range(start, stop):
        weight = weight_of(weights, weight_step, i)
        total += weight
        copy_row(points, i, row)
        for t in range(origin.size):
            shifted = row[t] - origin[t]
            sums[t] += weight * shifted
            squares[t] += weight * shifted * shifted
    return total


@kernel
def add_sparse_moments(points, weights, weight_step, start, stop, sums, squares):
    """The same about zero, for sparse rows, at the cost of their stored values."""
    total = 0.0
    for i in range(start, stop):
        weight = weight_of(weights, weight_step, i)
        total += weight
        add_row(points, i, weight, sums)
        for k in range(points.indptr[i], points.indptr[i + 1]):
            squares[points.indices[k]] += weight * np.float64(points.data[k]) ** 2
    return total
