"""Random choices among rows by their numbers: the same in every engine."""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.results import FloatArray, IntArray

SHUFFLED = 2**24
"""Up to so many rows are shuffled and the first ones taken, as NumPy does it: 8 bytes each."""


def draw_numbers(n_candidates: int, n_drawn: int, rng: np.random.RandomState) -> IntArray:
    """Different numbers (n_drawn,) below ``n_candidates``, each as likely as any other."""
    if n_candidates <= SHUFFLED or 2 * n_drawn > n_candidates:
        return np.asarray(rng.choice(n_candidates, n_drawn, replace=False), dtype=np.int64)
    numbers = np.empty(0, dtype=np.int64)
    while len(numbers) < n_drawn:  # a number that was drawn before is drawn again
        more = rng.randint(0, n_candidates, n_drawn - len(numbers), dtype=np.int64)
        drawn = np.concatenate([numbers, more])
        first = np.unique(drawn, return_index=True)[1]
        numbers = drawn[np.sort(first)]
    return numbers


def draw_by_weight(
    weights: FloatArray | None, n_candidates: int, n_drawn: int, rng: np.random.RandomState
) -> IntArray:
    """Different numbers (n_drawn,) of candidates with these positive ``weights``; None: equal ones.

    Too few candidates are repeated.
    """
    size = min(n_drawn, n_candidates)
    # Equal weights draw the same rows as none.
    if weights is None or weights.min() == weights.max():
        drawn = draw_numbers(n_candidates, size, rng)
    else:
        drawn = rng.choice(n_candidates, size, replace=False, p=weights / weights.sum())
    return np.asarray(np.resize(drawn, n_drawn), dtype=np.int64)
