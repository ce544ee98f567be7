"""Values and few levels for them: bins of equal width, and the nearest of some words."""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel


@kernel
def find_bins(
    rows,  # IN (p, n) floating
    words,  # OUT (p, K) float64, the mean of each bin's values; its middle if there are none
    codes,  # OUT (p, n) uint8, bins
    begin, end,  # IN rows
):  # fmt: skip
    """Cut each row's range, from its least to its greatest value, into K bins of equal width."""
    n, n_words = rows.shape[1], words.shape[1]
    counts = np.empty(n_words)
    for p in range(begin, end):
        row, means = rows[p], words[p]
        low, high = np.float64(row.min()), np.float64(row.max())
        width = (high - low) / n_words
        means[:] = 0.0
        counts[:] = 0.0
        for i in range(n):
            number = 0
            if width > 0.0:
                number = min(np.int64((row[i] - low) / width), n_words - 1)
            codes[p, i] = number
            counts[number] += 1.0
            means[number] += row[i] - low  # small sums, so that no digits are lost
        for j in range(n_words):
            if counts[j] > 0.0:
                means[j] = low + means[j] / counts[j]
            else:
                means[j] = low + (j + 0.5) * width


@kernel
def find_nearest(
    rows,  # IN (p, n) floating
    words,  # IN (p, K) float64, each row rising; K is a power of two
    codes,  # OUT (p, n) uint8
    begin, end,  # IN rows
):  # fmt: skip
    """The nearest of its row's words for each value; of several, the first."""
    n, n_words = rows.shape[1], words.shape[1]
    middles = np.empty(n_words - 1)
    firsts = np.empty(n_words, np.uint8)  # of words that are equal
    for p in range(begin, end):
        firsts[0] = 0
        for j in range(1, n_words):
            middles[j - 1] = 0.5 * words[p, j - 1] + 0.5 * words[p, j]
            firsts[j] = firsts[j - 1] if words[p, j] == words[p, j - 1] else j
        for i in range(n):
            value = np.float64(rows[p, i])
            number = 0
            half = n_words // 2
            while half:
                number += half if value > middles[number + half - 1] else 0
                half //= 2
            codes[p, i] = firsts[number]


@kernel
def sum_sq_errors(
    rows,  # IN (p, n) floating
    words,  # IN (p, K) floating
    codes,  # IN (p, n) uint8
    sq_errors,  # OUT (p,) float64
    begin, end,  # IN rows
):  # fmt: skip
    """Squared error of each row's codes."""
    for p in range(begin, end):
        total = 0.0
        for i in range(rows.shape[1]):
            total += (np.float64(rows[p, i]) - words[p, codes[p, i]]) ** 2
        sq_errors[p] = total
