"""Assignment and sums in one pass over dense points: the work of a Lloyd iteration.

What a label is
---------------
``label(x) = argmin_j D(x, c_j)`` with ``D(x, c) = sum_t (x_t - c_t)^2`` added up in float64 in the
order of the features; ties go to the lowest j. This depends on x and on the centres alone: not on
the batch, the chunk, the thread, the vector width or the engine. So ``labels_ == predict(X)``.

How it is found
---------------
The vector kernel of ``simd.py`` computes ``|c|^2 - 2 x.c`` in the precision of the data, after both
were moved near the origin. Its error is bounded (Note [Error bound]); a point whose two best values
are closer than that is looked at once more with D itself. On real weights that is one in 10^4.

Note [Error bound]
~~~~~~~~~~~~~~~~~~
With x and c rounded after the shift, products added in blocks of B and D = d / B blocks, the error
of ``|c|^2 - 2 x.c`` is below ``kappa (|x|^2 + |c|^2)`` with ``kappa = (B + D + 8) eps``; float64
data adds the rounding of D itself. Each accumulator starts at ``(1 - kappa) |c|^2``, so that a far
centre's large error cannot hide behind the bound of a near one: with value l_j for centre j, the
first is the nearest for certain if ``l_2 - l_1 > 2 kappa (|x|^2 + |c_1|^2)``. Below the smallest
normal number relative errors mean nothing, hence a small absolute term. Where the fast values
might overflow, nothing is certain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.points import copy_row
from pgkmeans_sk.kernels.simd import PANEL_WIDTH, SUM_BLOCK, sweep, tile_points


class PackedCenters(NamedTuple):
    """Centres as the kernels read them."""

    rows: np.ndarray  # (K, d) float64
    columns: np.ndarray  # (d, K) float64, the same transposed
    origin: np.ndarray  # (d,) of the data's dtype, subtracted from points and centres
    panels: np.ndarray  # (n_panels * d * J,) of the data's dtype, shifted centres times -2
    starts: np.ndarray  # (n_panels * J,) (1 - kappa) |c|^2; +inf in padding
    kappa: float
    smallest: float
    largest: float  # squared norm of a point from which on the fast values may overflow


def pack_centers(centers: np.ndarray, origin: np.ndarray) -> PackedCenters:
    """Bring ``centers`` (K, d) into the layout of ``simd.py``, shifted by ``origin`` (d,)."""
    n_centers, n_features = centers.shape
    dtype = origin.dtype
    n_panels = -(-n_centers // PANEL_WIDTH)
    eps = float(np.finfo(dtype).eps)
    block = min(n_features, SUM_BLOCK)
    kappa = (block + -(-n_features // SUM_BLOCK) + 8) * eps
    kappa += 4 * n_features * float(np.finfo(np.float64).eps)

    exact = np.ascontiguousarray(centers, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow: the exact look decides
        shifted = (exact - origin).astype(dtype)
        norms = np.einsum("ij,ij->i", shifted, shifted, dtype=np.float64)
        starts = np.full(n_panels * PANEL_WIDTH, np.inf, dtype=dtype)
        starts[:n_centers] = (1.0 - kappa) * norms
        panels = np.zeros((n_panels * PANEL_WIDTH, n_features), dtype=dtype)
        np.multiply(shifted, -2, out=panels[:n_centers])
    panels = panels.reshape(n_panels, PANEL_WIDTH, n_features).transpose(0, 2, 1)
    # If |x|^2 and |c|^2 are below an eighth of the largest number, no value here overflows.
    largest = float(np.finfo(dtype).max) / 8
    if not norms.max() < largest:
        kappa = np.inf  # no point is certain
    return PackedCenters(
        exact,
        np.ascontiguousarray(exact.T),
        origin,
        np.ascontiguousarray(panels).ravel(),
        starts,
        kappa,
        float(np.finfo(dtype).tiny) * (n_features + 8),
        largest,
    )


@kernel
def nearest_exact(
    row,  # IN (d,) float64
    columns,  # IN (d, K) float64
    sq_dist,  # WORK (K,) float64
):
    """The definition of a label; all K distances side by side, each summed in order of t."""
    n_features, n_centers = columns.shape
    for j in range(n_centers):
        sq_dist[j] = 0.0
    for t in range(n_features):
        x = row[t]
        for j in range(n_centers):
            difference = x - columns[t, j]
            sq_dist[j] += difference * difference
    nearest = 0
    for j in range(1, n_centers):
        if sq_dist[j] < sq_dist[nearest]:
            nearest = j
    return nearest


@kernel
def add_error(
    points,  # IN DensePoints
    i,  # IN which row
    weight,  # IN float64
    rows,  # IN (K, d) float64, the centres
    label,  # IN which centre
    sums,  # INOUT (K, d) float64, of w (x - c)
):
    """Add the row's error vector to its cluster's sum; returns its squared length.

    Four sums side by side, since one alone waits for each addition.
    """
    base, step = points.base, points.column_step
    at = i * points.row_step
    n_features = points.n_features
    whole = n_features - n_features % 4
    sum0 = sum1 = sum2 = sum3 = 0.0
    for t in range(0, whole, 4):
        error0 = np.float64(base[at + t * step]) - rows[label, t]
        error1 = np.float64(base[at + (t + 1) * step]) - rows[label, t + 1]
        error2 = np.float64(base[at + (t + 2) * step]) - rows[label, t + 2]
        error3 = np.float64(base[at + (t + 3) * step]) - rows[label, t + 3]
        sum0 += error0 * error0
        sum1 += error1 * error1
        sum2 += error2 * error2
        sum3 += error3 * error3
        sums[label, t] += weight * error0
        sums[label, t + 1] += weight * error1
        sums[label, t + 2] += weight * error2
        sums[label, t + 3] += weight * error3
    for t in range(whole, n_features):
        error0 = np.float64(base[at + t * step]) - rows[label, t]
        sum0 += error0 * error0
        sums[label, t] += weight * error0
    return (sum0 + sum1) + (sum2 + sum3)


@kernel
def assign_dense(
    points,  # IN DensePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    centers,  # IN PackedCenters
    collect,  # IN bool, whether to add to the sums below
    labels,  # INOUT (n,) int32
    sums,  # INOUT (K, d) float64, of w (x - c)
    sizes,  # INOUT (K,) float64, of w
    sq_errors,  # INOUT (K,) float64, of w |x - c|^2
    utilities,  # INOUT (K,) float64, of w (|x - second nearest|^2 - |x - c|^2)
):
    """Label rows ``start:stop`` and, if asked, add them to their clusters' sums.

    Returns how many labels changed, and how many points needed the exact look.
    """
    rows, columns, origin, panels, starts, kappa, smallest, largest = centers
    n_centers, n_features = rows.shape
    base, row_step, column_step = points.base, points.row_step, points.column_step
    n_panels = starts.size // PANEL_WIDTH
    width = tile_points(panels)
    tile = np.zeros(n_features * width, panels.dtype)
    best = np.empty(width, panels.dtype)
    second = np.empty(width, panels.dtype)
    index = np.empty(width, np.int32)
    row = np.empty(n_features, np.float64)
    sq_dist = np.empty(n_centers, np.float64)
    n_changed = 0
    n_exact = 0

    for first in range(start, stop, width):
        count = min(width, stop - first)
        for l in range(count):
            at = (first + l) * row_step
            for t in range(n_features):
                tile[t * width + l] = base[at + t * column_step] - origin[t]
        sweep(tile, panels, starts, n_panels, n_features, best, second, index)
        for l in range(count):
            i = first + l
            label = index[l]
            norm = 0.0
            for t in range(n_features):
                shifted = tile[t * width + l]
                norm += shifted * shifted
            margin = 2.0 * kappa * (norm + starts[label]) + smallest
            certain = second[l] - best[l] > margin and norm < largest
            if not certain:
                copy_row(points, i, row)
                label = nearest_exact(row, columns, sq_dist)
                n_exact += 1
            if labels[i] != label:
                labels[i] = label
                n_changed += 1
            weight = weights[i * weight_step] if collect else 0.0
            if weight > 0.0:
                sizes[label] += weight
                utilities[label] += weight * (second[l] - best[l])
                sq_errors[label] += weight * add_error(points, i, weight, rows, label, sums)
    return n_changed, n_exact
