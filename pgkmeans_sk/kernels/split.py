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

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.points import add_row, copy_row, dot_with, sq_dist_to

BALL = 0
PRINCIPAL = 1

AT_BEST = -1.0
"""A ``fraction`` that puts the cut where it lowers the squared error of the keys most."""

BINS = 256
"""Resolution of the search for the best cut: it is the O(m) form of Otsu's threshold."""

POWER_STEPS = 6
POWER_SAMPLE = 2**15
"""Members that the power iteration looks at; the direction need not be exact."""


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
def fill(vector, value):
    for t in range(vector.size):
        vector[t] = value


@kernel
def divide(vector, divisor):
    for t in range(vector.size):
        vector[t] /= divisor


@kernel
def subtract(vector, factor, other):
    """``vector -= factor * other``."""
    for t in range(vector.size):
        vector[t] -= factor * other[t]


@kernel
def inner(first, second):
    total = 0.0
    for t in range(first.size):
        total += first[t] * second[t]
    return total


@kernel
def squared_norm(vector):
    return inner(vector, vector)


@kernel
def node_moments(
    points,  # IN Points
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    order,  # IN (m,) int, row numbers
    low,  # IN first of the node
    high,  # IN one past the last
    mean,  # OUT (d,) float64
):
    """Mean, weight and scatter (weighted sum of squared distances to the mean) of a node."""
    fill(mean, 0.0)
    weight = 0.0
    for k in range(low, high):
        w = weights[order[k] * weight_step]
        weight += w
        add_row(points, order[k], w, mean)
    divide(mean, weight)
    norm = squared_norm(mean)
    scatter = 0.0
    for k in range(low, high):
        w = weights[order[k] * weight_step]
        scatter += w * sq_dist_to(points, order[k], mean, norm)
    return weight, scatter


@kernel
def farthest_member(points, order, low, high, mean):
    """Row number of the member farthest from the mean, the lowest of several."""
    norm = squared_norm(mean)
    farthest = order[low]
    largest = -1.0
    for k in range(low, high):
        i = order[k]
        sq_dist = sq_dist_to(points, i, mean, norm)
        if sq_dist > largest or (sq_dist == largest and i < farthest):
            farthest = i
            largest = sq_dist
    return farthest


@kernel
def fill_ball_keys(
    points, order, low, high, mean,
    keys,  # OUT (m,) float64
):  # fmt: skip
    """Squared distances to the member farthest from the mean."""
    pole = np.empty_like(mean)
    copy_row(points, farthest_member(points, order, low, high, mean), pole)
    norm = squared_norm(pole)
    for k in range(low, high):
        keys[k] = sq_dist_to(points, order[k], pole, norm)


@kernel
def fill_principal_keys(
    points, weights, weight_step, order, low, high, mean,
    keys,  # OUT (m,) float64
):  # fmt: skip
    """Positions along the principal direction, relative to the mean."""
    step = 1 + (high - low - 1) // POWER_SAMPLE
    direction = np.empty_like(mean)
    copy_row(points, farthest_member(points, order, low, high, mean), direction)
    subtract(direction, 1.0, mean)
    product = np.empty_like(mean)
    for _ in range(POWER_STEPS):
        length = np.sqrt(squared_norm(direction))
        if length == 0.0:
            break
        divide(direction, length)
        centre = inner(mean, direction)
        fill(product, 0.0)
        total = 0.0
        for k in range(low, high, step):
            coordinate = weights[order[k] * weight_step] * (
                dot_with(points, order[k], direction) - centre
            )
            total += coordinate
            add_row(points, order[k], coordinate, product)
        subtract(product, total, mean)
        direction, product = product, direction
    centre = inner(mean, direction)
    for k in range(low, high):
        keys[k] = dot_with(points, order[k], direction) - centre


@kernel
def swap(order, keys, first, second):
    order[first], order[second] = order[second], order[first]
    keys[first], keys[second] = keys[second], keys[first]


@kernel
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


@kernel
def split_at(order, keys, low, high, threshold):
    """Put keys up to ``threshold`` left; returns the middle."""
    middle = low
    for k in range(low, high):
        if keys[k] <= threshold:
            swap(order, keys, k, middle)
            middle += 1
    return middle


@kernel
def best_threshold(
    weights, weight_step, order, keys, low, high
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
    bin_weights = np.zeros(BINS)
    bin_sums = np.zeros(BINS)
    bin_ends = np.empty(BINS)  # largest key in each bin
    fill(bin_ends, smallest)
    for k in range(low, high):
        position = (keys[k] - smallest) / extent
        b = min(int(position * BINS), BINS - 1)
        w = weights[order[k] * weight_step]
        bin_weights[b] += w
        bin_sums[b] += w * position
        bin_ends[b] = max(bin_ends[b], keys[k])
    total_weight = total_sum = 0.0
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
            threshold = bin_ends[b]
    return threshold


@kernel
def two_means(
    points, weights, weight_step, order, keys, low, middle, high,
    n_steps,  # IN at most so many Lloyd steps with two centres
):  # fmt: skip
    """Move the cut by Lloyd's steps on the node's own members."""
    left = np.empty(points.n_features, np.float64)
    right = np.empty(points.n_features, np.float64)
    for _ in range(n_steps):
        fill(left, 0.0)
        fill(right, 0.0)
        left_weight = right_weight = 0.0
        for k in range(low, middle):
            w = weights[order[k] * weight_step]
            left_weight += w
            add_row(points, order[k], w, left)
        for k in range(middle, high):
            w = weights[order[k] * weight_step]
            right_weight += w
            add_row(points, order[k], w, right)
        divide(left, left_weight)
        divide(right, right_weight)
        left_norm, right_norm = squared_norm(left), squared_norm(right)
        changed = False
        n_left = 0
        for k in range(low, high):
            i = order[k]
            keys[k] = sq_dist_to(points, i, left, left_norm) - sq_dist_to(
                points, i, right, right_norm
            )
            if keys[k] <= 0.0:
                n_left += 1
            changed = changed or (keys[k] <= 0.0) != (k < middle)
        if not changed or n_left == 0 or n_left == high - low:
            break
        middle = split_at(order, keys, low, high, 0.0)
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
    middles,  # OUT (p,) int64; low where all members are equal
    child_weights,  # OUT (p, 2) float64
    child_means,  # OUT (p, 2, d) float64
    child_scatters,  # OUT (p, 2) float64
):  # fmt: skip
    """Cut nodes ``first_node:last_node`` in two."""
    for p in range(first_node, last_node):
        low, high = ranges[p, 0], ranges[p, 1]
        middle = low
        for attempt in range(2):
            if attempt == 0 and rule == PRINCIPAL:
                fill_principal_keys(points, weights, weight_step, order, low, high, means[p], keys)
            else:  # the rule, or the way out where no direction tells the members apart
                fill_ball_keys(points, order, low, high, means[p], keys)
            if fractions[p] == AT_BEST:
                threshold = best_threshold(weights, weight_step, order, keys, low, high)
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
            points, weights, weight_step, order, keys, low, middle, high, n_two_means
        )
        middles[p] = middle
        child_weights[p, 0], child_scatters[p, 0] = node_moments(
            points, weights, weight_step, order, low, middle, child_means[p, 0]
        )
        child_weights[p, 1], child_scatters[p, 1] = node_moments(
            points, weights, weight_step, order, middle, high, child_means[p, 1]
        )
