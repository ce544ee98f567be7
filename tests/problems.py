"""Small clustering problems on which other k-means lose clusters, and the figures to check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import sparse

from pgkmeans_sk.kernels.directions import to_directions

EPS = float(np.finfo(np.float64).eps)


# ------------------------------------------------------------------ patterns of rows


def _duplicates(rng: Generator, n: int, d: int) -> Any:
    return rng.normal(size=(n, d))[rng.integers(0, max(1, n // 4), n)]


def _constant_column(rng: Generator, n: int, d: int) -> Any:
    X = rng.normal(size=(n, d))
    X[:, 0] = 3.0
    return X


def _one_outlier(rng: Generator, n: int, d: int) -> Any:
    X = rng.normal(size=(n, d))
    X[rng.integers(0, n)] = 1e6
    return X


def _two_far_blobs(rng: Generator, n: int, d: int) -> Any:
    X = rng.normal(size=(n, d))
    X[rng.random(n) < 0.5] += 1e4
    return X


def _half_zeros(rng: Generator, n: int, d: int) -> Any:
    X = np.zeros((n, d))
    X[: n // 2] = 1e-3 * rng.normal(size=(n // 2, d))
    return X


PATTERNS: dict[str, Callable[[Generator, int, int], Any]] = {
    "normal": lambda rng, n, d: rng.normal(size=(n, d)),
    "integer grid": lambda rng, n, d: np.round(rng.normal(size=(n, d))),
    "zeros and ones": lambda rng, n, d: rng.integers(0, 2, (n, d)).astype(float),
    "duplicates": _duplicates,
    "constant column": _constant_column,
    "all rows equal": lambda rng, n, d: np.tile(rng.normal(size=d), (n, 1)),
    "Cauchy": lambda rng, n, d: rng.standard_cauchy((n, d)),
    "log-normal": lambda rng, n, d: np.exp(8.0 * rng.normal(size=(n, d))),
    "one outlier": _one_outlier,
    "two far blobs": _two_far_blobs,
    "half zeros": _half_zeros,
    "offset 1e6": lambda rng, n, d: 1e6 + rng.normal(size=(n, d)),
    "scale 1e-20": lambda rng, n, d: 1e-20 * rng.normal(size=(n, d)),
}
"""Name -> function of a generator, the number of rows and of columns; float64."""


def rows(pattern: str, n_rows: int, n_features: int, seed: int, dtype: Any = np.float64) -> Any:
    """Rows (n, d) of one of ``PATTERNS``."""
    rng = np.random.default_rng(seed)
    return PATTERNS[pattern](rng, n_rows, n_features).astype(dtype)


def blobs(n_rows: int, n_features: int, n_blobs: int, seed: int, spread: float = 1.0) -> Any:
    """Rows around ``n_blobs`` centres from a cube of side 20; blob by blob in turn."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-10.0, 10.0, (n_blobs, n_features))
    return centers[np.arange(n_rows) % n_blobs] + spread * rng.normal(size=(n_rows, n_features))


# ------------------------------------------------------------------ what a fit must tell


@dataclass
class Problem:
    """Rows, weights, and the parameters of the estimator that clusters them."""

    X: NDArray[np.floating]
    n_clusters: int
    sample_weight: NDArray[np.float64] | None = None
    is_sparse: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Any:
        """The rows in the container that ``fit`` gets."""
        return sparse.csr_matrix(self.X) if self.is_sparse else self.X

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.ones(len(self.X)) if self.sample_weight is None else self.sample_weight

    @property
    def clustered(self) -> Any:
        """The rows that distances are measured from: for "cosine", those on the unit sphere."""
        if self.parameters.get("metric") == "cosine":
            # Which directions are equal is a matter of rounding, so it is asked of the package.
            directions = to_directions(self.data)
            return directions.toarray() if self.is_sparse else directions
        return self.X

    @property
    def n_expected(self) -> int:
        """Number of clusters that must own rows of positive weight."""
        return min(self.n_clusters, n_distinct(self.clustered[self.weights > 0]))

    def inertia_of(self, centers: Any, labels: Any) -> float:
        return weighted_sse(self.clustered, centers, labels, self.weights)

    @property
    def rounding(self) -> float:
        """By how much an inertia may be off: |x|^2 - 2 x c + |c|^2 cancels on sparse rows."""
        if not self.is_sparse:
            return 0.0
        norms = (self.clustered.astype(np.float64) ** 2).sum(axis=1)
        return 2.0 * (self.X.shape[1] + 2) * EPS * float(self.weights @ norms)


def n_distinct(X: Any) -> int:
    """Number of different rows; -0.0 and 0.0 are the same value."""
    return len(np.unique(np.asarray(X) + 0.0, axis=0))


def weighted_sse(X: Any, centers: Any, labels: Any, sample_weight: Any = None) -> float:
    """Weighted sum of squared distances of rows to their centres, in float64."""
    differences = np.asarray(X, dtype=np.float64) - np.asarray(centers, dtype=np.float64)[labels]
    squares = (differences**2).sum(axis=1)
    return float(squares.sum() if sample_weight is None else sample_weight @ squares)


def same_partition(first: Any, second: Any) -> bool:
    """Whether two arrays of labels name the same clusters, by whatever numbers."""
    pairs = set(zip(np.asarray(first).tolist(), np.asarray(second).tolist(), strict=True))
    return len(pairs) == len(set(first)) == len(set(second))
