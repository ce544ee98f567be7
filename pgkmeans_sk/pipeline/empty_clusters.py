"""Cautious partitioning: how no cluster stays empty (algorithm.md, 1c).

Stated by the paper (arXiv 2306.14031): when clusters are empty, large clusters are cautiously
partitioned into sub-clusters. Our reading: one pass fills all empty clusters. Donors come off a
heap by squared error, not by population (a populous but tight cluster is left alone); each is cut
in two on its own rows, and both halves go back on the heap. Only the donors' rows are looked at,
then one assignment of all rows follows.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import FloatArray, IntArray, RepairRecord, State

TWO_MEANS_STEPS = 4
MAX_CAUTIOUS_PASSES = 10
"""After so many passes in one iteration, rows are taken as centres: that needs at most K passes."""


def settle(
    engine: Engine, centers: NDArray[np.floating], settings: Settings, journal: Journal
) -> State:
    """Assign all rows to ``centers`` and fill empty clusters until there are none.

    The inertia never rises on the way. Clusters stay empty only if every row lies on a centre,
    that is, if there are fewer distinct rows than clusters.
    """
    return fill(engine, State(centers, engine.assign(centers)), settings, journal)


def fill(engine: Engine, state: State, settings: Settings, journal: Journal) -> State:
    """The same from a state that is that of the engine's labels."""
    n_passes = 0
    while len(state.assignment.empty):
        repaired: State | None = None
        donors: tuple[int, ...] = ()
        if n_passes < MAX_CAUTIOUS_PASSES:
            repaired, donors = _partition_donors(engine, state, settings)
        if repaired is None:
            repaired, donors = _take_farthest_rows(engine, state), ()
        if repaired is None:
            break
        journal.repairs.append(
            RepairRecord(
                journal.iteration,
                len(state.assignment.empty),
                donors,
                state.inertia,
                repaired.inertia,
            )
        )
        state = repaired
        n_passes += 1
    return state


def _partition_donors(
    engine: Engine, state: State, settings: Settings
) -> tuple[State | None, tuple[int, ...]]:
    """The state after one cautious pass and its donors; None unless the inertia fell."""
    empty = state.assignment.empty
    errors = state.assignment.sq_errors
    donors = np.argsort(-errors, kind="stable")[: len(empty)]
    donors = donors[errors[donors] > 0.0]
    if not len(donors):
        return None, ()
    forest = _Forest(engine, donors)
    for cluster in empty:
        if not forest.divide_worst(cluster):
            break
    slots, means = forest.leaves()
    centroids = state.centers.astype(np.float64)
    centroids[slots] = means
    centers = settings.place(centroids, state.centers, engine.dtype)
    repaired = State(centers, engine.assign(centers))
    if repaired.inertia < state.inertia:
        return repaired, tuple(int(donor) for donor in forest.divided)
    engine.assign(state.centers)  # the engine's labels are those of the state again
    return None, ()


class _Forest:
    """Donor clusters and their parts, ordered by squared error."""

    def __init__(self, engine: Engine, donors: IntArray) -> None:
        self._engine = engine
        self._nodes = engine.open_clusters(donors)
        self._slots = list(donors)  # which centre each node would get
        self._donors = list(donors)  # which cluster each node came from
        self._children: dict[int, tuple[int, int] | None] = {}
        self._heap = [(-scatter, p) for p, scatter in enumerate(self._nodes.scatters)]
        heapq.heapify(self._heap)
        self._indivisible: list[int] = []
        self.divided: list[int] = []

    def divide_worst(self, slot: int) -> bool:
        """Cut the node with the largest squared error; its second part gets centre ``slot``."""
        while self._heap:
            _, worst = heapq.heappop(self._heap)
            if worst not in self._children:
                # Cutting several at once costs one pass; the order of the heap decides later.
                ahead = [p for _, p in heapq.nsmallest(len(self._slots), self._heap)]
                self._cut([worst, *(p for p in ahead if p not in self._children)])
            parts = self._children[worst]
            if parts is None:
                self._indivisible.append(worst)
                continue
            left, right = parts
            self._slots[left], self._slots[right] = self._slots[worst], slot
            if self._donors[worst] not in self.divided:
                self.divided.append(self._donors[worst])
            for part in parts:
                heapq.heappush(self._heap, (-float(self._nodes.scatters[part]), part))
            return True
        return False

    def _cut(self, which: list[int]) -> None:
        """Cut the nodes ``which``; their parts join the list of nodes."""
        at_half = np.full(len(which), 0.5)
        cut = self._engine.cut(self._nodes[np.array(which)], at_half, "principal", TWO_MEANS_STEPS)
        first = len(self._nodes)
        self._nodes = self._nodes + cut.left + cut.right
        for i, p in enumerate(which):
            left, right = first + i, first + len(which) + i
            self._children[p] = (left, right) if cut.possible[i] else None
        self._slots += [-1] * (2 * len(which))
        self._donors += [self._donors[p] for p in which] * 2

    def leaves(self) -> tuple[IntArray, FloatArray]:
        """Centre numbers and means of the parts that donors were divided into."""
        parts = [p for _, p in self._heap if p not in self._roots()]
        parts += [p for p in self._indivisible if p not in self._roots()]
        return np.array([self._slots[p] for p in parts], dtype=np.int64), self._nodes.means[parts]

    def _roots(self) -> range:
        """Numbers of the nodes that are whole donors."""
        return range(len(set(self._donors)))


def _take_farthest_rows(engine: Engine, state: State) -> State | None:
    """Put each empty centre on a row far from its own: it owns that row, so this always helps."""
    empty = state.assignment.empty
    rows = engine.farthest_rows(state.centers, len(empty))
    if not len(rows):
        return None
    centers = state.centers.copy()
    centers[empty[: len(rows)]] = rows
    return State(centers, engine.assign(centers))
