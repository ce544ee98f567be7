"""Evenly spaced levels in torch: the arithmetic of ``LevelMatrix``, with gradients."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from pgkmeans_sk.codes.level_layout import LevelLayout


class Sizes(NamedTuple):
    """How many consecutive values of a matrix, row after row, have what in common.

    Attributes
    ----------
    range_size : int
        A minimum and a maximum.
    group_size : int
        A number of bits.
    """

    range_size: int
    group_size: int


def levels_of(
    ranges: Tensor,
    widths: Tensor,
    sizes: Sizes,
    shape: tuple[int, ...],
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Least level, step and number of steps of the values of a matrix, or of some of its rows.

    Parameters
    ----------
    ranges : tensor of shape (n_ranges, 2)
        Minima and maxima, in the dtype of the arithmetic.
    widths : integer tensor of shape (n_groups,)
        Bits of each group.
    sizes : Sizes
        Values of a range, and of a group.
    shape : (int, int, ...)
        Rows and columns of the matrix.
    rows : integer tensor of shape (n,), default=None
        Numbers of rows; None means all.

    Returns
    -------
    least, step, n_steps : tensors that broadcast to the rows
        In the dtype of ``ranges``.
    """
    least, greatest = ranges.unbind(1)
    # Integers, since exp2 of a whole number need not be whole.
    n_steps = (2 ** widths.to(torch.int64) - 1).to(ranges.dtype)
    top = per_value(n_steps, sizes.group_size, shape, rows)
    step = per_value(greatest - least, sizes.range_size, shape, rows) / top
    return per_value(least, sizes.range_size, shape, rows), step, top


def per_value(
    numbers: Tensor, size: int, shape: tuple[int, ...], rows: Tensor | None = None
) -> Tensor:
    """What each value of a matrix has of ``numbers``, of which one is for ``size`` values."""
    if len(numbers) == 1:
        return numbers
    n_rows, n_columns = shape[:2]
    if rows is None:
        return numbers.repeat_interleave(size)[: n_rows * n_columns].view(n_rows, n_columns)
    return numbers[value_numbers(rows, n_columns) // size]


def value_numbers(rows: Tensor, n_columns: int) -> Tensor:
    """The numbers (n, n_columns) of the values of some rows, counted row after row."""
    columns = torch.arange(n_columns, device=rows.device)
    return rows.to(torch.int64).unsqueeze(1) * n_columns + columns


def level_layout(
    shape: tuple[int, int], widths: Tensor, sizes: Sizes, *, dtype: str, range_dtype: str
) -> LevelLayout:
    """The layout of a matrix with these widths (n_groups,)."""
    bits = widths.detach().to(torch.int64)
    counts = (torch.bincount(bits) * sizes.group_size).tolist()
    n_missing = len(bits) * sizes.group_size - prod(shape)
    counts[int(bits[-1])] -= n_missing
    return LevelLayout(
        n_rows=shape[0],
        n_features=shape[1],
        range_size=sizes.range_size,
        group_size=sizes.group_size,
        widths=tuple((b, count) for b, count in enumerate(counts) if count),
        dtype=dtype,
        range_dtype=range_dtype,
    )
