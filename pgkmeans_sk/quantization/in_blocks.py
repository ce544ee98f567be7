"""Rows in blocks, of ``RowBlocks`` or dask, as a quantizer uses them: block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.engines.block_checks import prepared_rows, problem_of_block, work_dtype
from pgkmeans_sk.engines.block_engine import Carrier
from pgkmeans_sk.engines.chunks import chunk_bounds
from pgkmeans_sk.engines.closest import sq_lengths
from pgkmeans_sk.engines.tiles import Tile
from pgkmeans_sk.quantization.blocked_rows import BlockedRows, check_gathered
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.errors import ErrorSum, relative_error, sq_errors
from pgkmeans_sk.quantization.settings import QuantizerSettings


@dataclass(frozen=True)
class InBlocks:
    """Rows that were looked at; what methods do is said in ``in_memory.py``.

    Codes are brought to one place; they are small.
    """

    carrier: Carrier
    output_dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.carrier.starts[-1]), self.carrier.n_features

    def training(self, settings: QuantizerSettings) -> BlockedRows:
        """The rows; raise if a fit would need too many of them together."""
        check_gathered(settings, *self.shape)
        return BlockedRows(self.carrier)

    def codes(self, encoder: Encoder) -> NDArray[Any]:
        """Codes (n, n_columns)."""
        return np.concatenate(self.carrier.each(_codes_of, encoder))

    def mean_sq_error(self, encoder: Encoder) -> float:
        """Weighted mean over the rows of the squared error when they are encoded and decoded."""
        n_rows, n_features = self.shape
        bounds = chunk_bounds(n_rows, n_rows * n_features)
        error, weight = self.carrier.add_up(ErrorSum(encoder), bounds)
        return float(error[0] / weight[0])

    def compressed(self, encoder: Encoder) -> CompressedMatrix:
        """Packed codes, with how far they are off."""
        parts = zip(*self.carrier.each(_codes_and_errors, encoder), strict=True)
        codes, errors, sq_norms = (np.concatenate(part) for part in parts)
        lost = relative_error(errors, sq_norms)
        return CompressedMatrix.from_codes(encoder.decoder, codes, relative_error=lost)


def _codes_of(tile: Tile, encoder: Encoder) -> NDArray[Any]:
    return encoder.encode(tile.rows)


def _codes_and_errors(
    tile: Tile, encoder: Encoder
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Codes of a tile, their squared errors, and the squared lengths of the rows."""
    codes = encoder.encode(tile.rows)
    return codes, sq_errors(encoder.decoder, tile.rows, codes), sq_lengths(tile.rows)


# ---------------------------------------------------------------- chunks that nobody has looked at


@dataclass(frozen=True)
class ChunkEncoder:
    """From a chunk of rows and its name to codes (m, n_columns)."""

    encoder: Encoder

    def __call__(self, rows: Any, name: str) -> NDArray[Any]:
        """The codes, or a ValueError that says what is wrong with the chunk."""
        problem = problem_of_block(rows, name, 0, self.encoder.decoder.n_features)
        if problem is not None:
            raise ValueError(problem)
        return self.encoder.encode(prepared_rows(rows, work_dtype(rows.dtype), None))


@dataclass(frozen=True)
class ChunkDecoder:
    """From a chunk of codes and its name to rows (m, n_features)."""

    decoder: Decoder
    check: Any
    """``check(codes, decoder)`` are the codes as they are decoded."""

    def __call__(self, codes: Any, name: str) -> NDArray[np.floating]:
        """The rows, or a ValueError that says what is wrong with the chunk."""
        try:
            checked = self.check(codes, self.decoder)
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}: it is in {name}.") from error
        return self.decoder.decode(checked)
