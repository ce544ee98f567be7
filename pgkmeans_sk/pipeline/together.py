"""The pipeline for many problems of one shape at once: ``run`` for all of them in step.

Stages are those of ``pipeline/__init__.py``, each for all problems before the next one. What the
host decides it decides for each problem by itself; what the device does it does for all in the same
operations. A problem has the result that it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.pipeline import solution_of
from pgkmeans_sk.pipeline.refine import EXCHANGES
from pgkmeans_sk.pipeline.refine import SMALLEST_GAIN as SMALLEST_GAIN_OF_ROUND
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import Start
from pgkmeans_sk.pipeline.together_exchange import rebalance_together
from pgkmeans_sk.pipeline.together_lloyd import lloyd_together, settle_together
from pgkmeans_sk.pipeline.together_starts import Generators, first_centers
from pgkmeans_sk.results import FloatArray, IntArray, State

if TYPE_CHECKING:
    from pgkmeans_sk.engines.torch_problems import TorchProblems
    from pgkmeans_sk.engines.torch_states import States


@dataclass(frozen=True)
class Solutions:
    """The best of the starts of each of B problems; centres and labels are tensors."""

    centers: Any  # (B, K, d)
    labels: Any  # (B, n) int32
    inertias: FloatArray  # (B,)
    n_iters: IntArray  # (B,)
    n_effective_clusters: IntArray  # (B,)

    def updated(
        self, problems: TorchProblems, better: NDArray[np.bool_], others: Solutions
    ) -> Solutions:
        """With the ``others`` where they are ``better`` (B,)."""
        return Solutions(
            problems.either(better, others.centers, self.centers),
            problems.either(better, others.labels, self.labels),
            np.where(better, others.inertias, self.inertias),
            np.where(better, others.n_iters, self.n_iters),
            np.where(better, others.n_effective_clusters, self.n_effective_clusters),
        )


def run_together(
    problems: TorchProblems, starts: Sequence[Sequence[Start]], settings: Settings, rngs: Generators
) -> Solutions:
    """Cluster the rows of each problem from each of its ``starts``, as many for all of them."""
    every = np.arange(problems.n_problems)
    best: Solutions | None = None
    for of_each in zip(*starts, strict=True):
        centers = first_centers(problems, of_each, settings, rngs)
        states = settle_together(problems, every, centers, settings)
        states, n_iters, converged = lloyd_together(problems, every, states, settings)
        if settings.refine:
            states, n_iters = refine_together(problems, states, settings, n_iters)
        found = _solutions(problems, states, n_iters, converged)
        if best is None:
            best = replace(found, labels=found.labels.clone())
        else:
            best = best.updated(problems, found.inertias < best.inertias, found)
    assert best is not None
    return best


def refine_together(
    problems: TorchProblems, states: States, settings: Settings, n_iters: IntArray
) -> tuple[States, IntArray]:
    """``refine`` for all problems."""
    goes_on = np.ones(len(states), dtype=bool)
    for _ in range(settings.refine):
        goes_on &= (n_iters < settings.max_iter) & (states.inertias != 0.0) & ~states.has_empty
        which = np.flatnonzero(goes_on)
        if not len(which):
            break
        before = states.inertias[which]
        found, _ = rebalance_together(problems, which, states.at(which), settings, EXCHANGES)
        pays = 1.0 - found.inertias / before >= SMALLEST_GAIN_OF_ROUND
        if pays.any():
            some, rest = np.flatnonzero(pays), np.flatnonzero(~pays)
            own = which[some]
            limits = settings.max_iter - n_iters[own]
            further, steps, _ = lloyd_together(problems, own, found.at(some), settings, limits)
            n_iters[own] += steps
            found = problems.joined([(some, further), (rest, found.at(rest))])
        others = np.flatnonzero(~goes_on)
        states = problems.joined([(which, found), (others, states.at(others))])
        goes_on[which] = 1.0 - found.inertias / before >= SMALLEST_GAIN_OF_ROUND
    return states, n_iters


def _solutions(
    problems: TorchProblems, states: States, n_iters: IntArray, converged: NDArray[np.bool_]
) -> Solutions:
    """The states as they are reported; where clusters are empty, as ``run`` reports them."""
    n_effective = (states.sizes > 0.0).sum(axis=1)
    centers, inertias = states.centers.clone(), states.inertias
    for number in np.flatnonzero(states.has_empty).tolist():
        own, _, assignment = states.alone(number)
        solution = solution_of(
            problems.alone(number), State(own, assignment), int(n_iters[number]),
            bool(converged[number]), Journal(),
        )  # fmt: skip
        centers[number] = problems.to_device(solution.centers)
        inertias[number] = solution.inertia
    return Solutions(centers, problems.labels, inertias, n_iters, n_effective)
