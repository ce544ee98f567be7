"""Weights as matrices of scalar codes: what ``scalar_quantize`` finds for one of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.tensor_dtypes import NUMPY_NAMES
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.layers import row_axis
from pgkmeans_sk.nn.moments import RowCounts
from pgkmeans_sk.nn.selection import Target
from pgkmeans_sk.nn.weight_matrices import rows_of, zero_padding_row
from pgkmeans_sk.quantization.importance import SMALLEST_IMPORTANCE
from pgkmeans_sk.quantization.scalar import ScalarCodes, relative_error, scalar_codes


def scalar_matrix(
    target: Target, scheme: str, calibration: Calibration | None = None
) -> CompressedMatrix:
    """The matrix of codes of one weight, as its layout says.

    Raises
    ------
    ValueError
        If its codebooks do not fit into their dtype; the message names the weight.
    """
    assert target.layout is not None
    found, layout = target.found, target.layout
    first = found.places[0]
    rows = rows_of(found, row_axis(first.module, first.tensor_name))
    # What has one codebook is a line: the whole weight, or a column of its matrix.
    is_shared = layout.n_books < layout.n_blocks or layout.n_blocks == 1
    lines = rows.reshape(1, -1) if is_shared else rows.reshape(-1, layout.n_rows)
    with naming(f"weight {found.name!r}"):
        found_codes = scalar_codes(
            lines,
            int(layout.n_codes).bit_length() - 1,
            scheme,
            dtype=NUMPY_NAMES[layout.codebook_dtype],
            weights=_weights(target, rows.shape, lines.shape, calibration),
        )
    padding = zero_padding_row(found)
    if padding is not None and is_shared:
        _make_zero(found_codes, padding * rows.shape[1])
    words, codes = found_codes
    if is_shared:
        codes, books = codes.reshape(layout.n_rows, layout.n_features), words[np.newaxis]
    else:
        codes, books = np.ascontiguousarray(codes.T), words
    decoder = Decoder(
        codebooks=books.reshape(1, layout.n_books, layout.n_codes, 1),
        n_features=layout.n_features,
        dtype=rows.dtype,
    )
    error = relative_error(lines, found_codes)
    return CompressedMatrix.from_codes(decoder, codes, relative_error=error)


def _make_zero(found: ScalarCodes, place: int) -> None:
    """Make the word zero that stands for a zero at ``place`` of the only line.

    Padding stays what it is; other codebooks than a whole weight's have a zero for it anyway.
    """
    found.words[0, found.codes[0, place]] = 0.0


def _weights(
    target: Target,
    shape: tuple[int, ...],
    line_shape: tuple[int, ...],
    calibration: Calibration | None,
) -> NDArray[np.float64] | None:
    """What the squared error of each value counts, as far as is known."""
    name = target.found.name
    record = None if calibration is None else calibration.get(name)
    if calibration is None or record is None or target.settings.importance is None:
        return None
    weights = np.ones(shape)
    if not isinstance(record, RowCounts):
        weights *= calibration.column_importance(name)
    by_row = calibration.row_weights(name)
    if by_row is not None:
        weights *= by_row[:, np.newaxis]
    if not weights.any():
        return None
    # Without any weight, values could be anything.
    return np.maximum(weights / weights.mean(), SMALLEST_IMPORTANCE).reshape(line_shape)
