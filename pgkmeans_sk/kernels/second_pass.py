"""A second pass soon after a first one: rows whose label cannot have changed are not looked at.

The first pass, ``nearest.assign_dense``, leaves for each row a distance that no centre but its own
was nearer than. When no centre has moved farther than ``move``, the label stays where the row's
distance to its own centre, which is measured, is below that bound minus ``move`` (Hamerly 2010).
For the other rows, all centres are looked at.

The result is that of ``assign_dense``, to the last bit: errors are added up in the same order.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.errors import sq_error
from pgkmeans_sk.kernels.nearest import copy_values, nearest_exact
from pgkmeans_sk.kernels.points import copy_row
from pgkmeans_sk.kernels.pruned import TINY_SHARE, add_up
from pgkmeans_sk.kernels.sweep import QUAD, sweep, tile_points
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH

BLOCK = 512
"""Rows that stay in the cache from one step to the next."""


@kernel
def list_doubtful(
    points, rows, labels,
    lower,  # IN (n,) float
    smallest,  # IN float64, squared distances below it may have vanished
    move,  # IN float64
    first,  # IN first row of the block
    count,  # IN rows
    side_by_side,  # WORK (d,) float
    listed,  # OUT (BLOCK,) int64
):  # fmt: skip
    """Step 1: rows that another centre may have become nearest to; returns how many."""
    base, row_step, n_features = points.base, points.row_step, side_by_side.size
    n_listed = 0
    for i in range(first, first + count):
        if points.column_step == 1:
            sq_dist = sq_error(base, i * row_step, rows, np.int64(labels[i]), n_features)
        else:
            copy_values(points, i, side_by_side)
            sq_dist = sq_error(side_by_side, 0, rows, np.int64(labels[i]), n_features)
        others = np.float64(lower[i]) - move
        listed[np.uintp(n_listed)] = i
        n_listed += not (others > 0.0 and sq_dist * (1.0 + TINY_SHARE) + smallest < others * others)
    return n_listed


@kernel
def label_listed(
    points, centers, labels,
    listed,  # IN (BLOCK,) int64
    n_listed,  # IN rows
    tile, norms, best, second, index, values, row, side_by_side,  # WORK as in assign_dense
):  # fmt: skip
    """Step 2: look at all centres; returns how many labels changed, and how many near ties."""
    rows, origin, panels, starts, order, kappa, smallest, largest = centers
    n_quads = (rows.shape[0] + QUAD - 1) // QUAD
    base, row_step, column_step = points.base, points.row_step, points.column_step
    n_features, width = origin.size, norms.size
    n_changed = 0
    n_exact = 0
    for start in range(0, n_listed, width):
        count = min(width, n_listed - start)
        for l in range(count):
            at = listed[start + l] * row_step
            for t in range(n_features):
                value = base[np.uintp(at + t * column_step)]
                tile[np.uintp(t * width + l)] = value - origin[t]
        for l in range(width):
            norms[l] = 0.0
        for t in range(n_features):
            for l in range(width):
                shifted = tile[np.uintp(t * width + l)]
                norms[l] += shifted * shifted
        sweep(tile, panels, starts, n_quads, n_features, best, second, index)
        for l in range(count):
            i = listed[start + l]
            label = np.int64(order[np.uintp(index[l])])
            norm = np.float64(norms[l])
            margin = 2.0 * kappa * (norm + starts[np.uintp(index[l])]) + smallest
            certain = second[l] - best[l] > margin and norm < largest
            if not certain:
                copy_row(points, i, row)
                for t in range(n_features):
                    side_by_side[t] = tile[t * width + l]
                label = nearest_exact(row, side_by_side, 0, norm, centers, values)
                n_exact += 1
            if labels[i] != label:
                labels[i] = label
                n_changed += 1
    return n_changed, n_exact


@kernel
def assign_again(
    points,  # IN DensePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN PackedCenters
    lower,  # IN (n,) float, no other centre was nearer
    move,  # IN float64, no centre has moved farther since
    labels,  # INOUT (n,) int32, those of the first pass
    sums,  # INOUT (K, d) float64, of w (x - c)
    sizes,  # INOUT (K,) float64, of w
    sq_errors,  # INOUT (K, 4) float64, of w |x - c|^2, in four parts
):
    """Label rows ``start:stop`` and add them to their clusters' sums.

    Returns how many labels changed, how many rows needed the exact look, and how many were swept.
    """
    panels, n_features = centers.panels, centers.origin.size
    width = tile_points(panels)
    tile = np.zeros(n_features * width, panels.dtype)
    norms, best = np.empty(width, panels.dtype), np.empty(width, panels.dtype)
    second, index = np.empty(width, panels.dtype), np.empty(width, np.int32)
    values = np.empty(PANEL_WIDTH, panels.dtype)
    side_by_side = np.empty(n_features, panels.dtype)
    row = np.empty(n_features, np.float64)
    listed = np.empty(BLOCK, np.int64)
    n_changed, n_exact, n_swept = 0, 0, 0
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        n_listed = list_doubtful(
            points, centers.rows, labels, lower, centers.smallest, move, first, count,
            side_by_side, listed,
        )  # fmt: skip
        changed, exact = label_listed(
            points, centers, labels, listed, n_listed,
            tile, norms, best, second, index, values, row, side_by_side,
        )  # fmt: skip
        n_changed += changed
        n_exact += exact
        n_swept += n_listed
        add_up(
            points, weights, weight_step, centers.rows, labels, first, count, side_by_side,
            sums, sizes, sq_errors,
        )  # fmt: skip
    return n_changed, n_exact, n_swept
