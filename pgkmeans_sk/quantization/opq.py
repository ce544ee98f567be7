"""A learned rotation: optimised product quantization (Ge et al. 2013, arXiv:1311.4055).

Rows are rotated so that blocks share the variance fairly and are little correlated: at first by
their principal directions alone ("parametric"), then by turns: codebooks for the rotation, and the
rotation that brings rows closest to what their codes decode to ("non-parametric"), which is an
orthogonal Procrustes problem.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from pgkmeans_sk.quantization.blocks import column_slices
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.prepared import Prepared, decoded
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.stages import fit_books

STEPS = 2
"""Steps of k-means for the codebooks of a turn."""
N_TURNS = 16
"""How often codebooks and rotation take turns."""
SAMPLE_ROWS_PER_CODE = 64
"""Rows that the rotation is learned from, for each code word."""


def learned_rotation(
    encoder: Encoder,
    sample: Prepared,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> NDArray[np.float64]:
    """The rotation (d, d) for some prepared rows; the encoder has none yet."""
    weights = np.ones(len(sample.rows)) if sample.weights is None else sample.weights
    rotation = principal_rotation(sample.rows, weights, settings.block_size)
    books = None
    settings = replace(settings, max_iter=STEPS)
    for _ in range(N_TURNS):
        turned = replace(sample, rows=sample.rows @ rotation.T.astype(sample.rows.dtype))
        books, _ = fit_books(encoder, turned, settings, rng, starts=books)
        one_stage = encoder.with_parts(codebooks=books[np.newaxis])
        target = decoded(one_stage, turned.rows).astype(np.float64) * weights[:, np.newaxis]
        left, _, right = linalg.svd(target.T @ sample.rows)
        rotation = left @ right
    return rotation


def principal_rotation(
    rows: NDArray[np.floating], weights: NDArray[np.float64], block_size: int
) -> NDArray[np.float64]:
    """Principal directions of ``rows`` (n, d), dealt out so that blocks get equal shares.

    The distortion of a block grows with the product of its variances, so each direction, largest
    variance first, goes to the block whose product is least (Ge et al., "eigenvalue allocation").
    """
    d = rows.shape[1]
    covariance = np.cov(rows.T, aweights=weights, ddof=0).reshape(d, d)
    variances, directions = np.linalg.eigh(covariance)
    smallest = max(variances[-1], np.finfo(float).tiny) * 1e-12
    logarithms = np.log(np.maximum(variances, smallest) / smallest)
    room = [columns.stop - columns.start for columns in column_slices(d, block_size)]
    shares: list[list[int]] = [[] for _ in room]
    products = np.zeros(len(room))
    for direction in reversed(range(d)):
        open_blocks = [j for j in range(len(room)) if len(shares[j]) < room[j]]
        j = min(open_blocks, key=lambda j: products[j])
        shares[j].append(direction)
        products[j] += logarithms[direction]
    return np.ascontiguousarray(directions.T[np.concatenate(shares)])
