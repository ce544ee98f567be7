"""What the kernels over 16-bit integers compute, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.integer_panels import IntegerPanels
from pgkmeans_sk.kernels.integers import ABSENT, ROW_LIMIT, IntegerCenters
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH


def rounded_rows(shifted: NDArray[Any], per_unit: float) -> NDArray[np.int64]:
    """Rows (n, d) minus the origin as whole numbers of units."""
    scaled = shifted * shifted.dtype.type(per_unit)
    return np.rint(np.clip(scaled, -ROW_LIMIT, ROW_LIMIT)).astype(np.int64)


def unpacked(integers: IntegerCenters, n_features: int) -> NDArray[np.int64]:
    """Centres (n_quads * 4, d) as whole numbers, times -4."""
    n_pairs = (n_features + 1) // 2
    pairs = integers.panels.view(np.int16).reshape(-1, n_pairs, 4, 2)
    rows = pairs.transpose(0, 2, 1, 3).reshape(len(integers.starts), 2 * n_pairs)
    assert not rows[:, n_features:].any()
    return rows[:, :n_features].astype(np.int64)


def integer_values(units: NDArray[np.int64], integers: IntegerCenters) -> NDArray[np.int64]:
    """Values (n, n_quads * 4) of rows (n, d) in units; ``ABSENT`` where there is no centre."""
    values = integers.starts + units @ unpacked(integers, units.shape[1]).T
    is_there = integers.starts != ABSENT
    assert not is_there.any() or np.abs(values[:, is_there]).max(initial=0) < 2**31
    return np.where(is_there, values, ABSENT)


def panel_units(integers: IntegerPanels, n_features: int) -> NDArray[np.int64]:
    """Centres (n_panels * 16, d) of panels as whole numbers, times -1."""
    n_pairs = (n_features + 1) // 2
    pairs = integers.panels.view(np.int16).reshape(-1, n_pairs, PANEL_WIDTH, 2)
    rows = pairs.transpose(0, 2, 1, 3).reshape(len(integers.starts), 2 * n_pairs)
    assert not rows[:, n_features:].any()
    return rows[:, :n_features].astype(np.int64)


def panel_values(units: NDArray[np.int64], integers: IntegerPanels) -> NDArray[np.int64]:
    """Values (n, n_panels * 16) of rows (n, d) in units."""
    values = integers.starts + units @ panel_units(integers, units.shape[1]).T
    assert np.abs(values).max(initial=0) < 2**31
    return values


def least_of_integers(
    values: NDArray[np.int64], own: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least of 16 values (m, 16) and its place, the row's own centre left out."""
    tagged = values & -PANEL_WIDTH | np.arange(PANEL_WIDTH)
    for row, place in enumerate(own):
        if 0 <= place < PANEL_WIDTH:
            tagged[row, place] = ABSENT
    return tagged.min(axis=1), tagged.argmin(axis=1)
