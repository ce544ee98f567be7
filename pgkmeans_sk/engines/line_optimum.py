"""The global optimum of k-means on a line (algorithm.md, "One dimension").

    sort, merge equal values
    while many positions are left for cuts:
        merge the values between them into bins; solve k-means on the bins
        drop every position of which the bins prove that no cut of an optimum lies there
    solve k-means on single values, cut at the positions left

``kernels/exact_1d.py`` solves, ``kernels/line_atoms.py`` merges and prices what merging hides. Bins
decide nothing but how fast it goes: what they cannot exclude is looked at value by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels import exact_1d, line_atoms
from pgkmeans_sk.results import FloatArray, IntArray

MAX_ATOMS = 2**22
"""Atoms that are solved at once, at most: 150 bytes and some microseconds each."""
MIN_BINS = 2**13
BINS_PER_CLUSTER = 16
FINER = 8
"""How many times more bins are tried after some that excluded less than half of the positions."""
BIN_TRIALS = 12
MARGIN = 1e-9
"""What rounding is allowed for when a position is excluded, relative to the squared error."""
MEAN_ROUNDING = 1e-15
"""By how much rounding may have moved the mean of an atom, in scaled values (at most 1)."""
TIE = 1e-14
"""Relative difference of two paths' costs below which they count as equal."""


def is_affordable(n_values: int, n_clusters: int) -> bool:
    """Whether the optimum of so many distinct values is worth a try.

    Up to ``MAX_ATOMS`` values it always is, for any number of clusters K. Beyond, bins have to
    narrow down where the cuts lie, and for that each cluster takes some 8 K of them.
    """
    return min(n_values, 8 * n_clusters**2) <= MAX_ATOMS


def optimal_centers(
    values: NDArray[np.floating],
    weights: FloatArray | None,
    n_clusters: int,
    min_bins: int = MIN_BINS,
) -> FloatArray | None:
    """Centres (K,), rising, of the clustering with the least weighted squared error of all.

    Parameters
    ----------
    values : ndarray of shape (n,), float32 or float64
        In any order; not written.
    weights : ndarray of shape (n,), float64, or None for ones
        Weights >= 0.
    n_clusters : int
        K, at least 1.
    min_bins : int
        Bins of the first, coarse picture; the result does not depend on it.

    Returns
    -------
    ndarray of shape (n_clusters,), float64, or None
        None where fewer values than K differ, or where it would take too long (``is_affordable``).
    """
    line = _sorted_line(values, weights)
    n_values = len(line.values)
    if n_values < n_clusters or not is_affordable(n_values, n_clusters):
        return None
    cuts = optimal_cuts(line, n_clusters, min_bins)
    return None if cuts is None else line.centers(cuts)


@dataclass(frozen=True)
class Line:
    """Sorted distinct values and how they are scaled; ``positions`` lie between them."""

    values: NDArray[np.floating]  # (m,)
    weights: FloatArray  # (m,), > 0
    origin: float
    scale: float

    def atoms(self, edges: IntArray, solid: NDArray[np.bool_]) -> Atoms:
        """Values merged between each position of ``edges`` (n + 1,) and the next."""
        moments = np.empty((4, len(edges) - 1))
        frame = self.origin, self.scale
        line_atoms.measure_atoms(
            self.values, self.weights, *frame, edges, solid, 0, len(solid), *moments
        )
        return Atoms(self, edges, solid, *moments)

    def centers(self, cuts: IntArray) -> FloatArray:
        """Means of the values between each of ``cuts`` (K + 1,) and the next, unscaled."""
        means = self.atoms(cuts, np.ones(len(cuts) - 1, dtype=bool)).means
        return means / self.scale + self.origin


def _sorted_line(values: NDArray[np.floating], weights: FloatArray | None) -> Line:
    """The distinct values in order, with their weights; those of hardly any weight left out."""
    if weights is None:
        kept, step = np.ones(1), 0
        ordered = np.array(values)
        ordered.sort()
    else:
        kept, step = weights * _scale_for(weights.max()), 1
        positive = np.flatnonzero(kept > np.finfo(np.float64).tiny)
        order = positive[np.argsort(values[positive])]
        ordered, kept = np.array(values[order]), kept[order]
    totals = np.empty(len(ordered))
    n_values = line_atoms.collapse(ordered, kept, step, totals)
    ordered = ordered[:n_values]
    # Floats are densest around 0, so differences to the value next to 0 lose the fewest digits.
    first, last = float(ordered[0]), float(ordered[-1])
    origin = min(max(0.0, first), last)
    scale = _scale_for(max(last - origin, origin - first))
    return Line(ordered, totals[:n_values], origin, scale)


def _scale_for(largest: float) -> float:
    """The power of two that brings ``largest`` into [1/2, 1), or near if it hardly exists."""
    return float(2.0 ** -max(int(np.frexp(largest)[1]), -1000))


def optimal_cuts(line: Line, n_clusters: int, min_bins: int = MIN_BINS) -> IntArray | None:
    """Positions 0, ..., m (K + 1,) that bound the clusters of an optimum; None if unaffordable."""
    n_values = len(line.values)
    if n_clusters == 1:
        return np.array([0, n_values])
    windows = np.array([[1, n_values - 1]])
    n_bins = min(max(min_bins, BINS_PER_CLUSTER * n_clusters), MAX_ATOMS // 2)
    penalty = None
    n_positions = n_values - 1
    while n_positions > 2 * n_bins:
        atoms = _binned(line, windows, n_bins)
        before = n_positions
        if len(atoms) > n_clusters:
            path = solve(atoms, n_clusters, penalty)
            penalty = path.penalty
            narrower = possible_windows(atoms, path)
            windows = windows if narrower is None else narrower
            n_positions = int((windows[:, 1] - windows[:, 0] + 1).sum())
        if 2 * n_positions > before:
            if n_bins >= MAX_ATOMS // 2:
                return None
            n_bins = min(FINER * n_bins, MAX_ATOMS // 2)
    atoms = line.atoms(*_single_values(line, windows, n_positions))
    return atoms.edges[solve(atoms, n_clusters, penalty).nodes]


# ---------------------------------------------------------------- atoms


@dataclass(frozen=True)
class Atoms:
    """Runs of neighbouring values, each merged into one."""

    line: Line
    edges: IntArray  # (n + 1,) positions
    solid: NDArray[np.bool_]  # (n,) no cut may lie inside
    weights: FloatArray  # (n,)
    means: FloatArray  # (n,)
    scatters: FloatArray  # (n,)
    deviations: FloatArray  # (n,)

    def __len__(self) -> int:
        return len(self.means)


Edges = tuple[IntArray, NDArray[np.bool_]]


def _merged(line: Line, windows: IntArray, limit: float, capacity: int) -> Edges | None:
    """Edges and solidity of the atoms for a limit; None if they are more than the capacity."""
    size = capacity + len(windows) + 3
    edges, solid = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.bool_)
    n = line_atoms.cut_into_bins(
        line.values, line.weights, line.scale, windows, limit, edges, solid
    )
    return None if n < 0 else (edges[: n + 1].copy(), solid[:n].copy())


def _single_values(line: Line, windows: IntArray, n_positions: int) -> Edges:
    """An edge at every position of the windows."""
    edges = _merged(line, windows, -1.0, n_positions)
    assert edges is not None
    return edges


def _binned(line: Line, windows: IntArray, n_bins: int) -> Atoms:
    """Atoms with about ``n_bins`` bins inside the windows; any number is right, few are slow."""
    too_fine, coarse_enough = 0.0, np.inf
    found = _merged(line, windows, np.inf, n_bins)
    limit = 8.0 * float(line.weights.sum()) / n_bins**3
    for _ in range(BIN_TRIALS):
        merged = _merged(line, windows, limit, 2 * n_bins)
        if merged is None:
            too_fine, step = limit, 64.0
        else:
            coarse_enough, found = limit, merged
            filled = len(merged[1]) / n_bins
            if filled > 0.5:
                break
            step = max(filled, 1e-3) ** 3
        limit *= step
        if not too_fine < limit < coarse_enough:
            limit = np.sqrt(too_fine * coarse_enough)
    assert found is not None
    return line.atoms(*found)


# ---------------------------------------------------------------- paths


@dataclass(frozen=True)
class Path:
    """Nodes from 0 to n (K + 1,), their squared error between atoms, and the penalty used."""

    nodes: IntArray
    error: float
    penalty: float

    @property
    def n_clusters(self) -> int:
        """K, one for each step between two nodes."""
        return len(self.nodes) - 1

    def cost(self, penalty: float) -> float:
        """Squared error plus the price of the clusters."""
        return self.error + penalty * self.n_clusters


class _Solver:
    """Buffers for paths over atoms, from left to right or mirrored."""

    def __init__(self, weights: FloatArray, means: FloatArray) -> None:
        n = len(means)
        self.prefixes = np.empty((n + 1, 6))
        exact_1d.sum_prefixes(weights, means, self.prefixes)
        self._atoms = weights, means, self.prefixes
        self.errors = np.empty(n + 1)
        self.counts, *self._work, self._nodes = np.empty((4, n + 1), dtype=np.int64)

    def run(self, charges: FloatArray, penalty: float) -> Path:
        """The cheapest path; ``errors`` and ``counts`` are those of the paths to all nodes."""
        exact_1d.find_paths(
            *self._atoms, charges, penalty, self.errors, self.counts, *self._work, self._nodes
        )
        nodes = self._nodes[: self.counts[-1] + 1].copy()
        return Path(nodes, float(self.errors[-1]), penalty)

    def error(self, nodes: IntArray) -> float:
        """Squared error of the clusters between ``nodes``."""
        return float(sum(exact_1d.cluster_error(*self._atoms, i, j) for i, j in pairwise(nodes)))

    def mixture(self, few: Path, many: Path, n_clusters: int, penalty: float) -> Path:
        """A path of ``n_clusters`` out of the beginning of ``many`` and the end of ``few``.

        Of two cheapest paths p and q, take the first step p_i -> p_(i+1) that spans the step
        q_(i+s) -> q_(i+s+1), s the clusters wanted beyond those of p. Changing over there, both
        ways, costs no more together (Monge), and nothing is cheaper than cheapest.
        """
        p, q = few.nodes, many.nodes
        s = n_clusters - few.n_clusters
        i = int(np.argmax(p[1:] >= q[s + 1 : s + len(p)]))
        nodes = np.concatenate([q[: i + s + 1], p[i + 1 :]])
        return Path(nodes, self.error(nodes), penalty)


def solve(atoms: Atoms, n_clusters: int, guess: float | None = None) -> Path:
    """The path of least error with ``n_clusters`` clusters, at most one for each atom.

    Looks for a penalty of which the cheapest path has that many, between the best paths known with
    too few and with too many clusters. Where the slope between these two is the penalty, either
    there is a cheaper path between them, or all between are equally cheap and a mixture will do.
    """
    n = len(atoms)
    solver = _Solver(atoms.weights, atoms.means)
    charges = np.zeros(n + 1)
    whole, w = np.array([0, n]), atoms.weights
    error = solver.error(whole)
    few = Path(whole, error, error)  # a higher penalty cannot be
    pairs = np.diff(atoms.means) ** 2 / (1.0 / w[1:] + 1.0 / w[:-1])
    many = Path(np.arange(n + 1), 0.0, pairs.min(initial=np.inf))  # nothing is worth merging
    if n_clusters in (1, n):
        return few if n_clusters == 1 else many
    penalty = 2.0 * few.error / n_clusters**3 if guess is None else guess
    trial = 0
    while True:
        trial += 1
        slope = (few.error - many.error) / (many.n_clusters - few.n_clusters)
        is_slope = trial % 4 == 3 or not many.penalty < penalty < few.penalty
        if is_slope:
            penalty = slope
        path = solver.run(charges, penalty)
        if path.n_clusters == n_clusters:
            return path
        between = few.n_clusters < path.n_clusters < many.n_clusters
        cheaper = path.cost(penalty) < few.cost(penalty) * (1.0 - TIE)
        if is_slope and not (between and cheaper):
            return solver.mixture(few, many, n_clusters, penalty)
        if few.n_clusters <= path.n_clusters < n_clusters:
            few = path
        elif n_clusters < path.n_clusters <= many.n_clusters:
            many = path
        if trial % 4 == 3:  # halve the bracket, by magnitude, lest it shrink from one end only
            penalty = np.sqrt(few.penalty) * np.sqrt(many.penalty)
        else:
            penalty = _interpolated(few, many, path, n_clusters)


def _interpolated(few: Path, many: Path, last: Path, n_clusters: int) -> float:
    """Where the penalty is expected, if it falls with a power of the number of clusters."""
    if few.n_clusters == 1 or not 0.0 < many.penalty < few.penalty:
        return last.penalty * (last.n_clusters / n_clusters) ** 3  # as for a smooth density
    power = np.log(many.penalty / few.penalty) / np.log(many.n_clusters / few.n_clusters)
    return float(few.penalty * (n_clusters / few.n_clusters) ** power)


# ---------------------------------------------------------------- excluding positions


def possible_windows(atoms: Atoms, path: Path) -> IntArray | None:
    """First and last position (q, 2) of the stretches where a cut of an optimum may lie.

    ``path`` is optimal over the atoms; as a clustering of the values it has some error U. Cheapest
    paths from both ends to node e, less what merging may hide at each node that they pass (Note
    [Charges]), less the penalty of the K clusters: no optimum with a cut at e has less error. So e
    is excluded where that exceeds U. An optimum with several cuts in one atom passes a node several
    times, for a penalty less a charge each; where that may be negative, nothing is known: None.
    """
    n = len(atoms)
    line, scatter = atoms.line, float(atoms.scatters.sum())
    upper = scatter + path.error
    by_atom = np.empty(n)
    line_atoms.charge_atoms(
        line.values, line.origin, line.scale, atoms.edges, atoms.weights, atoms.deviations, upper,
        by_atom,
    )  # fmt: skip
    # The centres on both sides of node e part the means of atoms e-1 and e in the middle between
    # them, which lies in one of these two atoms, if in any.
    charges = np.maximum(np.append(by_atom, 0.0), np.append(0.0, by_atom))
    if charges.max() >= path.penalty:
        return None
    forward = _Solver(atoms.weights, atoms.means)
    forward.run(charges, path.penalty)
    backward = _Solver(atoms.weights[::-1].copy(), -atoms.means[::-1])
    backward.run(charges[::-1].copy(), path.penalty)
    costs = forward.errors + backward.errors[::-1] + charges
    n_clusters = forward.counts + backward.counts[::-1] - path.n_clusters
    lower = scatter + costs + path.penalty * n_clusters
    moved = MEAN_ROUNDING * np.sqrt(atoms.weights.sum())
    rounding = MARGIN * (upper + path.penalty * path.n_clusters)
    rounding += moved * (2.0 * np.sqrt(upper) + moved)
    nodes = 1 + np.flatnonzero(lower[1:-1] <= upper + rounding)
    # For the same reason, the cut lies between these two means.
    first = np.where(atoms.solid[nodes - 1], atoms.edges[nodes], atoms.edges[nodes - 1] + 1)
    last = np.where(atoms.solid[nodes], atoms.edges[nodes], atoms.edges[nodes + 1] - 1)
    apart = first[1:] > last[:-1] + 1
    begins, ends = np.append(True, apart), np.append(apart, True)
    return np.column_stack([first[begins], last[ends]])
