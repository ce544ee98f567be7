"""Weights as matrices of scalar codes: what ``scalar_quantize`` finds for one of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.tensor_dtypes import NUMPY_NAMES
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.devices import host_matrix
from pgkmeans_sk.nn.layers import matrix_of, row_axis, tensor_of
from pgkmeans_sk.nn.moments import RowCounts
from pgkmeans_sk.nn.scalar_targets import is_shared
from pgkmeans_sk.nn.selection import Target
from pgkmeans_sk.nn.weight_matrices import zero_padding_row
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
    layout = target.layout
    assert layout is not None
    lines = _lines(target.found.tensor.detach(), target)
    with naming(f"weight {target.found.name!r}"):
        found = scalar_codes(
            lines,
            layout.code_bits,
            scheme,
            dtype=NUMPY_NAMES[layout.codebook_dtype],
            weights=_weights(target, calibration),
        )
    if is_shared(target):
        _keep_zero_padding(found, target)
    codes = found.codes if is_shared(target) else found.codes.T
    decoder = Decoder(
        codebooks=found.words.reshape(1, layout.n_books, layout.n_codes, 1),
        n_features=layout.n_features,
        dtype=lines.dtype,
    )
    return CompressedMatrix.from_codes(
        decoder,
        np.ascontiguousarray(codes).reshape(layout.n_rows, layout.n_features),
        relative_error=relative_error(lines, found),
    )


def _lines(tensor: Tensor, target: Target) -> NDArray[np.floating]:
    """What shares a codebook as a row each, in host memory."""
    matrix = matrix_of(tensor, target.axis, target.group_size)
    return host_matrix(matrix.reshape(1, -1) if is_shared(target) else matrix.T)


def _keep_zero_padding(found: ScalarCodes, target: Target) -> None:
    """Make the word zero that stands for an embedding's padding row, if that is zero.

    Where a row or a group has its own codebook, zeros alone are among its words anyway.
    """
    padding = zero_padding_row(target.found)
    if padding is not None:
        first = padding * target.found.tensor.shape[1]
        found.words[0, found.codes[0, first]] = 0.0


def _weights(target: Target, calibration: Calibration | None) -> NDArray[np.float64] | None:
    """What the squared error of each value of the lines counts, as far as is known."""
    name, tensor = target.found.name, target.found.tensor
    record = None if calibration is None else calibration.get(name)
    if calibration is None or record is None or target.settings.importance is None:
        return None
    place = target.found.places[0]
    axis = row_axis(place.module, place.tensor_name)
    weights = np.ones((tensor.shape[axis], tensor.numel() // tensor.shape[axis]))
    if not isinstance(record, RowCounts):
        weights *= calibration.column_importance(name)
    by_row = calibration.row_weights(name)
    if by_row is not None:
        weights *= by_row[:, np.newaxis]
    if not weights.any():
        return None
    weights = np.maximum(weights / weights.mean(), SMALLEST_IMPORTANCE)
    by_line = _lines(tensor_of(torch.from_numpy(weights), tensor.shape, axis), target)
    return by_line.astype(np.float64, copy=False)
