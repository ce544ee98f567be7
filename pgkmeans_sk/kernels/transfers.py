"""Which row each cluster could hand on to which other cluster, cheapest first, over all pairs.

The data structure under the search for chains of ``size_limits.py``. Handing a row on costs its
squared distance there minus here: a number that no price changes. For each pair of clusters the few
cheapest rows are *listed*, and a *floor* under what any other row costs is kept. Lists are mended
only where a search gets: rows that have left stay listed until they come first, and a list that has
run out is filled anew from all rows of its cluster. So no row is ever out of sight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.distances import fill_sq_distances
from pgkmeans_sk.kernels.points import sq_dist_to

LISTED_PER_ROW = 8
"""Listed rows, over all pairs of clusters, per row..."""
MOST_LISTED = 32
"""...but for one pair from 1 to so many."""


class Graph(NamedTuple):
    """m rows, the K clusters they are in, what handing them on costs, and room to search."""

    points: Any  # Points
    numbers: np.ndarray  # (m,) int, which rows of ``points``
    columns: np.ndarray  # (d, K) float64, the centres transposed
    norms: np.ndarray  # (K,) float64, |c|^2
    weights: np.ndarray  # (m,) float64
    own: np.ndarray  # (m,) int32, the cluster of each row
    own_distances: np.ndarray  # (m,) float64, squared, to its centre
    prices: np.ndarray  # (K + 1,) float64; that of the sink comes last
    sizes: np.ndarray  # (K,) float64, weight of each cluster
    quotas: np.ndarray  # (K,) float64, what the cluster should weigh
    excess: np.ndarray  # (K + 1,) float64, sizes - quotas; sum of quotas - weight for the sink
    # The rows of each cluster, linked both ways; -1 ends a list.
    first: np.ndarray  # (K,) int
    later: np.ndarray  # (m,) int
    earlier: np.ndarray  # (m,) int
    # For each pair of clusters: listed rows by cost, how many, and the floor under all others;
    # ``least`` is the cost that comes first, or the floor if none is listed.
    listed: np.ndarray  # (K, K, t) int
    costs: np.ndarray  # (K, K, t) float64
    n_listed: np.ndarray  # (K, K) int8
    floors: np.ndarray  # (K, K) float64
    least: np.ndarray  # (K, K) float64
    # Dijkstra's: distance from the source, of final nodes and of others seen (infinite for the
    # rest); prices of nodes that are not final (infinite for those that are); last step; final
    # nodes in order.
    reach: np.ndarray  # (K + 1,) float64
    pending: np.ndarray  # (K + 1,) float64
    open_prices: np.ndarray  # (K + 1,) float64
    origin: np.ndarray  # (K + 1,) int64
    carrier: np.ndarray  # (K + 1,) int64, the row handed on; -1 for steps from or to the sink
    path: np.ndarray  # (K + 1,) int64
    # Room for a row, for a centre, and for distances.
    row: np.ndarray  # (d,) float64
    center: np.ndarray  # (d,) float64
    sq_dist: np.ndarray  # (K,) float64


def open_graph(points, numbers, columns, norms, weights, own, own_distances, prices, sizes, quotas):
    """A graph of these rows, not yet linked; ``prices`` (K,) are relative to the sink's."""
    n_rows, (n_features, n_clusters) = len(numbers), columns.shape
    most = int(np.clip(LISTED_PER_ROW * n_rows // n_clusters**2, 1, MOST_LISTED))
    kind = np.int32 if n_rows < 2**31 else np.int64
    pairs, nodes = (n_clusters, n_clusters), n_clusters + 1
    return Graph(
        points, numbers, columns, norms, weights, own, own_distances, np.append(prices, 0.0),
        sizes, quotas, np.append(sizes - quotas, quotas.sum() - sizes.sum()),
        np.full(n_clusters, -1, dtype=kind), *(np.empty(n_rows, dtype=kind) for _ in range(2)),
        np.empty((*pairs, most), dtype=kind), np.empty((*pairs, most)),
        np.zeros(pairs, dtype=np.int8), np.full(pairs, np.inf), np.full(pairs, np.inf),
        *(np.empty(nodes) for _ in range(3)),
        *(np.empty(nodes, dtype=np.int64) for _ in range(3)),
        np.empty(n_features), np.empty(n_features), np.empty(n_clusters),
    )  # fmt: skip


@kernel
def list_row(listed, costs, n_listed, floors, least, source, target, row, cost):
    """List a row that costs less than the floor; if there is no room, the dearest is the floor.

    Arrays of the graph, not the graph: kernels that run once for each row and cluster, or for each
    pair of clusters, would spend most of their time on passing it on and counting references.
    """
    at = np.int64(n_listed[source, target])
    if at < costs.shape[2]:
        n_listed[source, target] += 1
    else:
        at -= 1
        floors[source, target] = max(cost, costs[source, target, at])
        if cost >= costs[source, target, at]:
            return
    while at > 0 and cost < costs[source, target, at - 1]:
        costs[source, target, at] = costs[source, target, at - 1]
        listed[source, target, at] = listed[source, target, at - 1]
        at -= 1
    costs[source, target, at] = cost
    listed[source, target, at] = row
    if at == 0:
        least[source, target] = cost


@kernel
def list_for_all(listed, costs, n_listed, floors, least, source, row, sq_dist):
    """List a new row of ``source`` for all other clusters to which it is among the cheapest."""
    here = sq_dist[source]
    for target in range(sq_dist.size):
        cost = sq_dist[target] - here
        if not cost < floors[source, target] or target == source:
            continue
        is_listed = False  # it may have left and come back
        for s in range(n_listed[source, target]):
            is_listed |= listed[source, target, s] == row
        if not is_listed:
            list_row(listed, costs, n_listed, floors, least, source, target, row, cost)


@kernel
def link_cluster(
    graph,  # INOUT Graph
    cluster,  # IN the cluster
    rows,  # IN its rows, in any order
):
    """Link the rows of a cluster, and find the least cost for each other cluster.

    Lists are empty then: only a few pairs will ever be asked for theirs.
    """
    n_clusters = graph.sizes.size
    row_values = np.empty(graph.columns.shape[0], np.float64)
    sq_dist = np.empty(n_clusters, np.float64)
    least = np.full(n_clusters, np.inf)
    before = np.int64(-1)
    for row in rows:
        graph.earlier[row] = before
        graph.later[row] = -1
        if before < 0:
            graph.first[cluster] = row
        else:
            graph.later[before] = row
        before = row
        number = np.int64(graph.numbers[row])
        fill_sq_distances(graph.points, number, graph.columns, graph.norms, row_values, sq_dist)
        here = sq_dist[cluster]
        for target in range(n_clusters):
            least[target] = min(least[target], sq_dist[target] - here)
    least[cluster] = np.inf
    graph.least[cluster] = least
    graph.floors[cluster] = least


@kernel
def list_pair(
    listed, costs, n_listed, floors, least,
    points, numbers, own_distances, first, later, center, norm, source, target,
):  # fmt: skip
    """Fill the list of a pair anew, from all rows of ``source``; ``center`` is the target's."""
    floors[source, target] = np.inf
    row = np.int64(first[source])
    while row >= 0:
        cost = sq_dist_to(points, np.int64(numbers[row]), center, norm) - own_distances[row]
        if cost < floors[source, target]:
            list_row(listed, costs, n_listed, floors, least, source, target, row, cost)
        row = np.int64(later[row])


@part
def cheapest_row(graph, source, target):
    """The row that is handed on at least cost, -1 if there is none; brings ``least`` up to date."""
    count = np.int64(graph.n_listed[source, target])
    gone = np.int64(0)
    while gone < count and graph.own[graph.listed[source, target, gone]] != source:
        gone += 1
    if gone > 0:
        for s in range(gone, count):
            graph.costs[source, target, s - gone] = graph.costs[source, target, s]
            graph.listed[source, target, s - gone] = graph.listed[source, target, s]
        count -= gone
        graph.n_listed[source, target] = count
    if count == 0 and graph.floors[source, target] < np.inf:
        for t in range(graph.center.size):
            graph.center[t] = graph.columns[t, target]
        list_pair(
            graph.listed, graph.costs, graph.n_listed, graph.floors, graph.least,
            graph.points, graph.numbers, graph.own_distances, graph.first, graph.later,
            graph.center, graph.norms[target], source, target,
        )  # fmt: skip
        count = np.int64(graph.n_listed[source, target])
    graph.least[source, target] = graph.costs[source, target, 0] if count > 0 else np.inf
    return np.int64(graph.listed[source, target, 0]) if count > 0 else np.int64(-1)


@part
def link_row(graph, row, source, target):
    """Move a row from the linked rows of one cluster to those of another."""
    before, behind = np.int64(graph.earlier[row]), np.int64(graph.later[row])
    if before < 0:
        graph.first[source] = behind
    else:
        graph.later[before] = behind
    if behind >= 0:
        graph.earlier[behind] = before
    behind = np.int64(graph.first[target])
    graph.earlier[row] = -1
    graph.later[row] = behind
    graph.first[target] = row
    if behind >= 0:
        graph.earlier[behind] = row


@kernel
def move_row(graph, row, target):
    """Hand ``row`` on to cluster ``target``, and list it there."""
    source = np.int64(graph.own[row])
    link_row(graph, row, source, target)
    number = np.int64(graph.numbers[row])
    sq_dist = graph.sq_dist
    fill_sq_distances(graph.points, number, graph.columns, graph.norms, graph.row, sq_dist)
    graph.own[row] = target
    graph.own_distances[row] = sq_dist[target]
    list_for_all(
        graph.listed, graph.costs, graph.n_listed, graph.floors, graph.least,
        target, row, sq_dist,
    )  # fmt: skip
    weight = graph.weights[row]
    graph.sizes[source] -= weight
    graph.sizes[target] += weight
    graph.excess[source] -= weight
    graph.excess[target] += weight
