"""Moments of the columns.

Of a small table NumPy finds them, in the same order and so to the same bits, until the kernel lies
ready: a first fit need not wait for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import add_in_order
from pgkmeans_sk.engines.small_kernels import arguments_for, kind_of
from pgkmeans_sk.kernels import distances
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import run_tasks

SMALL_NUMBERS = 2**18
"""In the rows of a small table: NumPy takes a millisecond for them, where it is to."""


def mean_variance(
    X: Any,
    points: Any,
    weights: NDArray[np.float64],
    weight_step: int,
    is_sparse: bool,
    origin: NDArray[np.floating],
    bounds: IntArray,
    n_threads: int,
) -> float:
    """Weighted variance of the columns, averaged over the columns.

    ``points`` are the rows ``X`` as kernels take them; ``origin`` (d,) is a point near them (zero,
    if they are sparse).
    """
    n_chunks = len(bounds) - 1
    moments = np.zeros((2, n_chunks, len(origin)))
    sums = np.zeros(n_chunks)
    near = origin.astype(np.float64)

    def add_chunk(c: int) -> None:
        rows = points, weights, weight_step, bounds[c], bounds[c + 1]
        if is_sparse:
            sums[c] = distances.add_sparse_moments(*rows, moments[0, c], moments[1, c])
        else:
            sums[c] = distances.add_moments(*rows, near, moments[0, c], moments[1, c])

    def first_arguments() -> tuple[Any, ...]:
        rows = points, weights, weight_step, bounds[0], bounds[1]
        return (*rows, near, moments[0, 0], moments[1, 0])

    is_small = not is_sparse and X.size <= SMALL_NUMBERS
    kind = kind_of(points.base, weights) if is_small else ()
    if is_small and arguments_for(distances.add_moments, kind, first_arguments) is None:
        for c in range(n_chunks):
            chunk = slice(bounds[c], bounds[c + 1])
            found = moments_of(X[chunk], weights[chunk] if weight_step else None, near)
            moments[0, c], moments[1, c], sums[c] = found
    else:
        run_tasks(add_chunk, n_chunks, n_threads)
    return variance_of(
        add_in_order(moments[0]), add_in_order(moments[1]), float(add_in_order(sums))
    )


def moments_of(
    rows: NDArray[np.floating], weights: FloatArray | None, origin: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """What ``kernels.distances.add_moments`` adds up, from zero on."""
    shifted = np.zeros((1 + len(rows), len(origin)))
    np.subtract(rows, origin, out=shifted[1:])
    if weights is None:
        weighted, total = shifted, float(len(rows))
    else:
        with_zero = np.append(0.0, weights)
        weighted, total = with_zero[:, np.newaxis] * shifted, float(np.cumsum(with_zero)[-1])
    # Not np.sum: that one may add pairs of halves.
    return np.cumsum(weighted, axis=0)[-1], np.cumsum(weighted * shifted, axis=0)[-1], total


def variance_of(sums: FloatArray, squares: FloatArray, total: float) -> float:
    """The same of the moments (d,) of all rows about a point, and of their weight."""
    mean, square = sums / total, squares / total
    return float(np.maximum(square - mean**2, 0.0).mean())
