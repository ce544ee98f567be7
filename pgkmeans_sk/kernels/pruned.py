"""Assignment and sums in one pass, looking only at centres that may have become nearer.

The result is that of ``nearest.assign_dense``, to the last bit: a label has one definition, and
errors are added up in the same order. What differs is how much is looked at: for each row and each
group of centres a lower bound on the distance is kept from pass to pass (``bounds.py``).

Rows are taken in blocks; a block stays in the cache while

1. each row's distance to its own centre is compared with the row's bounds; the row joins
   the list of each group that it has to look at (``doubtful_groups.py``);
2. each group is held against the rows on its list, a few at a time (``panels.py``); the least value
   but the own centre's becomes the new bound;
3. each row is given its label: its own one, or that of the best centre found, or, where rounding
   leaves a doubt, what the exact look says; and it is added to its cluster's sums.

Why the bounds hold
-------------------
With l_j, the fast value of ``panels.py``, ``l_j + |x|^2 (1 - kappa)`` is a lower bound on the
squared distance to centre j (Note [Error bound] of ``nearest.py``). Values in integers are less
exact and faster, and there is such a bound for them, too (Note [Finer units] of
``integer_panels.py``). The own centre is left out, so a bound is about all other centres of its
group. When a row changes from centre a to b, the group of a gets a as a member like any other; the
group of b is looked at once more without b.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.block import new_block
from pgkmeans_sk.kernels.bounds import LARGEST, rounded_down
from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.doubtful_groups import (
    bound_values,
    list_doubts,
    measure_rows,
    shift_listed,
)
from pgkmeans_sk.kernels.errors import sq_error
from pgkmeans_sk.kernels.integer_panels import integer_batch_rows, least_of_integers
from pgkmeans_sk.kernels.nearest import add_up, nearest_exact
from pgkmeans_sk.kernels.panels import batch_rows, least_of_panel, panel_values
from pgkmeans_sk.kernels.points import copy_row
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH

TINY_SHARE = 1e-9
"""Two squared distances in float64 that differ by less, relatively, are looked at exactly."""


# The steps below take arrays out of their tuples once for a block: Numba counts references to each
# array that it takes out, which costs more than a row.


@part
def look_at_groups(
    centers, integers, bounds,
    first,  # IN first row of the block
    block,  # INOUT Block
):  # fmt: skip
    """Step 2: the least value of each group for the rows on its list; sets their bounds."""
    shifted, rounded, at_least, own, counts, lists = (
        block.shifted, block.rounded, block.at_least, block.own, block.counts, block.lists
    )  # fmt: skip
    best, best_at, second = block.best, block.best_at, block.second
    gathered, units = block.gathered, block.units
    least, least_at = block.least, block.least_at
    least_here, least_here_at = block.least_here, block.least_here_at
    lower, n_groups, group_panels = bounds.lower, bounds.n_groups, bounds.group_panels
    panels, starts = centers.panels, centers.starts
    n_features = centers.origin.size
    n_pairs = (n_features + 1) // 2
    n_panels = starts.size // PANEL_WIDTH
    has_integers = integers.panels.size > 0
    int_panels, int_starts, scale = integers.panels, integers.starts, integers.scale
    batch = integer_batch_rows() if has_integers else batch_rows(shifted)
    width = bounds.moves.size
    list_size = lists.size // width
    real = centers.origin.dtype.type
    per_unit = real(bounds.per_unit * (1.0 - 1e-6))
    most, nothing = real(LARGEST), real(0.0)
    for g in range(n_groups):
        count = counts[g]
        list_at = g * list_size
        for k in range(count, count + batch - 1):  # the last batch may not be full
            lists[np.uintp(list_at + k)] = lists[np.uintp(list_at)]
        first_panel = g * group_panels
        for panel in range(first_panel, min(n_panels, first_panel + group_panels)):
            for k in range(0, count, batch):
                if has_integers:
                    least_of_integers(
                        rounded, lists, list_at + k, int_panels, int_starts, panel, n_pairs, own,
                        scale, least_here, least_here_at, k,
                    )  # fmt: skip
                else:
                    least_of_panel(
                        shifted, lists, list_at + k, panels, starts, panel, n_features, own,
                        least_here, least_here_at, k,
                    )  # fmt: skip
            if panel == first_panel:
                for k in range(count):
                    least[k] = least_here[k]
                    least_at[k] = least_here_at[k]
                continue
            for k in range(count):
                less = least_here[k] < least[k]
                least_at[k] = least_here_at[k] if less else least_at[k]
                # Never lost: the larger one is second best of the row.
                least_here[k], least[k] = (
                    max(least_here[k], least[k]), min(least_here[k], least[k])
                )  # fmt: skip
            for k in range(count):
                r = np.uintp(lists[np.uintp(list_at + k)])
                second[r] = min(second[r], least_here[k])
        for k in range(count):
            gathered[k] = at_least[np.uintp(lists[np.uintp(list_at + k)])]
        for k in range(count):  # apart from the rest, so that roots are taken several at a time
            sq_dist = max(least[k] + gathered[k], nothing)
            units[k] = np.int32(min(np.sqrt(sq_dist) * per_unit, most))
        for k in range(count):
            r = np.uintp(lists[np.uintp(list_at + k)])
            lower[np.uintp((first + np.int64(r)) * width + g)] = units[k]
            value, old = least[k], best[r]
            second[r] = min(second[r], max(old, value))
            best_at[r] = least_at[k] if value < old else best_at[r]
            best[r] = min(old, value)


@part
def list_challenged(
    centers,
    tiny,  # IN float64, squared distances below it may have vanished
    count,  # IN rows
    block,  # INOUT Block
):
    """Step 3a: rows whose own centre is not the nearest for certain; returns how many."""
    at_least, own_sq, best, challenged = block.at_least, block.own_sq, block.best, block.challenged
    slack = 1.0 + (centers.origin.size + 16) * np.finfo(centers.origin.dtype).eps
    n_challenged = 0
    for r in range(count):
        is_safe = best[r] + at_least[r] > (own_sq[r] + tiny) * slack
        challenged[np.uintp(n_challenged)] = r
        n_challenged += not is_safe
    return n_challenged


@part
def settle_challenged(
    points, centers, bounds, labels,
    first,  # IN first row of the block
    n_challenged,  # IN rows
    values, row, side_by_side,  # WORK (n_panels * P,) float, (d,) float64, (d,) float
    block,  # IN Block
):  # fmt: skip
    """Step 3b: the labels of challenged rows; returns how many changed, and how many near ties."""
    shifted, norms, at_least, own = block.shifted, block.norms, block.at_least, block.own
    best_at, second, challenged = block.best_at, block.second, block.challenged
    lower, positions, per_unit = bounds.lower, bounds.position, bounds.per_unit
    panels, starts, order, rows = centers.panels, centers.starts, centers.order, centers.rows
    base, row_step, column_step = points.base, points.row_step, points.column_step
    n_features, width = centers.origin.size, bounds.moves.size
    group_size = PANEL_WIDTH * bounds.group_panels
    n_changed = 0
    n_exact = 0
    for k in range(n_challenged):
        r = np.int64(challenged[k])
        i = first + r
        old = np.int64(labels[i])
        norm = np.float64(norms[r])
        for t in range(n_features):
            side_by_side[t] = base[np.uintp(i * row_step + t * column_step)]
        own_exactly = np.inf
        if old >= 0:
            own_exactly = sq_error(side_by_side, 0, rows, old, n_features)
        label = old
        doubtful = True
        place = np.int64(best_at[r])
        candidate = np.int64(order[place]) if at_least[r] > -np.inf else -1
        if candidate >= 0:
            sq_dist = sq_error(side_by_side, 0, rows, candidate, n_features)
            less, more = min(sq_dist, own_exactly), max(sq_dist, own_exactly)
            if less * (1.0 + TINY_SHARE) < more:
                group = place // group_size
                following = np.inf  # the least value of the group without both of them
                first_panel = group * bounds.group_panels
                n_here = min(starts.size // PANEL_WIDTH - first_panel, bounds.group_panels)
                panel_values(
                    shifted, r * n_features, panels, starts, first_panel, n_here, n_features, values
                )
                for here in range(PANEL_WIDTH * first_panel, PANEL_WIDTH * (first_panel + n_here)):
                    if here != own[r] and here != place:
                        following = min(following, np.float64(values[here]))
                following += norm * (1.0 - centers.kappa) - centers.smallest
                runner_up = min(following, np.float64(second[r]) + np.float64(at_least[r]))
                if runner_up > less * (1.0 + TINY_SHARE):
                    doubtful = False
                    if sq_dist < own_exactly:
                        label = candidate
                    else:
                        following = min(following, sq_dist * (1.0 - TINY_SHARE))
                    bound = rounded_down(following, per_unit)
                    lower[np.uintp(i * width + group)] = bound
        if doubtful:
            copy_row(points, i, row)
            label = nearest_exact(row, shifted, r * n_features, norm, centers, values)
            n_exact += 1
        if label == old:
            continue
        labels[i] = label
        n_changed += 1
        if old >= 0:  # the centre that was the row's own is now one of its group
            at = np.uintp(i * width + np.int64(positions[old]) // group_size)
            bound = rounded_down(own_exactly * (1.0 - TINY_SHARE), per_unit)
            lower[at] = min(np.int64(lower[at]), bound)
    return n_changed, n_exact


@kernel
def assign_pruned(
    points, weights, weight_step, start, stop,  # IN as in nearest.add_up
    centers,  # IN PackedCenters
    integers,  # IN IntegerPanels, the same centres, or none
    quick_centers,  # IN (K * d,) float, the centres, which have the data's dtype
    bounds,  # INOUT GroupBounds
    block_size,  # IN R
    labels,  # INOUT (n,) int32; -1 for a row that has none, whose bounds are all 0
    sums, sizes, sq_errors,  # INOUT as in nearest.add_up
):  # fmt: skip
    """Label rows ``start:stop`` and add them to their clusters' sums.

    Returns how many labels changed, how many rows needed the exact look, and how many pairs of a
    row and a group were looked at.
    """
    n_features = centers.origin.size
    block = new_block(block_size, n_features, bounds.moves.size, centers.origin)
    values = np.empty(centers.starts.size, centers.origin.dtype)
    side_by_side = np.empty(n_features, centers.origin.dtype)
    row = np.empty(n_features, np.float64)
    zero = np.zeros((1, n_features), np.float64)
    n_changed = 0
    n_exact = 0
    n_pairs = 0
    for first in range(start, stop, block_size):
        count = min(block_size, stop - first)
        measure_rows(points, bounds, labels, quick_centers, first, count, side_by_side, block)
        n_pairs += list_doubts(bounds, first, count, block)
        shift_listed(points, bounds, centers.origin, integers, first, count, zero, block)
        bound_values(centers, integers, count, block)
        look_at_groups(centers, integers, bounds, first, block)
        n_challenged = list_challenged(centers, bounds.tiny, count, block)
        changed, exact = settle_challenged(
            points, centers, bounds, labels, first, n_challenged, values, row, side_by_side, block
        )
        n_changed += changed
        n_exact += exact
        add_up(
            points, weights, weight_step, first, first + count, centers.rows, labels,
            sums, sizes, sq_errors,
        )  # fmt: skip
    return n_changed, n_exact, n_pairs
