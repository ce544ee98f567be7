"""The error of a layer's output as a function of codes and code words: what is to be minimised.

With inputs x and ``H = E[x x^T]``, replacing rows w of a weight matrix by q costs
``sum_i v_i (w_i - q_i) H (w_i - q_i)``, v being weights of rows. It is quadratic in the code words,
and couples all blocks of a row, but no two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.lookup import decode_blocks
from pgkmeans_sk.kernels.feedback import GROUP, LANES, add_to_words
from pgkmeans_sk.quantization.blocks import column_slices
from pgkmeans_sk.threads import effective_n_threads, run_tasks

Doubles = NDArray[np.float64]

ROWS_AT_ONCE = 256
"""Rows of a chunk: of a product with the metric, or of what a kernel does at a time."""
ROWS_OF_A_SUM = 1024
"""Rows whose blocks are added up for each code word; the sums of such chunks are added in order."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Codes and code words, and what they cost.

    Attributes
    ----------
    codes : ndarray of shape (n, n_blocks), int32
        The code word of each block.
    words : ndarray of shape (n_codes, block_size), float64
        Code words, their values rounded as they are stored.
    gradient : ndarray of shape (n, d), float64
        ``(rows - decoded rows) @ metric``.
    error : float
        The weighted sum of ``(rows - decoded rows) @ metric @ (rows - decoded rows)``.
    """

    codes: NDArray[np.int32]
    words: Doubles
    gradient: Doubles
    error: float


@dataclass(frozen=True, eq=False)
class OutputProblem:
    """Rows as the codebook sees them, and what their errors cost.

    Attributes
    ----------
    rows : ndarray of shape (n, d), float64
        What decoded rows should be.
    metric : ndarray of shape (d, d), float64
        H: symmetric, positive definite.
    weights : ndarray of shape (n,), float64
        What the error of a row counts, >= 0.
    block_size : int
        Columns of a block; the last may be narrower, and then takes a word's first values.
    """

    rows: Doubles
    metric: Doubles
    weights: Doubles
    block_size: int

    @property
    def blocks(self) -> list[slice]:
        """The columns of each block."""
        return column_slices(self.rows.shape[1], self.block_size)

    def evaluated(self, codes: NDArray[np.int32], words: Doubles) -> Choice:
        """A choice of codes and words with its gradient and error."""
        errors = self.rows - self.decoded(codes, words)
        gradient = self.times_metric(errors)
        per_row = np.einsum("ij,ij->i", errors, gradient)
        return Choice(codes, words, gradient, float(np.einsum("i,i->", self.weights, per_row)))

    def decoded(self, codes: NDArray[np.int32], words: Doubles) -> Doubles:
        """The rows (n, d) that codes stand for."""
        narrow = codes.astype(np.uint8) if len(words) <= 256 else codes.astype(np.uint16)
        books = words[np.newaxis, np.newaxis]
        rows = decode_blocks(narrow, books, self.rows.shape[1], out_dtype=np.float64)
        return np.asarray(rows, dtype=np.float64)

    def times_metric(self, rows: Doubles) -> Doubles:
        """``rows @ metric``, the same bits for any number of threads if BLAS has one."""
        product = np.empty_like(rows)

        def multiply(start: int, stop: int) -> None:
            np.matmul(rows[start:stop], self.metric, out=product[start:stop])

        over_rows(multiply, len(rows))
        return product

    def sums_of_words(self, rows: Doubles, codes: NDArray[np.int32], n_codes: int) -> Doubles:
        """The weighted sum (n_codes, block_size) over all blocks of ``rows`` with each code."""
        sums = np.zeros((-(-len(rows) // ROWS_OF_A_SUM), n_codes, self.block_size))
        weighted = rows * self.weights[:, np.newaxis]

        def add(start: int, stop: int) -> None:
            add_to_words(weighted, codes, start, stop, sums[start // ROWS_OF_A_SUM])

        over_rows(add, len(rows), ROWS_OF_A_SUM)
        return np.asarray(sums.sum(axis=0))

    def norms(self, words: Doubles, metrics: list[Doubles]) -> Doubles:
        """``c M c`` for all words in the metric of each block, (n_blocks, K padded)."""
        n_codes = len(words)
        norms = np.full((len(metrics), -(-n_codes // LANES) * LANES), np.inf)
        for p, metric in enumerate(metrics):
            some = words[:, : len(metric)]
            norms[p, :n_codes] = np.einsum("kt,kt->k", some @ metric, some)
        return norms


def lookup_of(words: Doubles) -> Doubles:
    """-2 times the words, value by value, (b padded, K padded): what the kernels search in."""
    n_codes, size = words.shape
    lookup = np.zeros((-(-size // GROUP) * GROUP, -(-n_codes // LANES) * LANES))
    lookup[:size, :n_codes] = -2.0 * words.T
    return lookup


def over_rows(task: Callable[[int, int], None], n_rows: int, per_chunk: int = ROWS_AT_ONCE) -> None:
    """Call ``task(start, stop)`` for chunks of rows, on several cores."""
    run_tasks(
        lambda c: task(c * per_chunk, min(n_rows, (c + 1) * per_chunk)),
        -(-n_rows // per_chunk),
        effective_n_threads(),
    )
