"""Lloyd's iteration, plain or with momentum, that never lets the inertia rise (algorithm.md, 1b).

Plain: assign each row to the nearest centre, move each centre to the mean of its rows.

With momentum (Nesterov 1983, applied to the map "centres -> means"), a centre goes beyond the mean
by a growing share of its last move. A step that does not lower the inertia, or that empties a
cluster, is taken back and the momentum starts anew. The empty-cluster study with 256 clusters in
docs/benchmarks.md has both kinds, as many steps from random rows of real weights: "PG (random
start)" with momentum, and "distinct sampling", plain, which ends higher.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.settings import Journal, Monitor, Settings
from pgkmeans_sk.results import FloatArray, SmallLloyd, State

RELAXATION = 1.5
"""Length of a step with momentum, where 1 ends at the means. Centres move on for many iterations in
the same direction, as rows change sides."""
STALL_WINDOW = 5
"""Iterations over which progress is averaged to see that it has come to a halt."""
STALL_FACTOR = 0.5
"""An accelerated fit stops once the inertia falls by less than ``tol`` times this, relatively and
per iteration: with tol = 1e-4, 20 more iterations would gain less than 0.1 %."""


def lloyd(
    engine: Engine,
    state: State,
    settings: Settings,
    journal: Journal,
    monitor: Monitor | None = None,
    n_before: int = 0,
) -> tuple[State, int, bool]:
    """Iterate from ``state``; returns the last state, the iterations and whether it converged.

    Convergence is scikit-learn's: the labels repeat, or the squared moves of all centres towards
    their means add up to at most ``tol`` times the mean variance of the columns. On return the
    engine's labels are those of the state. Iterations are numbered from ``n_before`` + 1.
    """
    threshold = settings.tol * engine.mean_variance() if settings.tol > 0 else -1.0
    if monitor is None and _is_plain_work(state, settings):
        found = engine.small_lloyd(state, _small_plan(settings, threshold))
        if found is not None:
            journal.iteration = n_before + found[1]
            return found
    momentum = _Momentum(engine.dtype)
    progress = _Progress(settings, state.inertia)
    labels_belong = True  # whether the engine's labels are those of ``state``
    plain_next = not settings.accelerate
    converged = False
    n_iter = 0
    while n_iter < settings.max_iter and not converged:
        n_iter += 1
        journal.iteration = n_before + n_iter
        means: FloatArray = settings.place(state.assignment.centroids, state.centers, np.float64)
        shift = float(((means - state.centers) ** 2).sum())
        converged = shift <= threshold or progress.has_stalled()
        plain = plain_next or converged or n_iter == settings.max_iter
        plain_next = not settings.accelerate
        if plain:
            proposal = settle(engine, means.astype(engine.dtype), settings, journal)
        else:
            target = settings.place(momentum.beyond(state.centers, means), means, engine.dtype)
            proposal = State(target, engine.assign(target))
        n_changed = proposal.assignment.n_changed if labels_belong else -1
        fell = proposal.inertia < state.inertia
        if fell and (plain or not len(proposal.assignment.empty)):
            state, labels_belong = proposal, True
            plain_next = plain_next or n_changed == 0
            converged = converged or (plain and n_changed == 0 and _rests(state, settings))
        else:
            labels_belong = False
            momentum.reset()
            plain_next = True
            # A plain step that gains nothing can only be rounding: this is the end of the road.
            converged = converged or plain
        progress.add(state.inertia)
        number = n_before + n_iter
        settings.log(f"iteration {number}: inertia {state.inertia:.6g}")
        if monitor is not None and monitor.end_iteration(number, state.centers, state.inertia):
            break
    if not labels_belong:
        state = State(state.centers, engine.assign(state.centers))
    return state, n_iter, converged


def _is_plain_work(state: State, settings: Settings) -> bool:
    """Whether nobody is to be told of each iteration, and centres go where the means are."""
    return settings.is_silent and not settings.spherical and not len(state.assignment.empty)


def _small_plan(settings: Settings, threshold: float) -> SmallLloyd:
    """What ``lloyd`` does, for an engine that can do it in one go."""
    return SmallLloyd(
        settings.max_iter, threshold, settings.accelerate, RELAXATION, STALL_WINDOW,
        settings.tol * STALL_FACTOR,
    )  # fmt: skip


def _rests(state: State, settings: Settings) -> bool:
    """Whether the centres are the means, up to rounding.

    They are if labels repeat; but a mean that was taken from afar may need a second look.
    """
    means = settings.place(state.assignment.centroids, state.centers, np.float64)
    rounding = 8.0 * float(np.finfo(state.centers.dtype).eps) * np.abs(means).max()
    return bool(np.abs(means - state.centers).max() <= rounding)


@dataclass
class _Momentum:
    """How far beyond the means to go: a longer step, and Nesterov's share of the last move."""

    dtype: np.dtype[np.floating]
    previous: FloatArray | None = None
    step: float = 1.0

    def beyond(self, centers: NDArray[np.floating], means: FloatArray) -> FloatArray:
        """Where to go from ``centers`` with these ``means``; each call is a step."""
        following = (1.0 + np.sqrt(1.0 + 4.0 * (self.step * self.step))) / 2.0
        target = means
        if self.previous is not None:
            target = centers + RELAXATION * (means - centers)
            target += (self.step - 1.0) / following * (means - self.previous)
        self.previous, self.step = means, following
        return target

    def reset(self) -> None:
        """Begin again without momentum."""
        self.previous, self.step = None, 1.0


@dataclass
class _Progress:
    """Tells when an accelerated fit no longer gains what an iteration costs."""

    settings: Settings
    first: float
    inertias: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inertias = [self.first]

    def add(self, inertia: float) -> None:
        """Note the inertia after an iteration."""
        self.inertias.append(inertia)

    def has_stalled(self) -> bool:
        """Whether the last few iterations have gained too little."""
        if not self.settings.accelerate or len(self.inertias) <= STALL_WINDOW:
            return False
        before, now = self.inertias[-1 - STALL_WINDOW], self.inertias[-1]
        gain = (before - now) / STALL_WINDOW
        return gain <= self.settings.tol * STALL_FACTOR * now
