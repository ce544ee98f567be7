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

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import Cut, FloatArray, IntArray, State

DONOR_SHARE = 0.3
"""Share of the clusters that are partitioned on trial."""
TWO_MEANS_STEPS = 3
SHARES_OF_UTILITY = (0.5, 0.8)
"""A move is made if it gains this share of what the loss of its centre costs at most."""
STEPS_BETWEEN = 2
SMALLEST_GAIN = 1e-3
"""Relative to the inertia; after a round that gains less, moves are made less boldly."""


HOPELESS_SHARE = 0.1
"""A move that gains at most this share of what it may cost is not worth a thought."""


def rebalance(
    engine: Engine, state: State, settings: Settings, journal: Journal, max_rounds: int
) -> tuple[State, Moves | None]:
    """Alternate rounds of moves with a few Lloyd steps, until they gain too little.

    The inertia of the result is never above that of ``state``, and the engine's labels are its own.
    Returns it, and the moves from there, if they are known.
    """
    few_steps = replace(settings, max_iter=STEPS_BETWEEN, accelerate=False, tol=0.0)
    state, _, _ = lloyd(engine, state, few_steps, Journal())
    if len(state.assignment.empty) or settings.n_clusters < 3:
        return state, None
    shares = iter(SHARES_OF_UTILITY)
    share, limit = next(shares), settings.n_clusters
    moves: Moves | None = None  # from ``state``
    n_failed = 0  # so many of them were tried in vain
    for _ in range(max_rounds):
        if state.inertia == 0.0:
            break
        moves = moves or survey(engine, state, settings)
        n_moves = moves.n_worthwhile(share, limit)
        if n_moves == 0:
            break  # a larger share, or fewer at a time, would be none as well
        gain = 0.0
        if n_moves != n_failed:
            trial = Journal(journal.iteration)
            moved = settle(engine, moves.made(n_moves, settings, engine.dtype), settings, trial)
            moved, _, _ = lloyd(engine, moved, few_steps, Journal())
            gain = 1.0 - moved.inertia / state.inertia
            n_failed = n_moves
            if gain > 0.0:
                state, moves, n_failed = moved, None, 0
                journal.repairs += trial.repairs
        if gain < SMALLEST_GAIN:
            # Less boldly, then fewer at a time: the best moves may pay where all together do not.
            before, share = share, next(shares, share)
            if share == before:
                limit = min(limit, n_moves) // 2
    if n_failed:
        engine.assign(state.centers)  # the engine's labels are those of the state again
    return state, moves


def is_settled(engine: Engine, state: State, settings: Settings, moves: Moves | None) -> bool:
    """Whether the state, with these ``moves``, is hardly to be improved by any others.

    That is so where clusters lie well apart, and each of them is one: to cut any of them would gain
    next to nothing beside what it costs to lose another.
    """
    if moves is None or not moves.gains[0] <= HOPELESS_SHARE * moves.prices[0]:
        return False
    gains = survey(engine, state, settings, settings.n_clusters).gains
    return bool(gains[0] <= HOPELESS_SHARE * engine.utilities(state.centers).min())


@dataclass(frozen=True)
class Moves:
    """What could be moved from a state: the k-th move parts ``donors[k]`` with ``givers[k]``.

    Gains fall from move to move, and so do the chances that it pays.
    """

    state: State
    donors: IntArray  # (m,) clusters that were partitioned on trial
    cut: Cut  # into what
    by_gain: IntArray  # (m,) positions in ``donors``
    gains: FloatArray  # (m,) in this order: by how much the inertia falls at once
    givers: IntArray  # (at most m,) clusters of least utility, none of them a donor
    prices: FloatArray  # their utilities

    def n_worthwhile(self, share_of_utility: float, most_moves: int) -> int:
        """How many moves gain at least this share of what they may cost, at most so many."""
        n_pairs = min(len(self.givers), most_moves)
        pays = self.gains[:n_pairs] > share_of_utility * self.prices[:n_pairs]
        return int(np.count_nonzero(pays))

    def made(
        self, n_moves: int, settings: Settings, dtype: np.dtype[np.floating]
    ) -> NDArray[np.floating]:
        """Centres (K, d) after the first ``n_moves`` of them."""
        chosen = self.by_gain[:n_moves]
        centroids = self.state.centers.astype(np.float64)
        centroids[self.donors[chosen]] = self.cut.left.means[chosen]
        centroids[self.givers[:n_moves]] = self.cut.right.means[chosen]
        return settings.place(centroids, self.state.centers, dtype)


def survey(engine: Engine, state: State, settings: Settings, n_donors: int | None = None) -> Moves:
    """Partition the worst clusters on trial, and find the centres that could be spared."""
    n_donors = n_donors or max(1, int(DONOR_SHARE * settings.n_clusters))
    donors = np.argsort(-state.assignment.sq_errors, kind="stable")[:n_donors]
    may_give = np.ones(len(state.centers), dtype=bool)
    may_give[donors] = False
    utilities = engine.utilities(state.centers, may_give)
    nodes = engine.open_clusters(donors)
    cut = engine.cut(nodes, np.full(n_donors, -1.0), "principal", TWO_MEANS_STEPS)
    gains = np.where(cut.possible, nodes.scatters - cut.left.scatters - cut.right.scatters, 0.0)
    by_gain = np.argsort(-gains, kind="stable")

    others = np.flatnonzero(may_give)
    givers = others[np.argsort(utilities[others], kind="stable")][:n_donors]
    return Moves(state, donors, cut, by_gain, gains[by_gain], givers, utilities[givers])
