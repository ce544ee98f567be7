"""Rows that lie close together on a torch device, merged into their weighted means.

Rows are sorted by a hash of the cell that they fall in; rows of one cell then stand side by side.
Neighbours are compared, so that rows of different cells are never merged. (Should two cells have
one hash of 64 bits, some of their rows may stay apart, which costs a little time later.)
"""

from __future__ import annotations

import math

import torch

from pgkmeans_sk.engines.torch_memory import blocks, sum_rows
from pgkmeans_sk.engines.torch_rows import reported_dtype
from pgkmeans_sk.engines.torch_source import RowSource
from pgkmeans_sk.engines.torch_sums import ends_of_runs, row_sums, sums_of_runs

LARGEST_MERGED_SHARE = 0.9
"""If more rows than this are left, merging costs a copy of them and spares little."""

# Odd numbers of 64 bits, as signed integers (after SplitMix64): products wrap around.
_SEED = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_LOW_35, _LOW_32 = 2**35 - 1, 2**32 - 1


def merge_close_rows(
    source: RowSource, weights: torch.Tensor | None, radius: float
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Means of the rows that share a cell of diagonal ``radius``; 0 merges equal rows only.

    Returns the means (m, d), of positive weight, in the order in which their first rows stand;
    their weights (m,), float64; and the weighted sum of squared distances of the rows to their
    means. None instead if more than ``LARGEST_MERGED_SHARE`` of the rows would be left.
    """
    n_rows, n_features = source.shape
    inverse_side = math.sqrt(n_features) / radius if radius > 0.0 else 0.0
    order, group, n_groups = _groups(source, inverse_side)
    if n_groups > LARGEST_MERGED_SHARE * n_rows:
        return None
    means, totals, lost = _moments(source, weights, order, group, n_groups)
    kept = totals > 0.0
    return means[kept].to(reported_dtype(source.dtype)), totals[kept], lost


def _cells(rows: torch.Tensor, inverse_side: float) -> torch.Tensor:
    """Numbers (b, d) of the cells that rows fall in, as float64; rows themselves if it is 0."""
    cells = rows.to(torch.float64)
    if inverse_side > 0.0:
        cells = (cells * inverse_side).floor_()
    return cells + 0.0  # -0.0 and 0.0 are equal, but their bits are not


def _hashes(cells: torch.Tensor) -> torch.Tensor:
    """64 bits (b,) that depend on all numbers of a cell (multiply and shift, after SplitMix64)."""
    mixed = torch.full((len(cells),), _SEED, dtype=torch.int64, device=cells.device)
    for column in cells.T.contiguous().view(torch.int64):
        mixed ^= column
        mixed *= _FIRST
        mixed ^= (mixed >> 29) & _LOW_35
        mixed *= _SECOND
        mixed ^= (mixed >> 32) & _LOW_32
    return mixed


def _groups(source: RowSource, inverse_side: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Row numbers (n,) group by group, the group (n,) of each of these, and how many there are.

    Groups are numbered by their first rows; within a group, rows stand in their order.
    """
    (n_rows, n_features), device = source.shape, source.device
    size = sum_rows(n_features)
    hashes = torch.empty(n_rows, dtype=torch.int64, device=device)
    for first, last, rows in source.chunks(size):
        for start, stop in blocks(last - first, size):
            cells = _cells(rows[start:stop], inverse_side)
            hashes[first + start : first + stop] = _hashes(cells)
    order = torch.argsort(hashes, stable=True)
    del hashes
    is_first = torch.ones(n_rows, dtype=torch.bool, device=device)
    for start, stop in blocks(n_rows - 1, size):
        cells = _cells(source.take(order[start : stop + 1]), inverse_side)
        is_first[start + 1 : stop + 1] = (cells[1:] != cells[:-1]).any(dim=1)
    run = is_first.cumsum(0) - 1
    firsts = order[is_first]
    n_groups = len(firsts)
    rank = torch.empty_like(firsts)
    rank[torch.argsort(firsts)] = torch.arange(n_groups, device=device)
    group = rank[run]
    by_group = torch.argsort(group, stable=True)
    return order[by_group], group[by_group], n_groups


def _moments(
    source: RowSource,
    weights: torch.Tensor | None,
    order: torch.Tensor,
    group: torch.Tensor,
    n_groups: int,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Means (m, d) and weights (m,) of groups, float64, and what rows lose by moving there."""
    (n_rows, n_features), device = source.shape, source.device
    size = sum_rows(n_features)
    ends = ends_of_runs(group, n_groups)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    # Relative to the first row of a group: equal rows keep their values to the last bit.
    pivots = order[starts]
    totals = torch.zeros((n_groups, n_features + 1), dtype=torch.float64, device=device)
    for start, stop in blocks(n_rows, size):
        own, rows = group[start:stop], order[start:stop]
        errors = source.take(rows).to(torch.float64)
        errors -= source.take(pivots[own]).to(torch.float64)
        values = torch.cat([errors, torch.ones_like(errors[:, :1])], dim=1)
        if weights is not None:
            values *= weights[rows][:, None]
        first, last = int(own[0]), int(own[-1]) + 1
        totals[first:last] += sums_of_runs(values, ends_of_runs(own - first, last - first))
    sums, weight = totals[:, :-1], totals[:, -1]
    means = sums / torch.where(weight > 0.0, weight, 1.0)[:, None]
    means += source.take(pivots).to(torch.float64)
    lost = 0.0
    for start, stop in blocks(n_rows, size):
        rows = order[start:stop]
        errors = source.take(rows).to(torch.float64) - means[group[start:stop]]
        errors = row_sums(errors.square_())
        if weights is not None:
            errors = errors * weights[rows]
        lost += float(errors.sum())
    return means, weight, lost
