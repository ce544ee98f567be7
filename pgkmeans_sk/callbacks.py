"""scikit-learn's callbacks, where the installed scikit-learn has them (1.9 and later).

The tree of tasks is the one of scikit-learn's developer guide: fit -> start i -> iteration j. A
callback that returns True at the end of an iteration stops the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

WRAPPER_FRAMES = 1
"""Frames of ``with_callbacks`` between caller and method, which warnings have to look past."""

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9: callbacks cannot be set, and nothing listens
    WRAPPER_FRAMES = 0

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's mixin."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Stand in for scikit-learn's decorator."""
        return method


__all__ = ["WRAPPER_FRAMES", "CallbackMonitor", "CallbackSupportMixin", "with_callbacks"]


class CallbackMonitor:
    """Passes the progress of a fit on to the estimator's callbacks.

    Parameters
    ----------
    estimator : estimator
        What is being fitted.
    X : array-like
        The rows, for callbacks that ask for them.
    n_starts, max_iter : int
        Upper bounds, so that progress bars know their length.
    """

    def __init__(self, estimator: Any, X: Any, n_starts: int, max_iter: int) -> None:
        self._estimator, self._X, self._max_iter = estimator, X, max_iter
        self._fit = None
        if _has_listeners(estimator):
            self._fit = estimator._init_callback_context(max_subtasks=n_starts)
            self._fit.call_on_fit_task_begin(estimator=estimator, X=X)

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens; if not, it need not be told of anything."""
        return self._fit is not None

    def begin_start(self, number: int) -> None:
        """Tell that start ``number`` begins."""
        if self._fit is not None:
            self._start = self._fit.subcontext(task_name="start", max_subtasks=self._max_iter)
            self._start.call_on_fit_task_begin(estimator=self._estimator, X=self._X)

    def end_iteration(self, number: int, centers: NDArray[np.floating], inertia: float) -> bool:
        """Tell that an iteration is over; True if a callback asks to stop."""
        if self._fit is None:
            return False
        iteration = self._start.subcontext(task_name="iteration")
        iteration.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
        return bool(
            iteration.call_on_fit_task_end(
                estimator=self._estimator,
                X=self._X,
                reconstruction_attributes=lambda: {
                    "cluster_centers_": centers,
                    "inertia_": inertia,
                    "n_iter_": number,
                    "_n_features_out": len(centers),
                },
            )
        )

    def end_start(self) -> None:
        """Tell that the start is over."""
        if self._fit is not None:
            self._start.call_on_fit_task_end(estimator=self._estimator, X=self._X)

    def end_fit(self) -> None:
        """Tell that the fit is over."""
        if self._fit is not None:
            self._fit.call_on_fit_task_end(estimator=self._estimator, X=self._X)


def _has_listeners(estimator: Any) -> bool:
    """Whether callbacks were set, or those of a meta-estimator may look at the tree of tasks."""
    return bool(getattr(estimator, "_skl_callbacks", ())) or hasattr(
        estimator, "_parent_callback_ctx"
    )
