"""Which row a cluster could hand on to which other cluster, cheapest first: heaps of rows.

The data structure under the search for chains of ``size_limits.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part

N_CANDIDATES = 8
"""c, the clusters that a row is known to be near to; a constant makes the division by it cheap."""
MOST_EDGES = 2**22
"""Pairs of clusters that can be told apart; beyond, the rarer pairs are left out."""


ABSENT = -2
"""Stands for the previous sibling of an entry that is on no heap."""


class Graph(NamedTuple):
    """m rows with c candidates each, and the K clusters they are in.

    An *entry* e = row * c + slot stands for a row and one of its candidates. The entries that lead
    from cluster a to cluster b form a pairing heap (Fredman et al. 1986), cheapest first: the cost
    is the squared distance there minus here. Dear entries are added when a search gets that far.
    """

    candidates: np.ndarray  # (m, c) int32, clusters; -1 if there are fewer
    distances: np.ndarray  # (m, c) float64, squared, to the candidates' centres
    weights: np.ndarray  # (m,) float64
    own: np.ndarray  # (m,) int32, the cluster of each row
    own_distances: np.ndarray  # (m,) float64, squared, to its centre
    prices: np.ndarray  # (K + 1,) float64; that of the sink comes last
    first_prices: np.ndarray  # (K,) float64, prices at the beginning
    sizes: np.ndarray  # (K,) float64, weight of each cluster
    quotas: np.ndarray  # (K,) float64, what the cluster should weigh
    excess: np.ndarray  # (K + 1,) float64, sizes - quotas; sum of quotas - weight for the sink
    # The heaps: for each entry its first child, next sibling, and previous sibling or parent.
    child: np.ndarray  # (m * c,) int32
    later: np.ndarray  # (m * c,) int32
    earlier: np.ndarray  # (m * c,) int32
    # A table of edges: key a * K + b, or -1; the heap's first entry, or -1, and what it costs; the
    # cluster's next edge.
    edge_keys: np.ndarray  # (T,) int64
    edge_tops: np.ndarray  # (T,) int64
    edge_costs: np.ndarray  # (T,) float64
    edge_after: np.ndarray  # (T,) int64
    first_edges: np.ndarray  # (K,) int64
    # Dijkstra's: distance from the source, state (0 unseen, 1 seen, 2 final), last step, nodes seen
    reach: np.ndarray  # (K + 1,) float64
    state: np.ndarray  # (K + 1,) int64
    origin: np.ndarray  # (K + 1,) int64
    carrier: np.ndarray  # (K + 1,) int64, the row handed on; -1 for steps from or to the sink
    seen: np.ndarray  # (K + 1,) int64
    # Seen nodes that are not final, as a binary heap; where each is in it; how many they are
    queue: np.ndarray  # (K + 1,) int64
    place: np.ndarray  # (K + 1,) int64
    n_queued: np.ndarray  # (1,) int64


def open_graph(candidates, distances, weights, own, own_distances, prices, sizes, quotas):
    """A graph over these rows, without edges yet; ``prices`` (K,) are relative to the sink's."""
    n_entries, n_clusters = candidates.size, len(prices)
    n_edges = min(n_clusters * n_clusters, MOST_EDGES)
    entries = np.int32 if n_entries < 2**31 else np.int64
    excess = np.append(sizes - quotas, quotas.sum() - sizes.sum())
    return Graph(
        candidates, distances, weights, own, own_distances, np.append(prices, 0.0), prices, sizes,
        quotas, excess, *(np.full(n_entries, ABSENT, dtype=entries) for _ in range(3)),
        *(np.full(n_edges, -1, dtype=np.int64) for _ in range(2)), np.empty(n_edges),
        np.full(n_edges, -1, dtype=np.int64),
        np.full(n_clusters, -1, dtype=np.int64),
        np.full(n_clusters + 1, np.inf), np.zeros(n_clusters + 1, dtype=np.int64),
        *(np.empty(n_clusters + 1, dtype=np.int64) for _ in range(5)),
        np.zeros(1, dtype=np.int64),
    )  # fmt: skip


@part
def cost_of(graph, entry):
    """What it costs to hand the entry's row on to the entry's cluster."""
    row = entry // N_CANDIDATES
    return graph.distances[row, entry % N_CANDIDATES] - graph.own_distances[row]


@part
def set_top(graph, at, entry):
    """Make ``entry`` the top of the heap of the edge at ``at``; -1 if the heap is empty."""
    graph.edge_tops[at] = entry
    if entry >= 0:
        graph.edge_costs[at] = cost_of(graph, entry)


@part
def adopt(graph, parent, entry):
    """Make the top of one heap the first child of another."""
    oldest = np.int64(graph.child[parent])
    graph.later[entry] = oldest
    if oldest >= 0:
        graph.earlier[oldest] = entry
    graph.earlier[entry] = parent
    graph.child[parent] = entry


@kernel
def meld(graph, first, second):
    """Make one heap of two; returns its top. Ties go to the lower entry."""
    if first < 0:
        return second
    if second < 0:
        return first
    first_cost, second_cost = cost_of(graph, first), cost_of(graph, second)
    if second_cost < first_cost or (second_cost == first_cost and second < first):
        first, second = second, first
    adopt(graph, first, second)
    return first


@kernel
def meld_children(graph, parent):
    """Make one heap of the children of ``parent``: in pairs, then from the last pair on."""
    node = np.int64(graph.child[parent])
    graph.child[parent] = -1
    pairs = np.int64(-1)  # a list of melded pairs, linked by ``later``, the last one first
    while node >= 0:
        partner = np.int64(graph.later[node])
        following = np.int64(-1)
        graph.later[node] = -1
        if partner >= 0:
            following = np.int64(graph.later[partner])
            graph.later[partner] = -1
        top = meld(graph, node, partner)
        graph.later[top] = pairs
        pairs = top
        node = following
    whole = np.int64(-1)
    while pairs >= 0:
        following = np.int64(graph.later[pairs])
        graph.later[pairs] = -1
        whole = meld(graph, whole, pairs)
        pairs = following
    if whole >= 0:
        graph.earlier[whole] = -1
    return whole


@part
def find_edge(graph, source, target):
    """Place of an edge in the table, made if it is new; -1 if the table is full."""
    n_clusters, n_edges = graph.sizes.size, graph.edge_keys.size
    key = np.int64(source) * n_clusters + np.int64(target)
    at = key if key < n_edges else key % n_edges
    for _ in range(min(n_edges, 1000)):
        if graph.edge_keys[at] == key:
            return at
        if graph.edge_keys[at] < 0:
            graph.edge_keys[at] = key
            graph.edge_after[at] = graph.first_edges[source]
            graph.first_edges[source] = at
            return at
        at = (at + 1) % n_edges
    return np.int64(-1)


@kernel
def add_entries(graph, row, dearest):
    """Put the row's entries that cost at most ``dearest``, at the first prices, on their heaps."""
    own = np.int64(graph.own[row])
    for s in range(N_CANDIDATES):
        target = np.int64(graph.candidates[row, s])
        entry = np.int64(row * N_CANDIDATES + s)
        if target < 0 or target == own or graph.earlier[entry] != ABSENT:
            continue
        cost = graph.distances[row, s] - graph.own_distances[row]
        if cost + graph.first_prices[target] - graph.first_prices[own] > dearest:
            continue
        at = find_edge(graph, own, target)
        if at < 0:
            continue
        graph.child[entry] = -1
        graph.later[entry] = -1
        graph.earlier[entry] = -1
        top = graph.edge_tops[at]
        if top >= 0 and (
            graph.edge_costs[at] < cost or (graph.edge_costs[at] == cost and top < entry)
        ):
            adopt(graph, top, entry)
        else:
            if top >= 0:
                adopt(graph, entry, top)
            graph.edge_tops[at] = entry
            graph.edge_costs[at] = cost


@kernel
def remove_entries(graph, row):
    """Take the row's entries off the heaps again."""
    own = np.int64(graph.own[row])
    for s in range(N_CANDIDATES):
        target = np.int64(graph.candidates[row, s])
        entry = np.int64(row * N_CANDIDATES + s)
        if target < 0 or target == own or graph.earlier[entry] == ABSENT:
            continue
        before, behind = np.int64(graph.earlier[entry]), np.int64(graph.later[entry])
        graph.earlier[entry] = ABSENT
        at = find_edge(graph, own, target)
        if graph.edge_tops[at] == entry:
            set_top(graph, at, meld_children(graph, entry))
            continue
        if np.int64(graph.child[before]) == entry:
            graph.child[before] = behind
        else:
            graph.later[before] = behind
        if behind >= 0:
            graph.earlier[behind] = before
        set_top(graph, at, meld(graph, graph.edge_tops[at], meld_children(graph, entry)))


@kernel
def move_row(graph, row, target):
    """Hand ``row`` on to cluster ``target``."""
    remove_entries(graph, row)
    source = np.int64(graph.own[row])
    graph.own[row] = target
    for s in range(N_CANDIDATES):
        if graph.candidates[row, s] == target:
            graph.own_distances[row] = graph.distances[row, s]
    add_entries(graph, row, np.inf)
    weight = graph.weights[row]
    graph.sizes[source] -= weight
    graph.sizes[target] += weight
    graph.excess[source] -= weight
    graph.excess[target] += weight
