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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    def cut(nodes: Nodes, fractions: FloatArray, owners: IntArray) -> Cut:
        return engine.cut(nodes, fractions, rule.cut, n_two_means=0)

    return grow(cut, engine.root(), n_leaves, rule, engine.n_features)


def grow(
    cut_nodes: Callable[[Nodes, FloatArray, IntArray], Cut],
    roots: Nodes,
    n_leaves: int,
    rule: PartitionRule,
    n_features: int,
) -> FloatArray:
    """Means (R * n_leaves, d) of the leaves of R trees, tree by tree.

    ``cut_nodes`` is told the nodes, their fractions, and whose root's each of them is; nodes come
    tree by tree.
    """
    level = _Level(roots, np.full(len(roots), n_leaves), np.arange(len(roots)))
    finished: list[tuple[IntArray, FloatArray]] = []
    while True:
        done = level.only(level.leaves == 1)
        finished.append((done.owners, done.nodes.means))
        level = level.only(level.leaves > 1)
        leaves = level.leaves
        if not len(leaves):
            break
        fractions = (leaves // 2) / leaves if rule.share == "population" else -np.ones(len(leaves))
        cut = cut_nodes(level.nodes, fractions, level.owners)
        whole = level.only(~cut.possible)
        copies = np.repeat(np.arange(len(whole.leaves)), whole.leaves)
        finished.append((whole.owners[copies], whole.nodes.means[copies]))
        left_leaves = _share_leaves(leaves, cut, rule.share, n_features)
        left = _Level(cut.left, left_leaves, level.owners).only(cut.possible)
        right = _Level(cut.right, leaves - left_leaves, level.owners).only(cut.possible)
        level = left.followed_by(right)
    owners = np.concatenate([part[0] for part in finished])
    means = np.concatenate([part[1] for part in finished])
    return means if len(roots) == 1 else means[np.argsort(owners, kind="stable")]


@dataclass(frozen=True)
class _Level:
    """Nodes of a level, how many leaves each will have, and whose tree it belongs to."""

    nodes: Nodes
    leaves: IntArray
    owners: IntArray

    def only(self, chosen: NDArray[Any]) -> _Level:
        """The ``chosen`` ones (m,)."""
        if chosen.all():
            return self
        return _Level(self.nodes[chosen], self.leaves[chosen], self.owners[chosen])

    def followed_by(self, other: _Level) -> _Level:
        """Both, tree by tree, those of ``other`` last in each."""
        owners = np.concatenate([self.owners, other.owners])
        both = _Level(self.nodes + other.nodes, np.concatenate([self.leaves, other.leaves]), owners)
        if (owners[1:] >= owners[:-1]).all():
            return both
        order = np.argsort(owners, kind="stable")
        return _Level(both.nodes[order], both.leaves[order], owners[order])


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
