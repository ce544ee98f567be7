"""How good sentence embeddings are: STS-B, pairs of sentences that people judged by likeness.

The yardstick is Spearman's rank correlation of the cosine of two sentences' embeddings with the
judgement. ``python -m benchmarks.sts`` takes it of the model as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import glue

Embed = Callable[[Sequence[str]], NDArray[np.floating]]
"""``sentences (n) -> embeddings (n, d)``, of any length."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences, and how alike they are, from 0 to 5."""

    left: Sequence[str]
    right: Sequence[str]
    scores: Sequence[float]


def load_pairs(part: str = "dev", n_pairs: int | None = None) -> Pairs:
    """Return the pairs of ``"train"`` or ``"dev"``, or the first ``n_pairs`` of them."""
    examples = glue.examples("STS-B", part)[:n_pairs]
    left, right = zip(*(example.sentences for example in examples), strict=True)
    return Pairs(left, right, [float(example.label) for example in examples])


def spearman(embed: Embed, pairs: Pairs) -> float:
    """Return the rank correlation of cosine and judgement; each distinct sentence runs once."""
    from scipy.stats import spearmanr

    rows = {
        sentence: row for row, sentence in enumerate(dict.fromkeys([*pairs.left, *pairs.right]))
    }
    vectors = embed(list(rows)).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    left, right = (vectors[[rows[text] for text in side]] for side in (pairs.left, pairs.right))
    return float(spearmanr((left * right).sum(axis=1), pairs.scores).statistic)


if __name__ == "__main__":
    from benchmarks.minilm import MiniLM

    sys.stdout.write(f"STS-B dev, Spearman: {spearman(MiniLM().embed, load_pairs()):.4f}\n")
