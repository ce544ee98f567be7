"""An order of the centres in which neighbours in space are neighbours in number.

Bounds are kept for groups of centres that follow one another; the closer together they lie, the
fewer groups a row has to look at. Centres are halved across the direction of their largest
variance, again and again, at multiples of the panel width, until a panel is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.vectors import PANEL_WIDTH

POWER_STEPS = 4


def order_centers(centers: NDArray[np.floating]) -> NDArray[np.int32]:
    """Numbers (K,) of the ``centers`` (K, d), side by side in space."""
    points = np.asarray(centers, dtype=np.float64)
    order = np.arange(len(points), dtype=np.int32)
    ranges = [(0, len(points))]
    while ranges:
        low, high = ranges.pop()
        n_panels = -(-(high - low) // PANEL_WIDTH)
        if n_panels <= 1:
            continue
        members = points[order[low:high]]
        middle = low + PANEL_WIDTH * (n_panels // 2)
        sides = np.argpartition(_along_principal_axis(members), middle - low)
        order[low:high] = order[low:high][sides]
        ranges += [(low, middle), (middle, high)]
    return order


def _along_principal_axis(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (m,) of the ``points`` (m, d) along the direction of their largest variance."""
    errors = points - points.mean(axis=0)
    direction = errors[np.argmax(np.einsum("ij,ij->i", errors, errors))]
    for _ in range(POWER_STEPS):
        direction = (errors @ direction) @ errors
        length = np.abs(direction).max()
        if length == 0.0:
            break
        direction = direction / length
    positions: NDArray[np.float64] = errors @ direction
    return positions


def are_same(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two sets of centres are the same, to the last bit."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.tobytes() == second.tobytes()
    )
