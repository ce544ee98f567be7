"""The baseline that PG k-means is published against: the k-means procedure of iPQ, in NumPy.

Written from the description in the design notes, as a *procedure*, for comparison only:

1. the initial centres are rows drawn **with replacement**, so that some are duplicates;
2. in each iteration all points are assigned to their nearest centre;
3. while there are empty clusters, and at most 100 times: the most populous cluster is split in
   two, its centre plus and minus a perturbation of 1e-6 N(0, 1), one of the halves taking the place
   of **one** empty cluster, and **all** points are assigned again;
4. if there still are empty clusters after 100 attempts, the fit stops there, before any centroid
   update; otherwise each centre moves to the mean of its points.

What the assignments spent in step 3 cost is the point of the comparison, so each of them is really
carried out, by the same chunked product as every other NumPy arm of the study.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import nearest_centers

PERTURBATION = 1e-6
MAX_ATTEMPTS = 100
DEFAULT_ITERATIONS = 15

Array = NDArray[np.float32]
Labels = NDArray[np.intp]


@dataclass(frozen=True)
class NumpyFit:
    """A fit of one of the NumPy arms, with what it spent on empty clusters."""

    centers: NDArray[np.floating]  # (K, d)
    n_empty_first: int  # empty clusters at the first assignment
    n_empty_last: int  # empty clusters of the last assignment that the procedure itself saw
    n_passes: int  # assignments of all points spent on nothing but empty clusters
    n_iter: int  # centroid updates done
    gave_up: bool = False  # stopped in step 4


def cluster_means(X: Array, labels: Labels, centers: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of each cluster (K, d); an empty cluster keeps its old centre."""
    K = len(centers)
    counts = np.bincount(labels, minlength=K)
    sums = np.stack([np.bincount(labels, weights=column, minlength=K) for column in X.T], axis=1)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)


def empty_clusters(labels: Labels, n_clusters: int) -> NDArray[np.intp]:
    """Return the indices of the clusters that own no point."""
    return np.flatnonzero(np.bincount(labels, minlength=n_clusters) == 0)


def resolve_empty_clusters(
    X: Array, centers: NDArray[np.float64], labels: Labels, rng: np.random.Generator
) -> tuple[Labels, int]:
    """Step 3: change ``centers`` in place; return the last labels and the attempts made."""
    K, d = centers.shape
    for attempt in range(MAX_ATTEMPTS):
        empty = empty_clusters(labels, K)
        if not len(empty):
            return labels, attempt
        donor = int(np.bincount(labels, minlength=K).argmax())
        perturbation = PERTURBATION * rng.standard_normal(d)
        centers[empty[0]] = centers[donor] + perturbation
        centers[donor] -= perturbation
        labels, _ = nearest_centers(X, centers)
    return labels, MAX_ATTEMPTS


def fit_ipq_baseline(
    X: Array, n_clusters: int, iterations: int = DEFAULT_ITERATIONS, seed: int = 0
) -> NumpyFit:
    """Run the whole procedure on points (n, d)."""
    rng = np.random.default_rng(seed)
    centers = X[rng.integers(len(X), size=n_clusters)].astype(np.float64)
    n_empty_first = n_passes = 0
    for iteration in range(iterations):
        labels, _ = nearest_centers(X, centers)
        if iteration == 0:
            n_empty_first = len(empty_clusters(labels, n_clusters))
        labels, attempts = resolve_empty_clusters(X, centers, labels, rng)
        n_passes += attempts
        n_left = len(empty_clusters(labels, n_clusters))
        if n_left:
            return NumpyFit(centers, n_empty_first, n_left, n_passes, iteration, gave_up=True)
        centers = cluster_means(X, labels, centers)
    # The codes that are stored come from one more assignment, which nothing repairs any more.
    labels, _ = nearest_centers(X, centers)
    n_left = len(empty_clusters(labels, n_clusters))
    return NumpyFit(centers, n_empty_first, n_left, n_passes, iterations)


def fit_plain_lloyd(X: Array, start: Array, iterations: int = DEFAULT_ITERATIONS) -> NumpyFit:
    """Run Lloyd iterations that leave every empty cluster alone: its centre stays where it is."""
    K = len(start)
    centers = start.astype(np.float64)
    labels, _ = nearest_centers(X, centers)
    n_empty_first = len(empty_clusters(labels, K))
    done = 0
    for _ in range(iterations):
        centers = cluster_means(X, labels, centers)
        done += 1
        previous = labels
        labels, _ = nearest_centers(X, centers)
        if np.array_equal(labels, previous):
            break
    return NumpyFit(centers, n_empty_first, len(empty_clusters(labels, K)), 0, done)
