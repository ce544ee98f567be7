"""Many small problems of one shape: each is fitted as if it were alone.

Problems in the memory of the host are fitted side by side, one on each core, which small problems
could not make use of otherwise. Those on another device are fitted one after the other: what runs
there is parallel in itself.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from pgkmeans_sk import validation
from pgkmeans_sk.array_kinds import is_tensor
from pgkmeans_sk.arrays import check_rows, check_weights, known, on_host, outline
from pgkmeans_sk.engines import open_engine
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.parameters import check_parameters, settings_of, starts_of
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.results import Solution
from pgkmeans_sk.threads import effective_n_threads, run_tasks
from pgkmeans_sk.verbosity import silence


@dataclass(frozen=True)
class Problems:
    """Validated rows (B, n, d) and weights (B, n), which may be None for ones."""

    X: Any
    weights: Any

    def __len__(self) -> int:
        return len(self.X)

    def engine(self, number: int, estimator: Any) -> Engine:
        """An engine over the rows of a problem, as the parameters of ``estimator`` ask for it."""
        weights = None if self.weights is None else self.weights[number]
        return open_engine(
            estimator.engine, self.X[number], weights, device=estimator.device,
            directions=estimator.metric == "cosine",
        )  # fmt: skip


def check_problems(estimator: Any, X: Any, sample_weight: Any) -> Problems:
    """Problems from the user's arrays; raises as ``PGKMeans.fit`` would for one of them."""
    X = known(X)
    X = X if is_tensor(X) else np.asarray(X)
    if X.ndim != 3:
        raise ValueError(
            f"Got X of shape {tuple(X.shape)}, but expected (n_problems, n_samples, n_features)."
        )
    n_problems, n_rows, n_features = X.shape
    if n_problems == 0:
        raise ValueError(f"Got X of shape {tuple(X.shape)}, but expected at least one problem.")
    rows = check_rows(estimator, X.reshape(-1, n_features), reset=True)
    validation.check_enough_rows(n_rows, estimator.n_clusters)
    weights = _weights_of(known(sample_weight), rows, n_problems, n_rows)
    return Problems(rows.reshape(n_problems, n_rows, n_features), weights)


def _weights_of(sample_weight: Any, rows: Any, n_problems: int, n_rows: int) -> Any:
    """Weights (B, n) where the ``rows`` (B * n, d) are, or None for ones."""
    if sample_weight is None:
        return None
    weights: Any = sample_weight if is_tensor(sample_weight) else np.asarray(sample_weight)
    if tuple(weights.shape) not in ((n_rows,), (n_problems, n_rows)):
        raise ValueError(
            f"Got sample_weight of shape {tuple(weights.shape)}, but expected {(n_rows,)} or "
            f"{(n_problems, n_rows)}."
        )
    if weights.ndim == 1:
        repeat = weights.repeat if is_tensor(weights) else lambda n: np.tile(weights, n)
        weights = repeat(n_problems)
    weights = check_weights(weights.reshape(-1), rows).reshape(n_problems, n_rows)
    for number, total in enumerate(on_host(weights.sum(1))):
        if total == 0.0:
            raise ValueError(
                "Sample weights must contain at least one non-zero number in each problem; "
                f"got all zero in problem {number}."
            )
    return weights


def fit_problems(
    estimator: Any, X: Any, sample_weight: Any
) -> tuple[Any, Any, NDArray[np.float64]]:
    """Centres (B, K, d), labels (B, n) and inertias (B,), with the parameters of ``estimator``."""
    check_parameters(estimator)
    problems = check_problems(estimator, X, sample_weight)
    seed = estimator.random_state
    if not isinstance(seed, int | np.integer):
        seed = check_random_state(seed).randint(2**31 - 1)
    settings = settings_of(estimator, silence)
    init = estimator.init
    each_has_own = not isinstance(init, str) and not callable(init)
    if each_has_own:
        init = on_host(known(init))
        shape = (len(problems), estimator.n_clusters, problems.X.shape[2])
        if init.shape != shape:
            raise ValueError(f"Got init of shape {init.shape}, but expected {shape}.")
    solutions: list[Solution | None] = [None] * len(problems)
    labels: list[Any] = [None] * len(problems)
    first = problems.engine(0, estimator)  # what it refuses, it refuses before any work

    def fit(number: int) -> None:
        own = estimator
        if each_has_own:
            own = type(estimator)(**{**estimator.get_params(deep=False), "init": init[number]})
        starts = starts_of(own, outline(problems.X[number]), stacklevel=2)
        rng = np.random.RandomState(seed)
        engine = problems.engine(number, estimator)
        solution = run(engine, starts, settings, rng, estimator.consolidate)
        solutions[number], labels[number] = solution, solution.labels

    # Engines in the memory of the host are those that can limit sizes.
    n_threads = effective_n_threads() if first.limits_sizes else 1
    run_tasks(fit, len(problems), n_threads)
    found = [solution for solution in solutions if solution is not None]
    _warn_of_copies(found, settings.n_clusters)
    centers = first.like_rows(np.stack([solution.centers for solution in found]))
    return centers, _stacked(labels), np.array([solution.inertia for solution in found])


def _stacked(parts: list[Any]) -> Any:
    """Arrays or tensors (n,) as one (B, n)."""
    if not is_tensor(parts[0]):
        return np.stack(parts)
    together = parts[0].new_empty((len(parts), len(parts[0])))
    for row, part in zip(together, parts, strict=True):
        row[:] = part
    return together


def _warn_of_copies(solutions: list[Solution], n_clusters: int) -> None:
    short = [n for n, found in enumerate(solutions) if found.n_effective_clusters < n_clusters]
    if short:
        warnings.warn(
            f"{len(short)} of {len(solutions)} problems (the first is number {short[0]}) have "
            f"fewer distinct rows of positive weight than n_clusters={n_clusters}. Their centers "
            "beyond are copies of the first.",
            ConvergenceWarning,
            stacklevel=4,
        )
