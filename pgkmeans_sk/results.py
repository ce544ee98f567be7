"""The records that pass between an engine, the pipeline's stages and the estimator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """What one pass over the rows tells: each row went to its nearest centre.

    Attributes
    ----------
    centroids : ndarray of shape (n_clusters, n_features), float64
        Weighted means of the clusters' rows; NaN for an empty cluster.
    sizes : ndarray of shape (n_clusters,), float64
        Weight of each cluster.
    sq_errors : ndarray of shape (n_clusters,), float64
        Weighted sum of squared distances from the cluster's rows to its centre.
    n_changed : int
        Rows whose label differs from that of the pass before.
    """

    centroids: FloatArray
    sizes: FloatArray
    sq_errors: FloatArray
    n_changed: int

    @cached_property
    def inertia(self) -> float:
        """Weighted sum of squared distances of all rows to their centres."""
        return float(self.sq_errors.sum())

    @cached_property
    def empty(self) -> IntArray:
        """Numbers of the clusters without weight."""
        return np.flatnonzero(self.sizes == 0.0)


@dataclass(frozen=True)
class SizeLimits:
    """Limits of the weight of each cluster; whole rows, if all rows weigh the same."""

    smallest: float
    largest: float  # may be infinite


@dataclass(frozen=True)
class State:
    """Centres as they would be reported, and the assignment to exactly these centres."""

    centers: NDArray[np.floating]
    assignment: Assignment

    @property
    def inertia(self) -> float:
        """Weighted sum of squared distances of all rows to their centres."""
        return self.assignment.inertia


@dataclass(frozen=True)
class Nodes:
    """Disjoint sets of rows inside an engine: nodes of a partition tree, or clusters to be split.

    ``handles`` mean something to the engine alone, and only until it opens other nodes.
    """

    handles: IntArray  # (m, ...)
    counts: IntArray  # (m,) rows
    weights: FloatArray  # (m,)
    means: FloatArray  # (m, d)
    scatters: FloatArray  # (m,) weighted sum of squared distances to the mean

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, which: slice | NDArray[np.bool_] | IntArray) -> Nodes:
        return Nodes(
            self.handles[which],
            self.counts[which],
            self.weights[which],
            self.means[which],
            self.scatters[which],
        )

    def __add__(self, other: Nodes) -> Nodes:
        return Nodes(
            np.concatenate([self.handles, other.handles]),
            np.concatenate([self.counts, other.counts]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.means, other.means]),
            np.concatenate([self.scatters, other.scatters]),
        )


@dataclass(frozen=True)
class Cut:
    """The children of nodes that were cut in two; only where ``possible``."""

    possible: NDArray[np.bool_]  # (m,) False where all rows of a node are equal
    left: Nodes
    right: Nodes


@dataclass(frozen=True)
class SmallStart:
    """How a start is to be found by an engine that can do it in one go (``pipeline/starts.py``)."""

    cut: str  # "ball" or "principal"
    share: str  # "population" or "error"
    n_steps: int  # of Lloyd's iteration, after the tree and between moves
    max_rounds: int  # of moves
    donor_share: float
    n_two_means: int
    shares_of_utility: tuple[float, float]
    smallest_gain: float
    hopeless_share: float


class Started(NamedTuple):
    """What an engine has found of a start in one go."""

    centers: NDArray[np.floating]
    inertia: float | None  # None: these are the leaves of the tree, of which some own no rows
    is_settled: bool = False  # whether not even the best move would pay


@dataclass(frozen=True)
class SmallLloyd:
    """How an engine that can iterate in one go is to do it (``pipeline/lloyd.py``)."""

    max_iter: int
    threshold: float  # of the squared moves' sum, at which no more iterations are made
    accelerate: bool
    relaxation: float
    stall_window: int
    stall_share: float  # of the inertia; what an iteration with momentum has to gain


@dataclass(frozen=True)
class RepairRecord:
    """One pass that filled empty clusters (algorithm of Section "cautious partitioning").

    Attributes
    ----------
    iteration : int
        Lloyd iteration in which the clusters were found empty; 0 is the assignment to the initial
        centres.
    n_empty : int
        How many clusters were empty.
    donors : tuple of int
        The clusters that were partitioned; empty if the pass placed the centres on the rows with
        the largest error instead.
    inertia_before, inertia_after : float
        Inertia with the empty clusters, and after this pass, of the rows at work: a sample of them
        during the start "partition" on many rows.

    Examples
    --------
    >>> from pgkmeans_sk import PGKMeans
    >>> X = [[0.0], [0.1], [5.0], [5.1], [9.0]]
    >>> kmeans = PGKMeans(3, init=[[0.0], [0.0], [9.0]]).fit(X)  # a first centre twice
    >>> kmeans.repair_log_[0].n_empty
    1
    """

    iteration: int
    n_empty: int
    donors: tuple[int, ...]
    inertia_before: float
    inertia_after: float


@dataclass(frozen=True)
class Solution:
    """What the pipeline returns for one start."""

    centers: NDArray[np.floating]
    labels: NDArray[np.int32]
    inertia: float
    n_iter: int
    converged: bool
    repair_log: tuple[RepairRecord, ...]
    n_effective_clusters: int
    sizes: FloatArray  # (K,) weight of each cluster
    start: str = ""  # which start it came from
