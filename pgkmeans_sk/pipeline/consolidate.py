"""Consolidation of dense points (algorithm.md, 1d).

Stated by the paper (arXiv 2306.14031): dense bunches of weights may be consolidated, so that they
end up with a single centroid. Our reading: space is cut into cells whose diagonal is the radius;
the rows of a cell become one row, their weighted mean, with their weight together. "exact" merges
equal rows and changes no sum; "auto" takes the largest radius that loses at most 1 % of the inertia
to be expected for the number of clusters. Labels are found for the original rows at the end.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.partition import partition
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.starts import DEFAULT_RULE, sampled

LOST_SHARE = 0.01
BISECTIONS = 10
LARGEST_OCTAVE = 24
""""auto" tries radii down to 2^-24 of the data's standard deviation."""


def consolidated(
    engine: Engine, consolidate: str | float | None, settings: Settings, rng: np.random.RandomState
) -> Engine:
    """The engine whose rows are clustered: the same, or one with fewer rows."""
    if consolidate is None:
        return engine
    if consolidate == "auto":
        merged = _merge_within_budget(engine, settings, rng)
    else:
        merged, _ = engine.merge_rows(0.0 if consolidate == "exact" else float(consolidate))
    settings.log(f"consolidated {engine.n_rows} rows to {merged.n_rows}")
    # Fewer rows than clusters: the radius is too large for these clusters.
    return merged if merged.n_rows >= settings.n_clusters else engine


def _merge_within_budget(engine: Engine, settings: Settings, rng: np.random.RandomState) -> Engine:
    """Merge with the largest radius that loses ``LOST_SHARE`` of the inertia to be expected."""
    exact, _ = engine.merge_rows(0.0)
    budget = LOST_SHARE * _expected_inertia(engine, settings, rng)
    largest = float(np.sqrt(engine.mean_variance() * engine.n_features))
    if budget == 0.0 or largest == 0.0:
        return exact
    # The loss grows with the radius: bisect its logarithm.
    low, high, best = -float(LARGEST_OCTAVE), 0.0, exact
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        merged, lost = exact.merge_rows(largest * 2.0**middle)
        if lost <= budget:
            low, best = middle, merged
        else:
            high = middle
    return best


def _expected_inertia(engine: Engine, settings: Settings, rng: np.random.RandomState) -> float:
    """Inertia of the leaves of a partition tree over a sample, scaled to all rows."""
    few = sampled(engine, settings, rng)
    leaves = partition(few, settings.n_clusters, DEFAULT_RULE)
    assignment = few.assign(settings.place(leaves, leaves, engine.dtype))
    return assignment.inertia * engine.total_weight / few.total_weight
