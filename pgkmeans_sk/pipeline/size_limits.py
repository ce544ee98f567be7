"""Lloyd's iteration with limits for the weight of each cluster (algorithm.md, "Size limits").

Assign at least cost within the limits (the engine's work), move centres to the means, until that
gains nothing. The inertia never rises: labels are replaced only by labels that cost less at the
same centres, and centres only by better ones.

Limits make far more local optima, and the best centres without limits may be poor ones within. So
some sets of centres are tried first, on a sample if there are many rows: those of a fit without
limits, those it began with, and the leaves of a partition tree of equal population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.lloyd import STALL_FACTOR, STALL_WINDOW
from pgkmeans_sk.pipeline.partition import PartitionRule, partition
from pgkmeans_sk.pipeline.settings import Monitor, Settings
from pgkmeans_sk.results import FloatArray, SizeLimits, State
from pgkmeans_sk.verbosity import silence

TRIAL_ROWS = 2**12
TRIAL_ROWS_PER_CLUSTER = 32
TRIAL_STEPS = 10
TREES = (PartitionRule("principal", "population"), PartitionRule("principal", "error"))


def cluster_within(
    engine: Engine,
    candidates: Sequence[NDArray[np.floating]],
    limits: SizeLimits,
    settings: Settings,
    rng: np.random.RandomState,
    monitor: Monitor | None = None,
) -> tuple[State, int, bool]:
    """Iterate within the limits from the best of ``candidates`` (K, d) or a partition tree."""
    n_rows = max(TRIAL_ROWS, TRIAL_ROWS_PER_CLUSTER * settings.n_clusters)
    n_rows -= n_rows % settings.n_clusters  # limits without leeway stay so
    few = engine.sample(n_rows, rng) if engine.n_rows > 2 * n_rows else engine
    share = few.total_weight / engine.total_weight
    few_limits = SizeLimits(limits.smallest * share, limits.largest * share)
    trees = (partition(few, settings.n_clusters, rule) for rule in TREES)
    n_steps = min(TRIAL_STEPS, settings.max_iter)
    trial = replace(settings, max_iter=n_steps, log=silence)
    best: State | None = None
    for centers in (*candidates, *(settings.place(tree, tree, engine.dtype) for tree in trees)):
        state, _, _ = lloyd_within(few, centers, few_limits, trial)
        if best is None or state.inertia < best.inertia:
            best = state
    assert best is not None
    return lloyd_within(engine, best.centers, limits, settings, monitor)


def lloyd_within(
    engine: Engine,
    centers: NDArray[np.floating],
    limits: SizeLimits,
    settings: Settings,
    monitor: Monitor | None = None,
) -> tuple[State, int, bool]:
    """Iterate from ``centers``, whatever the engine's labels are.

    Returns the last state, the iterations and whether it converged, as in ``lloyd``: labels repeat;
    or the squared moves of the centres add up to at most ``tol`` times the mean variance of the
    columns; or, with ``accelerate``, the inertia has all but ceased to fall. The engine's labels
    are those of the state, and obey the limits.
    """
    threshold = settings.tol * engine.mean_variance() if settings.tol > 0 else -1.0
    prices: FloatArray | None = None
    inertias: list[float] = []
    state: State | None = None  # the first assignment is always a new one
    converged = False
    n_iter = 0
    while n_iter < settings.max_iter and not converged:
        n_iter += 1
        prices, changed = engine.assign_within(centers, limits, prices)
        if changed:
            state, shift = _moved_to_means(engine, centers, settings)
            centers = state.centers
            inertias.append(state.inertia)
            converged = shift <= threshold or (settings.accelerate and _stalls(inertias, settings))
        else:
            converged = True
        assert state is not None
        settings.log(f"iteration {n_iter} within size limits: inertia {state.inertia:.6g}")
        if monitor is not None and monitor.end_iteration(n_iter, state.centers, state.inertia):
            break
    assert state is not None
    return state, n_iter, converged


def _moved_to_means(
    engine: Engine, centers: NDArray[np.floating], settings: Settings
) -> tuple[State, float]:
    """The state after a move to the means of the engine's labels, and the squared moves' sum."""
    stayed = State(centers, engine.measure(centers))
    means = settings.place(stayed.assignment.centroids, centers, engine.dtype)
    moved = State(means, engine.measure(means))
    shift = float(((means.astype(np.float64) - centers) ** 2).sum())
    return (moved if moved.inertia < stayed.inertia else stayed), shift


def _stalls(inertias: list[float], settings: Settings) -> bool:
    """Whether the last few iterations have gained too little, as ``lloyd`` judges it."""
    if len(inertias) <= STALL_WINDOW:
        return False
    gain = (inertias[-1 - STALL_WINDOW] - inertias[-1]) / STALL_WINDOW
    return gain <= settings.tol * STALL_FACTOR * inertias[-1]
