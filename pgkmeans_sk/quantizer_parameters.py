"""What a quantizer is given, checked: parameters, enough rows, importance, codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from pgkmeans_sk.array_kinds import as_numpy
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.quantization.codebooks import trainer_of
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.validation import InvalidParameterError, check_choice, check_integer

CODEBOOKS = ("per_block", "shared")
ROTATIONS = ("hadamard", "opq")
SCALES = ("row", "block")
DTYPES = ("float16", "float32", "float64")
MOST_CODES = 65_536


def check_parameters(estimator: Any) -> None:
    """Raise ``InvalidParameterError`` unless every parameter of a quantizer is acceptable."""
    check_integer("block_size", estimator.block_size, 1)
    check_integer("n_codes", estimator.n_codes, 2)
    if estimator.n_codes > MOST_CODES:
        raise InvalidParameterError(
            f"Got n_codes={estimator.n_codes!r}, but expected at most {MOST_CODES}."
        )
    check_integer("n_stages", estimator.n_stages, 1)
    check_integer("max_iter", estimator.max_iter, 1)
    if estimator.rows_per_code is not None:
        check_integer("rows_per_code", estimator.rows_per_code, 1)
    check_choice("codebook", estimator.codebook, CODEBOOKS)
    for name, choices in (
        ("rotation", ROTATIONS),
        ("scale", SCALES),
        ("codebook_dtype", DTYPES),
    ):
        if getattr(estimator, name) is not None:
            check_choice(name, getattr(estimator, name), choices)
    if estimator.quantizer is not None and not hasattr(estimator.quantizer, "fit"):
        raise InvalidParameterError(
            f"Got quantizer={estimator.quantizer!r}, but expected a clusterer or None."
        )


def settings_of(estimator: Any, n_features: int, output_dtype: np.dtype[Any]) -> QuantizerSettings:
    """What the steps of a fit to validated rows need to know."""
    rows_per_code = estimator.rows_per_code
    return QuantizerSettings(
        block_size=min(int(estimator.block_size), n_features),
        n_codes=int(estimator.n_codes),
        is_shared=estimator.codebook == "shared",
        n_stages=int(estimator.n_stages),
        rotation=estimator.rotation,
        scale=estimator.scale,
        max_iter=int(estimator.max_iter),
        max_rows=rows_per_code and int(rows_per_code * estimator.n_codes),
        codebook_dtype=np.dtype(estimator.codebook_dtype or output_dtype),
        output_dtype=output_dtype,
        train=None if estimator.quantizer is None else trainer_of(estimator.quantizer),
    )


def check_enough_blocks(n_rows: int, n_features: int, settings: QuantizerSettings) -> None:
    """Raise unless a codebook has at least as many blocks as code words."""
    n_blocks = n_rows
    if settings.is_shared:
        n_blocks *= n_features // settings.block_size
    if n_blocks < settings.n_codes:
        raise ValueError(
            f"Got {n_blocks} blocks for a codebook (n_samples={n_rows}), but expected at least "
            f"n_codes={settings.n_codes}."
        )


def check_importance(
    importance: Any, n_features: int, settings: QuantizerSettings
) -> NDArray[np.float64]:
    """The importance as float64: (d,) for columns, or (b, b) for the values of a block.

    Raises
    ------
    ValueError
        If it has another shape, values that are not finite, negative weights or none above 0; if it
        is a matrix that is not symmetric and positive semi-definite, or comes with a rotation.
    """
    array = np.asarray(as_numpy(importance), dtype=np.float64)
    shapes = (n_features,), (settings.block_size, settings.block_size)
    if array.shape not in shapes:
        raise ValueError(
            f"Got importance of shape {array.shape}, but expected {shapes[0]}, one weight for each "
            f"column, or {shapes[1]}, a metric for the values of a block."
        )
    if not np.isfinite(array).all():
        raise ValueError("Got importance with values that are not finite, but expected numbers.")
    if array.ndim == 1:
        if array.min() < 0.0 or array.max() == 0.0:
            raise ValueError(
                f"Got importance from {array.min():g} to {array.max():g}, but expected weights "
                ">= 0, not all zero."
            )
        return array
    if settings.rotation is not None:
        raise ValueError(
            f"Got a metric of blocks for importance with rotation={settings.rotation!r}, but "
            "expected one of the two: a rotation mixes the values that the metric is about."
        )
    largest = np.abs(array).max()
    if largest == 0.0 or np.abs(array - array.T).max() > 1e-6 * largest:
        raise ValueError(
            "Got a matrix for importance that is zero or not symmetric, but expected a metric."
        )
    smallest = float(np.linalg.eigvalsh(array).min())
    if smallest < -1e-6 * largest:
        raise ValueError(
            f"Got a matrix for importance with the eigenvalue {smallest:g}, but expected a "
            "positive semi-definite one."
        )
    return (array + array.T) / 2.0


def check_codes(codes: Any, decoder: Decoder) -> NDArray[Any]:
    """Codes (n, n_columns) as the decoder takes them; raise if they are not codes."""
    codes = check_array(codes, dtype=None, ensure_min_samples=0)
    if codes.dtype.kind not in "ui":
        raise ValueError(f"Got codes of dtype {codes.dtype}, but expected integers.")
    if codes.shape[1] != decoder.n_columns:
        raise ValueError(
            f"Got codes with {codes.shape[1]} columns, but expected {decoder.n_columns}."
        )
    blocks = codes[:, : decoder.n_block_codes]
    for name, part, limit in (("code", blocks, decoder.n_codes), ("size", codes[:, -1:], 256)):
        if name == "size" and decoder.row_scales is None:
            break
        if part.size and not (part.min() >= 0 and part.max() < limit):
            wrong = part.min() if part.min() < 0 else part.max()
            raise ValueError(f"Got {name} {wrong}, but expected 0 to {limit - 1}.")
    return np.asarray(codes.astype(decoder.code_dtype, copy=False))
