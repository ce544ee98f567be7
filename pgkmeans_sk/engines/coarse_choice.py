"""What this process knows of the look in integers: whether it is there, and where it is quicker.

Neither changes a result (``kernels/coarse.py``), so both are found out by the clock, once:

* where the kernel is not there yet, passes go on without it for a while (``patience.py``);
* which look is the quicker one depends on the processor and on the shape of the rows, so the first
  pass of a kind takes both in turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.patience import Patience
from pgkmeans_sk.engines.small_kernels import kind_of as kind_of_arrays
from pgkmeans_sk.kernels.coarse import assign_coarse
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.nearest import ALL_ROWS, PackedCenters, assign_dense
from pgkmeans_sk.kernels.vectors import has_products_of_pairs
from pgkmeans_sk.results import FloatArray

FEWEST_CENTERS = 32
"""Fewer are looked at in full about as fast as rows are rounded to integers."""
LEAST_WORK = 200_000_000
"""Multiplications in a pass, about 3 ms. With fewer, bringing the centres into integers counts."""
LEAST_RUN = 20_000_000
"""Multiplications in one of many runs that share the centres."""
COMPARED_RUNS = 8
"""Runs, at least, that take both ways in turn where it is not known which is the quicker one."""
LOSSES = 3
"""Comparisons that integers have to lose."""

Kind = tuple[np.dtype[Any], int, int]
"""Passes of one kind are alike in which look is the quicker one."""

patience = Patience(assign_coarse)
"""When the kernel is worth the time to compile it."""
_n_lost: dict[Kind, int] = {}
"""How often comparisons said that integers were slower."""
_is_quicker: dict[Kind, bool] = {}
"""What comparisons said."""
_addresses: dict[Any, int] = {}


def is_large(n_rows: int, n_centers: int, n_features: int, is_run: bool = False) -> bool:
    """Whether a pass, or a run of rows in one, is so large that integers could make it shorter."""
    work = n_rows * n_centers * n_features
    least = LEAST_RUN if is_run else LEAST_WORK
    return n_centers >= FEWEST_CENTERS and work >= least and has_products_of_pairs()


def kind_of(dtype: np.dtype[Any], n_centers: int, n_features: int) -> Kind:
    """The kind of a pass over rows of this dtype."""
    return dtype, n_features, n_centers.bit_length()


def quicker(kind: Kind) -> bool | None:
    """Whether passes of a kind are quicker in integers; None: not known."""
    return _is_quicker.get(kind)


def remember(kind: Kind, is_quicker: bool) -> None:
    """Keep what a comparison has said.

    That integers are slower is believed after ``LOSSES`` comparisons: one may have met a moment at
    which the processor was busy with something else, and would cost each pass to come.
    """
    _n_lost[kind] = _n_lost.get(kind, 0) + (not is_quicker)
    if is_quicker or _n_lost[kind] >= LOSSES:
        _is_quicker[kind] = is_quicker


def first_was_quicker(seconds: FloatArray) -> bool:
    """Which of two ways, taken in turn, took less of these ``seconds`` (m,).

    The first time of each does not count: kernels may have to be compiled or loaded.
    """
    first, other = seconds[::2][1:], seconds[1::2][1:]
    return bool(len(first) and len(other) and np.median(first) < np.median(other))


def address_of_full_look(
    rows: tuple[Any, FloatArray, int],
    packed: PackedCenters,
    lower: NDArray[Any],
    labels: NDArray[np.int32],
    totals: tuple[NDArray[Any], ...],
) -> int:
    """Where ``assign_dense`` is, for arguments like these of ``assign_coarse``."""
    kind = kind_of_arrays(rows[0].base, rows[1], *packed[:5], lower, labels, *totals)
    if kind not in _addresses:
        _addresses[kind] = address_of(
            assign_dense, *rows, 0, 0, packed, False, labels, *totals, np.empty(0), lower, ALL_ROWS
        )
    return _addresses[kind]
