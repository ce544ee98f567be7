"""How kernels see the user's rows, dense or sparse, without a copy.

``sq_dist_to``, ``sq_dist_at``, ``dot_with``, ``add_row`` and ``copy_row`` are the whole vocabulary:
Numba picks the dense or the sparse form by the type of ``points`` when it compiles the kernel that
calls them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from pgkmeans_sk.kernels.errors import row_product, sq_error


class DensePoints(NamedTuple):
    """Rows of a dense matrix: element (i, t) is ``base[i * row_step + t * column_step]``.

    A flat base makes C-ordered, Fortran-ordered, sliced and read-only matrices one type for Numba.
    """

    base: np.ndarray  # (span,) read-only
    row_step: int
    column_step: int
    n_features: int


class SparsePoints(NamedTuple):
    """Rows of a matrix in CSR form, each column at most once in a row."""

    data: np.ndarray  # (nnz,) read-only
    indices: np.ndarray  # (nnz,) read-only
    indptr: np.ndarray  # (n + 1,) read-only
    n_features: int


Points = DensePoints | SparsePoints


def dense_points(X: np.ndarray) -> DensePoints:
    """View ``X`` (n, d), of any strides, as a flat array and two steps."""
    n_rows, n_features = X.shape
    odd_steps = any(stride % X.itemsize for stride in X.strides) or min(X.strides) < 0
    if odd_steps or not X.flags.aligned:
        X = np.array(X, order="C")  # fields of records, reversed rows: rare, copied
    row_step, column_step = (stride // X.itemsize for stride in X.strides)
    span = 1 + (n_rows - 1) * row_step + (n_features - 1) * column_step
    base = np.lib.stride_tricks.as_strided(X, (span,), (X.itemsize,), writeable=False)
    return DensePoints(base, row_step, column_step, n_features)


def sparse_points(X: Any) -> SparsePoints:
    """View the CSR matrix ``X`` (n, d); one with repeated entries is copied to add them up."""
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    data, indices, indptr = X.data.view(), X.indices.view(), X.indptr.view()
    for part in (data, indices, indptr):
        part.flags.writeable = False
    return SparsePoints(data, indices, indptr, X.shape[1])


def sq_dist_to(points, i, vector, vector_norm):
    """``|x_i - vector|^2`` in float64, for ``vector`` (d,) with ``vector_norm = |vector|^2``."""
    raise NotImplementedError("only inside kernels")


def sq_dist_at(points, i, vectors, at, vector_norm):
    """The same for one of several vectors, ``vectors[at : at + d]``, without making it an array."""
    raise NotImplementedError("only inside kernels")


def dot_with(points, i, vector):
    """``x_i . vector`` in float64."""
    raise NotImplementedError("only inside kernels")


def add_row(points, i, weight, target):
    """``target += weight * x_i``, for ``target`` (d,) float64."""
    raise NotImplementedError("only inside kernels")


def copy_row(points, i, target):
    """``target = x_i``, for ``target`` (d,) float64."""
    raise NotImplementedError("only inside kernels")


def _is_dense(points: Any) -> bool:
    return points.instance_class is DensePoints


@overload(sq_dist_to)
def _sq_dist_to(points, i, vector, vector_norm):
    def dense(points, i, vector, vector_norm):
        at = i * points.row_step
        step = points.column_step
        if step == 1:
            return sq_error(points.base, at, vector, 0, points.n_features)
        # The same in the same order: four sums side by side.
        sum0 = sum1 = sum2 = sum3 = 0.0
        whole = points.n_features - points.n_features % 4
        for t in range(0, whole, 4):
            sum0 += (points.base[at + t * step] - vector[t]) ** 2
            sum1 += (points.base[at + (t + 1) * step] - vector[t + 1]) ** 2
            sum2 += (points.base[at + (t + 2) * step] - vector[t + 2]) ** 2
            sum3 += (points.base[at + (t + 3) * step] - vector[t + 3]) ** 2
        for t in range(whole, points.n_features):
            sum0 += (points.base[at + t * step] - vector[t]) ** 2
        return (sum0 + sum1) + (sum2 + sum3)

    def sparse(points, i, vector, vector_norm):
        total = vector_norm
        for k in range(points.indptr[i], points.indptr[i + 1]):
            value = np.float64(points.data[k])
            total += value * (value - 2.0 * vector[points.indices[k]])
        return max(total, 0.0)

    return dense if _is_dense(points) else sparse


@overload(sq_dist_at)
def _sq_dist_at(points, i, vectors, at, vector_norm):
    def dense(points, i, vectors, at, vector_norm):
        total = 0.0
        for t in range(points.n_features):
            x = np.float64(points.base[np.uintp(i * points.row_step + t * points.column_step)])
            difference = x - vectors[at + np.uintp(t)]
            total += difference * difference
        return total

    def sparse(points, i, vectors, at, vector_norm):
        total = vector_norm
        for k in range(points.indptr[i], points.indptr[i + 1]):
            value = np.float64(points.data[k])
            total += value * (value - 2.0 * vectors[at + np.uintp(points.indices[k])])
        return max(total, 0.0)

    return dense if _is_dense(points) else sparse


@overload(dot_with)
def _dot_with(points, i, vector):
    def dense(points, i, vector):
        at = i * points.row_step
        step = points.column_step
        if step == 1:
            return row_product(points.base, at, vector, 0, points.n_features)
        # The same in the same order: four sums side by side.
        sum0 = sum1 = sum2 = sum3 = 0.0
        whole = points.n_features - points.n_features % 4
        for t in range(0, whole, 4):
            sum0 += points.base[at + t * step] * vector[t]
            sum1 += points.base[at + (t + 1) * step] * vector[t + 1]
            sum2 += points.base[at + (t + 2) * step] * vector[t + 2]
            sum3 += points.base[at + (t + 3) * step] * vector[t + 3]
        for t in range(whole, points.n_features):
            sum0 += points.base[at + t * step] * vector[t]
        return (sum0 + sum1) + (sum2 + sum3)

    def sparse(points, i, vector):
        total = 0.0
        for k in range(points.indptr[i], points.indptr[i + 1]):
            total += points.data[k] * vector[points.indices[k]]
        return total

    return dense if _is_dense(points) else sparse


@overload(add_row)
def _add_row(points, i, weight, target):
    def dense(points, i, weight, target):
        at = i * points.row_step
        if points.column_step == 1:
            for t in range(points.n_features):
                target[np.uintp(t)] += weight * points.base[np.uintp(at + t)]
        else:
            for t in range(points.n_features):
                target[t] += weight * points.base[at + t * points.column_step]

    def sparse(points, i, weight, target):
        for k in range(points.indptr[i], points.indptr[i + 1]):
            target[points.indices[k]] += weight * points.data[k]

    return dense if _is_dense(points) else sparse


@overload(copy_row)
def _copy_row(points, i, target):
    def dense(points, i, target):
        at = i * points.row_step
        for t in range(points.n_features):
            target[t] = points.base[at + t * points.column_step]

    def sparse(points, i, target):
        for t in range(points.n_features):
            target[t] = 0.0
        for k in range(points.indptr[i], points.indptr[i + 1]):
            target[points.indices[k]] = points.data[k]

    return dense if _is_dense(points) else sparse
