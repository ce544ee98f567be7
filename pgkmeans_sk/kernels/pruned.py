"""Assignment and sums in one pass, looking only at centres that may have become nearer.

The result is that of ``nearest.assign_dense``, to the last bit: a label has one definition, and
errors are added up in the same order. What differs is how much is looked at: for each row and each
group of centres a lower bound on the distance is kept from pass to pass (``bounds.py``).

Rows are taken in blocks; a block stays in the cache while

1. each row's distance to its own centre is compared with the row's bounds; the row joins
   the list of each group that it has to look at;
2. each group is held against the rows on its list, a few at a time (``panels.py``); the least value
   but the own centre's becomes the new bound;
3. each row is given its label: its own one, or that of the best centre found, or, where rounding
   leaves a doubt, what the exact look says; and it is added to its cluster's sums.

Why the bounds hold
-------------------
With l_j, the fast value of ``panels.py``, ``l_j + |x|^2 (1 - kappa)`` is a lower bound on the
squared distance to centre j (Note [Error bound] of ``nearest.py``). The own centre is left out, so
a bound is about all other centres of its group. When a row changes from centre a to b, the group of
a gets a as a member like any other; the group of b is looked at once more without b.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.block import new_block
from pgkmeans_sk.kernels.bounds import (
    CHUNK,
    LARGEST,
    lower_and_compare,
    rounded_down,
)
from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.errors import quick_sq_error, sq_error
from pgkmeans_sk.kernels.nearest import add_up, nearest_exact
from pgkmeans_sk.kernels.panels import batch_rows, least_of_panel, panel_values
from pgkmeans_sk.kernels.points import copy_row
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH

TINY_SHARE = 1e-9
"""Two squared distances in float64 that differ by less, relatively, are looked at exactly."""


# The steps below take arrays out of their tuples once for a block: Numba counts references to each
# array that it takes out, which costs more than a row.


@part
def measure_rows(
    points, bounds, labels,
    quick_centers,  # IN (K * d,) float
    first,  # IN first row of the block
    count,  # IN rows
    side_by_side,  # WORK (d,) float
    block,  # OUT Block
):  # fmt: skip
    """Step 1a: how far each row is from its own centre, at most, in units."""
    positions, own, limits = bounds.position, block.own, block.limits
    own_sq, best, second = block.own_sq, block.best, block.second
    base, row_step, column_step = points.base, points.row_step, points.column_step
    n_features = side_by_side.size
    for r in range(count):
        at = (first + r) * row_step
        label = np.int64(labels[first + r])
        # A row without a label is measured like any other, and then put right.
        place = max(label, 0)
        if column_step == 1:
            sq_dist = quick_sq_error(base, at, quick_centers, place, n_features)
        else:
            for t in range(n_features):
                side_by_side[t] = base[np.uintp(at + t * column_step)]
            sq_dist = quick_sq_error(side_by_side, 0, quick_centers, place, n_features)
        own[r] = positions[np.uintp(place)] if label >= 0 else -1
        own_sq[r] = sq_dist if label >= 0 else np.inf
        best[r] = np.inf
        second[r] = np.inf
    # Apart from the rest, so that roots are taken several at a time.
    real = side_by_side.dtype.type
    eps = np.finfo(side_by_side.dtype).eps
    most = real(LARGEST - 1)
    per_unit = real(bounds.per_unit * (1.0 + (n_features + 16) * eps))
    tiny = real(bounds.tiny)
    for r in range(count):
        limits[r] = np.int32(min(np.sqrt(own_sq[r] + tiny) * per_unit, most)) + 1


@part
def list_doubts(
    bounds,
    first,  # IN first row of the block
    count,  # IN rows
    block,  # INOUT Block
):  # fmt: skip
    """Step 1b: put each row on the list of each group that its bounds do not rule out.

    Returns how many pairs of a row and a group there are. Nothing here depends on a guess of the
    processor: each row is written to each list, and stays there if the next one is written behind.
    """
    lower, moves = bounds.lower, bounds.moves
    limits, masks, counts, lists = block.limits, block.masks, block.counts, block.lists
    size, width = limits.size, moves.size
    list_size = lists.size // width
    for r in range(count):
        at = (first + r) * width
        limit = np.int64(limits[r])
        for chunk in range(width // CHUNK):
            shift = chunk * CHUNK
            mask = lower_and_compare(lower, at + shift, moves, shift, limit)
            masks[np.uintp(chunk * size + r)] = mask
    n_pairs = 0
    for g in range(bounds.n_groups):
        bit = g % CHUNK
        mask_at = g // CHUNK * size
        list_at = g * list_size
        n_listed = 0
        for r in range(count):
            lists[np.uintp(list_at + n_listed)] = r
            n_listed += (masks[np.uintp(mask_at + r)] >> bit) & 1
        counts[g] = n_listed
        n_pairs += n_listed
    return n_pairs


@part
def shift_listed(
    points, bounds,
    origin,  # IN (d,) float
    first,  # IN first row of the block
    count,  # IN rows
    zero,  # IN (1, d) float64, zeros
    block,  # INOUT Block
):  # fmt: skip
    """Step 1c: rows that are on a list, minus the origin, and their norms."""
    base, row_step, column_step = points.base, points.row_step, points.column_step
    shifted, norms, masks, listed = block.shifted, block.norms, block.masks, block.listed
    size, n_features = block.limits.size, origin.size
    n_listed = 0
    for r in range(count):
        mask = np.int64(0)
        for chunk in range(bounds.moves.size // CHUNK):
            mask |= masks[np.uintp(chunk * size + r)]
        norms[r] = 0.0
        listed[np.uintp(n_listed)] = r
        n_listed += mask != 0
    for k in range(n_listed):
        r = np.int64(listed[k])
        at, block_at = (first + r) * row_step, r * n_features
        if column_step == 1:
            for t in range(n_features):
                shifted[np.uintp(block_at + t)] = base[np.uintp(at + t)] - origin[t]
        else:
            for t in range(n_features):
                value = base[np.uintp(at + t * column_step)]
                shifted[np.uintp(block_at + t)] = value - origin[t]
        norms[r] = sq_error(shifted, block_at, zero, 0, n_features)


@part
def look_at_groups(
    centers, bounds,
    first,  # IN first row of the block
    block,  # INOUT Block
):  # fmt: skip
    """Step 2: the least value of each group for the rows on its list; sets their bounds."""
    shifted, norms, own, counts, lists = (
        block.shifted, block.norms, block.own, block.counts, block.lists
    )  # fmt: skip
    best, best_at, second = block.best, block.best_at, block.second
    gathered, units = block.gathered, block.units
    least, least_at = block.least, block.least_at
    least_here, least_here_at = block.least_here, block.least_here_at
    lower, n_groups, group_panels = bounds.lower, bounds.n_groups, bounds.group_panels
    panels, starts = centers.panels, centers.starts
    n_features = centers.origin.size
    n_panels = starts.size // PANEL_WIDTH
    batch = batch_rows(shifted)
    width = bounds.moves.size
    list_size = lists.size // width
    # Numbers of the data's dtype, so that vectors of it stay as wide as they can be; what their
    # rounding adds is a fraction of kappa, hence twice.
    real = centers.origin.dtype.type
    norm_share, smallest = real(1.0 - 2.0 * centers.kappa), real(centers.smallest)
    per_unit = real(bounds.per_unit * (1.0 - 1e-6))
    most, nothing = real(LARGEST), real(0.0)
    # Where fast values may overflow they say nothing of the next pass: the bound is 0 then.
    trust = real(centers.largest if centers.kappa < np.inf else 0.0)
    for g in range(n_groups):
        count = counts[g]
        list_at = g * list_size
        for k in range(count, count + batch - 1):  # the last batch may not be full
            lists[np.uintp(list_at + k)] = lists[np.uintp(list_at)]
        first_panel = g * group_panels
        for k in range(0, count, batch):
            least_of_panel(
                shifted, lists, list_at + k, panels, starts, first_panel, n_features, own,
                least, least_at, k,
            )  # fmt: skip
        for panel in range(first_panel + 1, min(n_panels, first_panel + group_panels)):
            for k in range(0, count, batch):
                least_of_panel(
                    shifted, lists, list_at + k, panels, starts, panel, n_features, own,
                    least_here, least_here_at, k,
                )  # fmt: skip
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
            gathered[k] = norms[np.uintp(lists[np.uintp(list_at + k)])]
        for k in range(count):  # apart from the rest, so that roots are taken several at a time
            sq_dist = max(least[k] + gathered[k] * norm_share - smallest, nothing)
            bound = np.int32(min(np.sqrt(sq_dist) * per_unit, most))
            units[k] = bound if gathered[k] < trust else np.int32(0)
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
    norms, own_sq, best, challenged = block.norms, block.own_sq, block.best, block.challenged
    slack = 1.0 + (centers.origin.size + 16) * np.finfo(centers.origin.dtype).eps
    trust = centers.largest if centers.kappa < np.inf else 0.0
    norm_share, smallest = 1.0 - centers.kappa, centers.smallest
    n_challenged = 0
    for r in range(count):
        others = best[r] + norms[r] * norm_share - smallest
        is_safe = norms[r] < trust and others > (own_sq[r] + tiny) * slack
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
    shifted, norms, own = block.shifted, block.norms, block.own
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
        at_least = norm * (1.0 - centers.kappa) - centers.smallest
        for t in range(n_features):
            side_by_side[t] = base[np.uintp(i * row_step + t * column_step)]
        own_exactly = np.inf
        if old >= 0:
            own_exactly = sq_error(side_by_side, 0, rows, old, n_features)
        label = old
        doubtful = True
        if norm < centers.largest and centers.kappa < np.inf:
            place = np.int64(best_at[r])
            candidate = np.int64(order[place])
            sq_dist = sq_error(side_by_side, 0, rows, candidate, n_features)
            if sq_dist * (1.0 + TINY_SHARE) < own_exactly:
                group = place // group_size
                following = np.inf  # the least value of the group without the candidate
                for panel in range(
                    group * bounds.group_panels,
                    min(starts.size // PANEL_WIDTH, (group + 1) * bounds.group_panels),
                ):
                    panel_values(shifted, r * n_features, panels, starts, panel, n_features, values)
                    for j in range(PANEL_WIDTH):
                        here = panel * PANEL_WIDTH + j
                        if here != own[r] and here != place:
                            following = min(following, np.float64(values[here]))
                runner_up = min(following, np.float64(second[r])) + at_least
                if runner_up > sq_dist * (1.0 + TINY_SHARE):
                    doubtful = False
                    label = candidate
                    bound = rounded_down(following + at_least, per_unit)
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
        shift_listed(points, bounds, centers.origin, first, count, zero, block)
        look_at_groups(centers, bounds, first, block)
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
