"""What an engine must do, so that the pipeline can be written once.

An engine holds the rows and everything else of length n: labels, weights, tree membership. The
pipeline sees NumPy arrays of length K only. What is reported of length n (``labels``, ``nearest``,
``distances``) lives where the user's rows do. All engines give the same labels: the nearest centre
by squared distances summed in float64 in the order of the features, ties to the lowest index.

To add an engine, implement this protocol in a file of its own and add a row to the table in
``engines/__init__.py``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.results import (
    Assignment,
    Cut,
    FloatArray,
    IntArray,
    Nodes,
    SizeLimits,
    SmallLloyd,
    SmallStart,
    Started,
    State,
)  # fmt: skip


class Engine(Protocol):
    """Rows of weight >= 0, somewhere, and the O(n) work on them."""

    @property
    def name(self) -> str:
        """What ``PGKMeans.engine_`` reports: its name, and which of its kernels."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def n_features(self) -> int:
        """Number of columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Precision of the data and of reported centres: float32 or float64."""

    @property
    def user_data(self) -> Any:
        """The rows as the user gave them, for callables that choose the first centres."""

    @property
    def limits_sizes(self) -> bool:
        """Whether ``assign_within`` is there to be called."""

    @property
    def labels(self) -> Any:
        """Labels (n,) int32 of the last ``assign``, where the user's rows are; a copy."""

    def like_rows(self, values: NDArray[Any]) -> Any:
        """``values``, of length K, as the user's rows are: an array, or a tensor where they are."""

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""

    def mean_variance(self) -> float:
        """Weighted variance of the columns, averaged over the columns."""

    def assign(self, centers: NDArray[np.floating], last: bool = False) -> Assignment:
        """Label every row with its nearest of ``centers`` (K, d), in the data's dtype.

        ``last`` announces that the next assignment, if any, is a long way off: what would only make
        it faster need not be prepared.
        """

    def utilities(
        self, centers: NDArray[np.floating], is_wanted: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        """How much the inertia would grow at most without each of ``centers``, (K,).

        That is the weighted sum, over the rows nearest to it, of the squared distance to the second
        nearest centre minus that to the nearest. Labels are left as they are. Where ``is_wanted``
        (K,) is given and False, numbers mean nothing.
        """

    def assign_within(
        self, centers: NDArray[np.floating], limits: SizeLimits, prices: FloatArray | None
    ) -> tuple[FloatArray, bool]:
        """Label rows at the least cost at which the weight of each cluster is within ``limits``.

        Exact if all rows weigh the same; else limits hold up to the weight of the heaviest row.
        Every cluster owns a row. Rows of weight 0 go to the nearest of ``centers``.
        ``prices`` (K,) are those of the call before, where the search begins: with them, labels
        are replaced only if that lowers the inertia. None: the labels so far do not count.
        Returns new prices (what is added to squared distances to a centre so that rows, choosing
        the least sum, obey the limits), and whether labels were replaced.
        """

    def measure(self, centers: NDArray[np.floating]) -> Assignment:
        """What ``assign`` tells, of the labels as they are; changes are 0.

        Only after an assignment: before, rows have no labels.
        """

    def root(self) -> Nodes:
        """One node with all rows of positive weight."""

    def open_clusters(self, clusters: IntArray) -> Nodes:
        """One node for each of ``clusters`` (m,), with its rows by the last ``assign``."""

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        """Cut each node in two.

        ``fractions`` (m,) is the share of the weight that goes left, or -1 to cut where
        the squared error falls most; ``rule`` is "ball" or "principal" (kernels/split.py); then
        ``n_two_means`` Lloyd steps with two centres on the node's own rows. Equal rows stay
        together.
        """

    def small_start(
        self, n_clusters: int, plan: SmallStart, leaves: NDArray[np.floating] | None = None
    ) -> Started | None:
        """A tree whose errors are mended, found in one go; or only mended, if it has ``leaves``.

        The same as the pipeline would find. None where the engine, or its rows, are not made for
        that: large tables, or rows too much alike. Labels are left as they are.
        """

    def small_lloyd(self, state: State, plan: SmallLloyd) -> tuple[State, int, bool] | None:
        """The last state of Lloyd's iteration from ``state``, iterations, whether it converged.

        The same as the pipeline would find, in one go. Labels are those of ``state``, of which no
        cluster is empty, and then those of the last state. None where the engine, or its rows, are
        not made for that; labels are left as they are then.
        """

    def farthest_rows(self, centers: NDArray[np.floating], n_rows: int) -> NDArray[np.floating]:
        """Up to ``n_rows`` distinct rows with the largest positive distance to their own centre."""

    def closest_rows(self, centers: NDArray[np.floating]) -> NDArray[np.floating]:
        """The row nearest to the centre, for each cluster that owns rows of positive weight.

        In the order of the clusters; of rows that are equally near, the first.
        """

    def draw_rows(self, n_rows: int, rng: np.random.RandomState) -> NDArray[np.floating]:
        """Rows drawn without replacement, by weight."""

    def draw_kmeans_plusplus(
        self, n_clusters: int, rng: np.random.RandomState
    ) -> NDArray[np.floating]:
        """Rows drawn by greedy k-means++ (Arthur & Vassilvitskii 2007), by weight."""

    def line_optimum(self, n_clusters: int) -> FloatArray | None:
        """Centres (K, 1) of least inertia of all, if there is one column; or None.

        None stands for: more columns, fewer distinct rows than clusters, or too long a search.
        """

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        """Labels (n,) int32 alone, where the rows are; those of ``assign`` are left as they are."""

    def distances(self, centers: NDArray[np.floating]) -> Any:
        """Distances (n, K) to all centres, not squared, in ``dtype``, where the rows are."""

    def sample(self, n_rows: int, rng: np.random.RandomState) -> Engine:
        """An engine over ``n_rows`` rows of positive weight, drawn uniformly."""

    def extended(self, rows: NDArray[np.floating]) -> Engine:
        """An engine over these rows followed by ``rows`` (m, d), each of the mean weight."""

    def of_rows(self, rows: NDArray[np.floating]) -> Engine:
        """An engine over ``rows`` (m, d) alone, each of weight 1."""

    def merge_rows(self, radius: float) -> tuple[Engine, float]:
        """An engine whose rows are the means of rows within ``radius``; and the inertia lost.

        This engine itself, and 0, if so few rows lie together that it is not worth a copy.
        """
