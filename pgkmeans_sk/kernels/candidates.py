"""Each row's few cheapest clusters at given prices, and a net for what they cannot do.

The price of a cluster is added to squared distances (``size_limits.py``). A row's *candidates* are
the c clusters that cost it least when it was looked at; its *bound* is what the next one would have
cost. As long as prices change little, the bound proves that no other cluster is cheaper.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.distances import fill_sq_row
from pgkmeans_sk.kernels.points import DensePoints, copy_row

SLACK = 1e-13
"""Costs that differ by less, relative to what they are sums of, are taken for equal."""

SPREAD = 2654435761
"""A prime near 2^32 / golden ratio: multiples of it, modulo 2^32, are spread evenly (Knuth)."""


def fill_sq_distances(points, i, columns, norms, row, sq_dist):
    """``sq_dist = |x_i - c_j|^2`` for all j; ``row`` (d,) is room to work in."""
    raise NotImplementedError("only inside kernels")


@overload(fill_sq_distances)
def _fill_sq_distances(points, i, columns, norms, row, sq_dist):
    def dense(points, i, columns, norms, row, sq_dist):
        copy_row(points, i, row)
        fill_sq_row(row, columns, sq_dist)

    def sparse(points, i, columns, norms, row, sq_dist):
        for j in range(sq_dist.size):
            sq_dist[j] = norms[j]
        norm = 0.0
        for k in range(points.indptr[i], points.indptr[i + 1]):
            value = np.float64(points.data[k])
            norm += value * value
            column = points.indices[k]
            for j in range(sq_dist.size):
                sq_dist[j] -= 2.0 * value * columns[column, j]
        for j in range(sq_dist.size):
            sq_dist[j] = max(sq_dist[j] + norm, 0.0)

    return dense if points.instance_class is DensePoints else sparse


@kernel
def find_candidates(
    points,  # IN Points
    numbers,  # IN (m,) int, rows
    which,  # IN (w,) int64, positions of those to look at
    start,  # IN first of ``which`` in this chunk
    stop,  # IN one past the last
    columns,  # IN (d, K) float64, the centres transposed
    norms,  # IN (K,) float64, |c|^2
    prices,  # IN (K,) float64
    candidates,  # OUT (m, c) int32, cheapest first; ties differ from row to row
    distances,  # OUT (m, c) float64, squared, without the price
    bounds,  # OUT (m,) float64, squared distance + price of the next one; inf if there is none
):
    """Look for the cheapest clusters of the rows at positions ``which[start:stop]``.

    Equal rows start at different clusters: if many cost the same, all get their share of rows.
    """
    n_features, n_clusters = columns.shape
    n_candidates = candidates.shape[1]
    row = np.empty(n_features, np.float64)
    sq_dist = np.empty(n_clusters, np.float64)
    costs = np.empty(n_candidates + 1, np.float64)
    cheapest = np.empty(n_candidates + 1, np.int32)
    for k in which[start:stop]:
        number = np.int64(numbers[k])
        fill_sq_distances(points, number, columns, norms, row, sq_dist)
        for s in range(n_candidates + 1):
            costs[s] = np.inf
            cheapest[s] = -1
        first = number * SPREAD % 2**32 % n_clusters
        for step in range(n_clusters):
            j = first + step
            j -= n_clusters if j >= n_clusters else 0
            cost = sq_dist[j] + prices[j]
            if cost < costs[n_candidates]:
                s = n_candidates
                while s > 0 and cost < costs[s - 1]:
                    costs[s] = costs[s - 1]
                    cheapest[s] = cheapest[s - 1]
                    s -= 1
                costs[s] = cost
                cheapest[s] = j
        for s in range(n_candidates):
            candidates[k, s] = cheapest[s]
            distances[k, s] = sq_dist[cheapest[s]] if cheapest[s] >= 0 else np.inf
        bounds[k] = costs[n_candidates]


@kernel
def choose_cheapest(
    candidates,  # IN (m, c) int32
    distances,  # IN (m, c) float64
    floors,  # IN (m,) float64, what any other cluster costs at least
    prices,  # IN (K,) float64
    own,  # INOUT (m,) int32, the cluster of each row; -1 for none yet
    own_distances,  # OUT (m,) float64
    margins,  # OUT (m,) float64, by how much the next candidate costs more
    doubtful,  # OUT (m,) bool, whether a cluster that is no candidate may cost less
):
    """Move each row to its cheapest candidate, unless its own cluster is one of several such."""
    for k in range(own.size):
        best = np.inf
        second = np.inf
        best_slot = 0
        own_slot = -1
        for s in range(candidates.shape[1]):
            j = candidates[k, s]
            if j < 0:
                continue
            cost = distances[k, s] + prices[j]
            if j == own[k]:
                own_slot = s
            if cost < best:
                second = best
                best = cost
                best_slot = s
            elif cost < second:
                second = cost
        j = candidates[k, best_slot]
        slack = SLACK * (distances[k, best_slot] + abs(prices[j]))
        if own_slot >= 0 and own_slot != best_slot:
            price = prices[own[k]]
            slack += SLACK * (distances[k, own_slot] + abs(price))
            if distances[k, own_slot] + price <= best + slack:
                best_slot = own_slot
                second = best
        own[k] = candidates[k, best_slot]
        own_distances[k] = distances[k, best_slot]
        margins[k] = second - best
        doubtful[k] = best > floors[k] + slack


@kernel
def find_exits(
    points,  # IN Points
    numbers,  # IN (m,) int, rows
    start,  # IN first of them in this chunk
    stop,  # IN one past the last
    columns, norms, prices,  # IN as above
    own,  # IN (m,) int32
    inside,  # IN (K,) bool
    exits,  # OUT (m,) float64
):  # fmt: skip
    """What it costs each row to leave the clusters ``inside``; inf for a row in another."""
    row = np.empty(columns.shape[0], np.float64)
    sq_dist = np.empty(columns.shape[1], np.float64)
    for k in range(start, stop):
        exits[k] = np.inf
        if not inside[own[k]]:
            continue
        fill_sq_distances(points, np.int64(numbers[k]), columns, norms, row, sq_dist)
        here = sq_dist[own[k]] + prices[own[k]]
        for j in range(sq_dist.size):
            if not inside[j]:
                exits[k] = min(exits[k], sq_dist[j] + prices[j] - here)


@kernel
def enforce_limits(
    points,  # IN Points
    numbers,  # IN (m,) int, rows
    weights,  # IN (m,) float64, > 0
    columns, norms,  # IN as above
    own,  # INOUT (m,) int32
    sizes,  # INOUT (K,) float64
    counts,  # INOUT (K,) int64
    smallest, largest,  # IN float64, limits of a cluster's weight
    leeway,  # IN float64, by how much they may be missed
):  # fmt: skip
    """Move single rows, the cheapest first, until all clusters are within ``leeway`` and own rows.

    A net that hardly ever has anything to catch, hence slow and simple. It always succeeds: if a
    cluster is too heavy another one has room for any of its rows, since all together could be
    within the limits; no cluster that gave a row will need one, nor the other way round.
    """
    n_clusters = sizes.size
    row = np.empty(columns.shape[0], np.float64)
    sq_dist = np.empty(n_clusters, np.float64)
    while True:
        heaviest = np.argmax(sizes)
        lightest = np.argmin(counts)
        if counts[lightest] > 0:
            lightest = np.argmin(sizes)
        too_heavy = sizes[heaviest] > largest + leeway
        too_light = sizes[lightest] < smallest - leeway or counts[lightest] == 0
        if not (too_heavy or too_light):
            break
        cheapest = np.inf
        found = -1
        target = -1
        for k in range(own.size):
            here = own[k]
            if too_heavy:
                allowed = here == heaviest
            else:
                allowed = here != lightest and counts[here] > 1
                allowed &= sizes[here] > smallest or smallest <= leeway
            if not allowed:
                continue
            fill_sq_distances(points, np.int64(numbers[k]), columns, norms, row, sq_dist)
            for j in range(n_clusters):
                there = sizes[j] < largest if too_heavy else j == lightest
                if not there or j == here:
                    continue
                cost = weights[k] * (sq_dist[j] - sq_dist[here])
                if found < 0 or cost < cheapest:
                    cheapest = cost
                    found = k
                    target = j
        if found < 0:
            break
        sizes[own[found]] -= weights[found]
        counts[own[found]] -= 1
        sizes[target] += weights[found]
        counts[target] += 1
        own[found] = target
