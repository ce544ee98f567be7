"""Clustering a stream of batches, with no cluster ever empty.

Each batch moves the centres to the running means of all rows they have won (MacQueen 1967; Sculley
2010). A *witness*, one row that it won last, is remembered for every cluster. Where a cluster wins
neither a row of the batch nor a witness after the move, batch and witnesses together are settled as
in a fit: the cluster gets a part of a large one. So all clusters own at least one of the rows seen
so far, always.

Two assignments of the batch are all that it takes, unless there is something to settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import Start
from pgkmeans_sk.results import Assignment, FloatArray, Solution


@dataclass(frozen=True)
class Stream:
    """What is remembered of the batches so far."""

    centers: NDArray[np.floating]  # (K, d)
    counts: FloatArray  # (K,) weight that each centre has won
    witnesses: NDArray[np.floating]  # (m, d) a row of each cluster that owns one


def begin_stream(
    engine: Engine, start: Start, settings: Settings, rng: np.random.RandomState, journal: Journal
) -> Stream:
    """Centres from the first batch; they have won nothing yet."""
    leaves = start(engine, settings, rng, journal)
    state = settle(engine, settings.place(leaves, leaves, engine.dtype), settings, journal)
    return Stream(state.centers, np.zeros(settings.n_clusters), engine.closest_rows(state.centers))


def add_batch(
    engine: Engine, stream: Stream, settings: Settings, journal: Journal
) -> tuple[Stream, Solution]:
    """The stream after the rows of ``engine``, and the clustering of these rows."""
    journal.iteration = 1
    won = engine.assign(stream.centers)
    counts = stream.counts + won.sizes
    rate = np.divide(won.sizes, counts, out=np.zeros_like(counts), where=counts > 0)
    moves = rate[:, np.newaxis] * (np.nan_to_num(won.centroids) - stream.centers)
    moves[won.sizes == 0] = 0.0
    moved = settings.place(stream.centers + moves, stream.centers, engine.dtype)

    found = engine.assign(moved, last=True)
    witnesses = _witnesses(engine, moved, found, stream)
    n_owners = len(witnesses)
    if n_owners < settings.n_clusters:
        extended = engine.extended(stream.witnesses)
        state = settle(extended, moved, settings, journal)
        replaced = (state.centers != moved).any(axis=1)
        if replaced.any():  # parts of a divided cluster share what it had won
            shares = state.assignment.sizes[replaced]
            counts[replaced] = counts[replaced].sum() * shares / max(shares.sum(), 1e-300)
        moved, found = state.centers, engine.assign(state.centers, last=True)
        witnesses = extended.closest_rows(moved)
        n_owners = int(np.count_nonzero(state.assignment.sizes))

    repairs = tuple(journal.repairs)
    solution = Solution(moved, engine.labels, found.inertia, 1, True, repairs, n_owners, counts)
    return Stream(moved, counts, witnesses), solution


def _witnesses(
    engine: Engine, centers: NDArray[np.floating], found: Assignment, stream: Stream
) -> NDArray[np.floating]:
    """A row of each cluster that owns one: of the batch, if possible, or an older witness."""
    latest = engine.closest_rows(centers)
    if not len(found.empty):
        return latest
    older = engine.of_rows(stream.witnesses)
    owned = older.assign(centers, last=True).sizes > 0.0
    kept = older.closest_rows(centers)[found.sizes[owned] == 0.0]
    return np.concatenate([latest, kept])
