"""Step 1 of ``pruned.py``: which groups of centres the rows of a block have to look at.

A row's distance to its own centre is held against the row's bounds. Rows that have to look at any
group are brought into the form in which groups are looked at: minus the origin, and, where values
are found in integers, rounded.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.bounds import CHUNK, LARGEST, lower_and_compare
from pgkmeans_sk.kernels.compile import part
from pgkmeans_sk.kernels.errors import quick_sq_error, sq_error
from pgkmeans_sk.kernels.integer_panels import round_row

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
    integers,  # IN IntegerPanels
    first,  # IN first row of the block
    count,  # IN rows
    zero,  # IN (1, d) float64, zeros
    block,  # INOUT Block
):  # fmt: skip
    """Step 1c: rows that are on a list, minus the origin, the same in integers, their norms."""
    base, row_step, column_step = points.base, points.row_step, points.column_step
    shifted, norms, masks, listed = block.shifted, block.norms, block.masks, block.listed
    rounded = block.rounded
    size, n_features = block.limits.size, origin.size
    real = origin.dtype.type
    has_integers = integers.panels.size > 0
    per_unit, rounded_step = real(integers.per_unit), n_features + n_features % 2
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
        if has_integers:
            round_row(shifted, block_at, n_features, per_unit, rounded, r * rounded_step)


@part
def bound_values(
    centers,  # IN PackedCenters
    integers,  # IN IntegerPanels
    count,  # IN rows
    block,  # INOUT Block
):
    """Step 1d: what makes a row's values, plus that, lower bounds on squared distances.

    Nothing does where values may overflow, or the row is too long for integers.
    """
    norms, at_least = block.norms, block.at_least
    # Numbers of the data's dtype, so that vectors of it stay as wide as they can be; what their
    # rounding adds is a fraction of kappa, hence twice.
    real = centers.origin.dtype.type
    nothing = real(-np.inf)
    if integers.panels.size:
        error, per_length = real(integers.error), real(integers.error_per_length)
        norm_share, reach_sq = real(1.0 - integers.error_per_norm), real(integers.reach_sq)
        for r in range(count):
            bound = norms[r] * norm_share - (error + per_length * np.sqrt(norms[r]))
            at_least[r] = bound if norms[r] < reach_sq else nothing
    else:
        norm_share, smallest = real(1.0 - 2.0 * centers.kappa), real(centers.smallest)
        trust = real(centers.largest if centers.kappa < np.inf else 0.0)
        for r in range(count):
            at_least[r] = norms[r] * norm_share - smallest if norms[r] < trust else nothing
