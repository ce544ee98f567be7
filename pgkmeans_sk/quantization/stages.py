"""Codebooks for prepared rows, each stage on what the stages before have left over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.array_kinds import is_tensor
from pgkmeans_sk.quantization.codebooks import Codebook, pg_codebook
from pgkmeans_sk.quantization.encode import Encoder, in_metric
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.training_rows import TrainingRows
from pgkmeans_sk.threads import effective_n_threads, run_tasks


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
    rows: TrainingRows,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
) -> Fitted:
    """The encoder with codebooks for all stages, found for prepared ``rows``."""
    stages, n_effective, n_iter = [], [], 0
    for s in range(settings.n_stages):
        books, found = fit_books(encoder, rows, settings, rng)
        stages.append(settings.stored(books, "codebooks"))
        n_effective.append([codebook.n_effective for codebook in found])
        n_iter = max(n_iter, *(codebook.n_iter for codebook in found))
        if s + 1 < settings.n_stages:
            rows = rows.left_over(encoder.with_parts(codebooks=stages[-1][np.newaxis]))
    return Fitted(encoder.with_parts(codebooks=np.stack(stages)), np.array(n_effective), n_iter)


def fit_books(
    encoder: Encoder,
    rows: TrainingRows,
    settings: QuantizerSettings,
    rng: np.random.RandomState,
    starts: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.floating], list[Codebook]]:
    """The codebooks of one stage, (n_books, n_codes, block_size), and how each was found.

    With ``starts``, of the same shape, PG k-means goes on from there.
    """
    factor = encoder.metric_factor
    problems = rows.problems(settings, rng)
    shape = len(problems), settings.n_codes, settings.block_size
    books = np.zeros(shape, dtype=rows.dtype)
    found: list[Codebook] = [Codebook(books[0], 0, 0)] * len(problems)

    def fit_book(j: int) -> None:
        problem = problems[j]
        blocks = problem.in_metric(problem.blocks, factor)
        width = blocks.shape[1]
        task = blocks, problem.weights, settings.n_codes, problem.random_state
        if settings.train is not None and starts is None:
            found[j] = settings.train(*task)
        else:
            start = None if starts is None else in_metric(starts[j, :, :width], factor)
            found[j] = pg_codebook(*task, settings.max_iter, problem.max_rows, start)
        words = found[j].words
        if factor is not None:
            words = np.linalg.solve(factor[:width, :width].T, words.T.astype(np.float64)).T
        books[j, :, :width] = in_order(words, found[j].n_effective)

    # Estimators of others are fitted one after the other: they may not be made for threads. Nor
    # are streams of a device, on which its work waits for one another anyway.
    one_by_one = settings.train is not None or is_tensor(problems[0].blocks)
    run_tasks(fit_book, len(problems), 1 if one_by_one else effective_n_threads())
    return books, found


def in_order(words: NDArray[np.floating], n_used: int) -> NDArray[np.floating]:
    """Code words (K, b) by their first value, then their second, ...; copies stay behind.

    So numbers of code words do not depend on the way in which they were found.
    """
    used = words[:n_used]
    order = np.lexsort(used.T[::-1])
    copies = np.repeat(used[order[:1]], len(words) - n_used, axis=0)
    return np.concatenate([used[order], copies])
