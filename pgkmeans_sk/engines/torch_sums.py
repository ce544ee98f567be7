"""Sums over sets of rows that have the same bits each time, on every device.

Adding to K totals from many threads at once leaves the order to chance. Here rows are brought into
the order of their sets; each set is added up piece by piece, and then the pieces, always in the
same order.
"""

from __future__ import annotations

import numpy as np
import torch

from pgkmeans_sk.results import IntArray

PIECE = 128
"""Rows that one thread adds up: enough threads for a device, and short waits for each."""


def sums_of_runs(
    values: torch.Tensor, ends: torch.Tensor, starts: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums (S, c) of runs of the rows of ``values`` (b, c), float64.

    Run s ends before row ``ends[s]`` (S,), int64, and begins where the one before ends; the last
    one ends with the last row. Pieces begin with each run and at ``starts`` (``starts_of_pieces``),
    which is for rows in several sections; None stands for one section.
    """
    n_rows, n_runs = len(values), len(ends)
    if starts is None:
        starts = torch.arange(0, n_rows, PIECE, device=values.device)
    bounds = torch.sort(torch.cat([starts, ends])).values
    pieces = torch.segment_reduce(values, "sum", offsets=bounds, axis=0, initial=0.0, unsafe=True)
    # Pieces that begin where a run ends belong to the next; empty ones at the very end add nothing.
    of_run = torch.searchsorted(ends, bounds[:-1], right=True)
    runs = torch.arange(n_runs, device=values.device)
    first_pieces = torch.searchsorted(of_run, runs)
    last = torch.searchsorted(of_run, runs[-1:], right=True)
    return torch.segment_reduce(
        pieces, "sum", offsets=torch.cat([first_pieces, last]), axis=0, initial=0.0, unsafe=True
    )


def starts_of_pieces(sizes: IntArray, device: torch.device) -> torch.Tensor:
    """Where pieces begin in sections of so many rows each, ``sizes`` (s,), one after the other.

    The sums of a section have then the bits that they have without the others.
    """
    n_pieces = -(-sizes // PIECE)
    firsts = np.cumsum(sizes) - sizes - PIECE * (np.cumsum(n_pieces) - n_pieces)
    starts = np.repeat(firsts, n_pieces) + PIECE * np.arange(n_pieces.sum())
    return torch.from_numpy(starts).to(device)


def ends_of_runs(sorted_ids: torch.Tensor, n_runs: int) -> torch.Tensor:
    """Where the rows of each of ``n_runs`` ids end, if ids (b,) are in order."""
    ids = torch.arange(n_runs, device=sorted_ids.device, dtype=sorted_ids.dtype)
    return torch.searchsorted(sorted_ids, ids, right=True)


def errors_and_squares(
    rows: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """What a pass adds up for each row, (b, 2 d + 1), float64.

    Errors of ``rows`` (b, d) relative to the ``centers`` (b, d), float64, their squares, and one;
    all times ``weights`` (b,), if there are any. Relative to the centre there is less rounding, and
    none in a cluster of rows equal to it.
    """
    d = rows.shape[1]
    values = torch.empty((len(rows), 2 * d + 1), dtype=torch.float64, device=rows.device)
    torch.sub(rows.to(torch.float64), centers, out=values[:, :d])
    torch.square(values[:, :d], out=values[:, d:-1])
    values[:, -1] = 1.0
    if weights is not None:
        values *= weights[:, None]
    return values


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Sum (b,) of each row of ``values`` (b, c), c > 0.

    Halves are added until one column is left. Every step treats all rows alike, so equal rows have
    equal sums, wherever they stand; of a library's own reduction nobody promises that.
    """
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if values.shape[1] % 2:
            folded[:, 0] += values[:, -1]
        values = folded
    return values[:, 0]


def lowest_where(
    chosen: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor, n_sets: int
) -> torch.Tensor:
    """For each set the lowest of ``numbers`` (b,) int64 whose row is ``chosen`` (b,); or 2^62."""
    least = torch.full((n_sets,), 2**62, dtype=torch.int64, device=ids.device)
    numbers = torch.where(chosen, numbers, 2**62)
    return least.scatter_reduce_(0, ids, numbers, "amin")
