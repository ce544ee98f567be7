"""Rows handed from cluster to cluster along cheapest chains, until clusters have their sizes.

Assigning rows to clusters of limited weight is a flow: rows -> clusters -> sink. Each cluster has a
*price*; a row belongs where squared distance + price is least of all (Note [Prices]).
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
from pgkmeans_sk.kernels.transfers import cheapest_row, move_row


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
def reach_node(graph, node, distance, origin):
    """Note a way to ``node``, which is not final, if it is the shortest so far."""
    if distance < graph.pending[node]:
        graph.pending[node] = distance
        graph.origin[node] = origin


@kernel
def reach_clusters(node, distance, price, costs, open_prices, pending, origin):
    """The same from one cluster to all others; ``open_prices`` keep it from final ones."""
    for cluster in range(costs.size):
        there = distance + max(costs[cluster] + open_prices[cluster] - price, 0.0)
        if there < pending[cluster]:
            pending[cluster] = there
            origin[cluster] = node


@part
def leave_node(graph, node, smallest, largest):
    """Try all steps from ``node``; reduced costs below zero are rounding."""
    sink = graph.sizes.size
    distance, price = graph.reach[node], graph.prices[node]
    if node < sink:
        if graph.quotas[node] < largest:
            step = max(graph.open_prices[sink] - price, 0.0)
            reach_node(graph, sink, distance + step, node)
        costs = graph.least[node]
        reach_clusters(node, distance, price, costs, graph.open_prices, graph.pending, graph.origin)
    else:
        for cluster in range(sink):
            if graph.quotas[cluster] > smallest:
                step = max(graph.open_prices[cluster] - price, 0.0)
                reach_node(graph, cluster, distance + step, node)


@kernel
def nearest_node(pending, excess, tolerance):
    """The node that is nearest to the source and not final; -1 if none can be reached.

    Of equally near ones, which equal rows make many, one that ends the search.
    """
    nearest, shortest = np.int64(-1), np.inf
    for node in range(pending.size):
        if pending[node] <= shortest and (
            pending[node] < shortest or (shortest < np.inf and excess[node] < -tolerance)
        ):
            shortest = pending[node]
            nearest = node
    return nearest


@kernel
def nearest_origin(cluster, path, n_final, least, prices, reach):
    """The final cluster from which the step to ``cluster`` is shortest, -1 for none; the distance.

    ``path`` holds the final nodes; the sink is left out.
    """
    best, shortest = np.int64(-1), np.inf
    for k in range(n_final):
        node = path[k]
        if node < least.shape[0]:
            step = max(least[node, cluster] + prices[cluster] - prices[node], 0.0)
            if reach[node] + step < shortest:
                shortest = reach[node] + step
                best = node
    return best, shortest


@part
def reach_again(graph, cluster, n_final, smallest):
    """Look once more for the shortest step from a final node to ``cluster``."""
    sink = graph.sizes.size
    graph.origin[cluster], graph.pending[cluster] = nearest_origin(
        cluster, graph.path, n_final, graph.least, graph.prices, graph.reach
    )
    if graph.open_prices[sink] == np.inf and graph.quotas[cluster] > smallest:
        step = max(graph.prices[cluster] - graph.prices[sink], 0.0)
        reach_node(graph, cluster, graph.reach[sink] + step, sink)


@part
def confirm(graph, node, n_final, smallest):
    """Name the row that makes the last step to ``node``.

    False if that step was thought to cost less than it does; the next best one is noted then.
    """
    sink = graph.sizes.size
    origin = graph.origin[node]
    graph.carrier[node] = -1
    is_confirmed = True
    if origin >= 0 and origin < sink and node < sink:
        before = graph.least[origin, node]
        graph.carrier[node] = cheapest_row(graph, origin, node)
        if graph.least[origin, node] > before:
            reach_again(graph, node, n_final, smallest)
            is_confirmed = False
    return is_confirmed


@kernel
def find_chain(graph, source, smallest, largest, tolerance):
    """Shortest way from ``source`` to a node below its quota; prices are raised along it.

    Returns the end, or -1 if there is no way.
    """
    graph.pending[:] = np.inf
    graph.open_prices[:] = graph.prices
    graph.pending[source] = 0.0
    graph.origin[source] = -1
    end = np.int64(-1)
    n_final = 0
    while end < 0:
        node = nearest_node(graph.pending, graph.excess, tolerance)
        if node < 0:
            break
        if not confirm(graph, node, n_final, smallest):
            continue
        graph.reach[node] = graph.pending[node]
        graph.pending[node] = np.inf
        graph.open_prices[node] = np.inf
        graph.path[n_final] = node
        n_final += 1
        if graph.excess[node] < -tolerance:
            end = node
        else:
            leave_node(graph, node, smallest, largest)
    if end >= 0:
        for k in range(n_final):
            node = graph.path[k]
            graph.prices[node] += graph.reach[end] - graph.reach[node]
    return end


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
):
    """Bring all clusters to their quotas; with unequal weights, until no chain brings one nearer.

    A chain that was of no use to one source is tried again after others have changed it.
    """
    progress = True
    while progress:
        progress = False
        for source in range(graph.excess.size):
            while graph.excess[source] > tolerance:
                end = find_chain(graph, source, smallest, largest, tolerance)
                if end < 0 or not hand_on(graph, end, smallest, largest, tolerance):
                    break
                progress = True
