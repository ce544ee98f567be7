"""Refinement below Lloyd's local optimum (algorithm.md, 1e).

When Lloyd's iteration has converged, partitioning and consolidation become a search: the clusters
with the largest error are partitioned, and the centres for the new parts are taken from where they
are of least use (``exchange.py``); then Lloyd's iteration goes on. After Fritzke's breathing
k-means (arXiv 2006.15666). A round is kept only if the inertia fell, and it is the last one if it
fell by little: where moves do not pay, the price is one trial.
"""

from __future__ import annotations

from dataclasses import replace

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.exchange import rebalance
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.settings import Journal, Monitor, Settings
from pgkmeans_sk.results import State

EXCHANGES = 5
"""Exchanges in a round, each followed by two Lloyd steps, before Lloyd's iteration goes on."""
SMALLEST_GAIN = 2e-4
"""Relative to the inertia; a round that gains less is the last."""


def refine(
    engine: Engine,
    state: State,
    settings: Settings,
    journal: Journal,
    n_iter: int,
    monitor: Monitor | None = None,
) -> tuple[State, int]:
    """At most ``settings.refine`` rounds from a converged state; the state and all iterations.

    The inertia never rises, and together with the ``n_iter`` iterations before there are at most
    ``max_iter``. On return the engine's labels are those of the state.
    """
    for number in range(1, settings.refine + 1):
        n_left = settings.max_iter - n_iter
        if n_left == 0 or state.inertia == 0.0 or len(state.assignment.empty):
            break
        before = state.inertia
        state, _ = rebalance(engine, state, settings, journal, EXCHANGES)
        if 1.0 - state.inertia / before >= SMALLEST_GAIN:
            rest = replace(settings, max_iter=n_left)
            state, steps, _ = lloyd(engine, state, rest, journal, monitor, n_before=n_iter)
            n_iter += steps
        gain = 1.0 - state.inertia / before
        settings.log(f"refinement {number}: inertia {state.inertia:.6g}, {gain:.2%} less")
        if gain < SMALLEST_GAIN:
            break
    return state, n_iter
