"""What the stages need to know of the estimator's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.results import FloatArray, RepairRecord, SizeLimits
from pgkmeans_sk.verbosity import silence


class Monitor(Protocol):
    """Hears of the progress of a fit and may stop it."""

    def begin_start(self, number: int) -> None:
        """Start ``number`` (0, 1, ...) begins."""

    def end_iteration(self, number: int, centers: NDArray[Any], inertia: float) -> bool:
        """Lloyd iteration ``number`` (1, 2, ...) is over; True asks to stop."""

    def end_start(self) -> None:
        """The start is over."""


@dataclass(frozen=True)
class Settings:
    """Parameters of the algorithm, validated.

    ``tol`` is relative to the mean variance of the columns, as in scikit-learn.
    """

    n_clusters: int
    max_iter: int = 300
    tol: float = 1e-4
    accelerate: bool = True
    spherical: bool = False
    refine: int = 0
    size_limits: SizeLimits | None = None
    log: Callable[[str], None] = silence

    @property
    def is_silent(self) -> bool:
        """Whether nobody hears what is told to ``log``."""
        return self.log is silence

    def place(
        self, centroids: FloatArray, fallback: NDArray[np.floating], dtype: Any
    ) -> NDArray[Any]:
        """Centres (K, d) as they would be reported: on the unit sphere if ``spherical``.

        Rows of ``fallback`` (K, d) stand in where there is no centroid, or one without direction.
        """
        placed = np.where(np.isnan(centroids), fallback, centroids)
        if self.spherical:
            norms = np.linalg.norm(placed, axis=1, keepdims=True)
            directed = norms > 0.0
            placed = np.where(directed, placed / np.where(directed, norms, 1.0), fallback)
        return placed.astype(dtype)


@dataclass
class Journal:
    """What happened on the way: the passes that filled empty clusters.

    ``start`` tells which of the starts that a start has tried came out best; ``is_optimal`` says
    that the start is the best there is, so that no other need be tried.
    """

    iteration: int = 0
    start: str = ""
    repairs: list[RepairRecord] = field(default_factory=list)
    is_optimal: bool = False
