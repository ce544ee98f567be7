"""PG k-means, written once over engines.

    consolidate -> partition (or another start) -> lloyd -> refine, with cautious partitioning of
    donors whenever clusters are empty -> the same within size limits, if asked for -> the best of
    the starts

``run`` is the paper's box; each stage has a file of its own name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.consolidate import consolidated
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.refine import refine
from pgkmeans_sk.pipeline.settings import Journal, Monitor, Settings
from pgkmeans_sk.pipeline.size_limits import cluster_within
from pgkmeans_sk.pipeline.starts import Start
from pgkmeans_sk.results import Solution, State


def run(
    engine: Engine,
    starts: Sequence[Start],
    settings: Settings,
    rng: np.random.RandomState,
    consolidate: str | float | None = None,
    monitor: Monitor | None = None,
) -> Solution:
    """Cluster the engine's rows from each of ``starts``; the solution of least inertia.

    A start that is the optimum is the last one.
    """
    points = consolidated(engine, consolidate, settings, rng)
    best: Solution | None = None
    for number, start in enumerate(starts):
        if monitor is not None:
            monitor.begin_start(number)
        journal = Journal()
        leaves = start(points, settings, rng, journal)
        centers = settings.place(leaves, leaves, points.dtype)
        state = settle(points, centers, settings, journal)
        # Within size limits, iterations are those that obey them: only they are reported.
        unlimited = settings.size_limits is None
        state, n_iter, converged = lloyd(
            points, state, settings, journal, monitor if unlimited else None
        )
        if settings.refine and not journal.is_optimal:
            state, n_iter = refine(
                points, state, settings, journal, n_iter, monitor if unlimited else None
            )
        if settings.size_limits is not None:
            state, n_iter, converged = cluster_within(
                engine, (state.centers, centers), settings.size_limits, settings, rng, monitor
            )
        elif points is not engine:
            state = settle(engine, state.centers, settings, journal)
        solution = solution_of(engine, state, n_iter, converged, journal)
        settings.log(
            f"start {number}: {n_iter} iterations, inertia {solution.inertia:.6g}, "
            f"{len(journal.repairs)} passes to fill empty clusters"
        )
        if best is None or solution.inertia < best.inertia:
            best = solution
        if monitor is not None:
            monitor.end_start()
        if journal.is_optimal:
            break
    assert best is not None
    return best


def solution_of(
    engine: Engine, state: State, n_iter: int, converged: bool, journal: Journal
) -> Solution:
    """The state as the estimator reports it; centres that own no row come last, as copies."""
    used = np.flatnonzero(state.assignment.sizes > 0.0)
    n_clusters = len(state.centers)
    if len(used) < n_clusters:
        order = np.concatenate([used, np.full(n_clusters - len(used), used[0])])
        state = State(state.centers[order], engine.assign(state.centers[order]))
    return Solution(
        state.centers,
        engine.labels,
        state.inertia,
        n_iter,
        converged,
        tuple(journal.repairs),
        len(used),
        state.assignment.sizes,
        journal.start,
    )
