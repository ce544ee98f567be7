"""What a fit finds: scales, a rotation and codebooks, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import N_SCALE_CODES, Decoder
from pgkmeans_sk.codes.rotation import Rotation, any_rotation, random_hadamard
from pgkmeans_sk.quantization.blocks import column_slices
from pgkmeans_sk.quantization.codebooks import Weights, pg_codebook
from pgkmeans_sk.quantization.encode import Encoder, row_sizes
from pgkmeans_sk.quantization.importance import column_scales_of, factor_of
from pgkmeans_sk.quantization.opq import learned_rotation
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.stages import Fitted, Prepared, fit_stages

SCALE_STEPS = 25
"""Steps of k-means for the sizes of rows, where their optimum would take too long."""


def fit_quantizer(
    X: NDArray[np.floating],
    weights: Weights,
    importance: NDArray[np.float64] | None,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Fitted:
    """Fit to validated rows ``X`` (n, d), float32 or float64; neither they nor weights are written.

    ``importance`` is (d,) or (block_size, block_size), as ``check_importance`` returns it.
    """
    encoder = _without_codebooks(X, settings)
    if importance is not None and importance.ndim == 1:
        scales = settings.stored(column_scales_of(importance), "column_scales")
        encoder = encoder.with_parts(column_scales=scales)
    elif importance is not None:
        encoder = replace(encoder, metric_factor=factor_of(importance))

    if settings.scale == "row":
        sizes = row_sizes(encoder.prepare(X)[0])
        scales = settings.stored(_scale_codebook(sizes, weights, rng), "row_scales")
        encoder = encoder.with_parts(row_scales=scales)
    rows, scale_codes = encoder.prepare(X)
    if encoder.decoder.row_scales is not None:
        weights = _times_squares(weights, encoder.decoder.row_scales[scale_codes])
    prepared = Prepared(rows, weights)

    if settings.rotation is not None:
        rotation = _rotation_for(encoder, prepared, settings, rng)
        encoder = encoder.with_parts(rotation=rotation)
        prepared = replace(prepared, rows=rotation.apply(rows))
    if settings.scale == "block":
        scales = settings.stored(_block_scales(prepared, settings.block_size), "block_scales")
        encoder = encoder.with_parts(block_scales=scales)
        rows = prepared.rows / encoder.decoder.block_factors().astype(X.dtype)
        prepared = Prepared(rows, weights, np.square(scales, dtype=np.float64))
    return fit_stages(encoder, prepared, settings, rng)


def _without_codebooks(X: NDArray[np.floating], settings: QuantizerSettings) -> Encoder:
    """An encoder that knows the shape of its codebooks, and nothing yet of what is in them."""
    n_features = X.shape[1]
    n_books = 1 if settings.is_shared else -(-n_features // settings.block_size)
    shape = (settings.n_stages, n_books, settings.n_codes, settings.block_size)
    codebooks = np.broadcast_to(np.zeros((), settings.codebook_dtype), shape)
    return Encoder(Decoder(codebooks=codebooks, n_features=n_features, dtype=settings.output_dtype))


def _scale_codebook(
    sizes: NDArray[np.floating], weights: Weights, rng: np.random.RandomState
) -> NDArray[np.floating]:
    """256 sizes, ascending, that stand for those of the rows with the least squared error."""
    distinct = np.unique(sizes if weights is None else sizes[weights > 0.0])
    if len(distinct) <= N_SCALE_CODES:
        return np.pad(distinct, (0, N_SCALE_CODES - len(distinct)), mode="edge")
    seed = rng.randint(2**31 - 1)
    found = pg_codebook(sizes[:, np.newaxis], weights, N_SCALE_CODES, seed, SCALE_STEPS)
    return np.sort(found.words[:, 0])


def _block_scales(prepared: Prepared, block_size: int) -> NDArray[np.float64]:
    """Root of the weighted mean square of each block, (n_blocks,); 1 for blocks of zeros."""
    rows, weights = prepared.rows, prepared.weights
    if weights is None:
        per_column = np.einsum("ij,ij->j", rows, rows, dtype=np.float64) / len(rows)
    else:
        per_column = np.einsum("i,ij,ij->j", weights, rows, rows, dtype=np.float64)
        per_column /= weights.sum()
    scales = [
        np.sqrt(per_column[columns].mean())
        for columns in column_slices(len(per_column), block_size)
    ]
    return np.where(np.equal(scales, 0.0), 1.0, scales)


def _rotation_for(
    encoder: Encoder,
    prepared: Prepared,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Rotation:
    """The rotation that was asked for, its numbers rounded as they are stored."""
    if settings.rotation == "hadamard":
        rotation = random_hadamard(prepared.rows.shape[1], rng)
    else:
        rotation = any_rotation(learned_rotation(encoder, prepared, settings, rng))
    return replace(rotation, mixer=settings.stored(rotation.mixer, "rotation"))


def _times_squares(weights: Weights, sizes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights of rows that were divided by ``sizes``, so that errors count as before."""
    squares: Any = np.square(sizes, dtype=np.float64)
    if not squares.any():  # nothing but zeros: any codebook will do
        squares = np.ones_like(squares)
    return np.asarray(squares if weights is None else squares * weights)
