"""Lloyd's iteration for many problems at once: each goes the way that ``lloyd.py`` would lead it.

All of a number of iterations is done for all problems together, with two waits for the device in
each. Those that have converged leave the work. Where clusters are empty, that problem is settled
alone (``empty_clusters.py``), and goes on with the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.pipeline.empty_clusters import fill
from pgkmeans_sk.pipeline.lloyd import RELAXATION, STALL_FACTOR, STALL_WINDOW
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import FloatArray, IntArray, State

if TYPE_CHECKING:
    from pgkmeans_sk.engines.torch_problems import TorchProblems
    from pgkmeans_sk.engines.torch_states import States


def settle_together(
    problems: TorchProblems, which: IntArray, centers: Any, settings: Settings
) -> States:
    """``settle`` for the problems ``which`` (A,) and their ``centers`` (A, K, d)."""
    states = problems.assign(which, centers)
    fill_together(problems, which, states, states.has_empty, settings)
    return states


def fill_together(
    problems: TorchProblems,
    which: IntArray,
    states: States,
    chosen: NDArray[np.bool_],
    settings: Settings,
) -> None:
    """Fill the empty clusters of the ``chosen`` (A,) problems, one after the other, in place."""
    for position in np.flatnonzero(chosen).tolist():
        engine = problems.alone(which[position])
        centers, _, assignment = states.alone(position)
        before = State(centers, assignment)
        state = fill(engine, before, settings, Journal())
        if state is not before:
            means = settings.place(state.assignment.centroids, state.centers, np.float64)
            states.replace(position, state.centers, means, state.assignment)


@dataclass(frozen=True)
class _Walk:
    """What is known of problems that are on their way, besides their states."""

    at: IntArray  # (a,) their positions
    previous: Any  # (a, K, d) means from which the last step with momentum went
    steps: FloatArray  # (a,) as in ``lloyd._Momentum``
    has_previous: NDArray[np.bool_]  # (a,)
    belongs: NDArray[np.bool_]  # (a,) whether labels are those of the state
    plain_next: NDArray[np.bool_]  # (a,)
    inertias: FloatArray  # (iterations, a), the last few

    def only(self, problems: TorchProblems, chosen: NDArray[np.bool_]) -> _Walk:
        """Those that are ``chosen`` (a,)."""
        previous = self.previous
        if previous is not None:
            previous = problems.some(previous, np.flatnonzero(chosen))
        return _Walk(
            self.at[chosen], previous, self.steps[chosen], self.has_previous[chosen],
            self.belongs[chosen], self.plain_next[chosen], self.inertias[:, chosen],
        )  # fmt: skip


def lloyd_together(
    problems: TorchProblems,
    which: IntArray,
    states: States,
    settings: Settings,
    limits: IntArray | None = None,
) -> tuple[States, IntArray, NDArray[np.bool_]]:
    """``lloyd`` from the states of the problems ``which`` (A,).

    Returns the last states, the iterations (A,), and which have converged (A,). ``limits`` (A,) of
    iterations stand in for ``max_iter``. On return labels are those of the states.
    """
    n_problems = len(which)
    limits = np.full(n_problems, settings.max_iter) if limits is None else limits
    n_iters = np.zeros(n_problems, dtype=np.int64)
    has_converged = np.zeros(n_problems, dtype=bool)
    walk = _Walk(
        np.arange(n_problems), None, np.ones(n_problems), np.zeros(n_problems, dtype=bool),
        np.ones(n_problems, dtype=bool), np.full(n_problems, not settings.accelerate),
        states.inertias[None],
    )  # fmt: skip
    left: list[tuple[IntArray, States]] = []
    astray: list[IntArray] = []
    n_iter = 0
    while True:
        n_iter += 1
        is_last = limits[walk.at] == n_iter
        walk, states, converged = _iterate(problems, which, walk, states, settings, is_last)
        leaves = converged | is_last
        if leaves.any():
            gone = walk.at[leaves]
            n_iters[gone], has_converged[gone] = n_iter, converged[leaves]
            left.append((gone, states.at(leaves)))
            astray.append(gone[~walk.belongs[leaves]])
            if leaves.all():
                break
            walk, states = walk.only(problems, ~leaves), states.at(~leaves)
    states = problems.joined(left)
    again = np.sort(np.concatenate(astray))
    if len(again):  # labels are those of the states again
        problems.assign(which[again], states.at(again).centers)
    return states, n_iters, has_converged


def _iterate(
    problems: TorchProblems,
    which: IntArray,
    walk: _Walk,
    states: States,
    settings: Settings,
    is_last: NDArray[np.bool_],
) -> tuple[_Walk, States, NDArray[np.bool_]]:
    """One iteration: what is known then, the states, and which have converged (a,)."""
    own = which[walk.at]
    converged = _is_close(problems, own, states, settings) | _has_stalled(walk, settings)
    plain = walk.plain_next | converged | is_last
    centers, walk = _step(problems, walk, states, plain)
    proposals = problems.assign(own, centers)
    fill_together(problems, own, proposals, proposals.has_empty & plain, settings)
    n_changed = np.where(walk.belongs, proposals.n_changed, -1)
    fell = proposals.inertias < walk.inertias[-1]
    taken = fell & (plain | ~proposals.has_empty)
    states = proposals.where(taken, states)
    converged |= taken & plain & (n_changed == 0) & proposals.rests
    # A plain step that gains nothing can only be rounding: this is the end of the road.
    converged |= ~taken & plain
    inertias = np.vstack([walk.inertias, np.where(taken, proposals.inertias, walk.inertias[-1])])
    walk = replace(
        walk,
        steps=np.where(taken, walk.steps, 1.0),
        has_previous=walk.has_previous & taken,
        belongs=taken,
        plain_next=~taken | (n_changed == 0) | (not settings.accelerate),
        inertias=inertias[-1 - STALL_WINDOW :],
    )
    return walk, states, converged


def _step(
    problems: TorchProblems, walk: _Walk, states: States, plain: NDArray[np.bool_]
) -> tuple[Any, _Walk]:
    """Where to go: to the means where ``plain`` (a,), else beyond."""
    if plain.all():
        return states.plain_step(), walk
    following = (1.0 + np.sqrt(1.0 + 4.0 * (walk.steps * walk.steps))) / 2.0
    shares = (walk.steps - 1.0) / following
    centers = states.step_beyond(
        plain, walk.previous, walk.has_previous, RELAXATION, shares, problems.place
    )
    walk = replace(
        walk,
        previous=states.previous_after(plain, walk.previous),
        steps=np.where(plain, walk.steps, following),
        has_previous=walk.has_previous | ~plain,
    )
    return centers, walk


def _has_stalled(walk: _Walk, settings: Settings) -> NDArray[np.bool_]:
    """Which have gained too little in the last few iterations."""
    if not settings.accelerate or len(walk.inertias) <= STALL_WINDOW:
        return np.zeros(len(walk.at), dtype=bool)
    before, now = walk.inertias[-1 - STALL_WINDOW], walk.inertias[-1]
    gain = (before - now) / STALL_WINDOW
    return np.asarray(gain <= settings.tol * STALL_FACTOR * now)


def _is_close(
    problems: TorchProblems, which: IntArray, states: States, settings: Settings
) -> NDArray[np.bool_]:
    """Whose moves are at most the threshold; where rounding could tell, as it is found alone."""
    if settings.tol <= 0.0:
        return np.zeros(len(which), dtype=bool)
    variances, rounding = problems.mean_variances(which)
    thresholds = settings.tol * variances
    noise = 2.0 * states.n_numbers * np.finfo(np.float64).eps * states.shifts
    close = states.shifts <= thresholds
    in_doubt = np.abs(states.shifts - thresholds) <= noise + settings.tol * rounding
    for position in np.flatnonzero(in_doubt).tolist():
        centers, means, _ = states.alone(position)
        threshold = settings.tol * problems.alone(which[position]).mean_variance()
        close[position] = float(((means - centers) ** 2).sum()) <= threshold
    return close
