"""InertiaMonitor: a callback of scikit-learn's kind that keeps the inertia of each iteration."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["InertiaMonitor", "IterationRecord"]


@dataclass(frozen=True)
class IterationRecord:
    """One iteration of a fit, when it was over.

    Attributes
    ----------
    fit : int
        Which of the fits that the monitor has heard: 0, 1, ...
    start : int
        Which start of the fit: 0, 1, ... (``n_init``).
    iteration : int
        Which iteration of the start: 1, 2, ...
    inertia : float
        Weighted sum of squared distances of the rows to their centres; of the merged rows, if the
        estimator consolidates them.
    seconds : float
        Since the fit began, its first centres included.

    Examples
    --------
    >>> from pgkmeans_sk import InertiaMonitor, PGKMeans
    >>> monitor = InertiaMonitor()
    >>> kmeans = PGKMeans(2).set_callbacks(monitor).fit([[0.0, 1.0], [1.0, 1.0], [9.0, 2.0]])
    >>> monitor.records[0].iteration, monitor.records[0].inertia
    (1, 0.5)
    """

    fit: int
    start: int
    iteration: int
    inertia: float
    seconds: float


class InertiaMonitor:
    """Keeps the inertia and the time of each iteration of ``PGKMeans.fit``.

    A callback for ``set_callbacks`` (scikit-learn 1.9 and later). It prints nothing and stops
    nothing. Clones of an estimator keep their callbacks, so that in a grid search or an ensemble
    one monitor hears all fits, unless they run in other processes.

    Attributes
    ----------
    records : list of IterationRecord
        All iterations, in the order in which they ended. ``pandas.DataFrame(monitor.records)``
        makes a table of them.
    n_fits : int
        Fits that have begun.

    See Also
    --------
    pgkmeans_sk.displays.ConvergenceDisplay : Draws what it has heard.

    Notes
    -----
    What it costs is a shallow copy of the estimator and a call per iteration.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import InertiaMonitor, PGKMeans
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> monitor = InertiaMonitor()
    >>> kmeans = PGKMeans(20, random_state=0).set_callbacks(monitor).fit(X)
    >>> len(monitor.records) == kmeans.n_iter_
    True
    >>> monitor.records[-1].inertia == kmeans.inertia_
    True
    """

    def __init__(self) -> None:
        self.records: list[IterationRecord] = []
        self.n_fits = 0
        # Of fits that are running: number, and when it began. By the task that stands for the whole
        # fit; the root of its tree may be that of a meta-estimator, which others share.
        self._running: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def records_of(self, fit: int = -1) -> list[IterationRecord]:
        """The iterations of one fit.

        Parameters
        ----------
        fit : int, default=-1
            Its number; from the end if negative.

        Returns
        -------
        records : list of IterationRecord
            In the order in which they ended.

        Raises
        ------
        ValueError
            If so many fits have not been heard.
        """
        number = fit + self.n_fits if fit < 0 else fit
        if not 0 <= number < self.n_fits:
            raise ValueError(
                f"Got fit={fit}, but expected one of the {self.n_fits} fits that were heard."
            )
        return [record for record in self.records if record.fit == number]

    # ------------------------------------------------------------------ what scikit-learn calls

    def setup(self, estimator: Any, context: Any) -> None:
        """Hear that a fit begins."""
        with self._lock:
            self._running[id(context)] = self.n_fits, time.perf_counter()
            self.n_fits += 1

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Hear that a task begins."""

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None
    ) -> bool:
        """Hear that a task is over; never asks to stop."""
        if context.task_name == "iteration" and fitted_estimator is not None:
            now = time.perf_counter()
            with self._lock:
                fit, begin = self._running[id(context.parent.parent)]
                self.records.append(
                    IterationRecord(
                        fit=fit,
                        start=context.parent.task_id,
                        iteration=fitted_estimator.n_iter_,
                        inertia=float(fitted_estimator.inertia_),
                        seconds=now - begin,
                    )
                )
        return False

    def teardown(self, estimator: Any, context: Any) -> None:
        """Hear that the fit is over."""
        with self._lock:
            self._running.pop(id(context), None)

    # ------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        """What has been heard; not who is being heard."""
        return {"records": list(self.records), "n_fits": self.n_fits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin again, with what has been heard."""
        self.__init__()  # type: ignore[misc]
        self.records, self.n_fits = state["records"], state["n_fits"]
