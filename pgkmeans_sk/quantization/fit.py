"""What a fit finds: scales, a rotation and codebooks, one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import N_SCALE_CODES, Decoder
from pgkmeans_sk.codes.rotation import Rotation, any_rotation, random_hadamard
from pgkmeans_sk.quantization.blocks import column_slices
from pgkmeans_sk.quantization.codebooks import Weights, pg_codebook
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.importance import column_scales_of, factor_of
from pgkmeans_sk.quantization.opq import SAMPLE_ROWS_PER_CODE, learned_rotation
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.stages import Fitted, fit_stages
from pgkmeans_sk.quantization.training_rows import TrainingRows

SCALE_STEPS = 25
"""Steps of k-means for the sizes of rows, where their optimum would take too long."""


def fit_quantizer(
    rows: TrainingRows,
    importance: NDArray[np.float64] | None,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Fitted:
    """Fit to validated ``rows``; neither they nor their weights are written.

    ``importance`` is (d,) or (block_size, block_size), as ``check_importance`` returns it.
    """
    encoder = _without_codebooks(rows.n_features, settings)
    if importance is not None and importance.ndim == 1:
        scales = settings.stored(column_scales_of(importance), "column_scales")
        encoder = encoder.with_parts(column_scales=scales)
    elif importance is not None:
        encoder = replace(encoder, metric_factor=factor_of(importance))

    if settings.scale == "row":
        sizes = rows.scaled(encoder).sizes()
        scales = settings.stored(_scale_codebook(*sizes, rng), "row_scales")
        encoder = encoder.with_parts(row_scales=scales)
    rows = rows.scaled(encoder)

    if settings.rotation is not None:
        rotation = _rotation_for(encoder, rows, settings, rng)
        encoder = encoder.with_parts(rotation=rotation)
        rows = rows.rotated(rotation)
    if settings.scale == "block":
        scales = _block_scales(rows.mean_squares(), settings.block_size)
        scales = settings.stored(scales, "block_scales")
        encoder = encoder.with_parts(block_scales=scales)
        rows = rows.divided(scales, encoder.decoder.block_factors().astype(rows.dtype))
    return fit_stages(encoder, rows, settings, rng)


def _without_codebooks(n_features: int, settings: QuantizerSettings) -> Encoder:
    """An encoder that knows the shape of its codebooks, and nothing yet of what is in them."""
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


def _block_scales(mean_squares: NDArray[np.float64], block_size: int) -> NDArray[np.float64]:
    """Root of the mean square of each block, (n_blocks,); 1 for blocks of zeros.

    ``mean_squares`` (d,) are those of the columns.
    """
    scales = [
        np.sqrt(mean_squares[columns].mean())
        for columns in column_slices(len(mean_squares), block_size)
    ]
    return np.where(np.equal(scales, 0.0), 1.0, scales)


def _rotation_for(
    encoder: Encoder,
    rows: TrainingRows,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Rotation:
    """The rotation that was asked for, its numbers rounded as they are stored."""
    if settings.rotation == "hadamard":
        rotation = random_hadamard(rows.n_features, rng)
    else:
        some = rows.some(SAMPLE_ROWS_PER_CODE * settings.n_codes, rng)
        rotation = any_rotation(learned_rotation(encoder, some, settings, rng))
    return replace(rotation, mixer=settings.stored(rotation.mixer, "rotation"))
