"""ElbowDisplay: the least inertia found for each number of clusters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from pgkmeans_sk.displays.canvas import BLUE, GREY, VERMILION, axes_of, plain_frame, whole_numbers
from pgkmeans_sk.validation import check_integer


class ElbowDisplay:
    """The inertia against the number of clusters, with the number where the curve bends most.

    Parameters
    ----------
    n_clusters : array-like of shape (n_points,), int
        Numbers of clusters, ascending.
    inertias : array-like of shape (n_points,)
        What a fit with each of them reached.
    seconds : array-like of shape (n_points,) or None, default=None
        What each fit took.

    Attributes
    ----------
    n_clusters, inertias, seconds : ndarray of shape (n_points,)
        As given.
    elbow : int or None
        The number of clusters at which the curve is farthest below the straight line between its
        ends; None if it is nowhere below. It depends on the numbers that were tried, and is a hint:
        data without clusters have an elbow, too.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        Their figure.
    line_ : matplotlib Line2D
        The curve.
    elbow_line_ : matplotlib Line2D or None
        The mark of the elbow.

    References
    ----------
    Thorndike 1953, "Who belongs in the family?"; the distance to the line between the ends:
    Satopää et al. 2011, "Finding a 'kneedle' in a haystack".

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from pgkmeans_sk import PGKMeans
    >>> from pgkmeans_sk.displays import ElbowDisplay
    >>> X, _ = make_blobs(600, centers=5, cluster_std=0.4, random_state=1)
    >>> display = ElbowDisplay.from_estimator(PGKMeans(), X, n_clusters=range(2, 11))
    >>> display.elbow
    5
    """

    def __init__(
        self, n_clusters: ArrayLike, inertias: ArrayLike, seconds: ArrayLike | None = None
    ) -> None:
        self.n_clusters: NDArray[np.int64] = np.array(n_clusters, dtype=np.int64)
        self.inertias: NDArray[np.float64] = np.array(inertias, dtype=np.float64)
        self.seconds = None if seconds is None else np.array(seconds, dtype=np.float64)
        if self.n_clusters.ndim != 1 or not len(self.n_clusters):
            raise ValueError("Got no n_clusters, but expected one number at least.")
        if self.inertias.shape != self.n_clusters.shape:
            raise ValueError(
                f"Got {self.inertias.size} inertias, but expected {len(self.n_clusters)}, one for "
                "each of n_clusters."
            )
        if (np.diff(self.n_clusters) <= 0).any():
            raise ValueError(
                f"Got n_clusters={self.n_clusters.tolist()}, but expected ascending numbers."
            )
        self.elbow = _elbow(self.n_clusters, self.inertias)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        n_clusters: Iterable[int],
        sample_weight: ArrayLike | None = None,
        warm_start: bool = True,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Fit clones of the estimator with several numbers of clusters, and draw what they reach.

        Each fit begins with the centres of the one before, where copies of a centre stand for the
        clusters that are new: they own no rows, so that cautious partitioning takes them from the
        worst clusters. So the inertia never rises along the path.

        Parameters
        ----------
        estimator : PGKMeans
            Fitted or not; it is not changed.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to cluster.
        n_clusters : iterable of int
            Numbers of clusters, at least 1; they are sorted, and each is tried once.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        warm_start : bool, default=True
            False fits each number from the estimator's own start, which takes longer. So does a
            single column with ``init="partition"``, whose start is the optimum.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : ElbowDisplay
            Drawn.

        Raises
        ------
        ValueError
            If a number is none, or above the number of rows.
        """
        numbers = list(n_clusters)
        for number in numbers:
            check_integer("n_clusters", number, 1)
        numbers = sorted({int(number) for number in numbers})
        inertias, seconds = [], []
        centers: NDArray[Any] | None = None
        for number in numbers:
            fitted = clone(estimator).set_params(n_clusters=number)
            if centers is not None and warm_start and not _is_optimal(fitted, centers):
                copies = np.repeat(centers[:1], number - len(centers), axis=0)
                fitted.set_params(init=np.concatenate([centers, copies]), n_init=1)
            begin = time.perf_counter()
            fitted.fit(X, sample_weight=sample_weight)
            seconds.append(time.perf_counter() - begin)
            inertias.append(fitted.inertia_)
            centers = fitted.cluster_centers_
        return cls(numbers, inertias, seconds).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, log: bool = False, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        log : bool, default=False
            Whether both axes are logarithmic.
        **kwargs : dict
            Properties of the line (a matplotlib ``Line2D``).

        Returns
        -------
        display : ElbowDisplay
            Itself.
        """
        self.ax_ = ax = axes_of(ax)
        self.figure_ = ax.figure
        plain_frame(ax)
        style = {"color": BLUE, "marker": "o", "markersize": 4, "zorder": 3, **kwargs}
        (self.line_,) = ax.plot(self.n_clusters, self.inertias, **style)
        if log:
            ax.set_xscale("log")
            ax.set_yscale("log")
        else:
            whole_numbers(ax.xaxis)
            ax.set_ylim(bottom=0)
        self.elbow_line_ = None
        if self.elbow is not None:
            ends = slice(None, None, max(1, len(self.n_clusters) - 1))
            ax.plot(self.n_clusters[ends], self.inertias[ends], color=GREY, linewidth=1.0, ls=":")
            self.elbow_line_ = ax.axvline(
                self.elbow, color=VERMILION, linestyle="--", label=f"elbow, {self.elbow} clusters"
            )
            ax.legend(frameon=False)
        ax.set_xlabel("clusters")
        ax.set_ylabel("inertia")
        ax.set_title("Inertia by number of clusters", loc="left")
        return self


def _elbow(n_clusters: NDArray[np.int64], inertias: NDArray[np.float64]) -> int | None:
    if len(n_clusters) < 3:
        return None
    span = inertias[0] - inertias[-1]
    along = (n_clusters - n_clusters[0]) / (n_clusters[-1] - n_clusters[0])
    below = (1.0 - along) - (inertias - inertias[-1]) / span if span > 0 else np.zeros(len(along))
    best = int(below.argmax())
    return int(n_clusters[best]) if below[best] > 1e-9 else None


def _is_optimal(estimator: Any, centers: NDArray[Any]) -> bool:
    """Whether the estimator's own start cannot be improved on (one column)."""
    return (
        centers.shape[1] == 1
        and isinstance(estimator.init, str)
        and estimator.init == "partition"
        and getattr(estimator, "metric", None) == "euclidean"
    )
