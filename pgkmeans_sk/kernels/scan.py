"""The rows of codes with the least scores for each query, by look-up tables.

All rows of a chunk are scored for a group of queries (``lookups.py``), and each query keeps its k
least in a heap whose root is the worst of them: a score that is not below the root is done with.

Rows are ordered by (score, row number), which leaves no ties; so the k least are the same set, in
the same order, however rows are cut into chunks.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.lookups import ROWS, n_lanes, score_alone, score_together

_LINE = 64
"""Bytes in a cache line: vectors that begin at multiples of their width never lie across two."""

_ENTRIES = 64
"""Numbers of a query's table that are interleaved before those of the next query's."""


@part
def interleave(
    tables,  # IN (q * size,) float
    size,  # IN intp, numbers in the tables of one query
    first,  # IN the first query of the group
    count,  # IN queries in the group, at most L
    lanes,  # IN L
    packed,  # OUT (at + size * L,) float, zeros in lanes without a query
    at,  # IN where to begin
):
    """Copy the tables of a group of queries into the layout of ``lookups.py``."""
    if count < lanes:
        packed[:] = 0.0
    for start in range(0, size, _ENTRIES):
        stop = min(start + _ENTRIES, size)
        for l in range(count):
            source, target = np.uintp((first + l) * size + start), np.uintp(at + start * lanes + l)
            for _ in range(stop - start):
                packed[target] = tables[source]
                source, target = source + np.uintp(1), target + np.uintp(lanes)


@part
def is_worse(score, row, other_score, other_row):
    """Larger scores are worse; of equal ones, the later row."""
    return score > other_score or (score == other_score and row > other_row)


@part
def rise(
    scores,  # INOUT (q, k) float
    rows,  # INOUT (q, k) int64
    query,  # IN whose heap it is
    held,  # IN how many it holds
    score,  # IN of the new row
    row,  # IN its number
):
    """Add a row to a heap with room."""
    hole = held
    while hole > 0:
        parent = (hole - 1) // 2
        if not is_worse(score, row, scores[query, parent], rows[query, parent]):
            break
        scores[query, hole], rows[query, hole] = scores[query, parent], rows[query, parent]
        hole = parent
    scores[query, hole], rows[query, hole] = score, row


@kernel
def sink(scores, rows, query, held, score, row):  # as in ``rise``
    """Put a row in the place of the root, the worst of the ``held`` rows."""
    hole, child = 0, 1
    while child < held:
        other = child + 1
        if other < held and is_worse(
            scores[query, other], rows[query, other], scores[query, child], rows[query, child]
        ):
            child = other
        if not is_worse(scores[query, child], rows[query, child], score, row):
            break
        scores[query, hole], rows[query, hole] = scores[query, child], rows[query, child]
        hole, child = child, 2 * child + 1
    scores[query, hole], rows[query, hole] = score, row


@kernel
def scan(
    tables,  # IN (q * n_columns * n_codes,) float
    n_columns,  # IN columns of codes
    n_codes,  # IN numbers in the table of one column
    first_query,  # IN first query of this task
    stop_query,  # IN one past the last
    codes,  # IN (span,) uint8 or uint16, below n_codes
    code_step,  # IN from one row of codes to the next
    first_row,  # IN first row of this task
    stop_row,  # IN one past the last; there are at least k
    base,  # IN (n,) or (1,) float
    base_step,  # IN 1, or 0 when one number serves all rows
    factor,  # IN (n,) or (1,) float
    factor_step,  # IN 1, or 0 when one number serves all rows
    best,  # OUT (q, k) float, the least scores in rising order
    rows,  # OUT (q, k) int64, the rows that have them
):
    """Find the k least of ``base[i] + factor[i] * sum_c tables[query, c, codes[i, c]]``."""
    n_best, size, lanes = best.shape[1], n_columns * n_codes, n_lanes(tables)
    room = size * lanes + _LINE if stop_query - first_query > 1 else 0
    packed = np.empty(room, tables.dtype)
    aligned = (-packed.ctypes.data) % _LINE // packed.itemsize
    limits, scores = np.empty(lanes, tables.dtype), np.empty(ROWS * lanes, tables.dtype)
    for first in range(first_query, stop_query, lanes):
        count = min(lanes, stop_query - first)
        if count > 1:
            interleave(tables, size, first, count, lanes, packed, aligned)
        for l in range(lanes):
            limits[l] = np.inf if l < count else -np.inf
        for i in range(first_row, stop_row, ROWS):
            if count > 1:
                step = lanes
                hits = score_together(
                    packed, aligned, codes, code_step, i, stop_row - 1, n_columns, n_codes,
                    base, base_step, factor, factor_step, limits, scores,
                )  # fmt: skip
            else:
                step = 1
                hits = score_alone(
                    tables, first * size, codes, code_step, i, stop_row - 1, n_columns, n_codes,
                    base, base_step, factor, factor_step, limits, scores,
                )  # fmt: skip
            held = i - first_row
            if hits == 0 and held >= n_best:
                continue
            for r in range(min(ROWS, stop_row - i)):
                if held + r < n_best:
                    for l in range(count):
                        rise(best, rows, first + l, held + r, scores[r * step + l], i + r)
                        if held + r + 1 == n_best:
                            limits[l] = best[first + l, 0]
                elif hits >> r & 1:
                    for l in range(count):
                        score = scores[r * step + l]
                        if score < limits[l]:
                            sink(best, rows, first + l, n_best, score, i + r)
                            limits[l] = best[first + l, 0]
        for query in range(first, first + count):
            for held in range(n_best - 1, 0, -1):
                score, row = best[query, held], rows[query, held]
                best[query, held], rows[query, held] = best[query, 0], rows[query, 0]
                sink(best, rows, query, held, score, row)
