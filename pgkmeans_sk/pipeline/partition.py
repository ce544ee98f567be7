"""Pre-assignment: a tree whose leaves are the first clusters (algorithm.md, 1a).

Stated by the paper (arXiv 2306.14031): the rows are partitioned recursively, no initial cluster is
left without rows, and the clusters get about the same number of rows. Our reading of a step: c is
the mean of a node, p its row farthest from c, and the ball around p takes the share of the rows
that its leaves have. Our variants: the cut runs across the principal direction instead of around a
ball, and leaves are shared by error instead of population. Optimal quantizers put centres at a
density proportional to density^{d/(d+2)} (Zador 1982), which gives a region a share of the leaves
proportional to its squared error to the power d/(d+2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes


@dataclass(frozen=True)
class PartitionRule:
    """How a node is cut, and how its leaves are shared between the two sides."""

    cut: str  # "ball" or "principal"
    share: str  # "population" or "error"


def partition(engine: Engine, n_leaves: int, rule: PartitionRule) -> FloatArray:
    """Means (n_leaves, d) of the leaves of a partition tree over all rows.

    All nodes of a level are cut together, in O(n d); there are log2(n_leaves) levels if leaves are
    shared by population, and about as many on ordinary data if by error. Where a node runs
    out of distinct rows, its surplus leaves are copies of its mean: they will be found empty and
    are filled by cautious partitioning.
    """
    level, leaves = engine.root(), np.array([n_leaves])
    finished: list[FloatArray] = []
    while True:
        finished.append(level.means[leaves == 1])
        level, leaves = _only(leaves > 1, level, leaves)
        if not len(level):
            return np.concatenate(finished)
        fractions = (leaves // 2) / leaves if rule.share == "population" else -np.ones(len(leaves))
        cut = engine.cut(level, fractions, rule.cut, n_two_means=0)
        whole = ~cut.possible
        if whole.any():
            finished.append(np.repeat(level.means[whole], leaves[whole], axis=0))
        left_leaves = _share_leaves(leaves, cut, rule.share, engine.n_features)
        left, left_leaves_kept = _only(cut.possible, cut.left, left_leaves)
        right, right_leaves_kept = _only(cut.possible, cut.right, leaves - left_leaves)
        level, leaves = left + right, np.concatenate([left_leaves_kept, right_leaves_kept])


def _only(chosen: NDArray[np.bool_], nodes: Nodes, leaves: IntArray) -> tuple[Nodes, IntArray]:
    """The ``chosen`` (m,) nodes and their leaves."""
    return (nodes, leaves) if chosen.all() else (nodes[chosen], leaves[chosen])


def _share_leaves(leaves: IntArray, cut: Cut, share: str, n_features: int) -> IntArray:
    """How many of each node's ``leaves`` go to its left child: at least one, at most its rows."""
    if share == "population":
        left: IntArray = leaves // 2
    else:
        exponent = n_features / (n_features + 2)
        left_error, right_error = cut.left.scatters**exponent, cut.right.scatters**exponent
        total = left_error + right_error
        share_left = np.divide(left_error, total, out=np.full(len(total), 0.5), where=total > 0)
        left = np.rint(leaves * share_left).astype(np.int64)
    left = np.minimum(np.maximum(left, 1), leaves - 1)
    left = np.maximum(left, leaves - cut.right.counts)
    left = np.minimum(left, cut.left.counts)
    return left
