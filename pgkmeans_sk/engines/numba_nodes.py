"""Sets of rows for the engine of ``numba_cpu.py``: nodes of a tree, or clusters to be split."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.merging import row_dtype
from pgkmeans_sk.engines.node_members import (
    listed_members,
    members_taken,
    positions_taken,
    taken_ranges,
)
from pgkmeans_sk.engines.small_kernels import arguments_for, kind_of
from pgkmeans_sk.kernels import split
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.points import Points
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes
from pgkmeans_sk.threads import run_tasks

NODE_GROUPS = 64
"""Nodes are cut in at most so many groups, which may run side by side."""
GROUP_NUMBERS = 8_000
"""Numbers in the rows of a group, about: a quarter of a millisecond of work."""

FEW_ROWS = 2**15
"""A table of no more waits for no kernel that lists the members of clusters: NumPy does as well."""

_RULES = {"ball": split.BALL, "principal": split.PRINCIPAL}


class NodeRows:
    """The row numbers of the nodes that are open, node by node in one array.

    Opening others forgets them. While they are open they take 12 bytes for each of their rows.
    """

    def __init__(
        self, points: Points, weights: FloatArray, weight_step: int, n_features: int, n_threads: int
    ) -> None:
        self._rows: Any = points, weights, weight_step
        self._n_features, self._n_threads = n_features, n_threads
        self._order: NDArray[Any] = np.empty(0, dtype=np.int32)
        self._keys: FloatArray = np.empty(0)
        self._addresses: dict[np.dtype[Any], int] = {}  # of node_moments

    def open(
        self, rows: NDArray[Any], ranges: IntArray, stand_for: FloatArray | None = None
    ) -> Nodes:
        """Nodes with the rows ``rows[low:high]``, for each of the ``ranges`` (m, 2).

        ``stand_for`` (m,) tells how many rows of a node each of these stands for; by default, 1.
        """
        if rows.dtype not in self._addresses:
            self._addresses[rows.dtype] = address_of(
                split.node_moments, *self._rows, rows, 0, 0, np.empty(self._n_features)
            )
        self._moments = self._addresses[rows.dtype]
        self._order, self._keys = rows, np.empty(len(rows))
        self._starts, self._stand_for = ranges[:, 0], stand_for
        n_nodes = len(ranges)
        means, moments = np.empty((n_nodes, self._n_features)), np.empty((n_nodes, 2))

        def measure(p: int) -> None:
            moments[p] = split.node_moments(
                *self._rows, self._order, ranges[p, 0], ranges[p, 1], means[p]
            )

        n_numbers = len(rows) * self._n_features
        run_tasks(measure, n_nodes, self._n_threads if n_numbers > GROUP_NUMBERS else 1)
        counts, (weights, scatters) = ranges[:, 1] - ranges[:, 0], moments.T
        return self._nodes(ranges, counts, weights, means, scatters)

    def _nodes(
        self, ranges: IntArray, counts: IntArray, weights: FloatArray, means: FloatArray,
        scatters: FloatArray,
    ) -> Nodes:  # fmt: skip
        """Nodes of what was opened; each of their rows may stand for several."""
        if self._stand_for is None:
            return Nodes(ranges, counts, weights, means, scatters)
        opened = np.searchsorted(self._starts, ranges[:, 0], side="right") - 1
        share = self._stand_for[opened]
        return Nodes(ranges, counts, weights * share, means, scatters * share)

    def open_clusters(self, labels: NDArray[np.int32], clusters: IntArray) -> Nodes:
        """One node for each of ``clusters`` (m,): its rows of positive weight by ``labels``.

        Or, of large ones, some of these rows (``node_members.py``).
        """
        rows, counts = self._members_of(labels, clusters)
        ends = np.append(0, np.cumsum(counts))
        taken = members_taken(counts, self._n_features)
        if taken is counts:
            return self.open(rows, _between(ends[:-1], ends[1:]))
        positions = [
            low + positions_taken(*pair)
            for low, *pair in zip(ends[:-1], counts.tolist(), taken.tolist(), strict=True)
        ]
        return self.open(rows[np.concatenate(positions)], *taken_ranges(counts, taken))

    def _members_of(
        self, labels: NDArray[np.int32], clusters: IntArray
    ) -> tuple[NDArray[Any], IntArray]:
        """The rows of positive weight of each of ``clusters``, side by side; how many each has."""
        position = np.full(1 + max(int(labels.max()), int(np.max(clusters))), -1, dtype=np.int64)
        position[clusters] = np.arange(len(clusters))
        counts = np.zeros(len(clusters), dtype=np.int64)
        members = labels, position, *self._rows[1:]
        none: NDArray[Any] = np.empty(0, row_dtype(len(labels)))
        if len(labels) <= FEW_ROWS:
            kind = kind_of(self._rows[1], none)
            if arguments_for(split.list_members, kind, lambda: (*members, counts, none)) is None:
                _, weights, weight_step = self._rows
                n_nodes, dtype = len(clusters), none.dtype
                return listed_members(labels, position, weights, weight_step, n_nodes, dtype)
        split.list_members(*members, counts, none)
        rows = np.empty(counts.sum(), none.dtype)
        split.list_members(*members, np.cumsum(counts) - counts, rows)
        return rows, counts

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        """Cut each of the open ``nodes`` in two (see ``Engine.cut``)."""
        n_nodes, n_features = len(nodes), self._n_features
        middles = np.empty(n_nodes, dtype=np.int64)
        weights, scatters = np.zeros((2, n_nodes, 2))
        means = np.zeros((n_nodes, 2, n_features))
        groups = _balanced_groups(nodes.counts, GROUP_NUMBERS // n_features)
        select = 0  # compiled only for those who cut by shares
        if (fractions != split.AT_BEST).any():
            select = address_of(
                split.select_by_weight, *self._rows[1:], self._order, self._keys, 0, 0, 0.0
            )

        def cut_group(g: int) -> None:
            split.cut_nodes(
                *self._rows, self._order, self._keys,
                nodes.handles, nodes.means, fractions, self._moments, select,
                _RULES[rule], n_two_means, groups[g], groups[g + 1],
                np.empty((2, n_features)), np.empty((3, split.BINS)),
                middles, weights, means, scatters,
            )  # fmt: skip

        run_tasks(cut_group, len(groups) - 1, self._n_threads)
        low, high = nodes.handles.T
        sides = (_between(low, middles), middles - low), (_between(middles, high), high - middles)
        left, right = (
            self._nodes(ranges, counts, weights[:, side], means[:, side], scatters[:, side])
            for side, (ranges, counts) in enumerate(sides)
        )
        return Cut(middles > low, left, right)


def _between(low: IntArray, high: IntArray) -> IntArray:
    """Ranges (m, 2) from ``low`` (m,) to ``high`` (m,)."""
    ranges = np.empty((len(low), 2), dtype=np.int64)
    ranges[:, 0], ranges[:, 1] = low, high
    return ranges


def _balanced_groups(counts: IntArray, smallest: int) -> IntArray:
    """Bounds of runs of nodes with about the same number of rows each."""
    n_groups = min(NODE_GROUPS, len(counts), int(counts.sum()) // max(1, smallest))
    if n_groups <= 1:
        return np.array([0, len(counts)])
    ends = np.cumsum(counts)
    # A node goes where its middle lies.
    shares = np.linspace(0, ends[-1], n_groups + 1)[1:-1]
    bounds = np.searchsorted(ends - counts / 2, shares)
    return np.unique(np.concatenate([[0], bounds, [len(counts)]]))
