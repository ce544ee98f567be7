"""Which errors count: a weight for each column, or a metric for the values of a block.

With activations x, the error of a layer's output is ``(w - w_hat) H (w - w_hat)`` with
``H = E[x x^T]`` (Stock et al. 2019, "And the bit goes down", section 3.2). Its diagonal is a weight
for each column; averaged over the blocks, it is one metric for all blocks. The mean stays the best
code word in any metric, so that k-means on ``L^T v`` with ``H = L L^T`` minimises just that error.
"""

from __future__ import annotations

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
