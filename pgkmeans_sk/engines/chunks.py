"""The order in which sums over all rows are added up: one rule for all engines.

Rows are cut into chunks. Each chunk adds up its rows one after the other, and chunks are then added
up one after the other. Where they begin depends on the shape of the problem alone: not on threads,
nor on who holds which rows, in blocks of what size. An engine that keeps to this order finds the
same bits as any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.results import Assignment, FloatArray, IntArray

MAX_CHUNKS = 64
CHUNK_WORK = 3_000_000
"""Multiplications in a chunk, about: 0.1 ms, several times the price of handing it out."""
ROW_WORK = 400
FEATURE_WORK = 16
"""What a row costs in a pass before it meets the first centre, in multiplications: to bring it into
the kernel's layout and to add it up."""
PARTIAL_SUM_BYTES = 2**25
"""Memory for the chunks' partial sums, beyond four times the sums themselves."""
ORIGIN_ROWS = 256


def chunk_bounds(n_rows: int, work: int, partial_bytes: int = 0) -> IntArray:
    """Bounds of the chunks of ``n_rows`` rows that take ``work`` multiplications together."""
    by_memory = max(4, PARTIAL_SUM_BYTES // partial_bytes) if partial_bytes else MAX_CHUNKS
    n_chunks = max(1, min(round(work / CHUNK_WORK), by_memory, MAX_CHUNKS))
    if n_chunks == 1:
        return np.array([0, n_rows])
    n_chunks += n_chunks % 2  # for two cores, or four
    return np.linspace(0, n_rows, n_chunks + 1).astype(np.int64)


def pass_work(n_rows: int, centers: NDArray[np.floating]) -> int:
    """What a pass of all rows over ``centers`` (K, d) costs, in multiplications."""
    per_row = centers.size + FEATURE_WORK * centers.shape[1] + ROW_WORK
    return int(n_rows * per_row)


def pass_bounds(n_rows: int, centers: NDArray[np.floating]) -> IntArray:
    """Bounds of the chunks of a pass that adds up rows for each of ``centers`` (K, d)."""
    return chunk_bounds(n_rows, pass_work(n_rows, centers), partial_bytes=8 * centers.size)


def origin_step(n_rows: int) -> int:
    """Each so many rows one is taken to find a point near the bulk of them."""
    return 1 + (n_rows - 1) // ORIGIN_ROWS


def medians(rows: NDArray[Any]) -> NDArray[Any]:
    """The median of each column of ``rows`` (m, d), without NaN among them.

    ``np.median`` has the same bits; for a few hundred rows this takes a fifth of its time.
    """
    columns = np.array(rows.T, order="C")
    columns.sort(axis=1)
    middle = len(rows) // 2
    if len(rows) % 2:
        return columns[:, middle]
    found: NDArray[Any] = (columns[:, middle - 1] + columns[:, middle]) / 2
    return found


def add_in_order(parts: NDArray[Any]) -> NDArray[Any]:
    """The sum of ``parts`` along the first axis, one after the other."""
    total: NDArray[Any] = parts[0]
    if len(parts) > 1:
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
    return total


def sums_to_assignment(
    sums: FloatArray,
    sizes: FloatArray,
    sq_errors: FloatArray,
    n_changed: int,
    centers: NDArray[np.floating],
) -> Assignment:
    """What the sums (K, d), (K,) and (K, 4) of a pass over all rows tell; ``sums`` are replaced."""
    if not sizes.all():
        sums /= np.where(sizes == 0.0, np.nan, sizes)[:, np.newaxis]
    else:
        sums /= sizes[:, np.newaxis]
    sums += centers  # rows were added up relative to their centres
    return Assignment(sums, sizes, sq_errors.sum(axis=1), n_changed)
