"""Rows in memory on their way to codebooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.engines.chunks import chunk_bounds
from pgkmeans_sk.engines.sums_in_memory import add_up
from pgkmeans_sk.engines.tiles import MomentSum
from pgkmeans_sk.quantization.blocks import column_slices, whole_blocks
from pgkmeans_sk.quantization.codebooks import Weights
from pgkmeans_sk.quantization.encode import Encoder, row_sizes
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.training_rows import Problem, seeds_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows as ``Encoder.prepare`` gives them; what methods do is said in ``TrainingRows``.

    Attributes
    ----------
    rows : ndarray of shape (n, d), float32 or float64
        Scaled and rotated rows. Not written.
    weights : ndarray of shape (n,), float64, or None
        What errors count, for each row; None means ones.
    block_weights : ndarray of shape (n_blocks,), float64, or None
        For each block; None means ones. Only blocks that share a codebook are weighed up.
    """

    rows: NDArray[np.floating]
    weights: Weights
    block_weights: NDArray[np.float64] | None = None

    @property
    def n_features(self) -> int:
        return int(self.rows.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    # ---------------------------------------------------------------- steps

    def scaled(self, encoder: Encoder) -> Prepared:
        rows, scale_codes = encoder.prepare(self.rows)
        weights, scales = self.weights, encoder.decoder.row_scales
        if scales is not None:
            weights = times_squares(weights, scales, scale_codes)
        return replace(self, rows=rows, weights=weights)

    def rotated(self, rotation: Rotation) -> Prepared:
        return replace(self, rows=rotation.apply(self.rows))

    def divided(self, scales: NDArray[np.floating], factors: NDArray[np.floating]) -> Prepared:
        return Prepared(self.rows / factors, self.weights, np.square(scales, dtype=np.float64))

    def left_over(self, encoder: Encoder) -> Prepared:
        return replace(self, rows=self.rows - decoded(encoder, self.rows))

    # ---------------------------------------------------------------- what they tell

    def sizes(self) -> tuple[NDArray[np.floating], Weights]:
        return row_sizes(self.rows), self.weights

    def mean_squares(self) -> NDArray[np.float64]:
        total = MomentSum(np.zeros(self.n_features))
        bounds = chunk_bounds(len(self.rows), self.rows.size)
        _, squares, weight = add_up(total, self.rows, self.weights, bounds)
        return np.asarray(squares / weight[0])

    def some(self, n_rows: int, rng: np.random.RandomState) -> Prepared:
        if len(self.rows) <= n_rows:
            # In one order of values: products by a BLAS library may depend on it.
            return replace(self, rows=np.ascontiguousarray(self.rows))
        return self.taken(np.sort(rng.choice(len(self.rows), n_rows, replace=False)))

    def taken(self, numbers: NDArray[np.integer]) -> Prepared:
        """The rows of these ``numbers``, a copy."""
        weights = None if self.weights is None else self.weights[numbers]
        return replace(self, rows=np.ascontiguousarray(self.rows[numbers]), weights=weights)

    def problems(self, settings: QuantizerSettings, rng: np.random.RandomState) -> list[Problem]:
        size, max_rows = settings.block_size, settings.max_rows
        if settings.is_shared:
            blocks, weights = self.whole_blocks(size)
            (seed,) = seeds_of(1, rng)
            return [Problem(blocks, weights, seed, max_rows)]
        slices = column_slices(self.n_features, size)
        return [
            Problem(self.rows[:, columns], self.weights, seed, max_rows)
            for columns, seed in zip(slices, seeds_of(len(slices), rng), strict=True)
        ]

    def whole_blocks(self, block_size: int) -> tuple[NDArray[np.floating], Weights]:
        """All blocks of full width, row after row, and what their errors count."""
        n_whole = self.n_features // block_size
        return whole_blocks(self.rows, block_size), self.weights_of_blocks(n_whole)

    def weights_of_blocks(self, n_whole: int) -> Weights:
        """Weights (n * n_whole,) of the first ``n_whole`` blocks of all rows; None for ones."""
        if self.block_weights is None:
            return None if self.weights is None else np.repeat(self.weights, n_whole)
        weights = np.ones(len(self.rows)) if self.weights is None else self.weights
        return np.ravel(weights[:, np.newaxis] * self.block_weights[:n_whole])


def decoded(encoder: Encoder, rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """What the first stage makes of prepared ``rows`` (n, d)."""
    decoder = encoder.decoder
    codes = np.empty((len(rows), decoder.n_blocks), decoder.code_dtype)
    encoder.encode_stage(rows, 0, codes)
    return decoder.stage_rows(codes, 0, rows.dtype)


def times_squares(
    weights: Weights, scales: NDArray[np.floating], scale_codes: NDArray[np.uint8] | None
) -> NDArray[np.float64]:
    """Weights of rows that were divided by their ``scales``, so that errors count as before."""
    squares = np.square(scales, dtype=np.float64)
    if not squares.any():  # nothing but zeros: any codebook will do
        squares = np.ones_like(squares)
    own: NDArray[np.float64] = squares[scale_codes]
    return own if weights is None else own * weights
