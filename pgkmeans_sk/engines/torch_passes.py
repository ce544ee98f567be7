"""What a pass does with rows on a device, by plain operations or by kernels, whichever is quicker.

Labels and totals are the same, to the last bit. How much farther the second nearest centre is would
not be: products of other shapes round in their own way. So that is told by plain operations alone.
"""

from __future__ import annotations

import torch

from pgkmeans_sk.engines.torch_choice import by_quicker, kind_of, launching_on
from pgkmeans_sk.engines.torch_labels import (
    TF32_PARTS,
    PackedCenters,
    Products,
    label_rows,
    pack_centers,
    settle,
)
from pgkmeans_sk.engines.torch_memory import block_rows, blocks
from pgkmeans_sk.engines.torch_totals import (
    MOST_KERNEL_FEATURES,
    LabelledRows,
    added_by_kernels,
    added_by_operations,
)

LABEL_BYTES = 64
"""Working memory for a row in the kernel for labels, and around it."""


def label_quickly(
    X: torch.Tensor, packed: PackedCenters, gaps: torch.Tensor | None, must_tell: bool = False
) -> tuple[torch.Tensor, bool]:
    """Labels (n,) int32 of the rows ``X`` (n, d), and whether ``gaps`` (n,) were told.

    ``gaps`` are those of ``label_rows``; they are told if they must be, or by the way.
    """
    n_centers = len(packed.exact)

    def by_operations() -> tuple[torch.Tensor, bool]:
        return label_rows(X, packed, gaps), gaps is not None

    def by_kernel() -> tuple[torch.Tensor, bool]:
        return label_by_kernel(X, packed.exact, packed.origin), False

    if must_tell or n_centers == 1 or X.dtype == torch.float64:
        return by_operations()
    return by_quicker(kind_of("nearest centres", X, n_centers), by_operations, by_kernel)


def label_by_kernel(X: torch.Tensor, exact: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Labels (n,) of rows (n, d) for ``exact`` centres (K, d), by the kernel of Triton."""
    from pgkmeans_sk.engines.triton_labels import KernelCenters, n_parts_for, nearest_or_in_doubt

    products = Products(TF32_PARTS, 11) if n_parts_for(X) == 2 else Products()
    packed = pack_centers(exact, origin, len(products.pairs))
    centers = KernelCenters(
        packed.origin, products.parts_of(packed.doubled), packed.starts, packed.norms,
        packed.kappa, packed.smallest, packed.largest,
    )  # fmt: skip
    labels = torch.empty(len(X), dtype=torch.int32, device=X.device)
    in_doubt = torch.empty(len(X), dtype=torch.int8, device=X.device)
    for start, stop in blocks(len(X), block_rows(X.device, LABEL_BYTES)):
        own = slice(start, stop)
        with launching_on(X.device):
            nearest_or_in_doubt(X[own], centers, labels[own], in_doubt[own])
    settle(labels, in_doubt, X, packed)
    return labels


def added_quickly(rows: LabelledRows, exact: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """``totals`` and what ``rows`` mean for clusters with ``exact`` centres (K, d)."""
    if rows.values.shape[1] > MOST_KERNEL_FEATURES:
        return added_by_operations(rows, exact, totals)
    return by_quicker(
        kind_of("sums of clusters", rows.values, len(exact)),
        lambda: added_by_operations(rows, exact, totals),
        lambda: added_by_kernels(rows, exact, totals),
    )
