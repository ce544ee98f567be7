"""Moving centres from where they are of little use to where they are missed.

Lloyd's iteration moves centres a little at a time: one that sits where few are needed stays there.
Here the clusters with the largest error are partitioned (as in ``empty_clusters.py``), and the
centres for the new parts are taken from the clusters of least utility, those whose rows would do
nearly as well with their second nearest centre (after Fritzke's breathing k-means, arXiv
2006.15666, and the enhanced LBG of Patane & Russo 2001). A move is tried if what the partition
gains exceeds what the loss of the centre costs at most, and kept if the inertia fell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import State

DONOR_SHARE = 0.1
TWO_MEANS_STEPS = 3
STEPS_BETWEEN = 2
SMALLEST_GAIN = 2e-4
"""Relative to the inertia; a round of moves that gains less is the last."""


def rebalance(
    engine: Engine, state: State, settings: Settings, journal: Journal, max_rounds: int
) -> State:
    """Alternate a few plain Lloyd steps with rounds of moves, until a round gains too little."""
    few_steps = replace(settings, max_iter=STEPS_BETWEEN, accelerate=False, tol=0.0)
    for _ in range(max_rounds):
        before = state.inertia
        state, _, _ = lloyd(engine, state, few_steps, Journal())
        moved = exchange(engine, state, settings, journal)
        if moved is None:
            break
        state = moved
        if state.inertia > before * (1.0 - SMALLEST_GAIN):
            break
    return state


def exchange(engine: Engine, state: State, settings: Settings, journal: Journal) -> State | None:
    """The state after one round of moves, or None if none lowers the inertia."""
    n_clusters = settings.n_clusters
    assignment = state.assignment
    if len(assignment.empty) or n_clusters < 3:
        return None
    n_donors = max(1, int(DONOR_SHARE * n_clusters))
    donors = np.argsort(-assignment.sq_errors, kind="stable")[:n_donors]
    nodes = engine.open_clusters(donors)
    cut = engine.cut(nodes, np.full(n_donors, -1.0), "principal", TWO_MEANS_STEPS)
    gains = np.where(cut.possible, nodes.scatters - cut.left.scatters - cut.right.scatters, 0.0)
    by_gain = np.argsort(-gains, kind="stable")

    by_utility = np.argsort(assignment.utilities, kind="stable")
    takers = by_utility[~np.isin(by_utility, donors)][:n_donors]
    n_moves = int(np.count_nonzero(gains[by_gain[: len(takers)]] > assignment.utilities[takers]))
    while n_moves > 0:
        chosen, taken = by_gain[:n_moves], takers[:n_moves]
        centroids = state.centers.astype(np.float64)
        centroids[donors[chosen]] = cut.left.means[chosen]
        centroids[taken] = cut.right.means[chosen]
        centers = settings.place(centroids, state.centers, engine.dtype)
        moved = settle(engine, centers, settings, Journal())
        if moved.inertia < state.inertia:
            return moved
        n_moves //= 2
        engine.assign(state.centers)  # the engine's labels are those of the state again
    return None
