"""Each row's cheapest cluster at given prices, and a net for what prices cannot do.

The price of a cluster is added to squared distances (``size_limits.py``).
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.distances import fill_sq_distances

SLACK = 1e-13
"""Costs that differ by less, relative to what they are sums of, are taken for equal."""

SPREAD = 2654435761
"""A prime near 2^32 / golden ratio: multiples of it, modulo 2^32, are spread evenly (Knuth)."""


@kernel
def choose_cheapest(
    points,  # IN Points
    numbers,  # IN (m,) int, rows
    start,  # IN first of them in this chunk
    stop,  # IN one past the last
    columns,  # IN (d, K) float64, the centres transposed
    norms,  # IN (K,) float64, |c|^2
    prices,  # IN (K,) float64
    own,  # INOUT (m,) int32, the cluster of each row; -1 for none yet
    own_distances,  # OUT (m,) float64, squared
):
    """Move each row to its cheapest cluster, unless its own cluster is one of several such.

    Equal rows start at different clusters: if many cost the same, all get their share of rows.
    """
    n_features, n_clusters = columns.shape
    row = np.empty(n_features, np.float64)
    sq_dist = np.empty(n_clusters, np.float64)
    for k in range(start, stop):
        number = np.int64(numbers[k])
        fill_sq_distances(points, number, columns, norms, row, sq_dist)
        first = number * SPREAD % 2**32 % n_clusters
        least = np.inf
        best = np.int64(first)
        for step in range(n_clusters):
            j = first + step
            j -= n_clusters if j >= n_clusters else 0
            if sq_dist[j] + prices[j] < least:
                least = sq_dist[j] + prices[j]
                best = j
        here = np.int64(own[k])
        if here >= 0:
            slack = SLACK * (sq_dist[best] + abs(prices[best]) + sq_dist[here] + abs(prices[here]))
            if sq_dist[here] + prices[here] <= least + slack:
                best = here
        own[k] = best
        own_distances[k] = sq_dist[best]


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
