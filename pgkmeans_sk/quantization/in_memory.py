"""Rows in memory, as a quantizer uses them: to train, to encode, to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.engines.chunks import chunk_bounds
from pgkmeans_sk.engines.closest import sq_lengths
from pgkmeans_sk.engines.sums_in_memory import add_up
from pgkmeans_sk.quantization.codebooks import Weights
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.errors import ErrorSum, relative_error, sq_errors
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.settings import QuantizerSettings


@dataclass(frozen=True)
class InMemory:
    """Validated rows (n, d), float32 or float64, and weights (n,); neither is written."""

    rows: NDArray[np.floating]
    weights: Weights
    output_dtype: np.dtype[Any]
    """Of decoded rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.shape[0], self.rows.shape[1]

    def training(self, settings: QuantizerSettings) -> Prepared:
        """The rows as ``fit_quantizer`` takes them."""
        return Prepared(self.rows, self.weights)

    def codes(self, encoder: Encoder) -> NDArray[Any]:
        """Codes (n, n_columns)."""
        return encoder.encode(self.rows)

    def mean_sq_error(self, encoder: Encoder) -> float:
        """Weighted mean over the rows of the squared error when they are encoded and decoded."""
        bounds = chunk_bounds(len(self.rows), self.rows.size)
        error, weight = add_up(ErrorSum(encoder), self.rows, self.weights, bounds)
        return float(error[0] / weight[0])

    def compressed(self, encoder: Encoder) -> CompressedMatrix:
        """Packed codes, with how far they are off."""
        codes = encoder.encode(self.rows)
        errors = sq_errors(encoder.decoder, self.rows, codes)
        lost = relative_error(errors, sq_lengths(self.rows))
        return CompressedMatrix.from_codes(encoder.decoder, codes, relative_error=lost)
