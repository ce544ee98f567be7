"""Cutting sets of rows in two: the step of the partition tree and of cautious partitioning.

A set (a *node*) is a range ``order[low:high]`` of row numbers. Cutting it permutes the range so
that the left child is ``order[low:middle]``. Rows with equal keys stay together, so the children do
not depend on the order of the rows (unless several members are equally far from the mean, or there
are more than the power iteration looks at), and a row of weight 2 is cut like the row twice.

Which rows go left is told by one number a row, its *key*:

* ``BALL``: squared distance to p, the member farthest from the node's mean;
* ``PRINCIPAL``: position along the direction of largest variance (power iteration).
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel_without_memory, part
from pgkmeans_sk.kernels.linked import call_for_int, call_for_two_floats
from pgkmeans_sk.kernels.points import add_row, copy_row, dot_with, sq_dist_to
from pgkmeans_sk.kernels.steps import as_written, clear, inner, lesser, swap, weight_of

BALL = 0
PRINCIPAL = 1

AT_BEST = -1.0
"""A ``fraction`` that puts the cut where it lowers the squared error of the keys most."""

BINS = 256
"""Resolution of the search for the best cut: it is the O(m) form of Otsu's threshold."""

POWER_STEPS = 6
POWER_SAMPLE = 2**13
"""Members that the power iteration looks at; the direction need not be exact."""

FEW_MOVES = 64
"""Two centres are at rest when fewer than one member in so many changes sides."""


@kernel_without_memory
def list_members(
    labels,  # IN (n,) int32
    position,  # IN (K,) int64, number of the node for a cluster's rows, or -1
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    ends,  # INOUT (m,) int64, where each node's next row goes; after zeros, how many rows it has
    order,  # OUT (sum of counts,) int; (0,): only count
):
    """Write the numbers of the rows of positive weight of each node side by side."""
    as_written(labels)
    for i in range(labels.size):
        node = position[labels[i]]
        if node >= 0 and weight_of(weights, weight_step, i) > 0.0:
            if order.size:
                order[ends[node]] = i
            ends[node] += 1


# Loops, not array expressions: these would bring in Numba's broadcasting, 2 s of compilation.


@part
def fill_mean(
    points,  # IN Points
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    order,  # IN (m,) int, row numbers
    low,  # IN first of the node
    high,  # IN one past the last
    mean,  # OUT (d,) float64
):
    """Mean of a node; returns its weight, and the squared norm of the mean."""
    clear(mean)
    weight = 0.0
    for k in range(low, high):
        w = weight_of(weights, weight_step, order[k])
        weight += w
        add_row(points, order[k], w, mean)
    for t in range(mean.size):
        mean[t] /= weight
    return weight, inner(mean, mean)


@kernel_without_memory
def node_moments(
    points, weights, weight_step, order, low, high,  # IN as above
    mean,  # OUT (d,) float64
):  # fmt: skip
    """Mean, weight and scatter (weighted sum of squared distances to the mean) of a node."""
    as_written(points)
    weight, norm = fill_mean(points, weights, weight_step, order, low, high, mean)
    scatter = 0.0
    for k in range(low, high):
        w = weight_of(weights, weight_step, order[k])
        scatter += w * sq_dist_to(points, order[k], mean, norm)
    return weight, scatter


@part
def copy_farthest(
    points, order, low, high, mean,
    pole,  # OUT (d,) float64
):  # fmt: skip
    """The member farthest from the mean, the one of lowest number if there are several."""
    norm = inner(mean, mean)
    farthest = order[low]
    largest = -1.0
    for k in range(low, high):
        i = order[k]
        sq_dist = sq_dist_to(points, i, mean, norm)
        if sq_dist > largest or (sq_dist == largest and i < farthest):
            farthest = i
            largest = sq_dist
    copy_row(points, farthest, pole)


@part
def fill_ball_keys(
    points, order, low, high,
    pole,  # IN (d,) float64
    keys,  # OUT (m,) float64
):  # fmt: skip
    """Squared distances to the pole."""
    norm = inner(pole, pole)
    for k in range(low, high):
        keys[k] = sq_dist_to(points, order[k], pole, norm)


@part
def fill_principal_keys(
    points, weights, weight_step, order, low, high, mean,
    direction,  # INOUT (d,) float64, the pole at first
    product,  # WORK (d,) float64
    keys,  # OUT (m,) float64
):  # fmt: skip
    """Positions along the principal direction, relative to the mean."""
    step = 1 + (high - low - 1) // POWER_SAMPLE
    for t in range(mean.size):
        direction[t] -= mean[t]
    centre = 0.0
    for _ in range(POWER_STEPS):
        length = np.sqrt(inner(direction, direction))
        if length == 0.0:
            break
        for t in range(mean.size):
            direction[t] /= length
        centre = inner(mean, direction)
        clear(product)
        total = 0.0
        for k in range(low, high, step):
            coordinate = weight_of(weights, weight_step, order[k]) * (
                dot_with(points, order[k], direction) - centre
            )
            total += coordinate
            add_row(points, order[k], coordinate, product)
        for t in range(mean.size):
            direction[t] = product[t] - total * mean[t]
        centre = inner(mean, direction)
    for k in range(low, high):
        keys[k] = dot_with(points, order[k], direction) - centre


@kernel_without_memory
def select_by_weight(
    weights, weight_step,
    order,  # INOUT (m,) int
    keys,  # INOUT (m,) float64
    low, high,
    target,  # IN float64, weight that should go left
):  # fmt: skip
    """Quickselect by weight: smaller keys left, equal keys together, both sides non-empty.

    Returns the middle, or ``low`` if all keys are equal and no cut exists.
    """
    as_written(order)
    first, last, before = low, high, 0.0  # the cut lies in first:last; weight left of first
    while last - first > 0:
        a, b, c = keys[first], keys[(first + last) // 2], keys[last - 1]
        if b < a:
            a, b = b, a
        pivot = a if c < a else (b if b < c else c)
        less, equal_end, k = first, last, first
        lighter = equal = 0.0
        while k < equal_end:
            if keys[k] < pivot:
                lighter += weight_of(weights, weight_step, order[k])
                swap(order, keys, k, less)
                less += 1
                k += 1
            elif keys[k] > pivot:
                equal_end -= 1
                swap(order, keys, k, equal_end)
            else:
                equal += weight_of(weights, weight_step, order[k])
                k += 1
        if before + lighter > target and less > first:
            last = less
        elif before + lighter + equal < target and equal_end < last:
            before += lighter + equal
            first = equal_end
        else:
            shorter = target - (before + lighter) <= (before + lighter + equal) - target
            if less == low:
                shorter = False
            elif equal_end == high:
                shorter = True
            middle = less if shorter else equal_end
            return middle if middle < high else low
    # The target fell between two values; both neighbours of this place hold different keys.
    return first if first < high else low


@part
def split_at(order, keys, low, high, threshold):
    """Put keys up to ``threshold`` left; returns the middle."""
    middle = low
    for k in range(low, high):
        if keys[k] <= threshold:
            swap(order, keys, k, middle)
            middle += 1
    return middle


@part
def best_threshold(
    weights, weight_step, order, keys, low, high,
    bins,  # WORK (3, BINS) float64: weights, weighted sums and largest key of each
):  # fmt: skip
    """The key at which two groups have the least squared error about their own means.

    Otsu's method on a histogram: the best cut maximises w_l w_r (m_l - m_r)^2.
    """
    smallest = largest = keys[low]
    for k in range(low + 1, high):
        smallest = keys[k] if keys[k] < smallest else smallest
        largest = keys[k] if keys[k] > largest else largest
    if smallest == largest:
        return smallest
    extent = largest - smallest  # keys are taken as shares of it: their squares may not exist
    bin_weights, bin_sums, bin_keys = bins[0], bins[1], bins[2]
    clear(bin_weights)
    clear(bin_sums)
    for b in range(BINS):
        bin_keys[b] = smallest
    total_weight = total_sum = 0.0
    for k in range(low, high):
        position = (keys[k] - smallest) / extent
        b = lesser(np.int64(position * BINS), BINS - 1)
        w = weight_of(weights, weight_step, order[k])
        bin_weights[b] += w
        bin_sums[b] += w * position
        bin_keys[b] = keys[k] if keys[k] > bin_keys[b] else bin_keys[b]
    for b in range(BINS):
        total_weight += bin_weights[b]
        total_sum += bin_sums[b]
    threshold = smallest
    best = -1.0
    weight = total = 0.0
    for b in range(BINS - 1):
        if bin_weights[b] == 0.0:
            continue
        weight += bin_weights[b]
        total += bin_sums[b]
        if weight >= total_weight:
            break
        difference = total / weight - (total_sum - total) / (total_weight - weight)
        between = weight * (total_weight - weight) * difference * difference
        if between > best:
            best = between
            threshold = bin_keys[b]
    return threshold


@part
def two_means(
    points, weights, weight_step, order, keys, low, middle, high,
    n_steps,  # IN at most so many Lloyd steps with two centres
    means,  # WORK (2, d) float64, of the sides
):  # fmt: skip
    """Move the cut by Lloyd's steps on the node's own members."""
    left, right = means[0], means[1]
    for _ in range(n_steps):
        for side in range(2):
            first, last = (low, middle) if side == 0 else (middle, high)
            fill_mean(points, weights, weight_step, order, first, last, means[side])
        # Half of |x - l|^2 - |x - r|^2 is (r - l) . x minus this:
        border = 0.0
        for t in range(left.size):
            border += (right[t] - left[t]) * (0.5 * left[t] + 0.5 * right[t])
            right[t] -= left[t]
        n_left = n_moved = 0
        for k in range(low, high):
            keys[k] = dot_with(points, order[k], right) - border
            n_left += keys[k] <= 0.0
            n_moved += (keys[k] <= 0.0) != (k < middle)
        if n_moved == 0 or n_left == 0 or n_left == high - low:
            break
        middle = split_at(order, keys, low, high, 0.0)
        if n_moved * FEW_MOVES < high - low:
            break
    return middle


@kernel_without_memory
def cut_nodes(
    points, weights, weight_step,
    order,  # INOUT (m,) int
    keys,  # WORK (m,) float64
    ranges,  # IN (p, 2) int64, low and high of each node
    means,  # IN (p, d) float64
    fractions,  # IN (p,) float64, share of the weight that should go left, or AT_BEST
    moments,  # IN int, address of node_moments
    select,  # IN int, address of select_by_weight; of no account where all are AT_BEST
    rule,  # IN BALL or PRINCIPAL
    n_two_means,  # IN Lloyd steps with two centres after the cut
    first_node, last_node,  # IN which nodes to cut
    work,  # WORK (2, d) float64
    bins,  # WORK (3, BINS) float64
    middles,  # OUT (p,) int64; low where all members are equal
    child_weights,  # OUT (p, 2) float64
    child_means,  # OUT (p, 2, d) float64
    child_scatters,  # OUT (p, 2) float64
):  # fmt: skip
    """Cut nodes ``first_node:last_node`` in two."""
    as_written(points)
    first_vector, second_vector = work[0], work[1]
    for p in range(first_node, last_node):
        low, high = ranges[p, 0], ranges[p, 1]
        middle = low
        for attempt in range(2):
            copy_farthest(points, order, low, high, means[p], first_vector)
            if attempt == 0 and rule == PRINCIPAL:
                fill_principal_keys(
                    points, weights, weight_step, order, low, high, means[p],
                    first_vector, second_vector, keys,
                )  # fmt: skip
            else:  # the rule, or the way out where no direction tells the members apart
                fill_ball_keys(points, order, low, high, first_vector, keys)
            if fractions[p] == AT_BEST:
                threshold = best_threshold(weights, weight_step, order, keys, low, high, bins)
                middle = split_at(order, keys, low, high, threshold)
                middle = low if middle == high else middle
            else:
                total = 0.0
                for k in range(low, high):
                    total += weight_of(weights, weight_step, order[k])
                middle = call_for_int(
                    select, (weights, weight_step, order, keys, low, high, fractions[p] * total)
                )
            if middle > low:
                break
        middles[p] = middle
        if middle == low:
            continue
        middle = two_means(
            points, weights, weight_step, order, keys, low, middle, high, n_two_means, work
        )
        middles[p] = middle
        for side in range(2):
            first, last = (low, middle) if side == 0 else (middle, high)
            child_weights[p, side], child_scatters[p, side] = call_for_two_floats(
                moments,
                (points, weights, weight_step, order, first, last, child_means[p, side]),
            )  # fmt: skip
