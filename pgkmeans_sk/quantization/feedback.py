"""Codes and a codebook for the least error of a layer's output: error feedback, then descent.

    k-means on scaled rows -> sweeps over block columns -> (least squares -> descent on codes) ...

PG k-means alone makes the weights' own error small. Here each block also makes up for what the
others of its row have missed, as far as the layer's inputs let it: Note [Output error].

Note [Output error]
~~~~~~~~~~~~~~~~~~~
With inputs x of mean second moment ``H = E[x x^T]``, a layer that has Q for W is wrong by
``E|W x - Q x|^2 = tr((W - Q) H (W - Q)^T)``. A damping is added to H: directions that no input had
in the sample may come up later, and weights of dead inputs stay what they were, about.

Rows are prepared as for plain product quantization, with columns divided by ``1 / sqrt(H_jj)``; in
the prepared columns the metric is ``S H S^T``, S being what turns decoded blocks into columns. So
all that follows sees plain rows and one metric.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.quantization.code_steps import Sweep, descended
from pgkmeans_sk.quantization.codebooks import Weights
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.errors import sq_errors
from pgkmeans_sk.quantization.fit import fit_quantizer
from pgkmeans_sk.quantization.output_problem import Choice, Doubles, OutputProblem
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.word_steps import Rounding, refitted, with_all_words_used

GRADIENT_STEPS = 8
"""Steps of conjugate gradients for the least squares of a codebook."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much work error feedback takes.

    ``n_sweeps`` sweeps over the block columns, >= 1; then ``n_descents`` rounds of least squares
    for the codebook and up to ``n_passes`` passes over all codes.
    """

    n_sweeps: int = 1
    n_descents: int = 3
    n_passes: int = 3


def damped(second_moment: Doubles, damping: float) -> Doubles:
    """H (d, d) with ``damping`` times the mean of its diagonal added to the diagonal."""
    share = damping * float(np.einsum("jj->", second_moment)) / len(second_moment)
    return second_moment + share * np.eye(len(second_moment))


def drifted(rows: NDArray[np.floating], drift: Doubles, metric: Doubles) -> NDArray[np.floating]:
    """What rows W should be if outputs should be y: ``W + E[(y - W x) x^T] metric^-1``.

    With ``metric = H + damping``, an error of Q against it costs what ``E|y - Q x|^2`` and the
    damping's share of ``|W - Q|^2`` cost together, but for a constant.
    """
    change = linalg.solve(metric, drift.T, assume_a="pos").T
    return np.asarray(rows + change, dtype=rows.dtype)


def fit_with_feedback(
    X: NDArray[np.floating],
    metric: Doubles,
    weights: Weights,
    settings: QuantizerSettings,
    effort: Effort,
    rng: np.random.RandomState,
) -> tuple[Decoder, NDArray[np.unsignedinteger]]:
    """Decoder and codes (n, n_columns) for validated rows ``X`` (n, d), float32 or float64.

    ``metric`` (d, d) is positive definite; one codebook for all blocks, one stage.
    """
    # A sample of blocks may miss the few large ones, which errors handed on make larger still.
    settings = replace(settings, max_rows=None)
    encoder = fit_quantizer(Prepared(X, weights), np.diagonal(metric).copy(), settings, rng).encoder
    problem, scale_codes = prepared_problem(encoder, X, metric, weights)
    start = encoder.decoder.codebooks[0, 0].astype(np.float64)
    choice = minimised(problem, start, _rounding_of(settings), effort)
    order = np.lexsort(choice.words.T[::-1])  # as stages.in_order
    words = choice.words[order].astype(settings.codebook_dtype)
    decoder = encoder.with_parts(codebooks=words[np.newaxis, np.newaxis]).decoder
    codes = np.empty((len(X), decoder.n_columns), dtype=decoder.code_dtype)
    codes[:, : decoder.n_block_codes] = np.argsort(order)[choice.codes]
    if scale_codes is not None:
        codes[:, -1] = scale_codes
    return decoder, codes


def prepared_problem(
    encoder: Encoder, X: NDArray[np.floating], metric: Doubles, weights: Weights
) -> tuple[OutputProblem, NDArray[np.uint8] | None]:
    """The problem as the codebook sees it, and the codes of the rows' sizes."""
    decoder = encoder.decoder
    rows, scale_codes = encoder.prepare(X)
    row_weights = np.ones(len(X)) if weights is None else weights.astype(np.float64)
    if decoder.row_scales is not None:
        row_weights = row_weights * np.square(decoder.row_scales.astype(np.float64))[scale_codes]
    if decoder.column_scales is not None:
        scales = decoder.column_scales.astype(np.float64)
        metric = scales[:, np.newaxis] * metric * scales
    if decoder.rotation is not None:
        turned = decoder.rotation.apply(decoder.rotation.apply(metric).T)
        metric = turned.astype(np.float64)
    factors = decoder.block_factors().astype(np.float64)
    metric = factors[:, np.newaxis] * metric * factors
    metric = (metric + metric.T) / 2.0
    exact = np.ascontiguousarray(rows, dtype=np.float64)
    return OutputProblem(exact, metric, row_weights, decoder.block_size), scale_codes


def minimised(problem: OutputProblem, words: Doubles, rounded: Rounding, effort: Effort) -> Choice:
    """Codes and words from given ``words`` (n_codes, block_size); each of them is in use."""
    sweep = Sweep(problem)
    best: Choice | None = None
    for number in range(effort.n_sweeps):
        codes, _ = sweep(words)
        swept = with_all_words_used(problem, problem.evaluated(codes, words), rounded)
        if best is None or swept.error < best.error:
            best = swept
        if number + 1 < effort.n_sweeps:
            words = refitted(problem, swept, rounded, GRADIENT_STEPS).words
    assert best is not None
    for _ in range(effort.n_descents):
        before = best.error
        best = refitted(problem, best, rounded, GRADIENT_STEPS)
        best = descended(problem, best, effort.n_passes)
        if not best.error < before:
            break
    return refitted(problem, best, rounded, GRADIENT_STEPS) if effort.n_descents else best


def compressed_matrix(
    decoder: Decoder, codes: NDArray[np.unsignedinteger], X: NDArray[np.floating]
) -> CompressedMatrix:
    """The record of one stage of codes for the rows ``X`` (n, d) with a shared codebook."""
    squares = float(np.einsum("ij,ij->", X, X, dtype=np.float64))
    error = float(sq_errors(decoder, X, codes).sum())
    return CompressedMatrix.from_codes(
        decoder, codes, relative_error=float(np.sqrt(error / squares)) if squares else 0.0
    )


def _rounding_of(settings: QuantizerSettings) -> Rounding:
    """Rounding to the codebook's dtype; what it cannot hold becomes infinite, and is refused."""

    def rounded(words: Doubles) -> Doubles:
        with np.errstate(over="ignore"):
            return words.astype(settings.codebook_dtype).astype(np.float64)

    return rounded
