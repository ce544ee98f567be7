"""What a fit asks of its rows, wherever they are: in memory, in blocks, or on a torch device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.quantization.codebooks import Weights
from pgkmeans_sk.quantization.encode import Encoder, in_metric
from pgkmeans_sk.quantization.settings import QuantizerSettings


class Problem(NamedTuple):
    """Blocks that get a codebook together.

    ``random_state`` is a seed; or a generator that has drawn the blocks from more of them already.
    """

    blocks: Any  # (m, width), where the rows are
    weights: Any  # (m,) float64, or None for ones
    random_state: int | np.random.RandomState
    max_rows: int | None
    in_metric: Callable[[Any, NDArray[np.float64] | None], Any] = in_metric


class TrainingRows(Protocol):
    """Rows (n, d) and what errors in them count.

    Each of the first four methods returns what they become by a step of ``Encoder.prepare`` or
    ``Encoder.encode``. A row's result depends on that row alone.
    """

    @property
    def n_features(self) -> int:
        """Columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arithmetic: float32 or float64."""

    def scaled(self, encoder: Encoder) -> Self:
        """Divided by scales of columns and rows; with the latter, weights grow by their squares."""

    def rotated(self, rotation: Rotation) -> Self:
        """Rotated."""

    def divided(self, scales: NDArray[np.floating], factors: NDArray[np.floating]) -> Self:
        """Each block divided by its own of ``scales`` (n_blocks,), which are ``factors`` (d,)."""

    def left_over(self, encoder: Encoder) -> Self:
        """What the first stage of ``encoder`` leaves over."""

    def sizes(self) -> tuple[NDArray[np.floating], Weights]:
        """Root of the mean square of each row (n,), and weights (n,), in the host's memory."""

    def mean_squares(self) -> NDArray[np.float64]:
        """Weighted mean square of each column, (d,)."""

    def some(self, n_rows: int, rng: np.random.RandomState) -> Any:
        """Some of the rows, if there are more, as ``Prepared`` rows in the host's memory."""

    def problems(self, settings: QuantizerSettings, rng: np.random.RandomState) -> list[Problem]:
        """The blocks of each codebook."""


def seeds_of(n_problems: int, rng: np.random.RandomState) -> list[int]:
    """A seed for each codebook."""
    return [int(seed) for seed in rng.randint(2**31 - 1, size=n_problems)]
