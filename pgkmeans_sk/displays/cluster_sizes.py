"""ClusterSizeDisplay: how many rows each cluster owns, and which own none."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk.displays.canvas import BLUE, GREY, VERMILION, axes_of, plain_frame, whole_numbers


class ClusterSizeDisplay:
    """The sizes of clusters, from the largest to the smallest; empty ones are marked.

    Parameters
    ----------
    sizes : array-like of shape (n_clusters,)
        Weight of each cluster: the number of its rows if there are no weights.
    size_min, size_max : float or None, default=None
        Limits of the sizes, drawn as lines.

    Attributes
    ----------
    sizes : ndarray of shape (n_clusters,), float64
        As given, in the order of the clusters' numbers.
    n_empty : int
        Clusters of size 0.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        Their figure.
    bars_ : matplotlib StepPatch
        The sizes.

    See Also
    --------
    ConvergenceDisplay : How the inertia fell.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import PGKMeans
    >>> from pgkmeans_sk.displays import ClusterSizeDisplay
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> display = ClusterSizeDisplay.from_estimator(PGKMeans(20).fit(X))
    >>> display.n_empty, int(display.sizes.sum())
    (0, 500)
    """

    def __init__(
        self, sizes: ArrayLike, *, size_min: float | None = None, size_max: float | None = None
    ) -> None:
        self.sizes: NDArray[np.float64] = np.array(sizes, dtype=np.float64)
        if self.sizes.ndim != 1 or not len(self.sizes) or not (self.sizes >= 0).all():
            raise ValueError(
                f"Got sizes of shape {self.sizes.shape}, but expected numbers >= 0, one for each "
                "cluster."
            )
        self.size_min, self.size_max = size_min, size_max
        self.n_empty = int((self.sizes == 0).sum())

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        sample_weight: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the sizes of a fitted clusterer's clusters.

        Parameters
        ----------
        estimator : estimator
            A fitted ``PGKMeans``, or any clusterer of scikit-learn with ``cluster_centers_``.
        X : array-like of shape (n_samples, n_features) or None, default=None
            Rows that are assigned to the clusters; None means those of the fit (``labels_``).
        sample_weight : array-like of shape (n_samples,), default=None
            What each row counts; None means 1.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : ClusterSizeDisplay
            Drawn.

        Raises
        ------
        ValueError
            If ``sample_weight`` has another length than the labels.
        """
        check_is_fitted(estimator)
        labels = np.asarray(estimator.labels_ if X is None else estimator.predict(X))
        n_clusters = len(estimator.cluster_centers_)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights is not None and weights.shape != labels.shape:
            raise ValueError(
                f"Got sample_weight of shape {weights.shape}, but expected {labels.shape}."
            )
        # Limits hold in the fit alone: other rows, or other weights, need not keep them.
        limits = {
            name: getattr(estimator, name, None) if X is None else None
            for name in ("size_min", "size_max")
        }
        sizes = np.bincount(labels, weights=weights, minlength=n_clusters)
        return cls(sizes, **limits).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, log: bool | None = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        log : bool or None, default=None
            Whether sizes are drawn on a logarithmic scale. None: if the largest is more than 100
            times the smallest that is not 0.
        **kwargs : dict
            Properties of the bars (a matplotlib ``StepPatch``).

        Returns
        -------
        display : ClusterSizeDisplay
            Itself.
        """
        self.ax_ = ax = axes_of(ax)
        self.figure_ = ax.figure
        plain_frame(ax)
        ordered = np.sort(self.sizes)[::-1]
        n_clusters, used = len(ordered), ordered[ordered > 0]
        if log is None:
            log = bool(ordered[0] > 100 * used[-1]) if len(used) else False
        edges = np.arange(n_clusters + 1) + 0.5
        self.bars_ = ax.stairs(ordered, edges, **{"fill": True, "color": BLUE, **kwargs})
        ax.axhline(
            self.sizes.mean(), color=GREY, linestyle=":", label=f"mean, {self.sizes.mean():.4g}"
        )
        for name, dashes in (("size_min", "--"), ("size_max", "-.")):
            limit = getattr(self, name)
            if limit is not None and np.isfinite(limit):
                ax.axhline(limit, color=GREY, linestyle=dashes, label=f"{name}, {limit:.4g}")
        if self.n_empty:
            ax.axvspan(
                n_clusters - self.n_empty + 0.5,
                n_clusters + 0.5,
                facecolor=VERMILION,
                edgecolor="white",
                alpha=0.5,
                hatch="//",
                label=f"{self.n_empty} empty",
            )
        if log and len(used):
            ax.set_yscale("log")
            ax.set_ylim(bottom=0.5 * min(1.0, used[-1]))
        ax.set_xlim(0.5, n_clusters + 0.5)
        whole_numbers(ax.xaxis)
        ax.set_xlabel("clusters, from the largest to the smallest")
        ax.set_ylabel("rows" if (self.sizes % 1 == 0).all() else "weight")
        empty = f"{self.n_empty} of them empty" if self.n_empty else "none of them empty"
        ax.set_title(f"{n_clusters} clusters, {empty}", loc="left")
        # Sizes fall to the right, so that there is room; limits may leave none.
        low, high = ax.get_ylim()
        room = 0.07 * len(ax.get_legend_handles_labels()[0])
        ax.set_ylim(
            top=high * (high / low) ** room if ax.get_yscale() == "log" else high * (1 + room)
        )
        ax.legend(loc="upper right", framealpha=0.9, edgecolor="none")
        return self
