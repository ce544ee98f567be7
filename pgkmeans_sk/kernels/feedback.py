"""Choosing code words so that a layer's output stays: block after block, errors handed on.

A row of errors e costs ``e H e`` with H (d, d) symmetric. Both kernels take a tile of rows through
the blocks of columns together, so that the few rows of H (or of its factor) that a block needs are
read once for all of them. Rows do not depend on one another.

Note [One search]
~~~~~~~~~~~~~~~~~
Both choose, for a block, the word c that is least in ``c M c - 2 u . c`` with a metric M (b, b) of
the block and a vector u (b,): numbers of all words side by side, so that loops become vectors.
``lookup`` holds -2 times the words, value by value, with room for whole vectors behind them; there
``norms`` (``c M c``) is infinite, so that padding is never chosen. Of equal ones the first wins.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part

TILE_ROWS = 8
"""Rows that go through the blocks together."""
LANES = 8
"""Words whose minimum is kept side by side."""
GROUP = 4
"""Values of a word that are multiplied in one go."""


@part
def fill_values(
    lookup,  # IN (b padded to groups, K padded to lanes) float64
    norms,  # IN (K padded,) float64
    vector,  # IN (b padded,) float64
    values,  # OUT (K padded,) float64
):
    """``values = norms + vector @ lookup``: Note [One search]."""
    for t in range(0, lookup.shape[0], GROUP):
        a, b, c, d = vector[t], vector[t + 1], vector[t + 2], vector[t + 3]
        first, second, third, fourth = lookup[t], lookup[t + 1], lookup[t + 2], lookup[t + 3]
        if t == 0:
            for k in range(np.uintp(values.size)):
                values[k] = norms[k] + a * first[k] + b * second[k] + c * third[k] + d * fourth[k]
        else:
            for k in range(np.uintp(values.size)):
                values[k] += a * first[k] + b * second[k] + c * third[k] + d * fourth[k]


@part
def first_least(
    values,  # IN (K padded,) float64
    least,  # WORK (LANES,) float64
    least_at,  # WORK (LANES,) int64
):
    """Number of the first of the least values."""
    for l in range(LANES):
        least[l] = values[l]
        least_at[l] = 0
    for k in range(LANES, values.size, LANES):
        for l in range(LANES):
            value = values[np.uintp(k + l)]
            closer = value < least[l]
            least[l] = value if closer else least[l]
            least_at[l] = k if closer else least_at[l]
    best, best_at = least[0], least_at[0]
    for l in range(1, LANES):
        at = least_at[l] + l
        if least[l] < best or (least[l] == best and at < best_at):
            best, best_at = least[l], at
    return best_at


@kernel
def sweep_rows(
    targets,  # INOUT (n, d) float64: rows; as it goes on, what each block had to stand for
    metric,  # IN (d, b) float64: a block's metric in its rows
    spread,  # IN (d, d) float64: what later columns take over of a block's errors
    words,  # IN (K, b) float64
    lookup,  # IN (b padded, K padded) float64, -2 times the words
    norms,  # IN (n_blocks, K padded) float64, of each word in each block's metric
    start,  # IN first row
    stop,  # IN one past the last
    codes,  # OUT (n, n_blocks) int32
):
    """One sweep of error feedback over the rows ``start:stop``."""
    n_features, size = targets.shape[1], words.shape[1]
    vector, error = np.zeros(lookup.shape[0]), np.empty(size)
    values, least = np.empty(lookup.shape[1]), np.empty(LANES)
    least_at = np.empty(LANES, np.int64)
    for first in range(start, stop, TILE_ROWS):
        last = min(first + TILE_ROWS, stop)
        for p in range(codes.shape[1]):
            low = p * size
            high = min(low + size, n_features)
            for t in range(high - low, size):
                vector[t] = 0.0
            for i in range(first, last):
                for t in range(high - low):
                    total = 0.0
                    for s in range(high - low):
                        total += metric[low + t, s] * targets[i, low + s]
                    vector[t] = total
                fill_values(lookup, norms[p], vector, values)
                code = first_least(values, least, least_at)
                codes[i, p] = code
                row = targets[i]
                for t in range(high - low):
                    error[t] = row[low + t] - words[code, t]
                for t in range(high - low):
                    factor, shares = error[t], spread[low + t]
                    for j in range(np.uintp(high), np.uintp(n_features)):
                        row[j] -= factor * shares[j]


@kernel
def descend_rows(
    gradient,  # INOUT (n, d) float64: (rows - decoded rows) @ H
    metric,  # IN (d, d) float64, H
    words,  # IN (K, b) float64
    lookup,  # IN (b padded, K padded) float64, -2 times the words
    norms,  # IN (n_blocks, K padded) float64, of each word in its block of H
    pinned,  # IN (n, n_blocks) bool: codes that stay
    start,  # IN first row
    stop,  # IN one past the last
    codes,  # INOUT (n, n_blocks) int32
):
    """Give each block of rows ``start:stop`` in turn the word that is best beside all others.

    Returns how many codes changed.
    """
    n_features, size = gradient.shape[1], words.shape[1]
    vector = np.zeros(lookup.shape[0])
    values, least = np.empty(lookup.shape[1]), np.empty(LANES)
    least_at = np.empty(LANES, np.int64)
    n_changed = 0
    for first in range(start, stop, TILE_ROWS):
        last = min(first + TILE_ROWS, stop)
        for p in range(codes.shape[1]):
            low = p * size
            high = min(low + size, n_features)
            for t in range(high - low, size):
                vector[t] = 0.0
            for i in range(first, last):
                if pinned[i, p]:
                    continue
                old, row = codes[i, p], gradient[i]
                for t in range(high - low):
                    total = row[low + t]
                    for s in range(high - low):
                        total += metric[low + t, low + s] * words[old, s]
                    vector[t] = total
                fill_values(lookup, norms[p], vector, values)
                code = first_least(values, least, least_at)
                if not values[code] < values[old]:
                    continue
                codes[i, p] = code
                n_changed += 1
                for t in range(high - low):
                    factor, shares = words[code, t] - words[old, t], metric[low + t]
                    for j in range(np.uintp(n_features)):
                        row[j] -= factor * shares[j]
    return n_changed


@kernel
def add_to_words(
    rows,  # IN (n, d) float64
    codes,  # IN (n, n_blocks) int32
    start,  # IN first row
    stop,  # IN one past the last
    sums,  # INOUT (K, b) float64
):
    """Add each block of rows ``start:stop`` to the sum of its word."""
    n_features, size = rows.shape[1], sums.shape[1]
    for i in range(start, stop):
        for p in range(codes.shape[1]):
            low, code = p * size, codes[i, p]
            for t in range(min(size, n_features - low)):
                sums[code, t] += rows[i, low + t]
