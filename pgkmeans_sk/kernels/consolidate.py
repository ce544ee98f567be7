"""Finding rows that are equal, or that lie in the same small cell, in one pass.

Rows are put into an open-addressing hash table, keyed by the numbers of the cell that they fall in
(or by the bits of their values, for equal rows). No pair of rows is ever compared that does not
share a hash, so the work is O(n d).
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.points import copy_row


@part
def to_cell(
    row,  # INOUT (d,) float64, becomes the numbers of the row's cell
    inverse_side,  # IN float64, 1 / side of a cell; 0 leaves the row's values, as they are
):
    """The cell that a row falls in; rows of one cell become equal."""
    for t in range(row.size):
        if inverse_side > 0.0:
            row[t] = np.floor(row[t] * inverse_side)
        row[t] += 0.0  # -0.0 and 0.0 are equal, but their bits are not


@part
def hash_cell(
    cell,  # IN (d,) float64
):
    """64 bits that depend on all numbers of the cell (multiply and shift, after SplitMix64)."""
    bits = cell.view(np.uint64)
    mixed = np.uint64(0x9E3779B97F4A7C15)
    for t in range(bits.size):
        mixed ^= bits[t]
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(32)
    return mixed


@kernel
def group_rows(
    points,  # IN Points
    n_rows,  # IN int
    inverse_side,  # IN float64, 1 / side of a cell; 0 asks for equal rows
    table,  # WORK (power of two > n_rows,) int, filled with -1; holds first rows of groups
    groups,  # OUT (n_rows,) int, number of each row's group, by first appearance
):
    """Number the groups of rows that share a cell; returns how many there are."""
    mask = np.uint64(table.size - 1)
    cell = np.empty(points.n_features, np.float64)
    other = np.empty(points.n_features, np.float64)
    n_groups = 0
    for i in range(n_rows):
        copy_row(points, i, cell)
        to_cell(cell, inverse_side)
        slot = hash_cell(cell) & mask
        while True:
            first = table[slot]
            if first < 0:
                table[slot] = i
                groups[i] = n_groups
                n_groups += 1
                break
            copy_row(points, first, other)
            to_cell(other, inverse_side)
            same = True
            for t in range(cell.size):
                if cell[t] != other[t]:
                    same = False
                    break
            if same:
                groups[i] = groups[first]
                break
            slot = (slot + np.uint64(1)) & mask
    return n_groups


@kernel
def merge_groups(
    points,  # IN Points
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    groups,  # IN (n,) int
    means,  # INOUT (n_groups, d) float64, zeros at first
    totals,  # INOUT (n_groups,) float64, zeros at first
):
    """Weighted mean and weight of each group; returns the squared error of rows about the means."""
    row = np.empty(points.n_features, np.float64)
    for i in range(groups.size):
        weight = weights[i * weight_step]
        copy_row(points, i, row)
        group = groups[i]
        totals[group] += weight
        if totals[group] > 0.0:
            # A running mean: equal rows keep their mean to the last bit.
            rate = weight / totals[group]
            for t in range(row.size):
                means[group, t] += rate * (row[t] - means[group, t])
    lost = 0.0
    for i in range(groups.size):
        copy_row(points, i, row)
        total = 0.0
        for t in range(row.size):
            difference = row[t] - means[groups[i], t]
            total += difference * difference
        lost += weights[i * weight_step] * total
    return lost
