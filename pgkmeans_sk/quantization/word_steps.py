"""Better code words for given codes: least squares in the metric of a layer's output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.quantization.output_problem import Choice, Doubles, OutputProblem

Rounding = Callable[[Doubles], Doubles]
"""Code words with their values rounded as they are stored, in float64."""

RIDGE = 1e-9
"""Added to what words count, relative to the largest: a value that counts nothing stays."""
RESIDUAL = 1e-3
"""Where conjugate gradients end, relative to the first residual."""


def refitted(problem: OutputProblem, choice: Choice, rounded: Rounding, n_steps: int) -> Choice:
    """Code words with the least error for the codes; the same choice if rounding makes it worse.

    The error is quadratic in the words, but a word's mean is not the best one: the words of a row
    answer for one another's errors. At most ``n_steps`` steps of conjugate gradients, each word
    preconditioned by its own part of the matrix.
    """
    codes, n_codes = choice.codes, len(choice.words)
    scaled = _preconditioner(problem, codes, n_codes)
    residual = problem.sums_of_words(choice.gradient, codes, n_codes)
    step = np.zeros_like(residual)
    z = scaled(residual)
    direction, now = z, float(np.einsum("kt,kt->", residual, z))
    smallest = RESIDUAL**2 * now
    for _ in range(n_steps):
        if not now > smallest:
            break
        moved = problem.times_metric(problem.decoded(codes, direction))
        image = problem.sums_of_words(moved, codes, n_codes)
        length = now / float(np.einsum("kt,kt->", direction, image))
        step = step + length * direction
        residual = residual - length * image
        z = scaled(residual)
        before, now = now, float(np.einsum("kt,kt->", residual, z))
        direction = z + now / before * direction
    found = problem.evaluated(codes, rounded(choice.words + step))
    return found if found.error <= choice.error else choice


def _preconditioner(
    problem: OutputProblem, codes: NDArray[np.int32], n_codes: int
) -> Callable[[Doubles], Doubles]:
    """Solve for each word as if all others stood still."""
    size = problem.block_size
    own = np.zeros((n_codes, size, size))
    for p, some in enumerate(problem.blocks):
        counts = np.bincount(codes[:, p], weights=problem.weights, minlength=n_codes)
        width = some.stop - some.start
        own[:, :width, :width] += counts[:, np.newaxis, np.newaxis] * problem.metric[some, some]
    largest = float(np.einsum("ktt->k", own).max())
    inverse = np.linalg.inv(own + (RIDGE * largest + np.finfo(float).tiny) * np.eye(size))
    return lambda rows: np.asarray(np.einsum("kts,ks->kt", inverse, rows))


def with_all_words_used(problem: OutputProblem, choice: Choice, rounded: Rounding) -> Choice:
    """The same with a block for each word that had none: where that lowers the error most.

    Such a word becomes what its block should be beside the others of its row, as in PG k-means an
    empty cluster takes rows from one with large errors; here, at most one block of each row at a
    time, and none from a word that has no other.
    """
    n_codes = len(choice.words)
    while True:
        counts = np.bincount(choice.codes.ravel(), minlength=n_codes)
        unused = np.flatnonzero(counts == 0)
        if not unused.size:
            return choice
        gains, ideal = _best_alone(problem, choice)
        codes, words = choice.codes.copy(), choice.words.copy()
        free, taken = list(unused), set()
        for at in np.argsort(-gains, axis=None, kind="stable"):
            i, p = divmod(int(at), codes.shape[1])
            if i in taken or counts[codes[i, p]] < 2:
                continue
            taken.add(i)
            word, some = free.pop(0), problem.blocks[p]
            words[word] = words[codes[i, p]]
            words[word, : some.stop - some.start] += ideal[i, some]
            counts[codes[i, p]] -= 1
            codes[i, p] = word
            if not free:
                break
        choice = problem.evaluated(codes, rounded(words))


def _best_alone(problem: OutputProblem, choice: Choice) -> tuple[Doubles, Doubles]:
    """What a block would gain (n, n_blocks) by a word of its own, and its change (n, d) then."""
    gains = np.empty(choice.codes.shape)
    changes = np.empty_like(choice.gradient)
    for p, some in enumerate(problem.blocks):
        gradient = choice.gradient[:, some]
        changes[:, some] = np.linalg.solve(problem.metric[some, some], gradient.T).T
        gains[:, p] = np.einsum("ij,ij->i", gradient, changes[:, some]) * problem.weights
    return gains, changes
