"""Moving centres from where they are of little use to where they are missed.

Lloyd's iteration moves centres a little at a time: one that sits where few are needed stays there.
Here the clusters with the largest error are partitioned (as in ``empty_clusters.py``), and the
centres for the new parts are taken from the clusters of least utility, those whose rows would do
nearly as well with their second nearest centre (after Fritzke's breathing k-means, arXiv
2006.15666, and the enhanced LBG of Patane & Russo 2001).

What a partition gains at once is less than what it gains in the end, and the utility of a centre is
more than what its loss costs in the end, because the neighbours move, too. So moves are made boldly
at first, that is, also where the gain is only a share of the utility. A few Lloyd steps later the
inertia decides whether a round of moves is kept.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import State

DONOR_SHARE = 0.3
"""Share of the clusters that are partitioned on trial."""
TWO_MEANS_STEPS = 3
SHARES_OF_UTILITY = (0.5, 0.8)
"""A move is made if it gains this share of what the loss of its centre costs at most."""
STEPS_BETWEEN = 2
SMALLEST_GAIN = 1e-3
"""Relative to the inertia; after a round that gains less, moves are made less boldly."""


def rebalance(
    engine: Engine, state: State, settings: Settings, journal: Journal, max_rounds: int
) -> State:
    """Alternate rounds of moves with a few Lloyd steps, until they gain too little.

    The inertia of the result is never above that of ``state``.
    """
    few_steps = replace(settings, max_iter=STEPS_BETWEEN, accelerate=False, tol=0.0)
    state, _, _ = lloyd(engine, state, few_steps, Journal())
    if len(state.assignment.empty) or settings.n_clusters < 3:
        return state
    shares = iter(SHARES_OF_UTILITY)
    share, limit = next(shares), settings.n_clusters
    for _ in range(max_rounds):
        if state.inertia == 0.0:
            break
        gain, n_moves = 0.0, 0
        centers = exchange(engine, state, settings, share, limit)
        if centers is not None:
            n_moves = int((centers != state.centers).any(axis=1).sum()) // 2
            trial = Journal(journal.iteration)
            moved = settle(engine, centers, settings, trial)
            moved, _, _ = lloyd(engine, moved, few_steps, Journal())
            gain = 1.0 - moved.inertia / state.inertia
            if gain > 0.0:
                state = moved
                journal.repairs += trial.repairs
            else:
                engine.assign(state.centers)  # the engine's labels are those of the state again
        if gain < SMALLEST_GAIN:
            # Less boldly, then fewer at a time: the best moves may pay where all together do not.
            before, share = share, next(shares, share)
            if share == before:
                limit = min(limit, n_moves) // 2
            if limit == 0:
                break
    return state


def exchange(
    engine: Engine,
    state: State,
    settings: Settings,
    share_of_utility: float,
    most_moves: int | None = None,
) -> NDArray[np.floating] | None:
    """Centres after one round of at most so many moves; None if none promises to pay."""
    utilities = engine.utilities(state.centers)
    n_donors = max(1, int(DONOR_SHARE * settings.n_clusters))
    donors = np.argsort(-state.assignment.sq_errors, kind="stable")[:n_donors]
    nodes = engine.open_clusters(donors)
    cut = engine.cut(nodes, np.full(n_donors, -1.0), "principal", TWO_MEANS_STEPS)
    gains = np.where(cut.possible, nodes.scatters - cut.left.scatters - cut.right.scatters, 0.0)
    by_gain = np.argsort(-gains, kind="stable")

    by_utility = np.argsort(utilities, kind="stable")
    givers = by_utility[~np.isin(by_utility, donors)][:n_donors]
    pays = gains[by_gain[: len(givers)]] > share_of_utility * utilities[givers]
    n_moves = int(np.count_nonzero(pays[:most_moves]))
    if n_moves == 0:
        return None
    chosen = by_gain[:n_moves]
    centroids = state.centers.astype(np.float64)
    centroids[donors[chosen]] = cut.left.means[chosen]
    centroids[givers[:n_moves]] = cut.right.means[chosen]
    return settings.place(centroids, state.centers, engine.dtype)
