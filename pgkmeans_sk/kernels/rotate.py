"""Rows times orthogonal matrices, in an order of additions that is always the same.

A product by a BLAS library may give a row other bits in other company. Here each row's result
depends on that row alone, so that some rows decode to exactly what they are among all.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel


@kernel
def transform_pieces(
    rows,  # INOUT (n, d) float32 or float64, C order: each piece is replaced by its transform
    width,  # a power of two that divides d: how long a piece is
    start,  # first row
    stop,  # one past the last
):
    """Multiply each piece of ``width`` columns by the Hadamard matrix, scaled to be orthogonal.

    The fast Walsh-Hadamard transform: log2(width) additions for each value. The matrix is
    symmetric, so that this is its own inverse.
    """
    scale = rows.dtype.type(1.0 / np.sqrt(width))
    for i in range(start, stop):
        half = 1
        while half < width:
            for at in range(0, rows.shape[1], 2 * half):
                for t in range(np.uintp(at), np.uintp(at + half)):
                    a, b = rows[i, t], rows[i, t + np.uintp(half)]
                    rows[i, t] = a + b
                    rows[i, t + np.uintp(half)] = a - b
            half *= 2
        for t in range(rows.shape[1]):
            rows[i, t] *= scale


@kernel
def mix_pieces(
    rows,  # IN (n, d) float32 or float64, C order
    columns,  # IN (m, m) of the same dtype: the transposed mixer; m divides d
    start,  # first row
    stop,  # one past the last
    mixed,  # OUT (n, d) of the same dtype, C order
):
    """Multiply the m pieces of each row by the mixer: piece a = sum_b mixer[a, b] piece b.

    Sums run over b, so that the inner loops have no order of additions to keep and can be vectors.
    """
    m = columns.shape[0]
    width = rows.shape[1] // m
    for i in range(start, stop):
        for t in range(rows.shape[1]):
            mixed[i, t] = 0.0
        for b in range(m):
            if width == 1:
                x = rows[i, b]
                for a in range(np.uintp(m)):
                    mixed[i, a] += columns[b, a] * x
            else:
                for a in range(m):
                    factor = columns[b, a]
                    for t in range(np.uintp(width)):
                        mixed[i, np.uintp(a * width) + t] += (
                            factor * rows[i, np.uintp(b * width) + t]
                        )
