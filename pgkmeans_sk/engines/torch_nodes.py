"""Sets of rows on a torch device: nodes of a tree, or clusters to be split.

The steps are those of ``kernels/split.py``, taken for all nodes at once: the members of the nodes
stand one after the other in one tensor of row numbers, and a cut brings each node's own into the
order left, right. Equal rows have equal keys, to the last bit, so that they stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from pgkmeans_sk.engines.torch_memory import sum_rows
from pgkmeans_sk.engines.torch_source import RowSource
from pgkmeans_sk.engines.torch_sums import ends_of_runs, lowest_where, row_sums, sums_of_runs
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes

POWER_STEPS = 6
POWER_SAMPLE = 2**13
"""Members of a node that the power iteration looks at; the direction need not be exact."""
FEW_MOVES = 64
"""Two centres are at rest when fewer than one member in so many changes sides."""
GROUP_NUMBERS = 2**22
"""Nodes are cut in groups, so that their bins and vectors are not more numbers than this."""


class Members:
    """The members of some nodes, one after the other, and what is summed up over them."""

    def __init__(
        self,
        source: RowSource,
        weights: torch.Tensor | None,
        rows: torch.Tensor,
        counts: IntArray,
    ) -> None:
        self._source, self._weights, self.rows = source, weights, rows
        self._device = source.device
        self.n_nodes, self.n_features = len(counts), source.shape[1]
        self._host_ends = np.cumsum(counts)
        self.ends = torch.from_numpy(self._host_ends).to(self._device)
        self.counts = torch.from_numpy(np.asarray(counts, dtype=np.int64)).to(self._device)
        nodes = torch.arange(self.n_nodes, device=self._device)
        self.node = torch.repeat_interleave(nodes, self.counts, output_size=len(rows))

    @property
    def weights(self) -> torch.Tensor | None:
        """Weights (m,), float64; None stands for ones."""
        return None if self._weights is None else self._weights[self.rows]

    def places(self) -> torch.Tensor:
        """How many members of its node stand before each one, (m,)."""
        return (
            torch.arange(len(self.rows), device=self._device)
            - ((self.ends - self.counts)[self.node])
        )

    def only(self, chosen: torch.Tensor) -> Members:
        """The chosen (m,) among them."""
        kept = torch.zeros_like(self.counts).index_add_(0, self.node, chosen.to(torch.int64))
        return Members(self._source, self._weights, self.rows[chosen], kept.cpu().numpy())

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, slice]]:
        """Block by block: members, their rows in float64, their nodes; and which nodes these are.

        Blocks depend on the shape of the problem alone.
        """
        size = sum_rows(self.n_features)
        for start in range(0, len(self.rows), size):
            block = slice(start, min(len(self.rows), start + size))
            first, last = np.searchsorted(self._host_ends, [block.start, block.stop - 1], "right")
            rows = self._source.take(self.rows[block]).to(torch.float64)
            yield block, rows, self.node[block], slice(int(first), int(last) + 1)

    def weigh(self, values: torch.Tensor, block: slice) -> torch.Tensor:
        """``values`` (b, c) of the members of a block, times their weights."""
        if self._weights is None:
            return values
        return values * self._weights[self.rows[block]][:, None]

    def add_to(
        self, totals: torch.Tensor, values: torch.Tensor, node: torch.Tensor, which: slice
    ) -> None:
        """Add ``values`` (b, c) of a block to the ``totals`` (P, c) of its nodes."""
        ends = ends_of_runs(node - which.start, which.stop - which.start)
        totals[which] += sums_of_runs(values, ends)

    def new_totals(self, n_columns: int) -> torch.Tensor:
        return torch.zeros((self.n_nodes, n_columns), dtype=torch.float64, device=self._device)

    # ---------------------------------------------------------------- what is known of the nodes

    def moments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights (P,), means (P, d) and scatters (P,)."""
        pivots = self.firsts()
        totals = self.new_totals(self.n_features + 1)
        for block, rows, node, which in self.blocks():
            values = torch.cat([rows - pivots[node], torch.ones_like(rows[:, :1])], dim=1)
            self.add_to(totals, self.weigh(values, block), node, which)
        weights = totals[:, -1]
        present = torch.where(weights > 0.0, weights, 1.0)
        means = pivots + totals[:, :-1] / present[:, None]
        scatters = self.new_totals(1)
        for block, rows, node, which in self.blocks():
            values = row_sums((rows - means[node]).square_())[:, None]
            self.add_to(scatters, self.weigh(values, block), node, which)
        return weights, means, scatters[:, 0]

    def firsts(self) -> torch.Tensor:
        """A member (P, d) of each node: sums relative to it are exact where all rows are equal."""
        if not len(self.rows):
            return self.new_totals(self.n_features)
        places = (self.ends - self.counts).clamp_(max=len(self.rows) - 1)  # some may have none
        return self._source.take(self.rows[places]).to(torch.float64)

    def poles(self, means: torch.Tensor) -> torch.Tensor:
        """The member (P, d) farthest from the mean: of several, that of lowest number."""
        sq_dists = self.sq_distances(means)
        largest = torch.full_like(means[:, 0], -1.0).scatter_reduce_(0, self.node, sq_dists, "amax")
        is_farthest = sq_dists == largest[self.node]
        numbers = lowest_where(is_farthest, self.node, self.rows, self.n_nodes)
        return self._source.take(numbers.clamp_(max=self._source.shape[0] - 1)).to(torch.float64)

    def sq_distances(self, points: torch.Tensor) -> torch.Tensor:
        """Squared distance (m,) of each member to the point (P, d) of its node."""
        keys = torch.empty(len(self.rows), dtype=torch.float64, device=self._device)
        for block, rows, node, _ in self.blocks():
            keys[block] = row_sums((rows - points[node]).square_())
        return keys

    def positions(self, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Position (m,) of each member along the direction (P, d) of its node, from an origin."""
        keys = torch.empty(len(self.rows), dtype=torch.float64, device=self._device)
        for block, rows, node, _ in self.blocks():
            keys[block] = row_sums((rows - origins[node]).mul_(directions[node]))
        return keys

    def principal_directions(self, means: torch.Tensor, poles: torch.Tensor) -> torch.Tensor:
        """Direction (P, d) of largest variance by power iteration, beginning at the poles."""
        steps = 1 + (self.counts - 1) // POWER_SAMPLE
        few = self
        if int(self.counts.max()) > POWER_SAMPLE:
            few = self.only(self.places() % steps[self.node] == 0)
        directions = poles - means
        for _ in range(POWER_STEPS):
            lengths = row_sums(directions.square()).sqrt_()[:, None]
            directions = directions / torch.where(lengths > 0.0, lengths, 1.0)
            totals = few.new_totals(self.n_features + 1)
            for block, rows, node, which in few.blocks():
                errors = rows - means[node]
                coordinates = few.weigh(row_sums(errors * directions[node])[:, None], block)
                values = torch.cat([errors * coordinates, coordinates], dim=1)
                few.add_to(totals, values, node, which)
            directions = totals[:, :-1]
        return directions

    def halves(self, is_left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means (P, d) of the members that ``is_left`` (m,), and of the others."""
        d = self.n_features
        totals = self.new_totals(2 * d + 2)
        pivots = self.firsts()
        for block, rows, node, which in self.blocks():
            shares = is_left[block].to(torch.float64)[:, None]
            values = torch.cat([rows - pivots[node], torch.ones_like(shares)], dim=1)
            values = self.weigh(values, block)
            self.add_to(totals, torch.cat([values * shares, values * (1 - shares)], 1), node, which)
        sides = []
        for side in (totals[:, : d + 1], totals[:, d + 1 :]):
            weights = torch.where(side[:, -1:] > 0.0, side[:, -1:], 1.0)
            sides.append(pivots + side[:, :-1] / weights)
        return sides[0], sides[1]

    def count(self, chosen: torch.Tensor) -> torch.Tensor:
        """How many members of each node are ``chosen`` (m,)."""
        return torch.zeros_like(self.counts).index_add_(0, self.node, chosen.to(torch.int64))


class TorchNodes:
    """The row numbers of the nodes that are open, node by node in one tensor.

    Opening others forgets them. While they are open they take 8 bytes for each of their rows, and
    about 50 while they are cut.
    """

    def __init__(self, source: RowSource, weights: torch.Tensor | None) -> None:
        self._source, self._weights, self._device = source, weights, source.device
        self._order = torch.empty(0, dtype=torch.int64, device=source.device)

    def open(self, rows: torch.Tensor, counts: IntArray) -> Nodes:
        """Nodes with so many ``counts`` (P,) of the ``rows`` (m,) each, in their order."""
        self._order = rows
        ends = np.cumsum(counts)
        ranges = np.column_stack([ends - counts, ends])
        return self._nodes(Members(self._source, self._weights, rows, counts), ranges)

    def _nodes(self, members: Members, ranges: IntArray) -> Nodes:
        weights, means, scatters = (part.cpu().numpy() for part in members.moments())
        return Nodes(ranges, np.diff(ranges)[:, 0], weights, means, scatters)

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        """Cut each of the open ``nodes`` in two (see ``Engine.cut``)."""
        size = max(1, GROUP_NUMBERS // (3 * BINS + 4 * self._source.shape[1]))
        parts = [
            self._cut_group(nodes[first : first + size], fractions[first : first + size], rule,
                            n_two_means)
            for first in range(0, len(nodes), size)
        ]  # fmt: skip
        cut = parts[0]
        for part in parts[1:]:
            possible = np.concatenate([cut.possible, part.possible])
            cut = Cut(possible, cut.left + part.left, cut.right + part.right)
        return cut

    def _cut_group(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        lows, counts = nodes.handles[:, 0], nodes.counts
        starts = torch.from_numpy(lows - (np.cumsum(counts) - counts)).to(self._device)
        n_members = int(counts.sum())
        per_node = torch.from_numpy(np.asarray(counts)).to(self._device)
        where = torch.repeat_interleave(starts, per_node, output_size=n_members)
        where += torch.arange(n_members, device=self._device)
        members = Members(self._source, self._weights, self._order[where], counts)
        is_left, possible = self._sides(members, nodes, fractions, rule)
        is_left = _two_means(members, is_left, possible, n_two_means)

        # Left members first; both in the order in which they stood.
        sides = torch.argsort(2 * members.node + torch.logical_not(is_left), stable=True)
        self._order[where] = members.rows[sides]
        n_left = np.where(possible.cpu().numpy(), members.count(is_left).cpu().numpy(), 0)
        child_counts = np.column_stack([n_left, counts - n_left])
        children = Members(self._source, self._weights, members.rows[sides], child_counts.ravel())
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
            weights = whole_weights(weights, float(nodes.weights.max()))
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
    node = torch.from_numpy(place).to(labels.device)[labels]
    chosen = node >= 0
    if has_weight is not None:
        chosen &= has_weight
    rows = chosen.nonzero().squeeze(1)
    node = node[rows]
    counts = torch.bincount(node, minlength=len(clusters))
    return rows[torch.argsort(node, stable=True)], counts.cpu().numpy()
