"""Code words for a set of blocks: PG k-means, or any clusterer of scikit-learn's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import has_fit_parameter

from pgkmeans_sk.engines import open_engine
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.starts import STARTS, fixed_start

Weights = NDArray[np.float64] | None


class Codebook(NamedTuple):
    """Code words, and how they came about."""

    words: NDArray[np.floating]  # (n_codes, b)
    n_effective: int  # how many of them differ; copies of the first come last
    n_iter: int  # steps of k-means


Trainer = Callable[[Any, Any, int, Any], Codebook]
"""``(rows (n, b), weights, n_codes, seed) -> codebook``."""

TOL = 1e-4
SMALL_WORK = 2_000_000
"""Multiplications in a pass, up to which a partition tree finds the start."""


def pg_codebook(
    rows: Any,
    weights: Any,
    n_codes: int,
    random_state: int | np.random.RandomState,
    max_iter: int,
    max_rows: int | None = None,
    start_words: NDArray[np.floating] | None = None,
) -> Codebook:
    """Code words by PG k-means; for single values (b = 1), the optimum.

    ``rows`` (n, b) and weights (n,) are arrays or tensors; the words are an array. At most
    ``max_iter`` steps, on ``max_rows`` drawn rows if there are more, from ``start_words``
    (n_codes, b) if they are given.

    Large tables begin with random rows: for 256 words of a few values the partition tree takes as
    long as ten steps with momentum, and gains less. Small ones take the tree: there it costs
    nothing, and counts a row of weight 2 exactly like the row twice.
    """
    rng = check_random_state(random_state)
    engine = open_engine("auto", rows, weights)
    if is_drawn_from(len(rows), rows.shape[1], max_rows):
        engine = engine.sample(cast(int, max_rows), rng)
    small = engine.n_rows * rows.shape[1] * n_codes <= SMALL_WORK or rows.shape[1] == 1
    start = STARTS["partition" if small else "random"]
    if start_words is not None:
        start = fixed_start(start_words)
    settings = Settings(n_codes, max_iter=max_iter, tol=TOL)
    solution = run(engine, [start], settings, rng)
    return Codebook(solution.centers, solution.n_effective_clusters, solution.n_iter)


def is_drawn_from(n_blocks: int, width: int, max_rows: int | None) -> bool:
    """Whether PG k-means looks at some of the blocks only. Single values are all looked at."""
    return max_rows is not None and n_blocks > max_rows and width > 1


def trainer_of(quantizer: Any) -> Trainer:
    """A trainer that fits clones of ``quantizer``, an estimator with ``cluster_centers_``."""

    def train(rows: NDArray[np.floating], weights: Weights, n_codes: int, seed: int) -> Codebook:
        own = clone(quantizer)
        parameters = own.get_params()
        known = {"n_clusters": n_codes, "random_state": seed}
        own.set_params(**{name: known[name] for name in known if name in parameters})
        if weights is None:
            own.fit(rows)
        elif has_fit_parameter(own, "sample_weight"):
            own.fit(rows, sample_weight=weights)
        else:
            raise ValueError(
                f"Got weights, but expected none: {type(own).__name__}.fit has no sample_weight."
            )
        if not hasattr(own, "cluster_centers_"):
            raise ValueError(
                f"Got quantizer={quantizer!r}, but expected a clusterer with cluster_centers_: "
                f"{type(own).__name__} has no cluster_centers_."
            )
        centers = np.asarray(own.cluster_centers_, dtype=rows.dtype)
        n_found = len(centers)
        if not 1 <= n_found <= n_codes or centers.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"Got cluster_centers_ of shape {centers.shape} from {type(own).__name__}, but "
                f"expected at most {n_codes} code words of {rows.shape[1]} values."
            )
        padding = np.repeat(centers[:1], n_codes - n_found, axis=0)
        n_iter = int(np.max(getattr(own, "n_iter_", 1)))
        return Codebook(np.concatenate([centers, padding]), n_found, n_iter)

    return train
