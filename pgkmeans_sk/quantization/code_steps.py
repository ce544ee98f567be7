"""Better codes for given code words: a sweep with error feedback, then coordinate descent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from pgkmeans_sk.kernels.feedback import descend_rows, sweep_rows
from pgkmeans_sk.quantization.output_problem import (
    Choice,
    Doubles,
    OutputProblem,
    lookup_of,
    over_rows,
)

ROWS_OF_A_TASK = 64
"""Rows that a kernel takes at a time."""


class Sweep:
    """Error feedback over the blocks of columns, from the first to the last.

    A block takes the nearest word; what it misses, the columns behind it make up for as well as
    they can, as if they could be anything (GPTQ, arXiv:2210.17323, section 3; with words of several
    columns GPTVQ, arXiv:2402.15319, section 3). With ``H = R R^T``, R upper triangular, and R_p the
    block of R on its diagonal, the metric of block p is ``R_p R_p^T``, and an error e of it
    changes the columns behind it by ``-e R_p (R^-1)_p``: ``R^-1`` is the upper Cholesky factor of
    ``H^-1``.
    """

    def __init__(self, problem: OutputProblem) -> None:
        self._problem = problem
        # From the last column to the first: the lower factor turned round is upper triangular.
        lower = linalg.cholesky(problem.metric[::-1, ::-1], lower=True)
        factor = np.ascontiguousarray(lower[::-1, ::-1])
        inverse = np.triu(linalg.lapack.dtrtri(factor)[0])
        self._metrics = [factor[some, some] @ factor[some, some].T for some in problem.blocks]
        self._spread = np.zeros_like(factor)
        for some in problem.blocks:
            self._spread[some] = factor[some, some] @ inverse[some]

    def __call__(self, words: Doubles) -> tuple[NDArray[np.int32], Doubles]:
        """Codes (n, n_blocks) for words, and what each block had to stand for, (n, d)."""
        problem = self._problem
        targets = problem.rows.copy()
        codes = np.empty((len(targets), len(problem.blocks)), dtype=np.int32)
        metric = np.zeros((targets.shape[1], problem.block_size))
        for some, own in zip(problem.blocks, self._metrics, strict=True):
            metric[some, : len(own)] = own
        lookup, norms = lookup_of(words), problem.norms(words, self._metrics)

        def sweep(start: int, stop: int) -> None:
            sweep_rows(targets, metric, self._spread, words, lookup, norms, start, stop, codes)

        over_rows(sweep, len(targets), ROWS_OF_A_TASK)
        return codes, targets


def descended(problem: OutputProblem, choice: Choice, n_passes: int) -> Choice:
    """Codes after up to ``n_passes`` passes of coordinate descent; the error does not rise.

    A pass gives each block in turn the word that is best beside the row's other blocks. One block
    of each word keeps it, so that no word goes out of use, whichever row is done first.
    """
    words, metric = choice.words, problem.metric
    codes, gradient = choice.codes.copy(), choice.gradient.copy()
    lookup = lookup_of(words)
    norms = problem.norms(words, [metric[some, some] for some in problem.blocks])
    n_changed = np.zeros(-(-len(codes) // ROWS_OF_A_TASK), dtype=np.int64)
    for _ in range(n_passes):
        pinned = _one_of_each(codes)

        def descend(start: int, stop: int, pinned: NDArray[np.bool_] = pinned) -> None:
            n_changed[start // ROWS_OF_A_TASK] = descend_rows(
                gradient, metric, words, lookup, norms, pinned, start, stop, codes
            )

        over_rows(descend, len(codes), ROWS_OF_A_TASK)
        if not n_changed.any():
            break
    found = problem.evaluated(codes, words)
    return found if found.error <= choice.error else choice


def _one_of_each(codes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where each code that is in use appears for the first time, (n, n_blocks)."""
    found = np.zeros(codes.shape, dtype=np.bool_)
    found.ravel()[np.unique(codes, return_index=True)[1]] = True
    return found
