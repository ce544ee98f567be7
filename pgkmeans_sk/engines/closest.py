"""How far rows are from the centres of their clusters, and which are nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.distances import fill_sq_errors, find_closest
from pgkmeans_sk.kernels.points import dense_points
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads, run_tasks

LENGTH_NUMBERS = 2**17
"""Values of the rows whose lengths a thread finds at a time."""


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


def sq_lengths(rows: NDArray[np.floating]) -> FloatArray:
    """Squared length (n,) of each row, float64.

    Squares are added in the order of the features: a row has the same bits in any company, and
    however it lies in memory.
    """
    n, d = rows.shape
    bounds = np.append(np.arange(0, n, max(1, LENGTH_NUMBERS // d)), n)
    labels, origin = np.zeros(n, dtype=np.int32), np.zeros((1, d))
    return own_sq_errors(dense_points(rows), labels, origin, bounds, effective_n_threads())


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
    found = np.take_along_axis(numbers, best_chunks(errors, numbers >= 0)[np.newaxis], axis=0)[0]
    return np.asarray(found[found >= 0])


def best_chunks(errors: FloatArray, has_row: NDArray[np.bool_]) -> IntArray:
    """Number (K,) of the first chunk with the least of the ``errors`` (n_chunks, K)."""
    # By error, then chunks that have a row, in their order: an error may overflow, and still count.
    order: IntArray = np.lexsort((~has_row, errors), axis=0)
    return np.asarray(order[0])


def closest_of_clusters(
    points: Any,
    weights: NDArray[np.float64],
    weight_step: int,
    labels: NDArray[np.int32],
    centers: NDArray[np.floating],
) -> tuple[FloatArray, IntArray]:
    """Squared error (K,) and number (K,) of the row nearest to each centre; -1 if it has none."""
    rows = np.ascontiguousarray(centers, dtype=np.float64)
    norms = np.einsum("jt,jt->j", rows, rows)
    errors, numbers = np.full(len(rows), np.inf), np.full(len(rows), -1, dtype=np.int64)
    find_closest(
        points, weights, weight_step, 0, len(labels), rows.ravel(), norms, labels, errors, numbers
    )
    return errors, numbers
