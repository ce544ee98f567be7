"""The members of some nodes on a torch device, one after the other, and what is summed over them.

Note [Sections]
~~~~~~~~~~~~~~~
Nodes may be those of several problems, whose rows follow on each other. The nodes of a problem, or
so many of them as are cut together, are a section. Sums are added up section by section, in blocks
and pieces that begin anew with each, and weights are made whole by the heaviest node of each: so
what becomes of a problem has the same bits as if it were alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pgkmeans_sk.engines.torch_memory import block_rows, sum_rows
from pgkmeans_sk.engines.torch_source import RowSource
from pgkmeans_sk.engines.torch_sums import (
    ends_of_runs,
    lowest_where,
    row_sums,
    starts_of_pieces,
    sums_of_runs,
)
from pgkmeans_sk.results import FloatArray, IntArray

POWER_STEPS = 6
POWER_SAMPLE = 2**13
"""Members of a node that the power iteration looks at; the direction need not be exact."""


class Block(NamedTuple):
    """Some of the members that are looked at together."""

    members: slice
    nodes: slice  # that some of them belong to
    starts: torch.Tensor | None  # of pieces (Note [Sections]); None if they are of one section


class Members:
    """The members of some nodes, one after the other, and what is summed up over them."""

    def __init__(
        self,
        source: RowSource,
        weights: torch.Tensor | None,
        rows: torch.Tensor,
        counts: IntArray,
        sections: IntArray | None = None,
    ) -> None:
        self._source, self._weights, self.rows = source, weights, rows
        self._device = source.device
        self.n_nodes, self.n_features = len(counts), source.shape[1]
        self._host_counts, self._host_ends = counts, np.cumsum(counts)
        self._sections = np.array([len(counts)]) if sections is None else sections
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
        kept = self.count(chosen).cpu().numpy()
        return Members(self._source, self._weights, self.rows[chosen], kept, self._sections)

    @cached_property
    def _blocks(self) -> list[tuple[slice, slice, torch.Tensor | None]]:
        """Bounds of blocks, which nodes lie there, and where pieces of sums begin.

        Blocks of a section depend on its shape alone; several sections that are a block each make
        one together.
        """
        size = sum_rows(self.n_features)
        several = max(size, block_rows(self._device, 16 * (self.n_features + 2)))
        ends = np.append(0, self._host_ends)[np.append(0, np.cumsum(self._sections))]
        sizes = np.diff(ends)
        found: list[tuple[slice, slice, torch.Tensor | None]] = []
        first = 0
        while first < len(sizes):
            last = first + 1
            if sizes[first] <= size:
                last = int(np.searchsorted(ends, ends[first] + several, "right")) - 1
                too_long = np.flatnonzero(sizes[first:last] > size)
                last = first + int(too_long[0]) if len(too_long) else max(last, first + 1)
            low, high = int(ends[first]), int(ends[last])
            starts = None
            if last > first + 1:
                starts = starts_of_pieces(sizes[first:last], self._device)
            step = size if last == first + 1 else max(1, high - low)
            for start in range(low, high, step):
                stop = min(high, start + step)
                nodes = np.searchsorted(self._host_ends, [start, stop - 1], "right")
                found.append((slice(start, stop), slice(int(nodes[0]), int(nodes[1]) + 1), starts))
            first = last
        return found

    def blocks(self) -> Iterator[tuple[Block, torch.Tensor, torch.Tensor]]:
        """Block by block: where it is, the rows of its members in float64, and their nodes."""
        for members, nodes, starts in self._blocks:
            rows = self._source.take(self.rows[members]).to(torch.float64)
            yield Block(members, nodes, starts), rows, self.node[members]

    def weigh(self, values: torch.Tensor, block: Block) -> torch.Tensor:
        """``values`` (b, c) of the members of a block, times their weights."""
        if self._weights is None:
            return values
        return values * self._weights[self.rows[block.members]][:, None]

    def add_to(
        self, totals: torch.Tensor, values: torch.Tensor, node: torch.Tensor, block: Block
    ) -> None:
        """Add ``values`` (b, c) of a block to the ``totals`` (P, c) of its nodes."""
        first, stop = block.nodes.start, block.nodes.stop
        ends = ends_of_runs(node - first, stop - first)
        totals[block.nodes] += sums_of_runs(values, ends, block.starts)

    def new_totals(self, n_columns: int) -> torch.Tensor:
        return torch.zeros((self.n_nodes, n_columns), dtype=torch.float64, device=self._device)

    # ---------------------------------------------------------------- what is known of the nodes

    def moments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights (P,), means (P, d) and scatters (P,)."""
        pivots = self.firsts()
        totals = self.new_totals(self.n_features + 1)
        for block, rows, node in self.blocks():
            values = torch.cat([rows - pivots[node], torch.ones_like(rows[:, :1])], dim=1)
            self.add_to(totals, self.weigh(values, block), node, block)
        weights = totals[:, -1]
        present = torch.where(weights > 0.0, weights, 1.0)
        means = pivots + totals[:, :-1] / present[:, None]
        scatters = self.new_totals(1)
        for block, rows, node in self.blocks():
            values = row_sums((rows - means[node]).square_())[:, None]
            self.add_to(scatters, self.weigh(values, block), node, block)
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
        for block, rows, node in self.blocks():
            keys[block.members] = row_sums((rows - points[node]).square_())
        return keys

    def positions(self, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Position (m,) of each member along the direction (P, d) of its node, from an origin."""
        keys = torch.empty(len(self.rows), dtype=torch.float64, device=self._device)
        for block, rows, node in self.blocks():
            keys[block.members] = row_sums((rows - origins[node]).mul_(directions[node]))
        return keys

    def principal_directions(self, means: torch.Tensor, poles: torch.Tensor) -> torch.Tensor:
        """Direction (P, d) of largest variance by power iteration, beginning at the poles."""
        steps = 1 + (self.counts - 1) // POWER_SAMPLE
        few = self
        if self._host_counts.max() > POWER_SAMPLE:
            few = self.only(self.places() % steps[self.node] == 0)
        directions = poles - means
        for _ in range(POWER_STEPS):
            lengths = row_sums(directions.square()).sqrt_()[:, None]
            directions = directions / torch.where(lengths > 0.0, lengths, 1.0)
            totals = few.new_totals(self.n_features + 1)
            for block, rows, node in few.blocks():
                errors = rows - means[node]
                coordinates = few.weigh(row_sums(errors * directions[node])[:, None], block)
                values = torch.cat([errors * coordinates, coordinates], dim=1)
                few.add_to(totals, values, node, block)
            directions = totals[:, :-1]
        return directions

    def halves(self, is_left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means (P, d) of the members that ``is_left`` (m,), and of the others."""
        d = self.n_features
        totals = self.new_totals(2 * d + 2)
        pivots = self.firsts()
        for block, rows, node in self.blocks():
            shares = is_left[block.members].to(torch.float64)[:, None]
            values = torch.cat([rows - pivots[node], torch.ones_like(shares)], dim=1)
            values = self.weigh(values, block)
            self.add_to(totals, torch.cat([values * shares, values * (1 - shares)], 1), node, block)
        sides = []
        for side in (totals[:, : d + 1], totals[:, d + 1 :]):
            weights = torch.where(side[:, -1:] > 0.0, side[:, -1:], 1.0)
            sides.append(pivots + side[:, :-1] / weights)
        return sides[0], sides[1]

    def heaviest(self, weights: FloatArray) -> FloatArray:
        """The largest of the ``weights`` (P,) of the nodes in the section of each, (P,)."""
        firsts = np.cumsum(self._sections) - self._sections
        return np.repeat(np.maximum.reduceat(weights, firsts), self._sections)

    def count(self, chosen: torch.Tensor) -> torch.Tensor:
        """How many members of each node are ``chosen`` (m,)."""
        return torch.zeros_like(self.counts).index_add_(0, self.node, chosen.to(torch.int64))
