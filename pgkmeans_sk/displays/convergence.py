"""ConvergenceDisplay: the inertia after each iteration, and where empty clusters were filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from pgkmeans_sk.displays.canvas import (
    BLUE,
    GREY,
    VERMILION,
    axes_of,
    plain_frame,
    whole_numbers,
)
from pgkmeans_sk.inertia_monitor import InertiaMonitor, IterationRecord
from pgkmeans_sk.results import RepairRecord
from pgkmeans_sk.validation import check_choice

MEANINGS = {"iteration": "iteration", "seconds": "seconds since the fit began"}


class ConvergenceDisplay:
    """The inertia after each iteration of a fit, a line for each start.

    Parameters
    ----------
    records : sequence of IterationRecord
        The iterations of one fit, as an ``InertiaMonitor`` keeps them.
    repairs : sequence of RepairRecord, default=()
        Passes that filled empty clusters: the ``repair_log_`` of the fitted estimator, which is
        that of the best start.

    Attributes
    ----------
    records, repairs
        As given.
    best_start : int
        The start that ended with the least inertia.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : list of matplotlib Line2D
        One for each start.
    repairs_ : matplotlib PathCollection or None
        Marks of the iterations in which empty clusters were filled; those that were filled before
        the first iteration are marked there.

    See Also
    --------
    pgkmeans_sk.InertiaMonitor : Who records the iterations.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import PGKMeans
    >>> from pgkmeans_sk.displays import ConvergenceDisplay
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> kmeans = PGKMeans(20, init="random", n_init=3, random_state=0)
    >>> display = ConvergenceDisplay.from_estimator(kmeans, X)
    >>> len(display.lines_)
    3
    """

    def __init__(
        self, records: Sequence[IterationRecord], repairs: Sequence[RepairRecord] = ()
    ) -> None:
        self.records, self.repairs = tuple(records), tuple(repairs)
        if not self.records:
            raise ValueError("Got no records, but expected those of at least one iteration.")
        n_fits = len({record.fit for record in self.records})
        if n_fits > 1:
            raise ValueError(
                f"Got records of {n_fits} fits, but expected those of one: "
                "InertiaMonitor.records_of picks them."
            )
        last = {record.start: record.inertia for record in self.records}
        self.best_start = min(last, key=lambda start: last[start])

    @classmethod
    def from_monitor(
        cls,
        monitor: InertiaMonitor,
        estimator: Any = None,
        *,
        fit: int = -1,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw a fit that a monitor has heard.

        Parameters
        ----------
        monitor : InertiaMonitor
            It was among the callbacks of the fit.
        estimator : PGKMeans or None, default=None
            The fitted estimator; its ``repair_log_`` is marked.
        fit : int, default=-1
            Which of the fits it has heard; the last, unless given.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : ConvergenceDisplay
            Drawn.
        """
        repairs = () if estimator is None else estimator.repair_log_
        return cls(monitor.records_of(fit), repairs).plot(ax, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        sample_weight: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Fit a clone of the estimator to ``X``, and draw how that went.

        Parameters
        ----------
        estimator : PGKMeans
            Fitted or not; it is not changed.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to cluster.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : ConvergenceDisplay
            Drawn.

        Raises
        ------
        ImportError
            If scikit-learn is older than 1.9, which brought callbacks.
        """
        heard, monitor = clone(estimator), InertiaMonitor()
        if not hasattr(heard, "set_callbacks"):
            raise ImportError(
                f"Got {type(heard).__name__} without set_callbacks, but expected an estimator that "
                "supports callbacks, which scikit-learn has from 1.9 on."
            )
        heard.set_callbacks(monitor).fit(X, sample_weight=sample_weight)
        return cls.from_monitor(monitor, heard, ax=ax, **kwargs)

    def plot(self, ax: Any = None, *, x: str = "iteration", **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        x : {"iteration", "seconds"}, default="iteration"
            What stands on the horizontal axis.
        **kwargs : dict
            Properties of the lines (matplotlib ``Line2D``).

        Returns
        -------
        display : ConvergenceDisplay
            Itself.
        """
        check_choice("x", x, MEANINGS)
        self.ax_ = ax = axes_of(ax)
        self.figure_ = ax.figure
        plain_frame(ax)
        starts = sorted({record.start for record in self.records})
        self.lines_ = []
        for start in starts:
            at, inertia = self._course(start, x)
            is_best = start == self.best_start
            style: dict[str, Any] = {
                "color": BLUE if is_best else GREY,
                "linewidth": 2.0 if is_best else 1.0,
                "marker": "." if len(at) <= 60 else None,
                "zorder": 3 if is_best else 2,
            }
            if len(starts) > 1 and is_best:
                style["label"] = f"start {start}, the best of {len(starts)}"
            self.lines_ += ax.plot(at, inertia, **{**style, **kwargs})
        self.repairs_ = self._mark_repairs(x) if self.repairs else None
        if x == "iteration":
            whole_numbers(ax.xaxis)
        ax.set_xlabel(MEANINGS[x])
        ax.set_ylabel("inertia")
        ax.set_title("Convergence", loc="left")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False)
        return self

    def _course(self, start: int, x: str) -> tuple[Any, Any]:
        """Where the points of a start's line are."""
        own = [record for record in self.records if record.start == start]
        return (
            np.array([getattr(record, x) for record in own]),
            np.array([record.inertia for record in own]),
        )

    def _mark_repairs(self, x: str) -> Any:
        numbers, _ = self._course(self.best_start, "iteration")
        at, inertia = self._course(self.best_start, x)
        hit = np.unique(
            np.clip(np.searchsorted(numbers, [r.iteration for r in self.repairs]), 0, len(at) - 1)
        )
        n_filled = sum(record.n_empty for record in self.repairs)
        return self.ax_.scatter(
            at[hit],
            inertia[hit],
            s=70,
            marker="D",
            facecolor="none",
            edgecolor=VERMILION,
            linewidth=1.6,
            zorder=4,
            label=f"empty clusters filled, {n_filled} in all",
        )
