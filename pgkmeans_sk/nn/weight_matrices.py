"""Weights compressed as matrices: alone, with what a calibration knows, or in groups."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.drift_sums import DriftedInputs
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.moments import RowCounts, SecondMoment
from pgkmeans_sk.nn.selection import FoundTensor, Target
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.quantization.blocks import whole_blocks
from pgkmeans_sk.quantization.errors import sq_errors


def compressed_alone(
    target: Target, calibration: Calibration | None, random_state: int | None
) -> CompressedMatrix:
    """The matrix of one weight.

    Raises
    ------
    ValueError
        If its codebook does not fit into its dtype; the message names the weight.
    """
    rows = rows_of(target.found, target.axis)
    settings = target.settings
    quantizer = settings.quantizer(random_state)
    with naming(f"weight {target.found.name!r}"), warnings.catch_warnings():
        # Fewer distinct blocks than code words: the report counts the words that are not used.
        warnings.simplefilter("ignore", ConvergenceWarning)
        moment = _second_moment(target, calibration)
        if moment is not None and calibration is not None:
            weights = calibration.row_weights(target.found.name)
            matrix = compress_with_feedback(rows, moment, quantizer, row_weights=weights)
        else:
            known = {} if calibration is None else _weighting(target, rows.shape[1], calibration)
            matrix = quantizer.compress(rows, **known)
    return _with_zero_padding(matrix, rows, target.found)


def compressed_with_drift(
    target: Target, inputs: DriftedInputs, random_state: int | None
) -> CompressedMatrix:
    """The matrix of one weight whose layer gets inputs that have drifted.

    Raises
    ------
    ValueError
        If the settings are none for error feedback, or the codebook does not fit into its dtype.
    """
    rows = rows_of(target.found, target.axis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return compress_with_feedback(
            rows,
            inputs.second_moment,
            target.settings.quantizer(random_state),
            drift=inputs.drift,
            n_descents=2,
        )


def compressed_together(
    group: list[Target], random_state: int | None
) -> dict[str, CompressedMatrix]:
    """The matrices of several weights with one codebook, by name.

    Raises
    ------
    ValueError
        If they have fewer blocks than code words, or one of their dtypes cannot hold the codebook;
        the message names the group.
    """
    settings = group[0].settings
    matrices = {target.found.name: rows_of(target.found, target.axis) for target in group}
    size = settings.block_size
    narrowest = min(matrices, key=lambda name: matrices[name].shape[1])
    if matrices[narrowest].shape[1] < size:
        raise ValueError(
            f"Got {narrowest!r} with {matrices[narrowest].shape[1]} columns in the group "
            f"{settings.group!r}, but expected at least block_size={size}."
        )
    with naming(f"group {settings.group!r}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        blocks = np.concatenate([whole_blocks(rows, size) for rows in matrices.values()])
        books = settings.quantizer(random_state).fit(blocks).codebooks_
    found = {}
    for name, rows in matrices.items():
        decoder = Decoder(codebooks=books, n_features=rows.shape[1], dtype=rows.dtype)
        found[name] = ProductQuantizer.from_decoder(decoder).encode(rows)
    return found


def rows_of(found: FoundTensor, axis: int) -> NDArray[np.floating]:
    """A weight as a matrix in host memory; bfloat16 as float32, which holds it exactly."""
    matrix = matrix_of(found.tensor.detach(), axis).cpu()
    if matrix.dtype == torch.bfloat16:
        matrix = matrix.float()
    return np.ascontiguousarray(matrix.numpy())


def _second_moment(target: Target, calibration: Calibration | None) -> NDArray[np.float64] | None:
    """The second moment of the inputs, if error feedback is asked for and possible."""
    if calibration is None or not target.settings.feedback:
        return None
    record = calibration.get(target.found.name)
    return record.full if isinstance(record, SecondMoment) else None


def _weighting(target: Target, n_features: int, calibration: Calibration) -> dict[str, Any]:
    """What ``ProductQuantizer.compress`` is told of the errors that count."""
    settings, name = target.settings, target.found.name
    record = calibration.get(name)
    if settings.importance is None or record is None:
        return {}
    known: dict[str, Any] = {}
    weights = calibration.row_weights(name)
    if weights is not None:
        known["sample_weight"] = weights
    if isinstance(record, SecondMoment) and settings.importance == "block":
        if settings.rotation is None:  # which mixes what the metric would be about
            block_size = min(settings.block_size, n_features)
            known["importance"] = calibration.block_metric(name, block_size)
    elif not isinstance(record, RowCounts):
        known["importance"] = calibration.column_importance(name)
    return known


def zero_padding_row(found: FoundTensor) -> int | None:
    """The number of an embedding's padding row, if it has one and that is zero."""
    for place in found.unique_places():  # an embedding may be tied to a layer that comes first
        module = place.module
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            row = module.padding_idx
            return None if bool(found.tensor.detach()[row].any()) else int(row)
    return None


def _with_zero_padding(
    matrix: CompressedMatrix, rows: NDArray[np.floating], found: FoundTensor
) -> CompressedMatrix:
    """The matrix with a padding row of zeros that stays one, if there is such a row.

    In each codebook the word nearest to zero becomes zero, and is what the padding row is made of.
    """
    padding = zero_padding_row(found)
    if padding is None:
        return matrix
    decoder = matrix.decoder
    codes = matrix.codes()
    books = decoder.codebooks.copy()
    for column in range(decoder.n_block_codes):
        stage, block = divmod(column, decoder.n_blocks)
        words = books[stage, 0 if decoder.is_shared else block]
        own = codes[padding, column]
        # A word that nothing but padding means would be left without any block.
        is_alone = np.count_nonzero(_codes_of_book(codes, decoder, column) == own) == 1
        word = own if is_alone else np.square(words.astype(np.float64)).sum(axis=1).argmin()
        words[word] = 0.0
        codes[padding, column] = word
    decoder = replace(decoder, codebooks=books)
    return CompressedMatrix.from_codes(
        decoder, codes, relative_error=_relative_error(decoder, codes, rows)
    )


def _codes_of_book(codes: NDArray[Any], decoder: Decoder, column: int) -> NDArray[Any]:
    """All codes that refer to the codebook of a column of codes."""
    if not decoder.is_shared:
        return codes[:, column]
    stage = column // decoder.n_blocks
    return codes[:, stage * decoder.n_blocks : (stage + 1) * decoder.n_blocks]


def _relative_error(decoder: Decoder, codes: NDArray[Any], rows: NDArray[np.floating]) -> float:
    """``|W - decoded| / |W|`` for the rows of W that the codes stand for."""
    wide = rows.astype(decoder.work_dtype, copy=False)
    lost = float(sq_errors(decoder, wide, codes).sum())
    total = float(np.einsum("ij,ij->", wide, wide, dtype=np.float64))
    return float(np.sqrt(lost / total)) if total else 0.0
