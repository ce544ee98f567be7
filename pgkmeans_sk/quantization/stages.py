"""Codebooks for prepared rows, each stage on what the stages before have left over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.quantization.blocks import column_slices, whole_blocks
from pgkmeans_sk.quantization.codebooks import Codebook, Weights, pg_codebook
from pgkmeans_sk.quantization.encode import Encoder, in_metric
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.threads import effective_n_threads, run_tasks


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows as ``Encoder.prepare`` gives them, and what errors in them count.

    Attributes
    ----------
    rows : ndarray of shape (n, d), float32 or float64
        Scaled and rotated rows.
    weights : ndarray of shape (n,), float64, or None
        For each row; None means ones.
    block_weights : ndarray of shape (n_blocks,), float64, or None
        For each block; None means ones. Only blocks that share a codebook are weighed up.
    """

    rows: NDArray[np.floating]
    weights: Weights
    block_weights: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """An encoder, and how its codebooks came about.

    ``n_effective_codes`` (n_stages, n_books): how many code words of each differ; ``n_iter``: most
    steps of k-means for one of them.
    """

    encoder: Encoder
    n_effective_codes: NDArray[np.int64]
    n_iter: int = 0


def fit_stages(
    encoder: Encoder,
    prepared: Prepared,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Fitted:
    """The encoder with codebooks for all stages."""
    stages, n_effective, n_iter = [], [], 0
    for s in range(settings.n_stages):
        books, found = fit_books(encoder, prepared, settings, rng)
        stages.append(settings.stored(books, "codebooks"))
        n_effective.append([codebook.n_effective for codebook in found])
        n_iter = max(n_iter, *(codebook.n_iter for codebook in found))
        if s + 1 < settings.n_stages:
            one_stage = encoder.with_parts(codebooks=stages[-1][np.newaxis])
            prepared = replace(prepared, rows=prepared.rows - decoded(one_stage, prepared.rows))
    return Fitted(encoder.with_parts(codebooks=np.stack(stages)), np.array(n_effective), n_iter)


def fit_books(
    encoder: Encoder,
    prepared: Prepared,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
    starts: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.floating], list[Codebook]]:
    """The codebooks of one stage, (n_books, n_codes, block_size), and how each was found.

    With ``starts``, of the same shape, PG k-means goes on from there.
    """
    rows, weights, size = prepared.rows, prepared.weights, settings.block_size
    factor = encoder.metric_factor
    if settings.is_shared:
        problems = [whole_blocks(rows, size)]
        weights = _weights_of_blocks(prepared, rows.shape[1] // size)
    else:
        problems = [rows[:, columns] for columns in column_slices(rows.shape[1], size)]
    seeds = rng.randint(2**31 - 1, size=len(problems))
    books = np.zeros((len(problems), settings.n_codes, size), dtype=rows.dtype)
    found: list[Codebook] = [Codebook(books[0], 0, 0)] * len(problems)

    def fit_book(j: int) -> None:
        blocks = in_metric(problems[j], factor)
        width = blocks.shape[1]
        task = blocks, weights, settings.n_codes, int(seeds[j])
        if settings.train is not None and starts is None:
            found[j] = settings.train(*task)
        else:
            start = None if starts is None else in_metric(starts[j, :, :width], factor)
            found[j] = pg_codebook(*task, settings.max_iter, settings.max_rows, start)
        words = found[j].words
        if factor is not None:
            words = np.linalg.solve(factor[:width, :width].T, words.T.astype(np.float64)).T
        books[j, :, :width] = in_order(words, found[j].n_effective)

    # Estimators of others are fitted one after the other: they may not be made for threads.
    run_tasks(fit_book, len(problems), 1 if settings.train else effective_n_threads())
    return books, found


def in_order(words: NDArray[np.floating], n_used: int) -> NDArray[np.floating]:
    """Code words (K, b) by their first value, then their second, ...; copies stay behind.

    So numbers of code words do not depend on the way in which they were found.
    """
    used = words[:n_used]
    order = np.lexsort(used.T[::-1])
    copies = np.repeat(used[order[:1]], len(words) - n_used, axis=0)
    return np.concatenate([used[order], copies])


def decoded(encoder: Encoder, rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """What the first stage makes of prepared ``rows`` (n, d)."""
    decoder = encoder.decoder
    codes = np.empty((len(rows), decoder.n_blocks), decoder.code_dtype)
    encoder.encode_stage(rows, 0, codes)
    return decoder.stage_rows(codes, 0, rows.dtype)


def _weights_of_blocks(prepared: Prepared, n_whole: int) -> Weights:
    """Weights in the order of ``whole_blocks``; None if all are 1."""
    if prepared.block_weights is None:
        return None if prepared.weights is None else np.repeat(prepared.weights, n_whole)
    row_weights = np.ones(len(prepared.rows)) if prepared.weights is None else prepared.weights
    return np.ravel(row_weights[:, np.newaxis] * prepared.block_weights[:n_whole])
