"""What a worker remembers of tiles between two passes: their labels, and bounds that spare work.

Work on tiles is a function of rows and centres alone, so that a task can be done again anywhere
when a worker is lost. What is remembered here only makes it faster: where nothing is found, labels
are found again with the centres of the pass before. These are remembered as well, and sent only to
workers that have not been there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import tiles
from pgkmeans_sk.engines.dense_pass import DensePass
from pgkmeans_sk.engines.looks import Looks
from pgkmeans_sk.engines.ordered_tasks import Share, add_begun
from pgkmeans_sk.engines.run_labels import RunCenters

MAX_FITS = 4
"""Fits that a process remembers at the same time; of more, the oldest is done without."""


@dataclass(frozen=True)
class Pass:
    """One assignment of all rows, as a tile needs to know of it.

    ``before`` are the centres of the pass before, None for the first and where they are
    remembered; ``typical_distance`` is that of a row to its centre then. ``last`` is as in
    ``Engine.assign``.
    """

    fit: str
    number: int
    centers: NDArray[np.floating]
    before: NDArray[np.floating] | None
    origin: NDArray[np.floating]
    typical_distance: float
    last: bool = False

    @property
    def sum_of_labelled(self) -> tiles.AssignmentSum:
        """The sum over rows that have their labels."""
        return tiles.AssignmentSum(self.centers, self.origin, is_labelled=True)


@dataclass(frozen=True)
class Remembered:
    """A tile after pass ``number``; ``n_changed`` is None if nobody has counted.

    ``looks`` have the bounds; None, if labels were found without.
    """

    number: int
    labels: NDArray[np.int32]
    n_changed: int | None
    looks: Looks | None


class Memory:
    """Remembered tiles of some fits, and centres of their last passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fits: dict[str, dict[int, Remembered]] = {}
        self._passes: dict[str, dict[int, NDArray[np.floating]]] = {}

    def take(self, fit: str, first: int) -> Remembered | None:
        """What is known of the tile that begins with row ``first``; it is forgotten here."""
        with self._lock:
            return self._fits.get(fit, {}).pop(first, None)

    def keep(self, fit: str, first: int, known: Remembered) -> None:
        """Remember a tile."""
        with self._lock:
            self._fits.setdefault(fit, {})[first] = known
            while len(self._fits) > MAX_FITS:
                self._drop(next(iter(self._fits)))

    def centers_of(self, fit: str, number: int) -> NDArray[np.floating] | None:
        """Centres of one of the last two passes, if they were seen here."""
        with self._lock:
            return self._passes.get(fit, {}).get(number)

    def keep_centers(self, now: Pass) -> None:
        """Remember the centres of a pass."""
        with self._lock:
            passes = self._passes.setdefault(now.fit, {})
            passes[now.number] = now.centers
            passes.pop(now.number - 2, None)

    def forget(self, fit: str) -> None:
        """Forget all tiles of a fit."""
        with self._lock:
            self._drop(fit)

    def _drop(self, fit: str) -> None:
        self._fits.pop(fit, None)
        self._passes.pop(fit, None)

    def __len__(self) -> int:
        return len(self._fits)


memory = Memory()
"""That of this process. A worker has no other place to keep something for the next task."""


def forget(fit: str) -> None:
    """Forget all tiles of a fit in this process."""
    memory.forget(fit)


def label_tile(tile: tiles.Tile, now: Pass, share: Share) -> tuple[list[tiles.Totals], int] | None:
    """Label a tile; the sums of the chunks that begin in it, and how many labels have changed.

    Changed are those that are not what they were in the pass before. None, and no labels, if that
    needs the centres of the pass before, which are neither given nor remembered here.
    """
    known = memory.take(now.fit, tile.first)
    if known is not None and known.number == now.number and known.n_changed is not None:
        tile.adopt(known.labels)
        memory.keep(now.fit, tile.first, known)
        return add_begun(tile, now.sum_of_labelled, share), known.n_changed
    looks = None
    if known is not None and known.number == now.number - 1:
        tile.adopt(known.labels)
        looks = known.looks
    elif now.number > 0:
        before = now.before
        if before is None:
            before = memory.centers_of(now.fit, now.number - 1)
        if before is None:
            return None
        tiles.label(tile, RunCenters(before, now.origin), 0, len(tile))
    if looks is None:
        looks = Looks(len(tile), tile.rows.shape[1], tile.rows.dtype)
    parts, n_changed = _label(tile, now, share, looks)
    memory.keep(now.fit, tile.first, Remembered(now.number, tile.labels, n_changed, looks))
    memory.keep_centers(now)
    return parts, n_changed


def recall_labels(tile: tiles.Tile, now: Pass) -> None:
    """Give a tile the labels of a pass that is over."""
    known = memory.take(now.fit, tile.first)
    if known is None or known.number != now.number:
        tiles.label(tile, RunCenters(now.centers, now.origin), 0, len(tile))
        known = Remembered(now.number, tile.labels, None, None)
    tile.adopt(known.labels)
    memory.keep(now.fit, tile.first, known)


def _label(
    tile: tiles.Tile, now: Pass, share: Share, looks: Looks
) -> tuple[list[tiles.Totals], int]:
    """Label a tile and add up, as ``NumbaEngine`` does: rows are read once."""
    # What came from another process may be read-only: another type, for which kernels would have to
    # be compiled once more.
    centers, origin = np.array(now.centers), np.array(now.origin)
    bounds = np.array([0, *share.cuts] if share.goes_on else share.cuts)
    rows, n_open = tile.weighted_rows, int(share.goes_on)
    dense = DensePass(rows, tile.labels, centers, origin, bounds, n_threads=1, n_open=n_open)
    looks.typical_distance = now.typical_distance
    looks.label(dense, centers, tile.labels, now.last)
    no_changes = np.zeros(1, dtype=np.int64)  # they are counted for the tile as a whole
    return [(*sums, no_changes) for sums in dense.sums_of_chunks()], dense.n_changed
