"""Nearest centres on a torch device: candidates by matrix products, the decision in float64.

A label is the number of the centre with the least ``D(x, c) = sum_t (x_t - c_t)^2``, added up in
float64 in the order of the features; ties go to the lowest number. It depends on the row and on the
centres alone, not on blocks, devices or what a matrix product happens to round.

Products give ``|c|^2 - 2 x.c`` in the precision of the data, after both were moved near the
origin, with an error below ``kappa (|x|^2 + |c|^2)``. With ``(1 - kappa) |c|^2`` in place of the
first term, centre j cannot be nearer than the one with the least value l if its own value is above
``l + 2 kappa (|x|^2 + |c|^2)``, c being that least one's centre. Rows where more than one centre is
left have ``D`` itself computed for those that are left.

Note [Reduced products]
~~~~~~~~~~~~~~~~~~~~~~~
PyTorch may be told to multiply float32 in TF32 or bfloat16. That is the user's setting and stays as
it is: rows and centres are cut into parts that have few enough bits to be multiplied without loss,
side by side in one longer product, so that the error bound holds all the same.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pgkmeans_sk.engines.torch_memory import block_rows, blocks

TF32_PARTS = ((0, 0), (0, 1), (1, 0))
BFLOAT16_PARTS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))


@dataclass(frozen=True)
class Products:
    """How rows and centres are multiplied: in one part, or in several that have fewer bits."""

    pairs: tuple[tuple[int, int], ...] = ((0, 0),)
    n_bits: int = 24  # of the significand of a part

    @property
    def n_parts(self) -> int:
        return 1 + max(first for first, _ in self.pairs)

    def parts_of(self, values: torch.Tensor) -> torch.Tensor:
        """The parts (parts, ...) of ``values``; their sum is that of the first bits of each."""
        if self.n_parts == 1:
            return values[None]
        mask = -(1 << (24 - self.n_bits))
        parts, rest = [], values
        for _ in range(self.n_parts):
            part = (rest.view(torch.int32) & mask).view(torch.float32)
            parts.append(part)
            rest = rest - part
        return torch.stack(parts)

    def side_by_side(self, values: torch.Tensor, side: int) -> torch.Tensor:
        """The parts of ``values`` (..., d) that the products need, side by side."""
        if self.n_parts == 1:
            return values
        parts = self.parts_of(values)
        return torch.cat([parts[pair[side]] for pair in self.pairs], dim=-1)


def products_on(device: torch.device, dtype: torch.dtype) -> Products:
    """The products that are exact enough under the settings in force (Note [Reduced products])."""
    if dtype != torch.float32:
        return Products()
    settings = _precision_settings(device)
    if settings & {"bf16", "bfloat16", "medium"}:
        return Products(BFLOAT16_PARTS, 8)
    if settings - {"ieee", "none", "highest"}:
        return Products(TF32_PARTS, 11)
    return Products()


def _precision_settings(device: torch.device) -> set[str]:
    """All that may tell how float32 is multiplied on ``device``."""
    backends: Any = torch.backends
    of_device = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn
    places = (of_device, getattr(of_device, "matmul", None), backends)
    found = {str(getattr(place, "fp32_precision", "none")) for place in places}
    if not hasattr(backends, "fp32_precision"):  # before PyTorch 2.9
        found.add(torch.get_float32_matmul_precision())
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":  # cuBLAS obeys that alone
        found.add("tf32")
    return found


@dataclass(frozen=True)
class PackedCenters:
    """Centres as the products read them."""

    exact: torch.Tensor  # (K, d) float64
    origin: torch.Tensor  # (d,) of the working dtype
    columns: torch.Tensor  # (parts * d, K), shifted centres times -2
    doubled: torch.Tensor  # (K, d), the same as rows, in one part
    starts: torch.Tensor  # (K,) (1 - kappa) |c|^2
    norms: torch.Tensor  # (K,) |c|^2
    products: Products
    kappa: float
    smallest: float  # what underflow may cost
    largest: float  # squared norm of a row from which on values may overflow

    @property
    def row_bytes(self) -> int:
        """Working memory for a row and all centres in products."""
        return int(self.starts.element_size() * (len(self.exact) + 4 * len(self.columns)))

    @property
    def pair_bytes(self) -> int:
        """The same with numbers of pairs and, at worst, all pairs in float64."""
        n_centers, n_features = self.exact.shape
        return self.row_bytes + n_centers * (64 + 24 * n_features)


def pack_centers(exact: torch.Tensor, origin: torch.Tensor, n_pairs: int = 1) -> PackedCenters:
    """Lay out centres (K, d), float64, for rows that are shifted by ``origin`` (d,).

    The bound holds for products of up to ``n_pairs`` pairs of parts, or as many as PyTorch needs.
    """
    dtype, n_features = origin.dtype, exact.shape[1]
    limits = torch.finfo(dtype)
    products = products_on(origin.device, dtype)
    shifted = (exact - origin.to(torch.float64)).to(dtype)
    wide = shifted.to(torch.float64)
    norms = (wide * wide).sum(dim=1)
    # n products of rounded numbers, added in any order, and what stands around them.
    n_products = n_features * max(n_pairs, len(products.pairs))
    kappa = (n_products + 16) * limits.eps + 4 * n_features * torch.finfo(torch.float64).eps
    doubled = -2 * shifted
    columns = products.side_by_side(doubled, 1).T.contiguous()
    largest = limits.max / 8
    if not bool(norms.max() < largest):
        kappa = float("inf")  # nothing is certain
    starts = ((1.0 - min(kappa, 1.0)) * norms).to(dtype)
    smallest = limits.tiny * (n_features + 8)
    return PackedCenters(
        exact,
        origin,
        columns,
        doubled,
        starts,
        norms.to(dtype),
        products,
        kappa,
        smallest,
        largest,
    )


def label_rows(
    X: torch.Tensor, packed: PackedCenters, gaps: torch.Tensor | None = None
) -> torch.Tensor:
    """Labels (n,) int32 of the rows ``X`` (n, d).

    ``gaps`` (n,) is given how much farther, in squared distance, the second nearest centre is:
    up to the rounding of the products; the largest number if there is no second.
    """
    n_centers = len(packed.exact)
    labels = torch.zeros(len(X), dtype=torch.int32, device=X.device)
    if n_centers == 1:
        if gaps is not None:
            gaps.fill_(torch.finfo(gaps.dtype).max)
        return labels
    doubtful = torch.empty(len(X), dtype=torch.bool, device=X.device)
    for start, stop in blocks(len(X), block_rows(X.device, packed.row_bytes)):
        gap, nearest, sq_norms = _two_nearest(X[start:stop], packed)
        bound = _bound(sq_norms, nearest, packed)
        labels[start:stop] = nearest
        torch.logical_not(gap > bound, out=doubtful[start:stop])
        if gaps is not None:
            gaps[start:stop] = gap.nan_to_num_(nan=0.0).clamp_(min=0.0)
    settle(labels, doubtful, X, packed)
    return labels


def settle(
    labels: torch.Tensor, doubtful: torch.Tensor, X: torch.Tensor, packed: PackedCenters
) -> None:
    """Set those of the ``labels`` (n,) of the rows ``X`` (n, d) that are ``doubtful`` (n,)."""
    rows = doubtful.nonzero().squeeze(1)
    for start, stop in blocks(len(rows), block_rows(X.device, packed.pair_bytes)):
        chosen = rows[start:stop]
        labels[chosen] = _decide(X[chosen], packed)


def _two_nearest(
    X: torch.Tensor, packed: PackedCenters
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How much more the second least value is, where the least one is, and |x|^2, (b,) each."""
    values, sq_norms = _values(X, packed)
    best, nearest = values.min(dim=1)
    values.scatter_(1, nearest[:, None], float("inf"))
    return values.amin(dim=1) - best, nearest, sq_norms


def _values(X: torch.Tensor, packed: PackedCenters) -> tuple[torch.Tensor, torch.Tensor]:
    """``(1 - kappa) |c|^2 - 2 x.c`` (b, K), and |x|^2 (b,), of shifted rows and centres."""
    shifted = X.to(packed.origin.dtype) - packed.origin
    sq_norms = (shifted * shifted).sum(dim=1)
    factors = packed.products.side_by_side(shifted, 0)
    with without_autocast(X.device):
        return torch.addmm(packed.starts, factors, packed.columns), sq_norms


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products are of numbers as they are, even where somebody casts them by default."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _bound(sq_norms: torch.Tensor, nearest: torch.Tensor, packed: PackedCenters) -> torch.Tensor:
    """What a value may be above the least one, with its centre still the nearest, (b,)."""
    size = 2.0 * packed.kappa * (sq_norms + packed.norms[nearest]) + packed.smallest
    # Also where the squared norm itself is no number.
    return torch.where(sq_norms < packed.largest, size, float("inf"))


def _decide(X: torch.Tensor, packed: PackedCenters) -> torch.Tensor:
    """Labels (b,) int32 by D itself."""
    values, sq_norms = _values(X, packed)
    best, nearest = values.min(dim=1)
    limit = best + _bound(sq_norms, nearest, packed)
    rows, candidates = torch.logical_not(values > limit[:, None]).nonzero(as_tuple=True)
    del values
    sq_dists = torch.empty(len(rows), dtype=torch.float64, device=X.device)
    pair_bytes = 32 * X.shape[1]
    for start, stop in blocks(len(rows), block_rows(X.device, pair_bytes)):
        own, others = rows[start:stop], candidates[start:stop]
        sq_dists[start:stop] = sq_distances(X[own], packed.exact[others])
    least = torch.full((len(X),), float("inf"), dtype=torch.float64, device=X.device)
    least.scatter_reduce_(0, rows, sq_dists, "amin")
    labels = torch.full((len(X),), len(packed.exact), dtype=torch.int64, device=X.device)
    is_least = sq_dists == least[rows]
    candidates = torch.where(is_least, candidates, len(packed.exact))
    return labels.scatter_reduce_(0, rows, candidates, "amin").to(torch.int32)


def sq_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """D (b,) between rows (b, d) and ``others`` (b, d) float64: in order, and never fused."""
    columns = (rows.to(torch.float64) - others).T.contiguous()
    columns.mul_(columns)
    total = columns[0].clone()
    for column in columns[1:]:
        total += column
    return total
