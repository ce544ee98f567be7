"""The two nearest centres of each row in one Triton kernel: no matrix of rows times centres.

What plain operations need four passes over such a matrix for, this kernel keeps in registers: a
tile of values ``(1 - kappa) |c|^2 - 2 x.c`` at a time, of which each row remembers the least, where
it was, and the second least. The values are as exact as those of a product in float32 (no TF32), so
that the bound and the decisions in float64 of ``torch_labels.py`` hold as they are.

Rows of few features multiply number by number; longer ones by ``tl.dot``, which needs 16.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

SHORTEST_DOT = 16
"""Features from which on tiles are products of matrices."""
ROWS, CENTERS, FEATURES = 64, 64, 32
"""Sizes of a tile."""


@triton.jit  # type: ignore[untyped-decorator]
def nearest_two_kernel(  # type: ignore[no-untyped-def]
    rows,  # IN (n, d) float, of any strides
    origin,  # IN (d,) float32
    columns,  # IN (d, K) float32, shifted centres times -2
    starts,  # IN (K,) float32
    best_values,  # OUT (n,) float32
    second_values,  # OUT (n,) float32
    best_places,  # OUT (n,) int32
    sq_norms,  # OUT (n,) float32, |x|^2 after the shift
    n_rows,
    n_centers,
    row_step,
    column_step,
    n_features: tl.constexpr,
    is_short: tl.constexpr,
    n_tile_rows: tl.constexpr,
    n_tile_centers: tl.constexpr,
    n_tile_features: tl.constexpr,
):
    """Look at all centres for a tile of rows."""
    i = tl.program_id(0).to(tl.int64) * n_tile_rows + tl.arange(0, n_tile_rows)
    is_row = i < n_rows
    best = tl.full((n_tile_rows,), float("inf"), tl.float32)
    second = tl.full((n_tile_rows,), float("inf"), tl.float32)
    place = tl.zeros((n_tile_rows,), tl.int32)
    sq_norm = tl.zeros((n_tile_rows,), tl.float32)
    for first in range(0, n_centers, n_tile_centers):
        j = first + tl.arange(0, n_tile_centers)
        is_center = j < n_centers
        # Padding is farther than any centre.
        start = tl.load(starts + j, mask=is_center, other=float("inf"))
        values = tl.zeros((n_tile_rows, n_tile_centers), tl.float32)
        if is_short:
            for t in tl.static_range(n_features):
                x = tl.load(rows + i * row_step + t * column_step, mask=is_row, other=0.0)
                x = x.to(tl.float32) - tl.load(origin + t)
                c = tl.load(columns + t * n_centers + j, mask=is_center, other=0.0)
                values += x[:, None] * c[None, :]
                if first == 0:
                    sq_norm += x * x
        else:
            for at in range(0, n_features, n_tile_features):
                t = at + tl.arange(0, n_tile_features)
                is_feature = t < n_features
                x = tl.load(
                    rows + i[:, None] * row_step + t[None, :] * column_step,
                    mask=is_row[:, None] & is_feature[None, :],
                    other=0.0,
                )
                x = x.to(tl.float32) - tl.load(origin + t, mask=is_feature, other=0.0)[None, :]
                c = tl.load(
                    columns + t[:, None] * n_centers + j[None, :],
                    mask=is_feature[:, None] & is_center[None, :],
                    other=0.0,
                )
                values += tl.dot(x, c, input_precision="ieee")
                if first == 0:
                    sq_norm += tl.sum(x * x, axis=1)
        values += start[None, :]
        least = tl.min(values, axis=1)
        where = tl.argmin(values, axis=1)
        others = tl.where(
            tl.arange(0, n_tile_centers)[None, :] == where[:, None], float("inf"), values
        )
        second = tl.minimum(tl.minimum(second, tl.min(others, axis=1)), tl.maximum(best, least))
        place = tl.where(least < best, first + where, place)
        best = tl.minimum(best, least)
    tl.store(best_values + i, best, mask=is_row)
    tl.store(second_values + i, second, mask=is_row)
    tl.store(best_places + i, place, mask=is_row)
    tl.store(sq_norms + i, sq_norm, mask=is_row)


def nearest_two(
    X: torch.Tensor, origin: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least and second least value of each row, the place of the least, and |x|^2.

    Parameters
    ----------
    X : tensor of shape (n, d), float16, bfloat16 or float32
        The rows.
    origin : tensor of shape (d,), float32
        What is subtracted from them.
    columns, starts : tensors of shape (d, K) and (K,), float32
        Shifted centres times -2, feature by feature; and where their values begin.

    Returns
    -------
    best, second : tensors of shape (n,), float32
        ``starts[j] + x . columns[:, j]``; ``second`` is infinite if there is one centre alone.
    place : tensor of shape (n,), int32
        The j of the least; of several, the lowest.
    sq_norms : tensor of shape (n,), float32
        Squared norms of the shifted rows.
    """
    n_rows, n_features = X.shape
    best, second, sq_norms = (
        torch.empty(n_rows, dtype=torch.float32, device=X.device) for _ in range(3)
    )
    place = torch.empty(n_rows, dtype=torch.int32, device=X.device)
    kernel: Any = nearest_two_kernel
    kernel[(triton.cdiv(n_rows, ROWS),)](
        X, origin, columns, starts, best, second, place, sq_norms,
        n_rows, len(starts), X.stride(0), X.stride(1),
        n_features=n_features, is_short=n_features < SHORTEST_DOT,
        n_tile_rows=ROWS, n_tile_centers=CENTERS, n_tile_features=FEATURES,
    )  # fmt: skip
    return best, second, place, sq_norms
