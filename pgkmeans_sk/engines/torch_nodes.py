"""Sets of rows on a torch device: nodes of a tree, or clusters to be split.

The steps are those of ``kernels/split.py``, taken for all nodes at once: the members of the nodes
stand one after the other in one tensor of row numbers, and a cut brings each node's own into the
order left, right. Equal rows have equal keys, to the last bit, so that they stay together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.torch_cuts import (
    BINS,
    cut_by_weight,
    cut_where_errors_fall,
    whole_weights,
)
from pgkmeans_sk.engines.torch_members import Members
from pgkmeans_sk.engines.torch_memory import block_rows
from pgkmeans_sk.engines.torch_source import RowSource
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes

FEW_MOVES = 64
"""Two centres are at rest when fewer than one member in so many changes sides."""
GROUP_NUMBERS = 2**22
"""Nodes are cut in groups, so that their bins and vectors are not more numbers than this."""


class TorchNodes:
    """The row numbers of the nodes that are open, node by node in one tensor.

    Opening others forgets them. While they are open they take 8 bytes for each of their rows, and
    about 50 while they are cut.
    """

    def __init__(self, source: RowSource, weights: torch.Tensor | None) -> None:
        self._source, self._weights, self._device = source, weights, source.device
        self._order = torch.empty(0, dtype=torch.int64, device=source.device)

    def open(self, rows: torch.Tensor, counts: IntArray, sections: IntArray | None = None) -> Nodes:
        """Nodes with so many ``counts`` (P,) of the ``rows`` (m,) each, in their order.

        ``sections`` (s,) tells how many of them are of each problem; None stands for one problem.
        """
        self._order = rows
        ends = np.cumsum(counts)
        ranges = np.column_stack([ends - counts, ends])
        return self._nodes(Members(self._source, self._weights, rows, counts, sections), ranges)

    def _nodes(self, members: Members, ranges: IntArray) -> Nodes:
        weights, means, scatters = members.moments()
        together = torch.cat([means, weights[:, None], scatters[:, None]], dim=1).cpu().numpy()
        columns = np.ascontiguousarray(together[:, -2:].T)
        return Nodes(ranges, np.diff(ranges)[:, 0], columns[0], together[:, :-2].copy(), columns[1])

    def cut(
        self,
        nodes: Nodes,
        fractions: FloatArray,
        rule: str,
        n_two_means: int,
        sections: IntArray | None = None,
    ) -> Cut:
        """Cut each of the open ``nodes`` in two (see ``Engine.cut``).

        ``sections`` (s,) as in ``open``, of the nodes that are cut.
        """
        numbers = 3 * BINS + 4 * self._source.shape[1]
        size = max(1, GROUP_NUMBERS // numbers)
        of_problems = [len(nodes)] if sections is None else sections.tolist()
        pieces = [min(size, n - at) for n in of_problems for at in range(0, n, size)]
        most = max(size, block_rows(self._device, 8 * numbers))
        parts, first = [], 0
        for group in _grouped(pieces, most):
            own = slice(first, first + sum(group))
            parts.append(
                self._cut_group(nodes[own], fractions[own], rule, n_two_means, np.array(group))
            )
            first = own.stop
        cut = parts[0]
        for part in parts[1:]:
            possible = np.concatenate([cut.possible, part.possible])
            cut = Cut(possible, cut.left + part.left, cut.right + part.right)
        return cut

    def _cut_group(
        self,
        nodes: Nodes,
        fractions: FloatArray,
        rule: str,
        n_two_means: int,
        sections: IntArray,
    ) -> Cut:
        lows, counts = nodes.handles[:, 0], nodes.counts
        starts = torch.from_numpy(lows - (np.cumsum(counts) - counts)).to(self._device)
        n_members = int(counts.sum())
        per_node = torch.from_numpy(np.asarray(counts)).to(self._device)
        where = torch.repeat_interleave(starts, per_node, output_size=n_members)
        where += torch.arange(n_members, device=self._device)
        members = Members(self._source, self._weights, self._order[where], counts, sections)
        is_left, possible = self._sides(members, nodes, fractions, rule)
        is_left = _two_means(members, is_left, possible, n_two_means)

        # Left members first; both in the order in which they stood.
        sides = torch.argsort(2 * members.node + torch.logical_not(is_left), stable=True)
        self._order[where] = members.rows[sides]
        n_left = torch.where(possible, members.count(is_left), 0).cpu().numpy()
        child_counts = np.column_stack([n_left, counts - n_left]).ravel()
        children = Members(
            self._source, self._weights, members.rows[sides], child_counts, 2 * sections
        )
        middles = lows + n_left
        ranges = np.column_stack([lows, middles, middles, nodes.handles[:, 1]]).reshape(-1, 2)
        found = self._nodes(children, ranges)
        return Cut(n_left > 0, found[::2], found[1::2])

    def _sides(
        self, members: Members, nodes: Nodes, fractions: FloatArray, rule: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which members (m,) go left, and which nodes (P,) have two sides."""
        means = torch.from_numpy(nodes.means).to(self._device)
        poles = members.poles(means)
        if rule == "principal":
            directions = members.principal_directions(means, poles)
            keys = members.positions(means, directions)
        else:
            keys = members.sq_distances(poles)
        is_left = self._left_of_cut(members, keys, nodes, fractions)
        possible = members.count(is_left) < members.counts
        if rule == "principal" and not bool(possible.all()):
            # The way out where no direction tells the members apart.
            again = members.sq_distances(poles)
            keys = torch.where(possible[members.node], keys, again)
            is_left = self._left_of_cut(members, keys, nodes, fractions)
            possible = members.count(is_left) < members.counts
        return is_left, possible

    def _left_of_cut(
        self, members: Members, keys: torch.Tensor, nodes: Nodes, fractions: FloatArray
    ) -> torch.Tensor:
        at_best = fractions < 0.0
        weights = members.weights
        if weights is not None:
            weights = whole_weights(weights, members.heaviest(nodes.weights), members.node)
        thresholds = None
        if at_best.any():
            thresholds = cut_where_errors_fall(keys, members.node, weights, members.n_nodes)
        if not at_best.all():
            shares = torch.from_numpy(np.maximum(fractions, 0.0)).to(keys.device)
            by_weight = cut_by_weight(keys, members.node, weights, members.ends, shares)
            if thresholds is None:
                thresholds = by_weight
            else:
                chosen = torch.from_numpy(at_best).to(keys.device)
                thresholds = torch.where(chosen, thresholds, by_weight)
        assert thresholds is not None
        return keys <= thresholds[members.node]


def _grouped(sizes: list[int], most: int) -> list[list[int]]:
    """``sizes`` in groups that follow on each other, of at most so many, or of one."""
    groups: list[list[int]] = []
    for size in sizes:
        if groups and sum(groups[-1]) + size <= most:
            groups[-1].append(size)
        else:
            groups.append([size])
    return groups


def _two_means(
    members: Members, is_left: torch.Tensor, moves: torch.Tensor, n_steps: int
) -> torch.Tensor:
    """``is_left`` (m,) after Lloyd's steps with two centres in the nodes where ``moves`` (P,)."""
    for _ in range(n_steps):
        left, right = members.halves(is_left)
        directions = right - left
        # Half of |x - l|^2 - |x - r|^2 is the position from the middle between them.
        nearer = members.positions(0.5 * left + 0.5 * right, directions) <= 0.0
        n_left, n_moved = members.count(nearer), members.count(nearer != is_left)
        moves = moves & (n_moved > 0) & (n_left > 0) & (n_left < members.counts)
        is_left = torch.where(moves[members.node], nearer, is_left)
        moves = moves & (n_moved * FEW_MOVES >= members.counts)
    return is_left


def clusters_of(labels: torch.Tensor, clusters: IntArray, has_weight: Any) -> Any:
    """Row numbers of each of ``clusters`` (P,), one after the other, and how many there are.

    ``has_weight`` (n,) tells which rows count; None stands for all.
    """
    n_clusters = int(max(int(labels.max()), int(np.max(clusters)))) + 1
    place: NDArray[Any] = np.full(n_clusters, -1, dtype=np.int32)
    place[clusters] = np.arange(len(clusters), dtype=np.int32)
    return members_of(torch.from_numpy(place).to(labels.device)[labels], len(clusters), has_weight)


def members_of(node: torch.Tensor, n_nodes: int, has_weight: Any) -> Any:
    """Row numbers of each node, one after the other, and how many there are.

    ``node`` (n,) tells whose each row is, -1 if of none.
    """
    chosen = node >= 0
    if has_weight is not None:
        chosen &= has_weight
    rows = chosen.nonzero().squeeze(1)
    node = node[rows]
    counts = torch.zeros(n_nodes, dtype=torch.int64, device=node.device)
    counts.index_add_(0, node, torch.ones_like(rows))
    return rows[torch.argsort(node, stable=True)], counts.cpu().numpy()
