"""Nearest centres for many problems at once: the rule of ``torch_labels.py``, problem by problem.

Candidates come from one product of matrices for as many problems as the memory for a block allows;
where products leave a doubt, D itself is computed, for the rows in doubt of all problems together.
Labels are those of each problem alone: they do not depend on products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pgkmeans_sk.engines.torch_labels import (
    Products,
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
        """Working memory for a row and all centres in products."""
        n_columns, n_centers = self.columns.shape[1:]
        return int(self.starts.element_size() * (n_centers + 4 * n_columns))

    @property
    def pair_bytes(self) -> int:
        """The same with numbers of pairs."""
        return self.row_bytes + 32 * self.columns.shape[2]


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
    values, sq_norms = _values(X, packed, own)
    best, nearest = values.min(dim=2)
    values.scatter_(2, nearest[..., None], float("inf"))
    gaps = values.amin(dim=2) - best
    doubtful = torch.logical_not(gaps > _bound(sq_norms, nearest, packed, own))
    return nearest, gaps.nan_to_num_(nan=0.0).clamp_(min=0.0), doubtful


def _values(
    X: torch.Tensor, packed: PackedProblems, own: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(1 - kappa) |c|^2 - 2 x.c`` (a, b, K), and |x|^2 (a, b), of shifted rows and centres."""
    origins = packed.origins[own]
    shifted = X.to(origins.dtype) - origins[:, None]
    sq_norms = (shifted * shifted).sum(dim=2)
    factors = packed.products.side_by_side(shifted, 0)
    with without_autocast(X.device):
        return torch.baddbmm(packed.starts[own, None], factors, packed.columns[own]), sq_norms


def _bound(
    sq_norms: torch.Tensor, nearest: torch.Tensor, packed: PackedProblems, own: slice
) -> torch.Tensor:
    """What a value may be above the least one, with its centre still the nearest, (a, b)."""
    norms = packed.norms[own].gather(1, nearest)
    size = 2.0 * packed.kappas[own, None] * (sq_norms + norms) + packed.smallest
    # Also where the squared norm itself is no number.
    return torch.where(sq_norms < packed.largest, size, float("inf"))


def are_few(n_rows: int, packed: PackedProblems) -> bool:
    """Whether so many rows in doubt are compared with all centres, which needs no more waits."""
    _, n_centers, n_features = packed.exact.shape
    return n_rows <= DIRECT_BLOCKS * _rows_compared(packed.exact.device, n_centers, n_features)


def _rows_compared(device: torch.device, n_centers: int, n_features: int) -> int:
    """How many rows are compared with all centres at a time."""
    return block_rows(device, 32 * n_centers * n_features)


def decide_among_all(
    rows: torch.Tensor, problems: torch.Tensor, packed: PackedProblems
) -> torch.Tensor:
    """Labels (m,) int32 by D itself of ``rows`` (m, d) of ``problems`` (m,)."""
    _, n_centers, n_features = packed.exact.shape
    every = torch.arange(n_centers, device=rows.device)
    labels = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
    size = _rows_compared(rows.device, n_centers, n_features)
    for start, stop in blocks(len(rows), size):
        own = rows[start:stop, None].expand(-1, n_centers, -1)
        centers = packed.exact[problems[start:stop]]
        found = sq_distances(own.reshape(-1, n_features), centers.view(-1, n_features))
        sq_dists = found.view(-1, n_centers)
        is_least = sq_dists == sq_dists.amin(dim=1, keepdim=True)
        labels[start:stop] = torch.where(is_least, every, n_centers).amin(dim=1)
    return labels


def decide_among_candidates(
    X: torch.Tensor, packed: PackedProblems, own: slice, doubtful: torch.Tensor
) -> torch.Tensor:
    """Labels (a, b) int32 by D itself of the ``doubtful`` (a, b) among rows (a, b, d).

    Only centres that may be the nearest are looked at. Other rows have the label K.
    """
    values, sq_norms = _values(X, packed, own)
    best, nearest = values.min(dim=2)
    limit = best + _bound(sq_norms, nearest, packed, own)
    may_be = torch.logical_not(values > limit[..., None]).logical_and_(doubtful[..., None])
    del values
    n_problems, n_rows, n_centers = may_be.shape
    pairs, candidates = may_be.flatten(0, 1).nonzero(as_tuple=True)
    rows, exact = X.flatten(0, 1), packed.exact[own]
    sq_dists = torch.empty(len(pairs), dtype=torch.float64, device=X.device)
    for start, stop in blocks(len(pairs), block_rows(X.device, 32 * X.shape[2])):
        those, others = pairs[start:stop], candidates[start:stop]
        centers = exact[those // n_rows, others]
        sq_dists[start:stop] = sq_distances(rows[those], centers)
    shape = n_problems * n_rows
    least = torch.full((shape,), float("inf"), dtype=torch.float64, device=X.device)
    least.scatter_reduce_(0, pairs, sq_dists, "amin")
    candidates = torch.where(sq_dists == least[pairs], candidates, n_centers)
    labels = torch.full((shape,), n_centers, dtype=torch.int64, device=X.device)
    labels.scatter_reduce_(0, pairs, candidates, "amin")
    return labels.to(torch.int32).view(n_problems, n_rows)
