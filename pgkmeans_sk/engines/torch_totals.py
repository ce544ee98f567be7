"""What the rows of clusters add up to: errors, their squares and weights, always in one order.

Rows are taken in blocks (``sum_rows``); each block is brought into the order of its clusters and
added up piece by piece (``torch_sums.py``); blocks follow on each other. There are two ways, with
the same bits: plain operations, block by block, and the kernels of ``triton_sums.py``, which read
rows where they are, many blocks at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pgkmeans_sk.engines.torch_choice import launching_on
from pgkmeans_sk.engines.torch_memory import block_rows, blocks, sum_rows
from pgkmeans_sk.engines.torch_sums import (
    PIECE,
    ends_of_runs,
    errors_and_squares,
    row_sums,
    sums_of_runs,
)

MOST_KERNEL_FEATURES = 4096
"""Rows of more features do not fit into the registers of a program."""
SHORT_IDS = ((torch.uint8, 2**8), (torch.int16, 2**15), (torch.int32, 2**31))
"""Kinds of ids, and how many there are: short ones are sorted in fewer passes over them."""


class LabelledRows(NamedTuple):
    """Rows that are added up to the totals of their clusters.

    ``values`` (b, d) of any float, ``labels`` (b,) int32 and ``weights`` (b,) float64 or None.
    """

    values: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None


def new_totals(exact: torch.Tensor) -> torch.Tensor:
    """Zeros (K, 2 d + 1) for clusters with ``exact`` centres (K, d), float64."""
    n_clusters, d = exact.shape
    return exact.new_zeros((n_clusters, 2 * d + 1))


def parts_of(totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of errors (K, d), weights (K,) and sums of squared errors (K,)."""
    d = totals.shape[1] // 2
    return totals[:, :d], totals[:, -1], row_sums(totals[:, d:-1])


def added_by_operations(
    rows: LabelledRows, exact: torch.Tensor, totals: torch.Tensor
) -> torch.Tensor:
    """``totals`` and what ``rows`` mean for clusters with ``exact`` centres (K, d)."""
    X, labels, weights = rows
    for start, stop in blocks(len(X), sum_rows(X.shape[1])):
        ids, order = torch.sort(_short(labels[start:stop], len(exact)), stable=True)
        own = None if weights is None else weights[start:stop][order]
        values = errors_and_squares(X[start:stop][order], exact[ids.to(torch.int32)], own)
        totals = totals + sums_of_runs(values, ends_of_runs(ids, len(exact)))
    return totals


def added_by_kernels(rows: LabelledRows, exact: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """The same by the kernels of Triton."""
    from pgkmeans_sk.engines.triton_sums import Layout, add_sums

    (n_rows, d), (n_clusters, n_numbers) = rows.values.shape, totals.shape
    size = sum_rows(d)
    totals = totals.clone()
    layout = Layout(size, n_clusters, PIECE)
    of_block = 8 * n_numbers * (layout.windows_of(size) + 2 * n_clusters) + 32 * size
    together = min(block_rows(exact.device, of_block), SHORT_IDS[-1][1] // max(n_clusters, size))
    for start, stop in blocks(n_rows, size * max(1, together)):  # which changes no sum
        X, labels = rows.values[start:stop], rows.labels[start:stop]
        weights = None if rows.weights is None else rows.weights[start:stop]
        n_runs = n_clusters * -(-len(X) // size)
        ids, order = torch.sort(_numbered_through(labels, size, n_clusters, n_runs), stable=True)
        ends = ends_of_runs(ids, n_runs)
        with launching_on(X.device):
            add_sums(X, weights, order, ids, ends, exact, layout, totals)
    return totals


def _short(labels: torch.Tensor, n_ids: int) -> torch.Tensor:
    """Labels below ``n_ids`` in as few bits as hold these."""
    return labels.to(next(dtype for dtype, n in SHORT_IDS if n_ids <= n))


def _numbered_through(
    labels: torch.Tensor, size: int, n_clusters: int, n_runs: int
) -> torch.Tensor:
    """Ids (b,) of clusters in blocks of ``size`` rows, counted through from block to block."""
    if n_runs == n_clusters:
        return _short(labels, n_runs)
    rows = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
    return _short(rows.div_(size, rounding_mode="floor").mul_(n_clusters).add_(labels), n_runs)
