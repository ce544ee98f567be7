"""Many small problems of one shape: each is fitted as if it were alone.

Problems in the memory of the host are fitted side by side, one on each core, which small problems
could not make use of otherwise. Those on another device are fitted in step: each operation there is
for all of them (``pipeline/together.py``).
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
from pgkmeans_sk.engines import open_engine, open_problems, problems_together
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.parameters import check_parameters, settings_of, starts_of
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.starts import Start, start_from_partition
from pgkmeans_sk.pipeline.together import run_together
from pgkmeans_sk.pipeline.together_starts import fewest_rows
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads, run_tasks
from pgkmeans_sk.verbosity import silence


@dataclass(frozen=True)
class Problems:
    """Validated rows (B, n, d) and weights (B, n), which may be None for ones."""

    X: Any
    weights: Any

    def __len__(self) -> int:
        return len(self.X)

    @property
    def n_present(self) -> IntArray:
        """Rows of positive weight (B,)."""
        if self.weights is None:
            return np.full(len(self), self.X.shape[1])
        return on_host((self.weights > 0).sum(1))

    def opened(self, numbers: IntArray, estimator: Any, settings: Settings) -> Any:
        """The problems ``numbers`` (b,) on a device, to be fitted together."""
        X, weights = self.X, self.weights
        if len(numbers) < len(self):
            X, weights = X[numbers], None if weights is None else weights[numbers]
        place = settings.place if settings.spherical else None
        return open_problems(X, weights, device=estimator.device, place=place)

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
    starts = _starts_of_each(estimator, problems)
    first = problems.engine(0, estimator)  # what it refuses, it refuses before any work
    parts: list[_Part] = []

    def fit_alone(number: int) -> None:
        rng = np.random.RandomState(seed)
        engine = problems.engine(number, estimator)
        found = run(engine, starts[number], settings, rng, estimator.consolidate)
        centers, inertia = first.like_rows(found.centers[None]), np.array([found.inertia])
        n_effective = np.array([found.n_effective_clusters])
        parts.append(_Part(np.array([number]), centers, found.labels[None], inertia, n_effective))

    def fit_together(numbers: IntArray) -> None:
        rngs = [np.random.RandomState(seed) for _ in numbers]
        own = [starts[number] for number in numbers]
        opened = problems.opened(numbers, estimator, settings)
        found = run_together(opened, own, settings, rngs)
        centers, labels = opened.as_user(found.centers), opened.as_user(found.labels)
        parts.append(_Part(numbers, centers, labels, found.inertias, found.n_effective_clusters))

    # Engines in the memory of the host are those that can limit sizes.
    if first.limits_sizes:
        run_tasks(fit_alone, len(problems), effective_n_threads())
    else:
        groups, others = _groups(problems, estimator, starts[0])
        for group in groups:
            fit_together(group)
        for number in others:
            fit_alone(number)
    found = _joined(parts)
    _warn_of_copies(found.n_effective_clusters, settings.n_clusters)
    return found.centers, found.labels, found.inertias


def _starts_of_each(estimator: Any, problems: Problems) -> list[list[Start]]:
    """The starts of each problem; raises unless centres that are given have the right shape."""
    init = estimator.init
    shape = (len(problems), estimator.n_clusters, problems.X.shape[2])
    if isinstance(init, str) or callable(init):
        return [starts_of(estimator, outline(rows), stacklevel=2) for rows in problems.X]
    init = on_host(known(init))
    if init.shape != shape:
        raise ValueError(f"Got init of shape {init.shape}, but expected {shape}.")
    parameters = estimator.get_params(deep=False)
    return [
        starts_of(type(estimator)(**(parameters | {"init": own})), outline(rows), stacklevel=2)
        for own, rows in zip(init, problems.X, strict=True)
    ]


def _groups(
    problems: Problems, estimator: Any, starts: list[Start]
) -> tuple[list[IntArray], list[int]]:
    """Which problems on a device are fitted together, and which alone.

    Alone are those whose samples would be smaller than the others', and all of them where the host
    has a part: in consolidation, and on a line.
    """
    n_rows, n_features = problems.X.shape[1:]
    is_line = n_features == 1 and estimator.metric == "euclidean"
    together = 0
    if estimator.consolidate is None and not (is_line and start_from_partition in starts):
        together = problems_together(problems.X, estimator.n_clusters, estimator.device)
    if not together:
        return [], list(range(len(problems)))
    fits = problems.n_present >= fewest_rows(n_rows, n_features, estimator.n_clusters, starts)
    like_others = np.flatnonzero(fits)
    groups = np.split(like_others, range(together, len(like_others), together))
    return [group for group in groups if len(group)], np.flatnonzero(~fits).tolist()


@dataclass(frozen=True)
class _Part:
    """Results of the problems ``numbers`` (b,)."""

    numbers: IntArray
    centers: Any
    labels: Any
    inertias: FloatArray
    n_effective_clusters: IntArray


def _joined(parts: list[_Part]) -> _Part:
    """All results, in the order of the problems."""
    if len(parts) == 1:
        return parts[0]
    numbers = np.concatenate([part.numbers for part in parts])
    results = {
        name: _in_order([getattr(part, name) for part in parts], parts)
        for name in ("centers", "labels", "inertias", "n_effective_clusters")
    }
    return _Part(np.sort(numbers), **results)


def _in_order(values: list[Any], parts: list[_Part]) -> Any:
    """Arrays or tensors (b, ...) of each of the ``parts`` as one (B, ...)."""
    shape = (sum(len(own) for own in values), *values[0].shape[1:])
    first = values[0]
    together = first.new_empty(shape) if is_tensor(first) else np.empty(shape, dtype=first.dtype)
    for own, part in zip(values, parts, strict=True):
        together[part.numbers] = own
    return together


def _warn_of_copies(n_effective_clusters: IntArray, n_clusters: int) -> None:
    short = np.flatnonzero(n_effective_clusters < n_clusters)
    if len(short):
        warnings.warn(
            f"{len(short)} of {len(n_effective_clusters)} problems (the first is number "
            f"{short[0]}) have fewer distinct rows of positive weight than "
            f"n_clusters={n_clusters}. Their centers beyond are copies of the first.",
            ConvergenceWarning,
            stacklevel=4,
        )
