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

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.points import add_row, copy_row, dot_with, sq_dist_to

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


@kernel
def count_members(
    labels,  # IN (n,) int32
    position,  # IN (K,) int64, number of the node for a cluster's rows, or -1
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    counts,  # INOUT (m,) int64, zeros at first
):
    """Count the rows of positive weight of each node."""
    for i in range(labels.size):
        node = position[labels[i]]
        if node >= 0 and weights[i * weight_step] > 0.0:
            counts[node] += 1


@kernel
def list_members(
    labels, position, weights, weight_step,
    ends,  # INOUT (m,) int64, where each node's next row goes
    order,  # OUT (sum of counts,) int
):  # fmt: skip
    """Write the row numbers of each node side by side."""
    for i in range(labels.size):
        node = position[labels[i]]
        if node >= 0 and weights[i * weight_step] > 0.0:
            order[ends[node]] = i
            ends[node] += 1


# Loops, not array expressions: these would bring in Numba's broadcasting, 2 s of compilation.


@kernel
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
    for t in range(mean.size):
        mean[t] = 0.0
    weight = 0.0
    for k in range(low, high):
        w = weights[order[k] * weight_step]
        weight += w
        add_row(points, order[k], w, mean)
    norm = 0.0
    for t in range(mean.size):
        mean[t] /= weight
        norm += mean[t] * mean[t]
    return weight, norm


@kernel
def node_moments(
    points, weights, weight_step, order, low, high,  # IN as above
    mean,  # OUT (d,) float64
):  # fmt: skip
    """Mean, weight and scatter (weighted sum of squared distances to the mean) of a node."""
    weight, norm = fill_mean(points, weights, weight_step, order, low, high, mean)
    scatter = 0.0
    for k in range(low, high):
        w = weights[order[k] * weight_step]
        scatter += w * sq_dist_to(points, order[k], mean, norm)
    return weight, scatter


@part
def copy_farthest(
    points, order, low, high, mean,
    pole,  # OUT (d,) float64
):  # fmt: skip
    """The member farthest from the mean, the one of lowest number if there are several."""
    norm = 0.0
    for t in range(mean.size):
        norm += mean[t] * mean[t]
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
    norm = 0.0
    for t in range(pole.size):
        norm += pole[t] * pole[t]
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
        sq_length = 0.0
        for t in range(mean.size):
            sq_length += direction[t] * direction[t]
        length = np.sqrt(sq_length)
        if length == 0.0:
            break
        centre = 0.0
        for t in range(mean.size):
            direction[t] /= length
            centre += mean[t] * direction[t]
            product[t] = 0.0
        total = 0.0
        for k in range(low, high, step):
            coordinate = weights[order[k] * weight_step] * (
                dot_with(points, order[k], direction) - centre
            )
            total += coordinate
            add_row(points, order[k], coordinate, product)
        centre = 0.0
        for t in range(mean.size):
            direction[t] = product[t] - total * mean[t]
            centre += mean[t] * direction[t]
    for k in range(low, high):
        keys[k] = dot_with(points, order[k], direction) - centre


@part
def swap(order, keys, first, second):
    """Exchange two members and their keys."""
    order[first], order[second] = order[second], order[first]
    keys[first], keys[second] = keys[second], keys[first]


@part
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
    first, last, before = low, high, 0.0  # the cut lies in first:last; weight left of first
    while last - first > 0:
        a, b, c = keys[first], keys[(first + last) // 2], keys[last - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        less, equal_end, k = first, last, first
        lighter = equal = 0.0
        while k < equal_end:
            if keys[k] < pivot:
                lighter += weights[order[k] * weight_step]
                swap(order, keys, k, less)
                less += 1
                k += 1
            elif keys[k] > pivot:
                equal_end -= 1
                swap(order, keys, k, equal_end)
            else:
                equal += weights[order[k] * weight_step]
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
        smallest = min(smallest, keys[k])
        largest = max(largest, keys[k])
    if smallest == largest:
        return smallest
    extent = largest - smallest  # keys are taken as shares of it: their squares may not exist
    for b in range(BINS):
        bins[0, b] = bins[1, b] = 0.0
        bins[2, b] = smallest
    for k in range(low, high):
        position = (keys[k] - smallest) / extent
        b = np.int64(position * BINS)
        b = b if b < BINS else BINS - 1
        w = weights[order[k] * weight_step]
        bins[0, b] += w
        bins[1, b] += w * position
        bins[2, b] = keys[k] if keys[k] > bins[2, b] else bins[2, b]
    total_weight = total_sum = 0.0
    for b in range(BINS):
        total_weight += bins[0, b]
        total_sum += bins[1, b]
    threshold = smallest
    best = -1.0
    weight = total = 0.0
    for b in range(BINS - 1):
        if bins[0, b] == 0.0:
            continue
        weight += bins[0, b]
        total += bins[1, b]
        if weight >= total_weight:
            break
        difference = total / weight - (total_sum - total) / (total_weight - weight)
        between = weight * (total_weight - weight) * difference * difference
        if between > best:
            best = between
            threshold = bins[2, b]
    return threshold


@part
def two_means(
    points, weights, weight_step, order, keys, low, middle, high,
    n_steps,  # IN at most so many Lloyd steps with two centres
    left, right,  # WORK (d,) float64
):  # fmt: skip
    """Move the cut by Lloyd's steps on the node's own members."""
    for _ in range(n_steps):
        fill_mean(points, weights, weight_step, order, low, middle, left)
        fill_mean(points, weights, weight_step, order, middle, high, right)
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


@kernel
def cut_nodes(
    points, weights, weight_step,
    order,  # INOUT (m,) int
    keys,  # WORK (m,) float64
    ranges,  # IN (p, 2) int64, low and high of each node
    means,  # IN (p, d) float64
    fractions,  # IN (p,) float64, share of the weight that should go left, or AT_BEST
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
                    total += weights[order[k] * weight_step]
                middle = select_by_weight(
                    weights, weight_step, order, keys, low, high, fractions[p] * total
                )
            if middle > low:
                break
        middles[p] = middle
        if middle == low:
            continue
        middle = two_means(
            points, weights, weight_step, order, keys, low, middle, high, n_two_means,
            first_vector, second_vector,
        )  # fmt: skip
        middles[p] = middle
        for side in range(2):
            first, last = (low, middle) if side == 0 else (middle, high)
            child_weights[p, side], child_scatters[p, side] = node_moments(
                points, weights, weight_step, order, first, last, child_means[p, side]
            )
