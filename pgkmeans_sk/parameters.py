"""From the estimator's parameters to what the pipeline needs; the only place that reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import ENGINE_NAMES
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import STARTS, Start, fixed_start
from pgkmeans_sk.results import SizeLimits
from pgkmeans_sk.validation import (
    check_centers,
    check_choice,
    check_device_name,
    check_integer,
    check_number,
    check_size_limits,
)

ALGORITHMS = ("auto", "lloyd", "elkan")
METRICS = ("euclidean", "cosine")
CONSOLIDATIONS = ("exact", "auto")
RANDOM_STARTS = 10
"""Starts that ``n_init="auto"`` means where one alone is a matter of luck."""


def check_parameters(estimator: Any) -> None:
    """Raise ``InvalidParameterError`` unless every parameter of a ``PGKMeans`` is acceptable."""
    check_integer("n_clusters", estimator.n_clusters, 1)
    if isinstance(estimator.init, str):
        check_choice("init", estimator.init, STARTS)
    if not isinstance(estimator.n_init, str) or estimator.n_init != "auto":
        check_integer("n_init", estimator.n_init, 1)
    check_integer("max_iter", estimator.max_iter, 1)
    check_number("tol", estimator.tol, 0.0)
    check_integer("refine", estimator.refine, 0)
    check_choice("algorithm", estimator.algorithm, ALGORITHMS)
    check_choice("metric", estimator.metric, METRICS)
    check_choice("engine", estimator.engine, ENGINE_NAMES)
    check_device_name(estimator.device)
    if isinstance(estimator.consolidate, str):
        check_choice("consolidate", estimator.consolidate, CONSOLIDATIONS)
    elif estimator.consolidate is not None:
        check_number("consolidate", estimator.consolidate, 0.0, strictly=True)
    if estimator.size_min is not None:
        check_number("size_min", estimator.size_min, 0.0)
    if estimator.size_max is not None:
        check_number("size_max", estimator.size_max, 0.0, strictly=True)
    limited = estimator.size_min is not None or estimator.size_max is not None
    if limited and estimator.consolidate is not None:
        raise ValueError(
            f"Got consolidate={estimator.consolidate!r} with size_min={estimator.size_min!r}, "
            f"size_max={estimator.size_max!r}, but expected only one of the two: rows that were "
            "merged could not be divided between clusters."
        )


def check_engine_limits(engine: Engine, size_limits: SizeLimits | None) -> None:
    """Raise if ``size_limits`` are asked for, of an engine that cannot keep them."""
    if size_limits is not None and not engine.limits_sizes:
        raise ValueError(
            f"Got size_min or size_max with rows on {engine.name}, but expected engine='numba' or "
            "device='cpu': sizes are limited in the memory of the host alone."
        )


def check_without_limits(estimator: Any) -> None:
    """Raise if size limits are asked for, in a method that cannot keep them."""
    for name in ("size_min", "size_max"):
        if getattr(estimator, name) is not None:
            raise ValueError(
                f"Got {name}={getattr(estimator, name)!r}, but expected None: partial_fit cannot "
                "limit the sizes of clusters whose rows it has not all seen."
            )


def size_limits_of(
    estimator: Any, n_samples: int, weights: NDArray[np.float64] | None
) -> SizeLimits | None:
    """Limits for the weight of each cluster, None if nothing is limited; raises if impossible."""
    return check_size_limits(
        estimator.size_min, estimator.size_max, int(estimator.n_clusters), n_samples, weights
    )


def settings_of(
    estimator: Any, log: Callable[[str], None], size_limits: SizeLimits | None = None
) -> Settings:
    """Settings for the pipeline; ``log`` takes messages on the progress."""
    return Settings(
        n_clusters=int(estimator.n_clusters),
        max_iter=int(estimator.max_iter),
        tol=float(estimator.tol),
        accelerate=estimator.algorithm == "auto",
        spherical=estimator.metric == "cosine",
        refine=int(estimator.refine),
        size_limits=size_limits,
        log=log,
    )


def starts_of(estimator: Any, X: Any, stacklevel: int) -> list[Start]:
    """The starts to be tried, in order; warnings point so many frames up."""
    init, n_init = estimator.init, estimator.n_init
    if not isinstance(init, str) and not callable(init):
        if n_init not in ("auto", 1):
            warnings.warn(
                "Explicit initial center position passed: performing only one init in "
                f"{type(estimator).__name__} instead of n_init={n_init}.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
        return [fixed_start(check_centers(init, estimator.n_clusters, X))]

    first = STARTS[init] if isinstance(init, str) else _callable_start(init, X)
    if n_init == "auto":
        n_init = RANDOM_STARTS if init == "random" or callable(init) else 1
    # A tree is the same each time; what is asked for are different starts.
    is_tree = isinstance(init, str) and init.startswith("partition")
    further = STARTS["k-means++"] if is_tree else first
    return [first] + [further] * (int(n_init) - 1)


def _callable_start(init: Callable[..., Any], X: Any) -> Start:
    """The start that asks the user's ``init``; it gets the rows as the engine holds them."""

    def start(
        engine: Engine, settings: Settings, rng: np.random.RandomState, journal: Journal
    ) -> NDArray[np.float64]:
        centers = init(engine.user_data, settings.n_clusters, random_state=rng)
        return check_centers(centers, settings.n_clusters, X).astype(np.float64)

    return start
