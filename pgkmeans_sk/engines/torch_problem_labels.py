"""Nearest centres for many problems at once: the rule of ``torch_labels.py``, problem by problem.

Candidates come from one product of matrices for as many problems as the memory for a block allows;
where products leave a doubt, D itself is computed, for the rows in doubt of all problems together.
Labels are those of each problem alone: they do not depend on products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from pgkmeans_sk.engines.torch_labels import (
    Products,
    decide_rows,
    pack_centers,
    products_on,
    sq_distances,
    without_autocast,
)
from pgkmeans_sk.engines.torch_memory import block_rows, blocks

DIRECT_BLOCKS = 8
"""Rows in doubt are compared with all centres if that takes no more blocks than this."""


@dataclass(frozen=True)
class PackedProblems:
    """Centres of A problems as the products read them; fields as in ``PackedCenters``."""

    exact: torch.Tensor  # (A, K, d) float64
    origins: torch.Tensor  # (A, d)
    columns: torch.Tensor  # (A, parts * d, K)
    starts: torch.Tensor  # (A, K)
    norms: torch.Tensor  # (A, K)
    kappas: torch.Tensor  # (A,); infinite where nothing is certain
    products: Products
    smallest: float
    largest: float

    @property
    def row_bytes(self) -> int:
        """Working memory for a row."""
        n_columns, n_centers = self.columns.shape[1:]
        return int(self.starts.element_size() * (n_centers + 4 * n_columns))


def pack_problems(exact: torch.Tensor, origins: torch.Tensor) -> PackedProblems:
    """Lay out centres (A, K, d), float64, for rows that are shifted by ``origins`` (A, d)."""
    dtype, n_features = origins.dtype, exact.shape[2]
    limits = torch.finfo(dtype)
    products = products_on(origins.device, dtype)
    shifted = (exact - origins.to(torch.float64)[:, None]).to(dtype)
    norms = shifted.to(torch.float64).square().sum(dim=2)
    kappa = (n_features * len(products.pairs) + 16) * limits.eps
    kappa += 4 * n_features * torch.finfo(torch.float64).eps
    largest = limits.max / 8
    kappas = torch.full_like(norms[:, 0], kappa)
    kappas = torch.where(norms.amax(dim=1) < largest, kappas, float("inf"))
    starts = ((1.0 - kappas.clamp(max=1.0))[:, None] * norms).to(dtype)
    return PackedProblems(
        exact, origins, products.side_by_side(-2 * shifted, 1).mT.contiguous(), starts,
        norms.to(dtype), kappas.to(dtype), products, limits.tiny * (n_features + 8), largest,
    )  # fmt: skip


def blocks_of_problems(
    n_problems: int, n_rows: int, size: int, most_rows: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Which problems, and which of their rows, are looked at together: ``size`` rows or fewer.

    Each problem alone, block by block, if it has more, or more than ``most_rows``.
    """
    longest = min(size, n_rows) if most_rows is None else min(most_rows, n_rows)
    together = max(1, size // longest)
    for first in range(0, n_problems, together):
        for start, stop in blocks(n_rows, longest):
            yield slice(first, min(n_problems, first + together)), slice(start, stop)


def find_nearest(
    X: torch.Tensor, packed: PackedProblems, own: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates (a, b) for rows (a, b, d) of the problems ``own``.

    With how much farther the second one is, up to rounding, and where there is a doubt.
    """
    origins = packed.origins[own]
    shifted = X.to(origins.dtype) - origins[:, None]
    sq_norms = (shifted * shifted).sum(dim=2)
    factors = packed.products.side_by_side(shifted, 0)
    with without_autocast(X.device):
        values = torch.baddbmm(packed.starts[own, None], factors, packed.columns[own])
    best, nearest = values.min(dim=2)
    values.scatter_(2, nearest[..., None], float("inf"))
    gaps = values.amin(dim=2) - best
    norms = packed.norms[own].gather(1, nearest)
    bound = 2.0 * packed.kappas[own, None] * (sq_norms + norms) + packed.smallest
    bound = torch.where(sq_norms < packed.largest, bound, float("inf"))
    doubtful = torch.logical_not(gaps > bound)
    return nearest, gaps.nan_to_num_(nan=0.0).clamp_(min=0.0), doubtful


def decide(
    rows: torch.Tensor, numbers: torch.Tensor, problems: torch.Tensor, packed: PackedProblems,
    labels: torch.Tensor, places: torch.Tensor,
) -> None:  # fmt: skip
    """Write the labels of rows in doubt, by D, to ``places`` (m,) of ``labels`` (A * n,).

    They are the rows ``numbers`` (m,) of ``rows`` (B * n, d), and of the ``problems`` (m,) of
    ``packed``.
    """
    _, n_centers, n_features = packed.exact.shape
    size = block_rows(rows.device, 32 * n_centers * n_features)
    if len(numbers) > DIRECT_BLOCKS * size:
        _decide_in_turn(rows, numbers, problems, packed, labels, places)
        return
    every = torch.arange(n_centers, device=rows.device)
    for start, stop in blocks(len(numbers), size):
        block = slice(start, stop)
        own = rows[numbers[block]].to(torch.float64)[:, None].expand(-1, n_centers, -1)
        centers = packed.exact[problems[block]]
        found = sq_distances(own.reshape(-1, n_features), centers.view(-1, n_features))
        sq_dists = found.view(-1, n_centers)
        is_least = sq_dists == sq_dists.amin(dim=1, keepdim=True)
        nearest = torch.where(is_least, every, n_centers).amin(dim=1)
        labels[places[block]] = nearest.to(labels.dtype)


def _decide_in_turn(
    rows: torch.Tensor, numbers: torch.Tensor, problems: torch.Tensor, packed: PackedProblems,
    labels: torch.Tensor, places: torch.Tensor,
) -> None:  # fmt: skip
    """The same where nearly all is in doubt: of each row, only a few centres are looked at."""
    ends = torch.searchsorted(problems, torch.arange(len(packed.exact) + 1, device=rows.device))
    bounds = ends.cpu().tolist()
    for number, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        alone = pack_centers(packed.exact[number], packed.origins[number])
        size = block_rows(rows.device, alone.pair_bytes)
        for start, stop in blocks(last - first, size):
            block = slice(first + start, first + stop)
            labels[places[block]] = decide_rows(rows[numbers[block]], alone)
