"""The fast Walsh-Hadamard transform of rows, in an order of additions that is always the same.

Each output is a sum of all inputs with signs, so that it needs log2(width) additions instead of a
product with a matrix; and a row's result depends neither on other rows nor on a BLAS library.
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

    The matrix is symmetric, so that this is its own inverse.
    """
    scale = rows.dtype.type(1.0 / np.sqrt(width))
    for i in range(start, stop):
        half = 1
        while half < width:
            for at in range(0, rows.shape[1], 2 * half):
                for t in range(at, at + half):
                    a, b = rows[i, t], rows[i, t + half]
                    rows[i, t] = a + b
                    rows[i, t + half] = a - b
            half *= 2
        for t in range(rows.shape[1]):
            rows[i, t] *= scale
