"""CodebookDisplay: code words, or cluster centres, as a table of colours or as small pictures."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk.displays.canvas import axes_of
from pgkmeans_sk.validation import check_integer_between

GAP = 1
"""Pixels between small pictures."""
SMALLEST_PICTURE = 8
"""Pixels of the shorter side, so that gaps are narrow beside it: smaller ones are enlarged."""


class CodebookDisplay:
    """The words of a codebook, or the centres of clusters.

    Parameters
    ----------
    words : array-like of shape (n_codes, block_size)
        One in each row.

    Attributes
    ----------
    words : ndarray of shape (n_codes, block_size), float64
        As given.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        Their figure.
    image_ : matplotlib AxesImage
        What was drawn.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from pgkmeans_sk import PGKMeans
    >>> from pgkmeans_sk.displays import CodebookDisplay
    >>> kmeans = PGKMeans(20, random_state=0).fit(load_digits().data)
    >>> display = CodebookDisplay.from_estimator(kmeans, shape=(8, 8), cmap="gray_r")
    >>> display.words.shape
    (20, 64)
    """

    def __init__(self, words: ArrayLike) -> None:
        self.words: NDArray[np.float64] = np.array(words, dtype=np.float64)
        if self.words.ndim != 2 or not self.words.size:
            raise ValueError(
                f"Got words of shape {self.words.shape}, but expected (n_codes, block_size)."
            )

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, block: int = 0, stage: int = 0, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw a codebook of a quantizer, or the centres of a clusterer.

        Parameters
        ----------
        estimator : ProductQuantizer, CompressedMatrix or clusterer
            A fitted ``ProductQuantizer``, what it compressed, or a clusterer with
            ``cluster_centers_``.
        block : int, default=0
            Which block of columns, if each has a codebook.
        stage : int, default=0
            Which stage of residual quantization.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : CodebookDisplay
            Drawn.

        Raises
        ------
        ValueError
            If there is no such block or stage.
        """
        if hasattr(estimator, "decoder"):
            codebooks = estimator.decoder.codebooks
        else:
            check_is_fitted(estimator)
            codebooks = getattr(estimator, "codebooks_", None)
        if codebooks is None:
            codebooks = estimator.cluster_centers_[None, None]
        check_integer_between("stage", stage, 0, codebooks.shape[0] - 1)
        check_integer_between("block", block, 0, codebooks.shape[1] - 1)
        return cls(codebooks[stage, block]).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, shape: tuple[int, ...] | None = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        shape : tuple of int or None, default=None
            (height, width) of a picture that each word is; (height, width, 3) with red, green and
            blue from 0 to 1. None draws a table: words from left to right, their values downwards.
        **kwargs : dict
            Arguments of matplotlib's ``imshow``, as ``cmap``.

        Returns
        -------
        display : CodebookDisplay
            Itself.

        Raises
        ------
        ValueError
            If words have another number of values than such a picture.
        """
        n_words, n_values = self.words.shape
        if shape is not None and (
            len(shape) not in (2, 3) or (*shape, 3)[2] != 3 or np.prod(shape) != n_values
        ):
            raise ValueError(
                f"Got shape={shape}, but expected (height, width) or (height, width, 3) of "
                f"{n_values} values."
            )
        self.ax_ = ax = axes_of(ax)
        self.figure_ = ax.figure
        ax.set_title(f"{n_words} words of {n_values} values", loc="left")
        if shape is not None:
            self.image_ = ax.imshow(_mosaic(self.words, shape), **{"cmap": "gray", **kwargs})
            ax.set_axis_off()
            return self
        # Symmetric, so that white means 0; both ends are told apart with any colour blindness.
        size = np.abs(self.words).max() or 1.0
        style = {"cmap": "PuOr", "vmin": -size, "vmax": size, "aspect": "auto", **kwargs}
        self.image_ = ax.imshow(self.words.T, interpolation="nearest", **style)
        self.figure_.colorbar(self.image_, ax=ax, label="value")
        ax.set_xlabel("code")
        ax.set_ylabel("value of the block")
        ax.set_yticks(np.unique(np.linspace(0, n_values - 1, min(n_values, 8)).round()))
        return self


def _mosaic(words: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Small pictures in rows, with blank gaps: NaN, or white where there are colours."""
    scale = ceil(SMALLEST_PICTURE / min(shape[:2]))
    height, width = (scale * side for side in shape[:2])
    colors = shape[2:]
    has_colors = bool(colors)
    # Nearly as wide as 1.6 times the height.
    n_columns = min(len(words), ceil(sqrt(1.6 * len(words) * height / width)))
    n_rows = ceil(len(words) / n_columns)
    size = (n_rows * (height + GAP) - GAP, n_columns * (width + GAP) - GAP)
    canvas = np.full((*size, *colors), 1.0 if has_colors else np.nan)
    for number, word in enumerate(words):
        row, column = divmod(number, n_columns)
        top, left = row * (height + GAP), column * (width + GAP)
        picture = word.reshape(shape).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height, left : left + width] = (
            picture.clip(0.0, 1.0) if has_colors else picture
        )
    return canvas
