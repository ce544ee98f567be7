"""A pass in two looks at all centres: in 16-bit integers, and in full for rows in doubt.

Rows are taken in blocks, which stay in the cache while

1. rows are left out whose label cannot have changed since the pass before, as ``second_pass.py``
   finds out, if that is asked for;
2. the others are held against all centres in integers (``integers.py``); most labels are settled;
3. the rest is labelled as in any pass;
4. all rows are added to their clusters' sums.

The result is that of ``nearest.assign_dense``, to the last bit: a label has one definition, and
errors are added up in the same order.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.integer_sweep import round_tile, sweep_integers
from pgkmeans_sk.kernels.integers import MARGIN
from pgkmeans_sk.kernels.linked import call_for_two_ints
from pgkmeans_sk.kernels.nearest import ROWS, add_up
from pgkmeans_sk.kernels.second_pass import list_doubtful
from pgkmeans_sk.kernels.steps import epsilon, lesser, new_vector
from pgkmeans_sk.kernels.sweep import tile_points
from pgkmeans_sk.kernels.tile import fill_tile

BLOCK_NUMBERS = 2**15
"""Numbers in a block of rows, 128 KiB of float32; the more rows, the fuller the last tile of those
in doubt."""


@part
def limit_rows(
    integers,  # IN IntegerCenters
    count,  # IN rows
    norms,  # IN (L,) float
    best, index,  # IN (L,) int32, what the sweep has found
    errors,  # OUT (L,) float, r(x) in values; infinity for a row that integers cannot settle
):  # fmt: skip
    """What each row adds to the doubt."""
    real = norms.dtype.type
    error, per_length = real(integers.error), real(integers.error_per_length)
    per_norm, reach_sq = real(integers.error_per_norm), real(integers.reach_sq)
    nothing = real(np.inf)
    for l in range(count):
        norm = norms[l]
        here = error + per_length * np.sqrt(norm) + per_norm * norm
        errors[l] = here if norm <= reach_sq else nothing
    if integers.far < np.inf:
        for l in range(count):
            norm = np.float64(norms[l]) * (1.0 + integers.rounding)
            room = integers.far - np.sqrt(norm)
            most = best[l] + integers.margins[np.uintp(index[l])] + errors[l]
            is_nearer = room > 0.0 and room * room > norm + 2.0 * integers.value * most
            errors[l] = errors[l] if is_nearer else nothing


@part
def bound_others(
    which, first, count,  # IN as in tile.fill_tile
    integers,  # IN IntegerCenters
    norms,  # IN (L,) float
    second,  # IN (L,) int32
    errors,  # IN (L,) float
    bounds,  # WORK (L,) float
    lower,  # OUT (n,) float, no centre but the row's own is nearer than that
):  # fmt: skip
    """What the second best value says about all centres but the best one."""
    real = lower.dtype.type
    eps = epsilon(lower)
    twice, margin, nothing = real(2.0 * integers.value), real(MARGIN), real(0.0)
    norm_share, rounding = real(1.0 - integers.rounding), real(8.0 * eps * integers.reach_sq)
    far, slack = real(integers.far), real(1.0 - 1e-6)
    for l in range(count):
        value = real(second[l]) - margin - errors[l]  # -inf where integers say nothing
        sq_dist = norms[l] * norm_share + (twice * value - rounding)
        bounds[l] = np.sqrt(max(sq_dist, nothing)) * slack
    if far < np.inf:
        for l in range(count):
            bounds[l] = min(bounds[l], (far - np.sqrt(norms[l])) * slack)
    for l in range(count):
        lower[np.uintp(which[first + l])] = bounds[l]


@part
def settle_most(
    points,  # IN DensePoints
    which,  # IN (R,) int64, the rows to be labelled
    n_rows,  # IN how many they are
    origin,  # IN (d,) float
    integers,  # IN IntegerCenters
    labels,  # INOUT (n,) int32
    lower,  # OUT as in bound_others; (0,): not wanted
    listed,  # OUT (R,) int64, rows that are in doubt
):  # fmt: skip
    """Look at all centres in integers; returns how many labels changed, and how many doubts."""
    base, row_step, column_step = points.base, points.row_step, points.column_step
    panels, starts, margins = integers.panels, integers.starts, integers.margins
    n_features = origin.size
    width, whole = tile_points(origin), tile_points(starts)
    n_pairs, real = (n_features + 1) // 2, origin.dtype.type
    tile, tile_norms = new_vector(n_features * width, real), new_vector(width, real)
    rounded, norms = new_vector(n_pairs * whole, np.int32), new_vector(whole, real)
    best, second = new_vector(whole, np.int32), new_vector(whole, np.int32)
    index = new_vector(whole, np.int32)
    errors, bounds = new_vector(whole, real), new_vector(whole, real)
    per_unit = real(integers.per_unit)
    n_changed = 0
    n_listed = 0
    for first in range(0, n_rows, whole):
        count = lesser(whole, n_rows - first)
        for offset in range(0, count, width):  # numbers of 64 bits take two tiles
            here = lesser(width, count - offset)
            fill_tile(
                base, row_step, column_step, which, first + offset, here, origin, tile, tile_norms
            )
            round_tile(tile, n_features, per_unit, offset, rounded)
            for l in range(here):
                norms[offset + l] = tile_norms[l]
        sweep_integers(rounded, panels, starts, n_pairs, best, second, index)
        limit_rows(integers, count, norms, best, index, errors)
        if lower.size:
            bound_others(which, first, count, integers, norms, second, errors, bounds, lower)
        for l in range(count):
            errors[l] = (real(second[l]) - real(best[l])) - (errors[l] + errors[l])
        for l in range(count):
            i = np.uintp(which[first + l])
            is_settled = errors[l] > margins[np.uintp(index[l])]
            listed[np.uintp(n_listed)] = i
            n_listed += not is_settled
            label = index[l] if is_settled else labels[i]
            n_changed += label != labels[i]
            labels[i] = label
    return n_changed, n_listed


@kernel
def assign_coarse(
    points, weights, weight_step, start, stop,  # IN as in nearest.add_up
    centers,  # IN PackedCenters
    integers,  # IN IntegerCenters, the same centres
    full_look,  # IN address of nearest.assign_dense for such arguments
    collect,  # IN bool, whether to add to the sums below
    lower,  # INOUT (n,) float, no other centre was nearer in the pass before; (0,): not wanted
    move,  # IN float64, no centre has moved farther since; negative: ``lower`` is new
    labels,  # INOUT (n,) int32
    sums, sizes, sq_errors,  # INOUT as in nearest.add_up
):  # fmt: skip
    """Label rows ``start:stop`` and, if asked, add them to their clusters' sums.

    Returns how many labels changed, how many rows needed the exact look, how many were swept in
    integers, and how many of these in full.
    """
    n_features = centers.origin.size
    side_by_side = new_vector(n_features, centers.origin.dtype.type)
    size = max(ROWS, BLOCK_NUMBERS // n_features)
    swept, doubted = new_vector(size, np.int64), new_vector(size, np.int64)
    no_utilities = new_vector(0, np.float64)
    n_changed, n_exact, n_swept, n_doubted = 0, 0, 0, 0
    for first in range(start, stop, size):
        count = n_here = lesser(size, stop - first)
        if move < 0.0:
            for k in range(count):
                swept[k] = first + k
        else:
            n_here = list_doubtful(
                points, centers.rows, labels, lower, centers.smallest, move, first, count,
                side_by_side, swept,
            )  # fmt: skip
        changed, n_left = settle_most(
            points, swept, n_here, centers.origin, integers, labels, lower, doubted
        )
        changed_later, exact = call_for_two_ints(
            full_look,
            (points, weights, weight_step, np.int64(0), np.int64(n_left), centers, False, labels,
             sums, sizes, sq_errors, no_utilities, lower, doubted),
        )  # fmt: skip
        n_changed += changed + changed_later
        n_exact += exact
        n_swept += n_here
        n_doubted += n_left
        if collect:
            add_up(
                points, weights, weight_step, first, first + count, centers.rows, labels,
                sums, sizes, sq_errors,
            )  # fmt: skip
    return n_changed, n_exact, n_swept, n_doubted
