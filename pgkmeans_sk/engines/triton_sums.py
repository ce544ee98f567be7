"""Sums of errors, squares and weights by cluster in Triton kernels, in the order of the operations.

Rows stand in the order of their runs (a run: those of a cluster in a block), and are read from
where they lie. A window is ``n_window_rows`` rows of that order; one program adds up the rows of a
few windows, one after the other in float64, and writes what it has whenever a run ends. The window
number plus the run number is a place of its own for each such piece, since both only grow. Then
each run adds up its pieces, and each cluster its runs.

Note [Rows in order]
~~~~~~~~~~~~~~~~~~~~
Rows have to be read once: at the scattered places of an order, but in whole sectors of 32 bytes
once a row has 8 numbers in float32. The rest is the price of the order: numbering and sorting ids
(which are as short as they can be), reading them, and the pieces. Counted, 116 bytes move for each
row of 1.33 M x 8 (K = 256), of which 32 are the row, and 752 for each of 8 M x 128 (K = 1024), of
which 512 are.

Totals of all clusters near each processor would need no order and move 36 bytes in the first case;
in the second they find no room there. But a place in them has to be given to one row at a time, or
what comes first is left to chance; and as a product with a matrix of zeros and ones, the first case
has 6 G multiplications in float64, which take longer than 116 bytes a row. Numbers that are added
in one order have the bits of the operations, so that a device may take either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

TILE_NUMBERS = 128
"""Numbers of windows times features that a program holds, if a row has not more: one a thread. With
four a thread (compiled for sm_80) it takes so many registers that less of the rows is on its way.
"""
MAX_TILE_COLUMNS = 128
TILE_TOTALS = 256


class Layout(NamedTuple):
    """How rows lie in the order of their runs: blocks, their runs, and their windows."""

    n_block_rows: int
    n_block_runs: int
    n_window_rows: int

    def windows_of(self, n_rows: int) -> int:
        """Windows of so many rows: they begin anew with each block."""
        n_blocks, rest = divmod(n_rows, self.n_block_rows)
        windows = n_blocks * -(-self.n_block_rows // self.n_window_rows)
        return windows - (-rest // self.n_window_rows)


@triton.jit  # type: ignore[untyped-decorator]
def row_of_run(  # type: ignore[no-untyped-def]
    rows, weights, order, p, stop, row_step, features, is_feature, has_weights: tl.constexpr
):
    """The row at places ``p`` (P,) of the order as float64 (P, D), and its weight (P,)."""
    is_row = p < stop
    number = tl.load(order + p, mask=is_row, other=0)
    x = tl.load(
        rows + number[:, None] * row_step + features[None, :],
        mask=is_row[:, None] & is_feature[None, :],
        other=0.0,
    )
    if has_weights:
        weight = tl.load(weights + number, mask=is_row, other=0.0)
    else:
        weight = is_row.to(tl.float64)
    return x.to(tl.float64), weight


@triton.jit  # type: ignore[untyped-decorator]
def window_sums_kernel(  # type: ignore[no-untyped-def]
    rows,  # IN (n, d) float, of any strides
    weights,  # IN (n,) float64, if there are any
    order,  # IN (n,) int64, which row is where
    runs,  # IN (n,) integers, the run of each place
    centers,  # IN (K, d) float64
    pieces,  # OUT (windows + runs, 2 d + 1) float64
    n_rows,
    n_windows,
    n_block_rows,
    n_block_windows,
    n_centers,
    row_step,
    column_step,
    n_features,
    has_weights: tl.constexpr,
    n_window_rows: tl.constexpr,
    n_tile_windows: tl.constexpr,
    n_tile_features: tl.constexpr,
):
    """Add up the pieces of runs that lie in a few windows."""
    window = tl.program_id(0) * n_tile_windows + tl.arange(0, n_tile_windows)
    block = (window // n_block_windows).to(tl.int64)
    first = block * n_block_rows + (window % n_block_windows).to(tl.int64) * n_window_rows
    stop = tl.minimum(first + n_window_rows, tl.minimum((block + 1) * n_block_rows, n_rows))
    stop = tl.where(window < n_windows, stop, first)
    t = tl.arange(0, n_tile_features)
    is_feature = t < n_features
    features = t.to(tl.int64) * column_step
    n_numbers = 2 * n_features + 1

    center = tl.zeros((n_tile_windows, n_tile_features), tl.float64)
    errors = tl.zeros((n_tile_windows, n_tile_features), tl.float64)
    squares = tl.zeros((n_tile_windows, n_tile_features), tl.float64)
    total = tl.zeros((n_tile_windows,), tl.float64)
    before = tl.full((n_tile_windows,), -1, tl.int64)
    run = tl.load(runs + first, mask=first < stop, other=0).to(tl.int64)
    x, weight = row_of_run(
        rows, weights, order, first, stop, row_step, features, is_feature, has_weights
    )
    for step in range(n_window_rows):
        p = first + step
        is_row = p < stop
        # The next row is on its way while this one is added.
        next_run = tl.load(runs + p + 1, mask=p + 1 < stop, other=0).to(tl.int64)
        next_x, next_weight = row_of_run(
            rows, weights, order, p + 1, stop, row_step, features, is_feature, has_weights
        )
        is_first = is_row & (run != before)
        center = tl.load(
            centers + (run % n_centers)[:, None] * n_features + t[None, :],
            mask=is_first[:, None] & is_feature[None, :],
            other=center,
        )
        error = tl.where(is_row[:, None], x - center, 0.0)
        square = error * error
        if has_weights:
            error = error * weight[:, None]
            square = square * weight[:, None]
        errors += error
        squares += square
        total += weight
        is_last = is_row & ((run != next_run) | (p + 1 >= stop))
        piece = pieces + (window + run) * n_numbers
        is_told = is_last[:, None] & is_feature[None, :]
        tl.store(piece[:, None] + t[None, :], errors, mask=is_told)
        tl.store(piece[:, None] + n_features + t[None, :], squares, mask=is_told)
        tl.store(piece + 2 * n_features, total, mask=is_last)
        errors = tl.where(is_last[:, None], 0.0, errors)
        squares = tl.where(is_last[:, None], 0.0, squares)
        total = tl.where(is_last, 0.0, total)
        before = run
        run, x, weight = next_run, next_x, next_weight


@triton.jit
def piece_of_run(  # type: ignore[no-untyped-def]
    pieces, window, after, run, column, n_numbers
):
    """Some columns of the piece of a run in a window; zeros if that is not before ``after``."""
    n_there = tl.where(window < after, n_numbers, 0)
    return tl.load(pieces + (window + run) * n_numbers + column, mask=column < n_there, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def run_sums_kernel(  # type: ignore[no-untyped-def]
    pieces,  # IN (windows + runs, 2 d + 1) float64
    ends,  # IN (runs,) int64, where each one ends
    sums,  # OUT (runs, 2 d + 1) float64
    n_block_rows,
    n_block_windows,
    n_block_runs,
    n_numbers,
    n_window_rows: tl.constexpr,
    n_tile_columns: tl.constexpr,
):
    """Add up the pieces of a run, for some columns."""
    run = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * n_tile_columns + tl.arange(0, n_tile_columns)
    is_column = column < n_numbers
    start = tl.load(ends + run - 1, mask=run > 0, other=0)
    stop = tl.load(ends + run)
    block = run // n_block_runs
    first_row = block * n_block_rows
    window = block * n_block_windows + (start - first_row) // n_window_rows
    after = block * n_block_windows + (stop - 1 - first_row) // n_window_rows + 1
    after = tl.where(stop > start, after, window)  # a run may be empty
    total = tl.zeros((n_tile_columns,), tl.float64)
    # Four are on their way at a time; they are added one after the other.
    for _ in range(0, after - window, 4):
        first = piece_of_run(pieces, window, after, run, column, n_numbers)
        second = piece_of_run(pieces, window + 1, after, run, column, n_numbers)
        third = piece_of_run(pieces, window + 2, after, run, column, n_numbers)
        fourth = piece_of_run(pieces, window + 3, after, run, column, n_numbers)
        total += first
        total += second
        total += third
        total += fourth
        window += 4
    tl.store(sums + run * n_numbers + column, total, mask=is_column)


@triton.jit  # type: ignore[untyped-decorator]
def block_sums_kernel(  # type: ignore[no-untyped-def]
    sums,  # IN (blocks, m) float64
    totals,  # INOUT (m,) float64
    n_blocks,
    size,
    n_tile: tl.constexpr,
):
    """Add up the sums of all blocks, one after the other."""
    place = tl.program_id(0).to(tl.int64) * n_tile + tl.arange(0, n_tile)
    is_place = place < size
    total = tl.load(totals + place, mask=is_place, other=0.0)
    part = sums + place
    for _ in range(n_blocks):
        total += tl.load(part, mask=is_place, other=0.0)
        part += size
    tl.store(totals + place, total, mask=is_place)


def sums_of_windows(
    X: torch.Tensor,
    weights: torch.Tensor | None,
    order: torch.Tensor,
    runs: torch.Tensor,
    ends: torch.Tensor,
    centers: torch.Tensor,
    layout: Layout,
) -> torch.Tensor:
    """Sums (runs, 2 d + 1) of errors, squares and weights of each run, float64.

    Parameters
    ----------
    X : tensor of shape (n, d), any float
        The rows.
    weights : tensor of shape (n,), float64, or None for ones
    order : tensor of shape (n,), int64
        Which row stands where in the order of the runs.
    runs : tensor of shape (n,), any integer
        The run of each place in that order: those of a block follow on those of the one before.
    ends : tensor of shape (runs,), int64
        Where each of them ends in that order.
    centers : tensor of shape (K, d), float64
        Those of the first K runs, of the next K, and so on.
    layout : Layout
    """
    (n_rows, d), n_runs = X.shape, len(ends)
    n_numbers = 2 * d + 1
    n_windows = layout.windows_of(n_rows)
    n_block_windows = -(-layout.n_block_rows // layout.n_window_rows)
    pieces = centers.new_empty((n_windows + n_runs, n_numbers))
    sums = centers.new_empty((n_runs, n_numbers))
    n_tile_features = triton.next_power_of_2(d)
    n_tile_windows = max(1, TILE_NUMBERS // n_tile_features)
    kernel: Any = window_sums_kernel
    kernel[(triton.cdiv(n_windows, n_tile_windows),)](
        X, X if weights is None else weights, order, runs, centers, pieces,
        n_rows, n_windows, layout.n_block_rows, n_block_windows, len(centers),
        X.stride(0), X.stride(1), d,
        has_weights=weights is not None, n_window_rows=layout.n_window_rows,
        n_tile_windows=n_tile_windows, n_tile_features=n_tile_features,
        num_warps=min(16, max(4, n_tile_features // 128)),
        enable_fp_fusion=False,  # a product is rounded before it is added, as everywhere
    )  # fmt: skip
    kernel = run_sums_kernel
    n_tile_columns = min(MAX_TILE_COLUMNS, triton.next_power_of_2(n_numbers))
    kernel[(n_runs, triton.cdiv(n_numbers, n_tile_columns))](
        pieces, ends, sums, layout.n_block_rows, n_block_windows, layout.n_block_runs, n_numbers,
        n_window_rows=layout.n_window_rows, n_tile_columns=n_tile_columns,
        num_warps=max(1, n_tile_columns // 32), enable_fp_fusion=False,
    )  # fmt: skip
    return sums


def add_sums(
    X: torch.Tensor,
    weights: torch.Tensor | None,
    order: torch.Tensor,
    runs: torch.Tensor,
    ends: torch.Tensor,
    centers: torch.Tensor,
    layout: Layout,
    totals: torch.Tensor,
) -> None:
    """Add the sums of all blocks to ``totals`` (K, 2 d + 1), one block after the other."""
    sums = sums_of_windows(X, weights, order, runs, ends, centers, layout)
    size = totals.numel()
    kernel: Any = block_sums_kernel
    kernel[(triton.cdiv(size, TILE_TOTALS),)](
        sums, totals, sums.numel() // size, size, n_tile=TILE_TOTALS, enable_fp_fusion=False
    )
