"""Rows handed from cluster to cluster along cheapest chains, until clusters have their sizes.

Assigning rows to clusters of limited weight is a flow: rows -> clusters -> sink. Each cluster has a
*price*; a row belongs where squared distance + price is least among its candidates (Note [Prices]).
A cluster whose weight is not its *quota* passes rows on: a chain of clusters a, b, ..., z is looked
for along which handing one row each costs least (successive shortest paths, Dijkstra with prices
as potentials: Edmonds & Karp 1972). The nodes are the K clusters and the sink, never the rows.

Note [Prices]
~~~~~~~~~~~~~
``price > sink's`` stands for a cluster that is full (its quota is the largest weight allowed),
``price < sink's`` for one at its least weight; in between the quota is the cluster's weight. If all
rows are where they cost least and all clusters have their quota, no other assignment within the
limits costs less (complementary slackness). Prices are per unit of weight, so rows of any weight
obey the same rule; but a row is handed on whole, so that unequal weights leave a rest.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.row_heaps import N_CANDIDATES, add_entries, move_row

BEYOND = -2
"""Stands for the end of a chain if entries that are on no heap might shorten it."""


@part
def set_quota(graph, cluster, smallest, largest):
    """Make the quota of a cluster with the sink's price what it weighs, within the limits."""
    sink = graph.sizes.size
    quota = min(max(graph.sizes[cluster], smallest), largest)
    change = quota - graph.quotas[cluster]
    graph.quotas[cluster] = quota
    graph.excess[cluster] -= change
    graph.excess[sink] += change


@part
def comes_first(graph, node, other):
    """Whether ``node`` leaves the queue before ``other``: it is nearer, or as near and lower."""
    first, second = graph.reach[node], graph.reach[other]
    return first < second or (first == second and node < other)


@part
def move_up(graph, at, node):
    """Let ``node``, at place ``at`` of the queue or about to be, rise to where it belongs."""
    while at > 0:
        parent = graph.queue[(at - 1) // 2]
        if not comes_first(graph, node, parent):
            break
        graph.queue[at] = parent
        graph.place[parent] = at
        at = (at - 1) // 2
    graph.queue[at] = node
    graph.place[node] = at


@part
def take_nearest(graph):
    """Take the node with the least distance off the queue."""
    nearest = graph.queue[0]
    graph.n_queued[0] -= 1
    count = graph.n_queued[0]
    node = graph.queue[count]
    at = np.int64(0)
    while 2 * at + 1 < count:
        below = 2 * at + 1
        if below + 1 < count and comes_first(graph, graph.queue[below + 1], graph.queue[below]):
            below += 1
        if not comes_first(graph, graph.queue[below], node):
            break
        graph.queue[at] = graph.queue[below]
        graph.place[graph.queue[at]] = at
        at = below
    graph.queue[at] = node
    graph.place[node] = at
    return nearest


@kernel
def reach_node(graph, node, distance, origin, carrier, n_seen):
    """Note a way to ``node``, if it is the shortest so far; returns how many nodes were seen."""
    if graph.state[node] == 2 or not distance < graph.reach[node]:
        return n_seen
    if graph.state[node] == 0:
        graph.state[node] = 1
        graph.seen[n_seen] = node
        n_seen += 1
        graph.place[node] = graph.n_queued[0]
        graph.n_queued[0] += 1
    graph.reach[node] = distance
    move_up(graph, graph.place[node], node)
    graph.origin[node] = origin
    graph.carrier[node] = carrier
    return n_seen


@part
def leave_node(graph, node, smallest, largest, n_seen):
    """Try all steps from ``node``; reduced costs below zero are rounding."""
    sink = graph.sizes.size
    distance, price = graph.reach[node], graph.prices[node]
    if node == sink:
        for cluster in range(sink):
            if graph.quotas[cluster] > smallest:
                step = max(graph.prices[cluster] - price, 0.0)
                n_seen = reach_node(graph, cluster, distance + step, node, np.int64(-1), n_seen)
        return n_seen
    if graph.quotas[node] < largest:
        step = max(graph.prices[sink] - price, 0.0)
        n_seen = reach_node(graph, sink, distance + step, node, np.int64(-1), n_seen)
    at = graph.first_edges[node]
    while at >= 0:
        entry = graph.edge_tops[at]
        if entry >= 0:
            end = graph.edge_keys[at] % sink
            step = max(graph.edge_costs[at] + graph.prices[end] - price, 0.0)
            row = entry // N_CANDIDATES
            n_seen = reach_node(graph, end, distance + step, node, row, n_seen)
        at = graph.edge_after[at]
    return n_seen


@part
def find_chain(graph, source, smallest, largest, tolerance, dearest):
    """Shortest way from ``source`` to a node below its quota; prices are raised along it.

    Entries that cost more than ``dearest`` at the first prices are not known. Since then, the price
    of their clusters can have risen by as much as makes them cheaper: the search ends there.
    Returns the end, -1 if there is no way or BEYOND, and how many nodes are in ``graph.seen``.
    """
    sink = graph.sizes.size
    horizon = np.inf
    graph.n_queued[0] = 0
    n_seen = reach_node(graph, source, 0.0, np.int64(-1), np.int64(-1), np.int64(0))
    end = -1
    while end < 0:
        if graph.n_queued[0] == 0 or graph.reach[graph.queue[0]] > horizon:
            end = -1 if horizon == np.inf else BEYOND
            break
        node = take_nearest(graph)
        graph.state[node] = 2
        if node < sink:
            rise = graph.prices[node] - graph.first_prices[node]
            horizon = min(horizon, graph.reach[node] + max(dearest - rise, 0.0))
        if graph.excess[node] < -tolerance:
            end = node
        else:
            n_seen = leave_node(graph, node, smallest, largest, n_seen)
    if end >= 0:
        for k in range(n_seen):
            node = graph.seen[k]
            if graph.state[node] == 2:
                graph.prices[node] += graph.reach[end] - graph.reach[node]
    return end, n_seen


@part
def imbalance(graph, end):
    """Absolute excess of the nodes of the chain that ends at ``end``, added up."""
    total = 0.0
    node = end
    while node >= 0:
        total += abs(graph.excess[node])
        node = graph.origin[node]
    return total


@kernel
def pass_along(graph, end, smallest, largest, forward):
    """Each row of the chain goes one step on, or one back again; quotas follow at the sink."""
    sink = graph.sizes.size
    node = end
    while graph.origin[node] >= 0:
        row = graph.carrier[node]
        if row >= 0:
            move_row(graph, row, node if forward else graph.origin[node])
        node = graph.origin[node]
    node = end
    while graph.origin[node] >= 0:
        if graph.carrier[node] < 0:
            cluster = graph.origin[node] if node == sink else node
            set_quota(graph, cluster, smallest, largest)
        node = graph.origin[node]


@kernel
def hand_on(graph, end, smallest, largest, tolerance):
    """Hand rows on along the chain that ends at ``end``, unless that brings no quota nearer.

    Rows of equal weight always do: only the two ends of the chain change, each by one row.
    """
    before = imbalance(graph, end)
    pass_along(graph, end, smallest, largest, np.bool_(True))
    if imbalance(graph, end) < before - tolerance:
        return True
    pass_along(graph, end, smallest, largest, np.bool_(False))
    return False


@kernel
def balance(
    graph,  # INOUT Graph
    smallest,  # IN float64, limits of a cluster's weight
    largest,  # IN float64
    tolerance,  # IN float64, weight that does not count
    bands,  # IN (b,) float64, rising to inf: what entries cost that are added together
    stuck,  # OUT (K + 1,) bool, zeros at first
):
    """Bring all clusters to their quotas as far as the rows' candidates allow.

    Returns whether a source was found from which no chain leads to a cluster below its quota; the
    nodes that it reaches are ``stuck`` then.
    """
    n_nodes = graph.excess.size
    band = 0
    for row in range(graph.own.size):
        add_entries(graph, row, bands[band])
    for source in range(n_nodes):
        while graph.excess[source] > tolerance:
            end, n_seen = find_chain(graph, source, smallest, largest, tolerance, bands[band])
            moved = end >= 0 and hand_on(graph, end, smallest, largest, tolerance)
            for k in range(n_seen):
                node = graph.seen[k]
                if end == -1:
                    stuck[node] = True
                graph.state[node] = 0
                graph.reach[node] = np.inf
            if end == -1:
                return True
            if end == BEYOND:
                band += 1
                for row in range(graph.own.size):
                    add_entries(graph, row, bands[band])
            elif not moved:
                break
    return False
