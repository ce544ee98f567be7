"""Moments of the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import add_in_order
from pgkmeans_sk.kernels import distances
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import run_tasks


def mean_variance(
    points: Any,
    weights: NDArray[np.float64],
    weight_step: int,
    is_sparse: bool,
    origin: NDArray[np.floating],
    bounds: IntArray,
    n_threads: int,
) -> float:
    """Weighted variance of the columns, averaged over the columns.

    ``origin`` (d,) is a point near the rows (zero, if they are sparse).
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

    run_tasks(add_chunk, n_chunks, n_threads)
    return variance_of(
        add_in_order(moments[0]), add_in_order(moments[1]), float(add_in_order(sums))
    )


def variance_of(sums: FloatArray, squares: FloatArray, total: float) -> float:
    """The same of the moments (d,) of all rows about a point, and of their weight."""
    mean, square = sums / total, squares / total
    return float(np.maximum(square - mean**2, 0.0).mean())
