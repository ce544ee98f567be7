"""The fitted attributes of an estimator: set all at once, read to go on, kept when a fit fails."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk.arrays import on_host
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.mini_batch import Stream
from pgkmeans_sk.results import Solution

PRIVATE_ATTRIBUTES = ("_n_features_out", "_stream", "_encoder")
"""What a fit sets beside the names that end in an underscore."""


def remember_solution(
    estimator: Any, engine: Engine, solution: Solution, stream: Stream, stacklevel: int
) -> None:
    """Set the fitted attributes; ``stream`` is what a ``partial_fit`` would go on from."""
    estimator.cluster_centers_ = engine.like_rows(solution.centers)
    estimator.labels_ = solution.labels
    estimator.inertia_ = solution.inertia
    estimator.n_iter_ = solution.n_iter
    estimator.n_effective_clusters_ = solution.n_effective_clusters
    estimator.repair_log_ = list(solution.repair_log)
    estimator.start_ = solution.start or _name_of(estimator.init)
    estimator.engine_ = engine.name
    estimator._n_features_out = estimator.n_clusters
    estimator._stream = stream
    if solution.n_effective_clusters < estimator.n_clusters:
        warnings.warn(
            f"Number of distinct clusters ({solution.n_effective_clusters}) found smaller "
            f"than n_clusters ({estimator.n_clusters}): X has no more distinct rows of positive "
            "weight. Centers beyond are copies of the first.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


def remembered_stream(estimator: Any) -> Stream:
    """The stream of earlier batches, or the one that a ``fit`` began."""
    if len(estimator.cluster_centers_) != estimator.n_clusters:
        raise ValueError(
            f"Got n_clusters={estimator.n_clusters}, but expected "
            f"{len(estimator.cluster_centers_)}, the number of clusters so far: partial_fit "
            "cannot change it."
        )
    stream: Stream = estimator._stream
    # Centres that were set by hand count, as they do in predict.
    return replace(stream, centers=on_host(estimator.cluster_centers_))


@contextlib.contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """Whatever goes wrong (Ctrl-C, too), the fitted attributes stay what they were."""
    before = _fitted_attributes(estimator)
    try:
        yield
    except BaseException:
        for name in _fitted_attributes(estimator):
            delattr(estimator, name)
        vars(estimator).update(before)
        raise


def _fitted_attributes(estimator: Any) -> dict[str, Any]:
    """Names and values of what a fit sets."""
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") or name in PRIVATE_ATTRIBUTES
    }


def _name_of(init: Any) -> str:
    """What ``start_`` reports for a start that has only one way to begin."""
    return init if isinstance(init, str) else "callable" if callable(init) else "array"
