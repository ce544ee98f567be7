"""The first centres: one table from the names of ``init`` to how they are found.

``"partition"`` is the pre-assignment of PG k-means made cheap: the tree is grown on a sample and
its errors are mended there, where a Lloyd step costs a fraction, before all rows are looked at.
On a line (one column) it is the global optimum itself, where the engine can afford to find it.
The variants grow the tree of their name over all rows and stop there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.exchange import (
    DONOR_SHARE,
    HOPELESS_SHARE,
    SHARES_OF_UTILITY,
    SMALLEST_GAIN,
    STEPS_BETWEEN,
    TWO_MEANS_STEPS,
    is_settled,
    rebalance,
)
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.partition import PartitionRule, partition
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import FloatArray, RepairRecord, SmallStart, State

Start = Callable[[Engine, Settings, np.random.RandomState, Journal], FloatArray]

SAMPLE_ROWS = 2**17
SAMPLE_NUMBERS = 2**22
"""Numbers in a sample: 16 or 32 MiB, if there are rows enough for the clusters in it."""
SAMPLE_ROWS_PER_CLUSTER = 32
NESTING = 4
NESTED_FROM = 2**12
NESTED_FROM_PER_CLUSTER = 64
"""With so many rows, tree and moves begin on a quarter of them, where most moves can be found.
Smaller tables are taken whole, so that a row of weight 2 counts exactly like the row twice."""
NESTED_ROUNDS = 4
NESTED_SEED = 0
"""The same quarter each time: tables of this size are not left to chance."""
SAMPLE_ROUNDS = 25
SAMPLE_STEPS = 25
FULL_ROUNDS = 2

RACE_WORK = 2_000_000
"""Multiplications in a pass, up to which a second tree is grown and races against the first: a fit
takes so little time then that twice as much is not missed."""
FEWEST_CLUSTERS_TO_RACE = 4
"""With fewer there is little that two trees could do differently."""

DEFAULT_RULE = PartitionRule(cut="principal", share="error")
RIVAL_RULE = PartitionRule(cut="ball", share="population")
"""Shares nothing with the default, so that it errs elsewhere: it cuts around far rows instead of
across a direction, and counts rows instead of errors."""


def rows_of_sample(n_features: int, n_clusters: int) -> int:
    """Rows that are enough for so many clusters."""
    n_rows = min(SAMPLE_ROWS, SAMPLE_NUMBERS // n_features)
    return max(n_rows, SAMPLE_ROWS_PER_CLUSTER * n_clusters)


def sampled(engine: Engine, settings: Settings, rng: np.random.RandomState) -> Engine:
    """An engine over some of the rows, enough for the clusters; or the same, if that is most."""
    n_rows = rows_of_sample(engine.n_features, settings.n_clusters)
    return engine.sample(n_rows, rng) if engine.n_rows > 2 * n_rows else engine


def start_from_partition(
    engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
) -> FloatArray:
    """Tree, moves and a few steps on samples; then moves on all rows. Or the optimum of a line."""
    if not settings.spherical:
        optimum = engine.line_optimum(settings.n_clusters)
        if optimum is not None:
            journal.is_optimal, journal.start = True, "optimum"
            return optimum
    few = sampled(engine, settings, rng)
    state = _start_small(few, settings, journal)
    if few is not engine:
        steps = replace(settings, max_iter=SAMPLE_STEPS)
        state, _, _ = lloyd(few, state, steps, Journal())
        del few  # with its copy of rows
        state = settle(engine, state.centers, settings, journal)
        state, _ = rebalance(engine, state, settings, journal, FULL_ROUNDS)
    return state.centers.astype(np.float64)


def _start_small(engine: Engine, settings: Settings, journal: Journal) -> State:
    """The tree with its errors mended, on a part of the rows first if there are many."""
    if not is_nested(engine.n_rows, settings.n_clusters):
        return _race(engine, settings, journal)
    part = engine.sample(engine.n_rows // NESTING, np.random.RandomState(NESTED_SEED))
    state = _start_small(part, settings, journal)
    del part  # with its copy of rows
    state = settle(engine, state.centers, settings, journal)
    return rebalance(engine, state, settings, journal, NESTED_ROUNDS)[0]


def is_nested(n_rows: int, n_clusters: int) -> bool:
    """Whether there are so many rows that a part of them comes first."""
    return n_rows >= max(NESTED_FROM, NESTED_FROM_PER_CLUSTER * n_clusters)


def _race(engine: Engine, settings: Settings, journal: Journal) -> State:
    """The tree with its errors mended; on a small table, the better of two trees.

    There is no race where the first tree is hardly to be improved.
    """
    rules = rules_of_race(engine.n_rows, engine.n_features, settings.n_clusters)
    best: _Grown | None = None
    for name, rule in rules.items():
        could_stop = best is None and len(rules) > 1
        grown = _grow(engine, rule, settings, could_stop)
        # Both often end in the same clusters: rounding must not decide which numbers they have.
        if best is None or grown.inertia < best.inertia * (1.0 - 1e-9):
            best, journal.start = grown, name
        if grown.is_settled:
            break
    assert best is not None
    journal.repairs += best.repairs
    return State(best.centers, engine.assign(best.centers))  # the engine's labels are its own


def rules_of_race(n_rows: int, n_features: int, n_clusters: int) -> dict[str, PartitionRule]:
    """The trees that are grown, by their names."""
    rules = {"partition-principal-error": DEFAULT_RULE}
    if n_rows * n_features * n_clusters <= RACE_WORK and n_clusters >= FEWEST_CLUSTERS_TO_RACE:
        rules["partition-ball"] = RIVAL_RULE
    return rules


def small_plan(rule: PartitionRule, judged: bool = True) -> SmallStart:
    """What ``_grow`` does, for an engine that can do it in one go."""
    return SmallStart(
        rule.cut, rule.share, STEPS_BETWEEN, SAMPLE_ROUNDS, DONOR_SHARE, TWO_MEANS_STEPS,
        SHARES_OF_UTILITY, SMALLEST_GAIN, HOPELESS_SHARE if judged else -np.inf,
    )  # fmt: skip


class _Grown(NamedTuple):
    """Centres that a tree has led to."""

    centers: NDArray[np.floating]
    inertia: float
    repairs: list[RepairRecord]
    is_settled: bool  # hardly to be improved, as far as that was asked


def _grow(engine: Engine, rule: PartitionRule, settings: Settings, judged: bool) -> _Grown:
    """The tree with its errors mended, in one go where the engine can; ``judged`` if asked for."""
    plan = small_plan(rule, judged)
    found = None if settings.spherical else engine.small_start(settings.n_clusters, plan)
    if found is not None and found.inertia is not None:
        return _Grown(found.centers, found.inertia, [], found.is_settled)
    if found is not None:
        leaves = found.centers.astype(np.float64)
    else:
        leaves = partition(engine, settings.n_clusters, rule)
    journal = Journal()
    state = settle(engine, settings.place(leaves, leaves, engine.dtype), settings, journal)
    if found is not None:  # all clusters own rows now
        found = engine.small_start(settings.n_clusters, plan, state.centers)
        if found is not None and found.inertia is not None:
            return _Grown(found.centers, found.inertia, journal.repairs, found.is_settled)
    state, moves = rebalance(engine, state, settings, journal, SAMPLE_ROUNDS)
    settled = judged and is_settled(engine, state, settings, moves)
    return _Grown(state.centers, state.inertia, journal.repairs, settled)


def _start_from_tree(rule: PartitionRule) -> Start:
    def start(
        engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
    ) -> FloatArray:
        return partition(engine, settings.n_clusters, rule)

    return start


def _start_from_kmeans_plusplus(
    engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
) -> FloatArray:
    return engine.draw_kmeans_plusplus(settings.n_clusters, rng).astype(np.float64)


def _start_from_random_rows(
    engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
) -> FloatArray:
    return engine.draw_rows(settings.n_clusters, rng).astype(np.float64)


TREES = {
    "partition-ball": PartitionRule("ball", "population"),
    "partition-ball-error": PartitionRule("ball", "error"),
    "partition-principal": PartitionRule("principal", "population"),
    "partition-principal-error": PartitionRule("principal", "error"),
}
STARTS: dict[str, Start] = {
    "partition": start_from_partition,
    **{name: _start_from_tree(rule) for name, rule in TREES.items()},
    "k-means++": _start_from_kmeans_plusplus,
    "random": _start_from_random_rows,
}
"""Accepted names of the parameter ``init``. To add one, write a ``Start`` and a row here."""


def fixed_start(centers: NDArray[np.floating]) -> Start:
    """The start for centres that the user gives."""

    def start(
        engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
    ) -> FloatArray:
        return np.array(centers, dtype=np.float64)

    return start
