"""Which errors count: a weight for each column, or a metric for the values of a block.

With activations x, the error of a layer's output is ``(w - w_hat) H (w - w_hat)`` with
``H = E[x x^T]`` (Stock et al. 2019, "And the bit goes down", section 3.2). Its diagonal is a weight
for each column; averaged over the blocks, it is one metric for all blocks. The mean stays the best
code word in any metric, so that k-means on ``L^T v`` with ``H = L L^T`` minimises just that error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_IMPORTANCE = 1e-6
"""Relative to the mean: without any, a column's values could be anything, infinity included."""
DAMPING = 1e-6
"""Added to the diagonal of a metric, relative to its mean: all directions stay finite."""


def column_scales_of(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """What columns are divided by, (d,), so that plain squared errors count by importance."""
    relative = importance / importance.mean()
    return np.asarray(1.0 / np.sqrt(np.maximum(relative, SMALLEST_IMPORTANCE)))


def factor_of(metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower triangular L (b, b) with ``L L^T = metric``, slightly damped."""
    damping = DAMPING * float(np.trace(metric)) / len(metric)
    return np.asarray(np.linalg.cholesky(metric + damping * np.eye(len(metric))))


def check_importance(importance: Any, n_features: int, block_size: int) -> NDArray[np.float64]:
    """The importance as float64: (d,) for columns, or (b, b) for the values of a block.

    Raises
    ------
    ValueError
        If it has another shape, values that are not finite, negative weights or none above 0, or
        is a matrix that is not symmetric and positive semi-definite.
    """
    array = np.asarray(importance, dtype=np.float64)
    shapes = (n_features,), (block_size, block_size)
    if array.shape not in shapes:
        raise ValueError(
            f"Got importance of shape {array.shape}, but expected {shapes[0]}, one weight for each "
            f"column, or {shapes[1]}, a metric for the values of a block."
        )
    if not np.isfinite(array).all():
        raise ValueError("Got importance with values that are not finite, but expected numbers.")
    if array.ndim == 1:
        if array.min() < 0.0 or array.max() == 0.0:
            raise ValueError(
                f"Got importance from {array.min():g} to {array.max():g}, but expected weights "
                ">= 0, not all zero."
            )
        return array
    largest = np.abs(array).max()
    if largest == 0.0 or np.abs(array - array.T).max() > 1e-6 * largest:
        raise ValueError(
            "Got a matrix for importance that is zero or not symmetric, but expected a metric."
        )
    smallest = float(np.linalg.eigvalsh(array).min())
    if smallest < -1e-6 * largest:
        raise ValueError(
            f"Got a matrix for importance with the eigenvalue {smallest:g}, but expected a "
            "positive semi-definite one."
        )
    return (array + array.T) / 2.0
