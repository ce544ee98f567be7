"""A second pass soon after a first one: rows whose label cannot have changed are not looked at.

The first pass, ``nearest.assign_dense``, leaves for each row a distance that no centre but its own
was nearer than. When no centre has moved farther than ``move``, the label stays where the row's
distance to its own centre, which is measured, is below that bound minus ``move`` (Hamerly 2010).
For the other rows, all centres are looked at.

The result is that of ``assign_dense``, to the last bit: errors are added up in the same order.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.errors import sq_error
from pgkmeans_sk.kernels.nearest import ROWS, add_up, assign_dense
from pgkmeans_sk.kernels.pruned import TINY_SHARE
from pgkmeans_sk.kernels.steps import epsilon


@part
def copy_values(
    points,  # IN DensePoints
    i,  # IN which row
    values,  # OUT (d,) float
):
    """A row as it is, its values side by side."""
    at = i * points.row_step
    for t in range(values.size):
        values[t] = points.base[np.uintp(at + t * points.column_step)]


@part
def list_doubtful(
    points, rows, labels,
    lower,  # INOUT (n,) float, lowered by the move
    smallest,  # IN float64, squared distances below it may have vanished
    move,  # IN float64
    first,  # IN first row of the block
    count,  # IN rows
    side_by_side,  # WORK (d,) float
    listed,  # OUT (ROWS,) int64
):  # fmt: skip
    """Rows that another centre may have become nearest to; returns how many."""
    base, row_step, n_features = points.base, points.row_step, side_by_side.size
    share = 1.0 - epsilon(lower)  # rounded down: many small moves must not get lost
    n_listed = 0
    for i in range(first, first + count):
        if points.column_step == 1:
            sq_dist = sq_error(base, i * row_step, rows, np.int64(labels[i]), n_features)
        else:
            copy_values(points, i, side_by_side)
            sq_dist = sq_error(side_by_side, 0, rows, np.int64(labels[i]), n_features)
        others = np.float64(lower[i]) - move
        lower[i] = others * share
        listed[np.uintp(n_listed)] = i
        n_listed += not (others > 0.0 and sq_dist * (1.0 + TINY_SHARE) + smallest < others * others)
    return n_listed


@kernel
def assign_again(
    points, weights, weight_step, start, stop,  # IN as in nearest.add_up
    centers,  # IN PackedCenters
    lower,  # INOUT (n,) float, no other centre was nearer; lowered by the move
    move,  # IN float64, no centre has moved farther since
    labels,  # INOUT (n,) int32, those of the first pass
    sums, sizes, sq_errors,  # INOUT as in nearest.add_up
):  # fmt: skip
    """Label rows ``start:stop`` and add them to their clusters' sums.

    Returns how many labels changed, how many rows needed the exact look, and how many were swept.
    """
    side_by_side = np.empty(centers.origin.size, centers.origin.dtype)
    listed = np.empty(ROWS, np.int64)
    no_utilities, no_bounds = np.empty(0, np.float64), np.empty(0, centers.origin.dtype)
    n_changed, n_exact, n_swept = 0, 0, 0
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        n_listed = list_doubtful(
            points, centers.rows, labels, lower, centers.smallest, move, first, count,
            side_by_side, listed,
        )  # fmt: skip
        changed, exact = assign_dense(
            points, weights, weight_step, 0, n_listed, centers, False, labels,
            sums, sizes, sq_errors, no_utilities, no_bounds, listed,
        )  # fmt: skip
        n_changed += changed
        n_exact += exact
        n_swept += n_listed
        add_up(
            points, weights, weight_step, first, first + count, centers.rows, labels,
            sums, sizes, sq_errors,
        )  # fmt: skip
    return n_changed, n_exact, n_swept
