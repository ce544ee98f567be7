"""The start "partition" on few rows, in one go: tree, moves, and Lloyd's steps between them.

On a small table a pass takes some microseconds, and telling Python of each takes ten times as long.
So the loops of ``pipeline/partition.py`` and ``pipeline/exchange.py`` are here once more, for dense
rows in memory; what they loop over are the same kernels (``linked.py``). The result has the same
bits, which ``tests/test_small_start.py`` holds against the pipeline.

Only what is common is here: where a cluster comes out empty, or a node has no two distinct rows,
the kernel gives up, and the pipeline goes on from the leaves of the tree, or begins anew.

What it works on is in ``small_slots.py``.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.linked import call_for_nothing, call_for_two_floats
from pgkmeans_sk.kernels.small_slots import assign_slot, copy_numbers, rests, sort_falling
from pgkmeans_sk.kernels.split import AT_BEST, PRINCIPAL


@part
def grow_tree(
    points, weights, weight_step, addresses,
    rule,  # IN split.BALL or split.PRINCIPAL
    by_error,  # IN bool, whether leaves are shared by error instead of population
    root_mean,  # IN (d,) float64
    nodes,  # INOUT Nodes; its order is that of all rows
    leaves,  # WORK (K,) int64, of each node
    leaf_means,  # OUT (K, d) float64
):  # fmt: skip
    """The means of the leaves; False where rows are too few (``pipeline/partition.py``)."""
    ranges, means, fractions = nodes.ranges, nodes.means, nodes.fractions
    middles, child_means, scatters = nodes.middles, nodes.child_means, nodes.child_scatters
    n_clusters, n_features = leaf_means.shape
    exponent = n_features / (n_features + 2)
    ranges[0, 0], ranges[0, 1] = 0, nodes.order.size
    leaves[0] = n_clusters
    for t in range(n_features):
        means[0, t] = root_mean[t]
    n_nodes, n_done = 1, 0
    while True:
        n_open = 0
        for p in range(n_nodes):
            is_leaf = leaves[p] == 1
            for t in range(n_features):
                if is_leaf:
                    leaf_means[n_done, t] = means[p, t]
                else:
                    means[n_open, t] = means[p, t]
            if is_leaf:
                n_done += 1
                continue
            leaves[n_open] = leaves[p]
            ranges[n_open, 0], ranges[n_open, 1] = ranges[p, 0], ranges[p, 1]
            fractions[n_open] = AT_BEST if by_error else (leaves[p] // 2) / leaves[p]
            n_open += 1
        if n_open == 0:
            return True
        call_for_nothing(
            addresses.cut,
            (points, weights, weight_step, nodes.order, nodes.keys, ranges, means, fractions,
             addresses.moments, addresses.select, rule,
             np.int64(0), np.int64(0), np.int64(n_open), nodes.work, nodes.bins, middles,
             nodes.child_weights, child_means, scatters),
        )  # fmt: skip
        for p in range(n_open):
            low, middle, high = ranges[p, 0], middles[p], ranges[p, 1]
            if middle == low:
                return False
            left = leaves[p] // 2
            if by_error:
                left_error, right_error = scatters[p, 0] ** exponent, scatters[p, 1] ** exponent
                total = left_error + right_error
                left = np.int64(np.rint(leaves[p] * (left_error / total if total > 0.0 else 0.5)))
            left = max(min(max(left, 1), leaves[p] - 1), leaves[p] - (high - middle))
            left = min(left, middle - low)
            # All left children come first; each node has a leaf, so there is room for all.
            leaves[n_open + p], leaves[p] = leaves[p] - left, left
            ranges[n_open + p, 0], ranges[n_open + p, 1] = middle, high
            ranges[p, 1] = middle
            for t in range(n_features):
                means[p, t], means[n_open + p, t] = child_means[p, 0, t], child_means[p, 1, t]
        n_nodes = 2 * n_open


@part
def survey(
    points, weights, weight_step, addresses,
    slots,  # IN Slots
    slot,  # IN that of the state
    n_donors,  # IN clusters that are partitioned on trial
    n_two_means,  # IN Lloyd steps with two centres after a cut
    nodes,  # INOUT Nodes
    scatters,  # WORK (K,) float64
    gains,  # WORK (K,) float64
    position,  # WORK (K,) int64
    by_utility,  # WORK (K,) int64
    donors,  # OUT (K,) int64, the first ``n_donors`` of them: clusters of the largest errors
    by_gain,  # OUT (n_donors,) int64, positions in ``donors``
    givers,  # OUT (K,) int64, clusters of least utility
):  # fmt: skip
    """What could be moved from a state (``pipeline/exchange.py``); returns how many givers."""
    ranges, means, order = nodes.ranges, nodes.means, nodes.order
    labels, utilities = slots.labels[slot], slots.utilities[slot]
    n_clusters = utilities.size
    sort_falling(slots.errors[slot], donors)
    for j in range(n_clusters):
        position[j] = -1
        gains[j] = -utilities[j]
    sort_falling(gains, by_utility)
    for k in range(n_donors):
        position[donors[k]] = k
        ranges[k, 1] = 0
    for i in range(labels.size):
        if position[labels[i]] >= 0 and weights[i * weight_step] > 0.0:
            ranges[position[labels[i]], 1] += 1
    end = np.int64(0)
    for k in range(n_donors):
        ranges[k, 0], end = end, end + ranges[k, 1]
        ranges[k, 1] = ranges[k, 0]
        nodes.fractions[k] = AT_BEST
    for i in range(labels.size):
        k = position[labels[i]]
        if k >= 0 and weights[i * weight_step] > 0.0:
            order[ranges[k, 1]] = i
            ranges[k, 1] += 1
    for k in range(n_donors):
        _, scatters[k] = call_for_two_floats(
            addresses.moments,
            (points, weights, weight_step, order, ranges[k, 0], ranges[k, 1], means[k]),
        )  # fmt: skip
    call_for_nothing(
        addresses.cut,
        (points, weights, weight_step, order, nodes.keys, ranges, means, nodes.fractions,
         addresses.moments, addresses.select,
         np.int64(PRINCIPAL), n_two_means, np.int64(0), np.int64(n_donors), nodes.work, nodes.bins,
         nodes.middles, nodes.child_weights, nodes.child_means, nodes.child_scatters),
    )  # fmt: skip
    for k in range(n_donors):
        left, right = nodes.child_scatters[k, 0], nodes.child_scatters[k, 1]
        possible = nodes.middles[k] > ranges[k, 0]
        gains[k] = scatters[k] - left - right if possible else 0.0
    sort_falling(gains, by_gain)
    n_givers = 0
    for k in range(n_clusters):
        if position[by_utility[k]] < 0 and n_givers < n_donors:
            givers[n_givers] = by_utility[k]
            n_givers += 1
    return n_givers


@part
def take_steps(
    points, weights, weight_step, addresses, frame, padding, no_bounds,
    eps,  # IN float64, of the data's dtype
    n_steps,  # IN at most so many
    slots,  # INOUT Slots
    trial,  # IN slot of the centres to begin from
    spare,  # IN another one
):  # fmt: skip
    """Lloyd's steps; returns the slot where they end, or -1 where a cluster came out empty."""
    now, following = trial, spare
    for step in range(n_steps + 1):
        slot = now if step == 0 else following
        if step > 0:
            copy_numbers(slots.means[now], slots.centers[slot])
            copy_numbers(slots.labels[now], slots.labels[slot])
        if not assign_slot(
            points, weights, weight_step, addresses.assign, frame, padding, no_bounds, slots, slot
        ):
            return -1
        if step > 0:
            if not slots.inertias[slot] < slots.inertias[now]:
                break  # a step that gains nothing can only be rounding
            now, following = slot, now
            if slots.changed[now] == 0 and rests(slots, now, eps):
                break
    return now


@part
def count_moves(gains, by_gain, utilities, givers, n_pairs, share):
    """How many of the first ``n_pairs`` moves gain this share of what they may cost."""
    n_moves = 0
    for k in range(n_pairs):
        n_moves += gains[by_gain[k]] > share * utilities[givers[k]]
    return n_moves


@part
def make_moves(
    slots, state, trial,  # INOUT Slots, from which slot to which
    n_moves,  # IN so many
    donors, by_gain, givers, child_means,  # IN as surveyed
):  # fmt: skip
    """The centres of ``state`` after some moves, in ``trial``."""
    centers = slots.centers[trial]
    copy_numbers(slots.centers[state], centers)
    for k in range(n_moves):
        cut = by_gain[k]
        for t in range(centers.shape[1]):
            centers[donors[cut], t] = child_means[cut, 0, t]
            centers[givers[k], t] = child_means[cut, 1, t]


NOT_GROWN, NOT_MENDED, MENDED, SETTLED = 0, 1, 2, 3
"""How far a start got: no tree; a tree with an empty leaf; a tree whose errors are mended; one that
is hardly to be improved."""


@kernel
def start_small(
    points,  # IN DensePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    slots,  # WORK Slots
    nodes,  # WORK Nodes; its order is that of the rows of positive weight
    numbers,  # WORK (2, K) float64
    lists,  # WORK (6, K) int64
    root_mean,  # IN (d,) float64, the mean of these rows
    has_leaves,  # IN bool, whether ``found`` holds a tree's leaves already
    rule,  # IN split.BALL or split.PRINCIPAL
    by_error,  # IN bool, whether leaves are shared by error
    frame,  # IN PackedCenters: origin, panels of zeros, order of the centres, error bounds
    no_bounds,  # IN (0,) float
    eps,  # IN float64, of the data's dtype
    addresses,  # IN Addresses
    n_steps,  # IN Lloyd steps after the tree, and between moves
    max_rounds,  # IN of moves
    n_donors, n_two_means,  # IN as in survey
    bold, careful,  # IN float64, the share of the utility that a move has to gain
    smallest_gain,  # IN float64; after a round that gains less, moves are made less boldly
    hopeless,  # IN float64, what share of the utility is hopeless (``pipeline/exchange.py``)
    found,  # INOUT (K, d) float64, the centres; leaves where errors could not be mended
):  # fmt: skip
    """Tree and moves (``pipeline/starts.py``); returns how far it got, and the inertia."""
    n_clusters = found.shape[0]
    scatters, gains = numbers[0], numbers[1]
    position, by_utility, donors, givers, leaves = lists[0], lists[1], lists[2], lists[3], lists[4]
    padding = frame.starts[0]  # no centres yet

    if not has_leaves and not grow_tree(
        points, weights, weight_step, addresses, rule, by_error, root_mean, nodes, leaves, found
    ):
        return NOT_GROWN, 0.0
    copy_numbers(found, slots.centers[0])
    trial, spare, state = 0, 1, 2
    share, limit = bold, n_clusters
    n_moves, n_failed, n_givers, is_surveyed, is_settled = 0, 0, 0, False, False
    for number in range(max_rounds + 1):  # the first one takes the tree's centres as they are
        gain = 0.0
        if number == 0 or n_moves != n_failed:
            end = take_steps(
                points, weights, weight_step, addresses, frame, padding, no_bounds, eps, n_steps,
                slots, trial, spare,
            )  # fmt: skip
            if end < 0:
                return NOT_MENDED, 0.0
            trial, spare = end, trial + spare - end
            gain = 1.0 if number == 0 else 1.0 - slots.inertias[trial] / slots.inertias[state]
            n_failed = n_moves
            if gain > 0.0:
                trial, state = state, trial
                n_failed, is_surveyed = 0, False
        if gain < smallest_gain:
            if share == careful:
                limit = min(limit, n_moves) // 2
            share = careful
        if number == max_rounds or slots.inertias[state] == 0.0 or n_clusters < 3:
            break
        utilities = slots.utilities[state]
        for n_asked in (n_donors, n_clusters):
            by_gain = lists[5, :n_asked]
            if not is_surveyed or n_asked > n_donors:
                n_givers = survey(
                    points, weights, weight_step, addresses, slots, state, n_asked, n_two_means,
                    nodes, scatters, gains, position, by_utility, donors, by_gain, givers,
                )  # fmt: skip
                is_surveyed = True
            if n_asked > n_donors:
                is_settled = gains[by_gain[0]] <= hopeless * utilities[by_utility[0]]
                break
            n_moves = count_moves(gains, by_gain, utilities, givers, min(n_givers, limit), share)
            if n_moves > 0 or not gains[by_gain[0]] <= hopeless * utilities[givers[0]]:
                break
        if n_moves == 0:
            break
        make_moves(slots, state, trial, n_moves, donors, by_gain, givers, nodes.child_means)
    copy_numbers(slots.centers[state], found)
    return SETTLED if is_settled else MENDED, slots.inertias[state]
