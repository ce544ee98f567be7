"""How far rows are from the centres of their clusters, and which are nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.distances import fill_sq_errors, find_closest
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import run_tasks


def own_sq_errors(
    points: Any,
    labels: NDArray[np.int32],
    centers: NDArray[np.floating],
    bounds: IntArray,
    n_threads: int,
) -> FloatArray:
    """Squared distance (n,) of each row to its own centre."""
    rows = np.ascontiguousarray(centers, dtype=np.float64)
    result = np.empty(len(labels))

    def fill_chunk(c: int) -> None:
        fill_sq_errors(points, bounds[c], bounds[c + 1], rows, labels, result)

    run_tasks(fill_chunk, len(bounds) - 1, n_threads)
    return result


def closest_numbers(
    points: Any,
    weights: NDArray[np.float64],
    weight_step: int,
    labels: NDArray[np.int32],
    centers: NDArray[np.floating],
    bounds: IntArray,
    n_threads: int,
) -> IntArray:
    """Number of the row nearest to its centre, for each cluster with rows of positive weight.

    Of rows that are equally near it is the first; clusters come in the order of their numbers.
    """
    rows = np.ascontiguousarray(centers, dtype=np.float64)
    norms = np.einsum("jt,jt->j", rows, rows)
    errors = np.full((len(bounds) - 1, len(rows)), np.inf)
    numbers = np.full(errors.shape, -1, dtype=np.int64)

    def search_chunk(c: int) -> None:
        find_closest(
            points, weights, weight_step, bounds[c], bounds[c + 1], rows.ravel(), norms, labels,
            errors[c], numbers[c],
        )  # fmt: skip

    run_tasks(search_chunk, len(errors), n_threads)
    # By error, then chunks that have a row, in their order: an error may overflow, and still count.
    of_chunk = np.lexsort((numbers < 0, errors), axis=0)[0]
    found = np.take_along_axis(numbers, of_chunk[np.newaxis], axis=0)[0]
    return np.asarray(found[found >= 0])
