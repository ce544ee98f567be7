"""Some consecutive rows that are at hand for a moment, and what can be done with them.

Engines for rows in blocks work through tiles. Sums over all rows keep to the order of
``chunks.py``: a *sum* below knows how to add a run of rows to what was added up before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.closest import closest_of_clusters, own_sq_errors
from pgkmeans_sk.engines.merging import row_dtype
from pgkmeans_sk.engines.run_labels import RunCenters
from pgkmeans_sk.kernels import distances, split
from pgkmeans_sk.kernels.nearest import ALL_ROWS, PackedCenters, add_up, assign_dense, pack_centers
from pgkmeans_sk.kernels.points import DensePoints, dense_points
from pgkmeans_sk.results import FloatArray, IntArray

Totals = tuple[NDArray[Any], ...]


class Tile:
    """Rows ``first : first + m`` of all.

    Parameters
    ----------
    rows : ndarray of shape (m, d), float32 or float64
        Not written; at least one.
    weights : ndarray of shape (m,), float64, or None for ones
        Weights >= 0.
    first : int
        Number of the first row.
    labels : ndarray of shape (m,), int32, or None
        Labels, which ``label`` writes; -1 where there are none so far.
    """

    def __init__(
        self,
        rows: NDArray[np.floating],
        weights: FloatArray | None,
        first: int,
        labels: NDArray[np.int32] | None = None,
    ) -> None:
        self.rows, self.first = rows, first
        self.sample_weight = weights
        self.weights = np.ones(1) if weights is None else weights
        self.weight_step = 0 if weights is None else 1
        self._labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def points(self) -> DensePoints:
        return dense_points(self.rows)

    @property
    def labels(self) -> NDArray[np.int32]:
        if self._labels is None:
            self._labels = np.full(len(self), -1, dtype=np.int32)
        return self._labels

    def adopt(self, labels: NDArray[np.int32]) -> None:
        """Take ``labels`` (m,) for those of the tile."""
        self._labels = labels

    @property
    def weighted_rows(self) -> tuple[DensePoints, FloatArray, int]:
        """The rows as kernels take them."""
        return self.points, self.weights, self.weight_step

    @property
    def is_present(self) -> NDArray[np.bool_]:
        """Which rows (m,) have a positive weight."""
        if self.sample_weight is None:
            return np.ones(len(self), dtype=bool)
        return self.sample_weight > 0.0


# ---------------------------------------------------------------- labels


def label(tile: Tile, centers: RunCenters, start: int, stop: int) -> int:
    """Label rows ``start:stop`` of a tile; returns how many labels changed."""
    return centers.label(tile.rows, tile.weighted_rows, start, stop, tile.labels)


# ---------------------------------------------------------------- sums in order


class Sum(Protocol):
    """Something that is added up over all rows, in their order."""

    def zeros(self) -> Totals:
        """What is added to."""

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        """Add rows ``start:stop`` of a tile to ``totals``."""


@dataclass(frozen=True)
class AssignmentSum:
    """Sums (K, d), sizes (K,), squared errors (K, 4) of clusters and how many labels changed (1,).

    With ``is_labelled`` rows have their labels, else they are found on the way.
    """

    centers: NDArray[np.floating]
    origin: NDArray[np.floating]
    is_labelled: bool = False

    @cached_property
    def run_centers(self) -> RunCenters:
        """The centres, for runs that have no labels."""
        return RunCenters(self.centers, self.origin)

    @cached_property
    def _exact_centers(self) -> FloatArray:
        return np.ascontiguousarray(self.centers, dtype=np.float64)

    def zeros(self) -> Totals:
        n_clusters, n_features = self.centers.shape
        return (
            np.zeros((n_clusters, n_features)),
            np.zeros(n_clusters),
            np.zeros((n_clusters, 4)),
            np.zeros(1, dtype=np.int64),
        )

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        if self.is_labelled:
            rows = *tile.weighted_rows, start, stop, self._exact_centers, tile.labels
            add_up(*rows, *totals[:3])
            return
        totals[3][0] += self.run_centers.label(
            tile.rows, tile.weighted_rows, start, stop, tile.labels, totals[:3]
        )


@dataclass(frozen=True)
class UtilitySum:
    """What each centre is good for (K,), see ``Engine.utilities``."""

    centers: NDArray[np.floating]
    origin: NDArray[np.floating]

    @cached_property
    def packed(self) -> PackedCenters:
        return pack_centers(self.centers, self.origin)

    def zeros(self) -> Totals:
        return (np.zeros(len(self.centers)),)

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        part = Tile(tile.rows[start:stop], None, 0)  # its own labels: those of the tile are left
        weights = tile.weights if tile.sample_weight is None else tile.weights[start:stop]
        no_sums = np.empty((0, self.centers.shape[1])), np.empty(0), np.empty((0, 4))
        assign_dense(
            part.points, weights, tile.weight_step, 0, stop - start, self.packed, False,
            part.labels, *no_sums, totals[0], np.empty(0, dtype=tile.rows.dtype), ALL_ROWS,
        )  # fmt: skip


@dataclass(frozen=True)
class MomentSum:
    """First and second moments (d,) of the columns about ``origin`` (d,), and the weight (1,)."""

    origin: FloatArray

    def zeros(self) -> Totals:
        return np.zeros(len(self.origin)), np.zeros(len(self.origin)), np.zeros(1)

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        distances.add_moments(*tile.weighted_rows, start, stop, self.origin, *totals[:2])
        if tile.sample_weight is None:
            totals[2][0] += stop - start
        else:  # one after the other: np.sum adds pairs of halves
            totals[2][0] = np.cumsum(np.append(totals[2], tile.sample_weight[start:stop]))[-1]


# ---------------------------------------------------------------- what one tile tells


def count_members(tile: Tile, clusters: IntArray, n_clusters: int) -> IntArray:
    """How many rows of positive weight each of ``clusters`` (m,) has in a tile."""
    position = np.full(n_clusters, -1, dtype=np.int64)
    position[clusters] = np.arange(len(clusters))
    counts = np.zeros(len(clusters), dtype=np.int64)
    uncalled_for: NDArray[Any] = np.empty(0, dtype=row_dtype(len(tile)))
    members = tile.labels, position, tile.weights, tile.weight_step
    split.list_members(*members, counts, uncalled_for)
    return counts


def take_members(
    tile: Tile, clusters: IntArray, n_clusters: int, wanted: Sequence[IntArray]
) -> tuple[NDArray[np.floating], FloatArray | None]:
    """The ``wanted`` members, by their place in a tile, of each of ``clusters`` (m,) in turn."""
    counts = count_members(tile, clusters, n_clusters)
    position = np.full(n_clusters, -1, dtype=np.int64)
    position[clusters] = np.arange(len(clusters))
    starts = np.append(0, np.cumsum(counts))
    order: NDArray[Any] = np.empty(starts[-1], dtype=row_dtype(len(tile)))
    members = tile.labels, position, tile.weights, tile.weight_step
    split.list_members(*members, starts[:-1].copy(), order)
    chosen = [start + own for start, own in zip(starts[:-1], wanted, strict=True)]
    return take_rows(tile, order[np.concatenate(chosen)])


def take_rows(tile: Tile, numbers: NDArray[Any]) -> tuple[NDArray[np.floating], FloatArray | None]:
    """Copies of rows of a tile, and their weights."""
    weights = None if tile.sample_weight is None else tile.sample_weight[numbers]
    return np.array(tile.rows[numbers], order="C"), weights


def take_present(
    tile: Tile, numbers: NDArray[Any]
) -> tuple[NDArray[np.floating], FloatArray | None]:
    """The same, counted among the rows of positive weight."""
    return take_rows(tile, np.flatnonzero(tile.is_present)[numbers])


def find_farthest(
    tile: Tile, centers: NDArray[np.floating], n_rows: int
) -> tuple[FloatArray, NDArray[np.floating]]:
    """Up to ``n_rows`` distinct rows farthest from their own centres, the farthest first."""
    bounds = np.array([0, len(tile)])
    errors = own_sq_errors(tile.points, tile.labels, centers, bounds, 1)
    errors[~tile.is_present] = 0.0
    numbers = np.argsort(-errors, kind="stable")[: np.count_nonzero(errors)]
    found = first_distinct(errors[numbers], tile.rows, numbers, n_rows)
    return errors[numbers[found]], np.array(tile.rows[numbers[found]], order="C")


def first_distinct(
    errors: FloatArray, rows: NDArray[np.floating], numbers: NDArray[Any], n_wanted: int
) -> IntArray:
    """Positions in ``numbers`` of the first ``n_wanted`` rows that differ from those before."""
    seen: dict[bytes, int] = {}
    for position, number in enumerate(numbers):
        row = rows[number] + 0.0  # -0.0 and 0.0 are one value
        seen.setdefault(row.tobytes(), position)
        if len(seen) == n_wanted:
            break
    return np.fromiter(seen.values(), dtype=np.int64)


def find_closest(
    tile: Tile, centers: NDArray[np.floating]
) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.floating]]:
    """The least squared error (K,) of each cluster, whether it has a row (K,), and these rows."""
    errors, numbers = closest_of_clusters(*tile.weighted_rows, tile.labels, centers)
    found = numbers >= 0
    return errors, found, np.array(tile.rows[numbers[found]], order="C")


def present_weights(tile: Tile) -> FloatArray:
    """Positive weights of a tile, in the order of its rows."""
    return tile.weights[tile.is_present] if tile.sample_weight is not None else np.ones(len(tile))


def label_alone(
    tile: Tile, centers: NDArray[np.floating], origin: NDArray[np.floating]
) -> NDArray[np.int32]:
    """Labels (m,) for ``centers``; those of the tile are left as they are."""
    part = Tile(tile.rows, None, 0)
    label(part, RunCenters(centers, origin), 0, len(tile))
    return part.labels


def distances_to(tile: Tile, centers: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distances (m, K) to ``centers``, not squared."""
    columns = np.ascontiguousarray(centers.T, dtype=np.float64)
    result = np.empty((len(tile), len(centers)), dtype=tile.rows.dtype)
    distances.fill_distances(tile.points, 0, len(tile), columns, result)
    return result
