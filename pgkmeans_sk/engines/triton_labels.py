"""The nearest centre of each row in one Triton kernel, where that is certain: no n x K in memory.

A tile of values ``(1 - kappa) |c|^2 - 2 x.c`` stays in registers; remembered are the least value,
where it was, and the second least. A row whose second least value is within the bound of
``torch_labels.py`` above the least is in doubt, and left to the decision in float64 there. What
leaves the kernel is 5 bytes a row.

Rows of few features multiply number by number, and each thread keeps the least of its own columns
of centres, so that threads meet once, at the end. Longer rows go through products of matrices, on
tensor cores where these take TF32: rows and centres are cut into two parts of 11 bits, which are
multiplied without loss (Note [Reduced products] in ``torch_labels.py``), so that the bound for
three products holds. Elsewhere they are products in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

SHORTEST_DOT = 16
"""Features from which on tiles are products of matrices, which need so many."""
SHORT_TILE_CENTERS = 32
"""Centres in a tile of short rows: one for each thread of a warp."""
SHORT_TILE_NUMBERS = 64
"""Numbers of its rows that a thread holds in registers, at most: more leave few threads."""
LONG_TILES = {1: (64, 64, 32), 2: (128, 64, 32)}
"""Rows, centres and features in a tile of a product, for one part or two. Compiled for sm_80 they
are the largest for which nothing is moved from registers to memory."""
N_WARPS = 8
HIGH_BITS = tl.constexpr(-(1 << 13))
"""Mask for the part of 11 bits of a float32."""


@triton.jit
def tell(  # type: ignore[no-untyped-def]
    best, second, place, sq_norm, i, is_row, norms, labels, in_doubt, kappa, smallest, largest
):
    """Write the label of each row, and whether another centre may be as near."""
    norm = tl.load(norms + place, mask=is_row, other=0.0)
    bound = 2.0 * kappa * (sq_norm + norm) + smallest
    is_certain = (second - best > bound) & (sq_norm < largest)  # neither, of what is no number
    tl.store(labels + i, place, mask=is_row)
    tl.store(in_doubt + i, (is_certain == 0).to(tl.int8), mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def label_short_kernel(  # type: ignore[no-untyped-def]
    rows,  # IN (n, d) float, of any strides
    origin,  # IN (d,) float32
    columns,  # IN (d, K) float32, shifted centres times -2
    starts,  # IN (K,) float32, (1 - kappa) |c|^2
    norms,  # IN (K,) float32, |c|^2
    labels,  # OUT (n,) int32
    in_doubt,  # OUT (n,) int8
    n_rows,
    n_centers,
    row_step,
    column_step,
    kappa,
    smallest,
    largest,
    n_features: tl.constexpr,
    n_tile_rows: tl.constexpr,
    n_tile_centers: tl.constexpr,
):
    """Look at all centres for a tile of rows, number by number."""
    i = tl.program_id(0).to(tl.int64) * n_tile_rows + tl.arange(0, n_tile_rows)
    is_row = i < n_rows
    sq_norm = tl.zeros((n_tile_rows,), tl.float32)
    for t in tl.static_range(n_features):
        x = tl.load(rows + i * row_step + t * column_step, mask=is_row, other=0.0)
        x = x.to(tl.float32) - tl.load(origin + t)
        sq_norm += x * x
    lane = tl.arange(0, n_tile_centers)
    best = tl.full((n_tile_rows, n_tile_centers), float("inf"), tl.float32)
    second = tl.full((n_tile_rows, n_tile_centers), float("inf"), tl.float32)
    tile = tl.zeros((n_tile_rows, n_tile_centers), tl.int32)
    for first in range(0, n_centers, n_tile_centers):
        j = first + lane
        is_center = j < n_centers
        # Padding is farther than any centre.
        start = tl.load(starts + j, mask=is_center, other=float("inf"))
        values = tl.broadcast_to(start[None, :], (n_tile_rows, n_tile_centers))
        for t in tl.static_range(n_features):
            x = tl.load(rows + i * row_step + t * column_step, mask=is_row, other=0.0)
            x = x.to(tl.float32) - tl.load(origin + t)
            c = tl.load(columns + t * n_centers + j, mask=is_center, other=0.0)
            values += x[:, None] * c[None, :]
        second = tl.minimum(second, tl.maximum(best, values))
        tile = tl.where(values < best, first, tile)
        best = tl.minimum(best, values)
    least = tl.min(best, axis=1)
    place = tl.where(best == least[:, None], tile + lane[None, :], n_centers)
    label = tl.minimum(tl.min(place, axis=1), n_centers - 1)  # there may be no number among them
    others = tl.where(place == label[:, None], second, best)
    tell(
        least, tl.min(others, axis=1), label, sq_norm, i, is_row, norms, labels, in_doubt,
        kappa, smallest, largest,
    )  # fmt: skip


@triton.jit
def high_part(x):  # type: ignore[no-untyped-def]
    """The first 11 bits of the significand of each number, float32."""
    return (x.to(tl.int32, bitcast=True) & HIGH_BITS).to(tl.float32, bitcast=True)


@triton.jit
def shifted_tile(  # type: ignore[no-untyped-def]
    rows, origin, i, t, is_row, is_feature, row_step, column_step
):
    """Some features of a tile of rows, relative to the origin, float32."""
    x = tl.load(
        rows + i[:, None] * row_step + t[None, :] * column_step,
        mask=is_row[:, None] & is_feature[None, :],
        other=0.0,
    )
    return x.to(tl.float32) - tl.load(origin + t, mask=is_feature, other=0.0)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def label_long_kernel(  # type: ignore[no-untyped-def]
    rows,  # IN (n, d) float, of any strides
    origin,  # IN (d,) float32
    centers,  # IN (parts, K, d) float32, shifted centres times -2, in parts
    starts,  # IN (K,) float32, (1 - kappa) |c|^2
    norms,  # IN (K,) float32, |c|^2
    labels,  # OUT (n,) int32
    in_doubt,  # OUT (n,) int8
    n_rows,
    n_centers,
    row_step,
    column_step,
    n_features,
    kappa,
    smallest,
    largest,
    n_parts: tl.constexpr,
    n_tile_rows: tl.constexpr,
    n_tile_centers: tl.constexpr,
    n_tile_features: tl.constexpr,
):
    """Look at all centres for a tile of rows, by products of matrices."""
    i = tl.program_id(0).to(tl.int64) * n_tile_rows + tl.arange(0, n_tile_rows)
    is_row = i < n_rows
    sq_norm = tl.zeros((n_tile_rows,), tl.float32)
    for at in range(0, n_features, n_tile_features):
        t = at + tl.arange(0, n_tile_features)
        x = shifted_tile(rows, origin, i, t, is_row, t < n_features, row_step, column_step)
        sq_norm += tl.sum(x * x, axis=1)
    best = tl.full((n_tile_rows,), float("inf"), tl.float32)
    second = tl.full((n_tile_rows,), float("inf"), tl.float32)
    label = tl.zeros((n_tile_rows,), tl.int32)
    for first in range(0, n_centers, n_tile_centers):
        j = first + tl.arange(0, n_tile_centers)
        is_center = j < n_centers
        values = tl.zeros((n_tile_rows, n_tile_centers), tl.float32)
        for at in range(0, n_features, n_tile_features):
            t = at + tl.arange(0, n_tile_features)
            is_feature = t < n_features
            x = shifted_tile(rows, origin, i, t, is_row, is_feature, row_step, column_step)
            of_part = centers + j[:, None].to(tl.int64) * n_features + t[None, :]
            is_there = is_center[:, None] & is_feature[None, :]
            c = tl.trans(tl.load(of_part, mask=is_there, other=0.0))
            if n_parts == 1:
                values = tl.dot(x, c, values, input_precision="ieee")
            else:
                of_rest = of_part + n_centers.to(tl.int64) * n_features
                rest = tl.trans(tl.load(of_rest, mask=is_there, other=0.0))
                high = high_part(x)
                values = tl.dot(high_part(x - high), c, values, input_precision="tf32")
                values = tl.dot(high, rest, values, input_precision="tf32")
                values = tl.dot(high, c, values, input_precision="tf32")
        # Padding is farther than any centre.
        values += tl.load(starts + j, mask=is_center, other=float("inf"))[None, :]
        least = tl.min(values, axis=1)
        where = tl.argmin(values, axis=1)
        lane = tl.arange(0, n_tile_centers)
        others = tl.where(lane[None, :] == where[:, None], float("inf"), values)
        second = tl.minimum(second, tl.min(others, axis=1))
        second = tl.minimum(second, tl.maximum(best, least))
        label = tl.where(least < best, first + where, label)
        best = tl.minimum(best, least)
    tell(best, second, label, sq_norm, i, is_row, norms, labels, in_doubt, kappa, smallest, largest)


def n_parts_for(X: torch.Tensor) -> int:
    """In how many parts rows and centres are cut for products: 2 where tensor cores take TF32."""
    if X.shape[1] < SHORTEST_DOT or X.device.type != "cuda" or torch.version.hip is not None:
        return 1
    return 2 if torch.cuda.get_device_capability(X.device) >= (8, 0) else 1


class KernelCenters(NamedTuple):
    """Centres as the kernels read them, and what makes the bound (``PackedCenters``)."""

    origin: torch.Tensor  # (d,) float32
    parts: torch.Tensor  # (parts, K, d) float32, shifted centres times -2
    starts: torch.Tensor  # (K,) float32, (1 - kappa) |c|^2
    norms: torch.Tensor  # (K,) float32, |c|^2
    kappa: float
    smallest: float
    largest: float


def nearest_or_in_doubt(
    X: torch.Tensor, centers: KernelCenters, labels: torch.Tensor, in_doubt: torch.Tensor
) -> None:
    """Set ``labels`` (n,) int32 of the rows ``X`` (n, d), and where they are ``in_doubt`` (n,).

    X is of float16, bfloat16 or float32, in any strides; ``in_doubt`` is int8.
    """
    n_rows, d = X.shape
    n_centers = len(centers.starts)
    of_all = (centers.starts, centers.norms, labels, in_doubt, n_rows, n_centers, *X.stride())
    numbers = (centers.kappa, centers.smallest, centers.largest)
    kernel: Any
    if d < SHORTEST_DOT:
        kernel = label_short_kernel
        rows_a_warp = min(8, max(1, SHORT_TILE_NUMBERS // triton.next_power_of_2(d)))
        n_tile_rows, n_tile_centers = 4 * rows_a_warp, SHORT_TILE_CENTERS
        kernel[(triton.cdiv(n_rows, n_tile_rows),)](
            X, centers.origin, centers.parts[0].T.contiguous(), *of_all, *numbers,
            n_features=d, n_tile_rows=n_tile_rows, n_tile_centers=n_tile_centers,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return
    kernel = label_long_kernel
    n_tile_rows, n_tile_centers, n_tile_features = LONG_TILES[len(centers.parts)]
    kernel[(triton.cdiv(n_rows, n_tile_rows),)](
        X, centers.origin, centers.parts, *of_all, d, *numbers,
        n_parts=len(centers.parts), n_tile_rows=n_tile_rows, n_tile_centers=n_tile_centers,
        n_tile_features=n_tile_features, num_warps=N_WARPS, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
