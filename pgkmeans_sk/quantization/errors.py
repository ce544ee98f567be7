"""How far decoded rows are from what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.engines.closest import sq_lengths
from pgkmeans_sk.engines.tiles import Tile, Totals
from pgkmeans_sk.quantization.encode import Encoder

NUMBERS_AT_ONCE = 2**18
"""Values that are decoded at a time, so that no second matrix as large as the first is needed."""


def sq_errors(
    decoder: Decoder, X: NDArray[np.floating], codes: NDArray[Any]
) -> NDArray[np.float64]:
    """Squared distance of each row of ``X`` (n, d) to what its codes decode to, (n,)."""
    errors = np.empty(len(X))
    step = max(1, NUMBERS_AT_ONCE // X.shape[1])
    for start in range(0, len(X), step):
        some = slice(start, start + step)
        decoded = decoder.decode(codes[some])
        errors[some] = sq_lengths(np.subtract(X[some], decoded, dtype=np.float64))
    return errors


@dataclass(frozen=True)
class ErrorSum:
    """Weighted squared error (1,) of rows that are encoded and decoded, and their weight (1,)."""

    encoder: Encoder

    def zeros(self) -> Totals:
        """What is added to."""
        return np.zeros(1), np.zeros(1)

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        """Add rows ``start:stop`` of a tile to ``totals``."""
        rows = tile.rows[start:stop]
        errors = sq_errors(self.encoder.decoder, rows, self.encoder.encode(rows))
        weights = np.ones(len(rows))
        if tile.sample_weight is not None:
            weights = tile.sample_weight[start:stop]
        for total, values in zip(totals, (errors * weights, weights), strict=True):
            # One after the other: np.sum adds pairs of halves.
            total[0] = np.cumsum(np.append(total, values))[-1]


def relative_error(errors: NDArray[np.float64], sq_norms: NDArray[np.float64]) -> float:
    """``|W - decoded| / |W|``, of squared errors and squared lengths (n,) of the rows."""
    squares = float(sq_norms.sum())
    return float(np.sqrt(float(errors.sum()) / squares)) if squares else 0.0
