"""Assignment and sums in one pass over dense points: the work of a Lloyd iteration.

What a label is
---------------
``label(x) = argmin_j D(x, c_j)`` with ``D(x, c) = sum_t (x_t - c_t)^2`` added up in float64 in the
order of the features; ties go to the lowest j. This depends on x and on the centres alone: not on
the batch, the chunk, the thread, the vector width or the engine. So ``labels_ == predict(X)``.

How it is found
---------------
The vector kernels compute ``|c|^2 - 2 x.c`` in the precision of the data, after both were moved
near the origin: ``sweep.py`` for all centres, ``panels.py`` for some. Their error is bounded; a
point whose two best values are closer than that is looked at once more with D itself. On real
weights that is one in 10^4.

Note [Error bound]
~~~~~~~~~~~~~~~~~~
With x and c rounded after the shift, products added in blocks of B and D = d / B blocks, and up to
four bits replaced by tags, the error of ``|c|^2 - 2 x.c`` is below ``kappa (|x|^2 + |c|^2)`` with
``kappa = (B + D + 8 + 32) eps``; float64 data adds the rounding of D itself. Each accumulator
starts at ``(1 - kappa) |c|^2``, so that a far centre's large error cannot hide behind the bound of
a near one: with value l_j for centre j, the first is the nearest for certain if
``l_2 - l_1 > 2 kappa (|x|^2 + |c_1|^2)``. Below the smallest normal number relative errors mean
nothing, hence a small absolute term. Where the fast values might overflow, nothing is certain.

Most rows are settled without knowing |c_1|: ``|c|^2 <= 2 |x|^2 + 2 |x - c|^2`` makes ``3 (|x|^2 +
|x - c_1|^2)`` a bound of the bracket, and |x - c_1|^2 is ``|x|^2 + l_1`` (``DOUBT_SHARE``).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, kernel_without_memory, part
from pgkmeans_sk.kernels.errors import add_error, squared_distance
from pgkmeans_sk.kernels.panels import TAG_BITS, least_bound, panel_values
from pgkmeans_sk.kernels.points import copy_row
from pgkmeans_sk.kernels.steps import as_written, epsilon, lesser, new_vector, weight_of
from pgkmeans_sk.kernels.sweep import QUAD, padding, sweep, tile_points
from pgkmeans_sk.kernels.tile import doubtful, fill_tile
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH, SUM_BLOCK

ROWS = 512
"""Rows that are labelled before they are added up: they stay in the cache from one to the other."""

ALL_ROWS = np.empty(0, np.int64)
"""A list of rows that stands for all of them."""

DOUBT_SHARE = 2.0 * 3.0 * 1.05
"""Of kappa, for the first look at a row's doubt: Note [Error bound]; 5 % are for rounding."""


class PackedCenters(NamedTuple):
    """Centres as the kernels read them."""

    rows: np.ndarray  # (K, d) float64
    origin: np.ndarray  # (d,) of the data's dtype, subtracted from points and centres
    panels: np.ndarray  # (n_panels * d * P,) of the data's dtype, shifted centres times -2
    starts: np.ndarray  # (n_panels * P,) (1 - kappa) |c|^2; the largest number in padding
    order: np.ndarray  # (n_panels * P,) int32, centre at each position; -1 in padding
    kappa: float
    smallest: float
    largest: float  # squared norm of a point from which on the fast values may overflow


def pack_centers(
    centers: np.ndarray, origin: np.ndarray, order: np.ndarray | None = None
) -> PackedCenters:
    """Bring ``centers`` (K, d) into the layout of ``panels.py``, shifted by ``origin`` (d,).

    ``order`` (K,) says which centre comes first, second, ...; by default they stay as they are.
    """
    room = room_for_centers(len(centers), origin)
    places = room.order
    if order is not None:
        places = places.copy()
        places[: len(centers)] = order
    exact = np.ascontiguousarray(centers, dtype=np.float64)
    largest_norm = fill_panels(exact, origin, places, room.kappa, room.panels, room.starts)
    # If |x|^2 and |c|^2 are below an eighth of the largest number, no value here overflows.
    kappa = room.kappa if largest_norm < room.largest else np.inf  # inf: no point is certain
    return room._replace(rows=exact, order=places, kappa=kappa)


def room_for_centers(n_centers: int, origin: np.ndarray) -> PackedCenters:
    """Panels without centres, for ``fill_panels``; ``order`` is not to be written."""
    n_features = len(origin)
    frame = _frame(n_centers, n_features, origin.dtype)
    return PackedCenters(
        np.empty((n_centers, n_features)), origin, np.zeros(frame.n_numbers, dtype=origin.dtype),
        frame.starts.copy(), frame.places, frame.kappa, frame.smallest, frame.largest,
    )  # fmt: skip


class _Frame(NamedTuple):
    """What packed centres of one shape have in common; the arrays are not to be written."""

    n_numbers: int  # in the panels
    starts: np.ndarray  # (n_panels * P,) padding
    places: np.ndarray  # (n_panels * P,) int32, the order of the centres as they are
    kappa: float
    smallest: float
    largest: float


@functools.lru_cache(maxsize=16)
def _frame(n_centers: int, n_features: int, dtype: np.dtype) -> _Frame:
    """The frame for ``n_centers`` centres: a pass over a small table takes no longer than this."""
    n_panels = -(-n_centers // PANEL_WIDTH)
    real, exact = np.finfo(dtype), np.finfo(np.float64)
    block = min(n_features, SUM_BLOCK)
    kappa = (block + -(-n_features // SUM_BLOCK) + 8 + 2 * 2**TAG_BITS) * float(real.eps)
    kappa += 4 * n_features * float(exact.eps)
    places = np.full(n_panels * PANEL_WIDTH, -1, dtype=np.int32)
    places[:n_centers] = np.arange(n_centers)
    return _Frame(
        n_panels * n_features * PANEL_WIDTH,
        np.full(n_panels * PANEL_WIDTH, padding(dtype), dtype=dtype),
        places,
        kappa,
        float(real.tiny) * (n_features + 8),
        float(real.max) / 8,
    )


@kernel_without_memory
def fill_panels(
    rows,  # IN (K, d) float64
    origin,  # IN (d,) float
    order,  # IN (n_panels * P,) int32
    kappa,  # IN float64
    panels,  # INOUT (n_panels * d * P,) float, zeros at first
    starts,  # INOUT (n_panels * P,) float, padding at first
):
    """Shift centres and lay them out in panels; returns the largest squared norm."""
    as_written(rows)
    n_features = origin.size
    largest = 0.0
    for place in range(order.size):
        label = order[place]
        if label < 0:
            continue
        at = place // PANEL_WIDTH * n_features * PANEL_WIDTH + place % PANEL_WIDTH
        norm = 0.0
        for t in range(n_features):
            shifted = panels.dtype.type(rows[label, t] - origin[t])
            norm += np.float64(shifted) * np.float64(shifted)
            panels[at + t * PANEL_WIDTH] = -2 * shifted
        starts[place] = (1.0 - kappa) * norm
        largest = norm if not norm <= largest else largest  # NaN, too
    return largest


@part
def nearest_exact(
    row,  # IN (d,) float64
    shifted,  # IN float, the row minus the origin is shifted[at : at + d]
    at,  # IN int
    norm,  # IN float64, its squared norm
    centers,  # IN PackedCenters
    values,  # WORK (n_panels * P,) float
):
    """The definition of a label; centres that are farther for certain are not looked at."""
    starts, order, kappa = centers.starts, centers.order, centers.kappa
    trusted = norm < centers.largest and kappa < np.inf
    threshold = np.inf
    if trusted:
        n_panels = starts.size // PANEL_WIDTH
        panel_values(shifted, at, centers.panels, starts, 0, n_panels, row.size, values)
        threshold = least_bound(values, starts, 2.0 * kappa, norm, centers.smallest)
    nearest = np.int64(-1)
    smallest = np.inf
    for place in range(starts.size):
        label = np.int64(order[place])
        if label < 0 or (trusted and values[place] > threshold):
            continue
        sq_dist = squared_distance(row, centers.rows, label)
        closer = sq_dist < smallest or (sq_dist == smallest and label < nearest)
        if nearest < 0 or closer:
            nearest = label
            smallest = sq_dist
    return nearest


@part
def add_rows(
    points,  # IN DensePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row
    stop,  # IN one past the last
    rows,  # IN (K, d) float64, the centres
    side_by_side,  # WORK (d,) float
    labels,  # IN (n,) int32
    sums,  # INOUT (K, d) float64, of w (x - c)
    sizes,  # INOUT (K,) float64, of w
    sq_errors,  # INOUT (K, 4) float64, of w |x - c|^2, in four parts
):
    """Add rows ``start:stop``, in order, to the sums of the clusters that their labels name."""
    base, row_step, column_step = points.base, points.row_step, points.column_step
    for i in range(start, stop):
        weight = weight_of(weights, weight_step, i)
        if weight > 0.0:
            label = np.int64(labels[i])
            add_error(
                base, i * row_step, column_step, side_by_side, rows, label, side_by_side.size,
                weight, sums, sq_errors,
            )  # fmt: skip
            sizes[np.uintp(label)] += weight


@kernel
def add_up(points, weights, weight_step, start, stop, rows, labels, sums, sizes, sq_errors):
    """``add_rows`` for whoever has the labels."""
    side_by_side = new_vector(points.n_features, points.base.dtype)
    add_rows(
        points, weights, weight_step, start, stop, rows, side_by_side, labels,
        sums, sizes, sq_errors,
    )  # fmt: skip


@kernel
def assign_dense(
    points, weights, weight_step, start, stop,  # IN as in add_rows
    centers,  # IN PackedCenters
    collect,  # IN bool, whether to add to the sums below; not for listed rows
    labels,  # INOUT (n,) int32
    sums, sizes, sq_errors,  # INOUT as in add_rows
    utilities,  # INOUT (K,) float64, of w (|x - second nearest|^2 - |x - c|^2); (0,): not wanted
    lower,  # OUT (n,) float, no centre but the row's own is nearer than that; (0,): not wanted
    listed,  # IN (m,) int64, the rows are listed[start:stop]; ALL_ROWS: they are start:stop
):  # fmt: skip
    """Label rows and, if asked, add them to their clusters' sums.

    Returns how many labels changed, and how many rows needed the exact look.
    """
    rows, origin, panels, starts, order, kappa, smallest, largest = centers
    base, row_step, column_step = points.base, points.row_step, points.column_step
    n_centers, n_features = rows.shape
    n_quads = (n_centers + QUAD - 1) // QUAD
    width, real = tile_points(panels), panels.dtype.type
    tile, norms = new_vector(n_features * width, real), new_vector(width, real)
    best, second = new_vector(width, real), new_vector(width, real)
    index, which = new_vector(width, np.int32), new_vector(width, np.int64)
    values, shifted = new_vector(starts.size, real), new_vector(n_features, real)
    row = new_vector(n_features, np.float64)
    # Numbers of the data's dtype, whose rounding is a fraction of kappa, hence twice.
    eps = n_features * epsilon(panels)  # of the norms, which are added up plainly
    norm_share, tiny, nothing = real(1.0 - 2.0 * kappa - eps), real(smallest), real(0.0)
    share, twice_tiny, limit = real(DOUBT_SHARE * kappa), real(2.0 * smallest), real(largest)
    n_changed = 0
    n_exact = 0
    for block in range(start, stop, ROWS):
        block_end = lesser(block + ROWS, stop)
        for first in range(block, block_end, width):
            count = lesser(width, block_end - first)
            for l in range(count):
                which[l] = listed[first + l] if listed.size else first + l
            fill_tile(base, row_step, column_step, which, 0, count, origin, tile, norms)
            sweep(tile, panels, starts, n_quads, n_features, best, second, index)
            doubts = doubtful(best, second, norms, share, twice_tiny, limit)
            if lower.size:
                for l in range(count):
                    sq_dist = second[l] + norms[l] * norm_share - tiny
                    sq_dist = sq_dist if sq_dist > nothing else nothing
                    lower[np.uintp(which[l])] = np.sqrt(sq_dist) * real(1.0 - 1e-6)
            for l in range(count):
                i = np.uintp(which[l])
                place = np.uintp(index[l])
                label = np.int64(order[place])
                if doubts >> l & 1:
                    norm = np.float64(norms[l])
                    margin = 2.0 * kappa * (norm + starts[place]) + smallest
                    if not (second[l] - best[l] > margin and norm < largest):
                        copy_row(points, i, row)
                        for t in range(n_features):
                            shifted[t] = tile[t * width + l]
                        label = nearest_exact(row, shifted, 0, norm, centers, values)
                        n_exact += 1
                        if lower.size:
                            lower[i] = nothing
                if labels[i] != label:
                    labels[i] = label
                    n_changed += 1
                if utilities.size:
                    weight = weight_of(weights, weight_step, i)
                    if weight > 0.0:
                        utilities[np.uintp(label)] += weight * (second[l] - best[l])
        if collect:
            add_rows(
                points, weights, weight_step, block, block_end, rows, shifted, labels,
                sums, sizes, sq_errors,
            )  # fmt: skip
    return n_changed, n_exact
