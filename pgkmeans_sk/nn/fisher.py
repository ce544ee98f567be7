"""The Fisher information of weights: how much the loss changes with them, by mean squared gradient.

Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629, section 4.1, weight the squared error of each
value by the square of its gradient. Here the squares are averaged over the rows, and over the
columns, of the matrix: a quantizer takes weights for these, and nothing of the size of the model
has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.weight_uses import Use

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """The mean squared gradient of the loss, ``E[g**2]`` over batches, for rows and for columns.

    Attributes
    ----------
    rows : ndarray of shape (out,), float64
        The average over the columns of each row of the matrix.
    columns : ndarray of shape (in,), float64
        The average over the rows of each column.
    n_batches : int
        Batches that were seen.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    n_batches: int


def fisher_of(
    model: nn.Module, batches: Iterable[Any], loss: Loss, uses: Sequence[Use]
) -> tuple[dict[str, Fisher], int]:
    """The Fisher information by first name, and the number of batches.

    Tensors that the loss never depends on have no record. ``requires_grad`` is set where it is
    needed, and it is for the caller to restore it; no ``grad`` is written.

    Raises
    ------
    ValueError
        If the loss is none, or depends on none of the weights.
    """
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    n_batches = 0
    for use in uses:
        if isinstance(use.original, nn.Parameter) and use.original.is_floating_point():
            use.original.requires_grad_(True)
    for batch in batches:
        n_batches += 1
        for name, matrix in _gradients(model, batch, loss, uses).items():
            # Norms with a dtype need no copy of the gradient in float64.
            rows, columns = (
                torch.linalg.vector_norm(matrix, dim=axis, dtype=torch.float64).square()
                / matrix.shape[axis]
                for axis in (1, 0)
            )
            if name in sums:
                rows, columns = sums[name][0] + rows, sums[name][1] + columns
            sums[name] = rows, columns
    records = {
        name: Fisher(
            rows=(rows / n_batches).cpu().numpy(),
            columns=(columns / n_batches).cpu().numpy(),
            n_batches=n_batches,
        )
        for name, (rows, columns) in sums.items()
    }
    return records, n_batches


def _gradients(model: nn.Module, batch: Any, loss: Loss, uses: Sequence[Use]) -> dict[str, Tensor]:
    """Gradients of the loss for a batch as matrices, by first name; of tied weights, their sum."""
    # A weight that is computed has to be the very tensor that the layer will use: hence cached.
    with torch.inference_mode(False), torch.enable_grad(), parametrize.cached():
        used: dict[int, tuple[Use, Tensor]] = {}
        for use in uses:
            weight = getattr(use.module, use.tensor_name)
            if weight.requires_grad:
                used.setdefault(id(weight), (use, weight))
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"Got {what} from loss(model, batch), but expected a single value.")
        if not value.requires_grad:
            raise ValueError(
                "Got a loss that depends on none of the weights, but expected one to differentiate."
            )
        weights = [weight for _, weight in used.values()]
        gradients = torch.autograd.grad(value.reshape(()), weights, allow_unused=True)
    matrices: dict[str, Tensor] = {}
    for (use, _), gradient in zip(used.values(), gradients, strict=True):
        if gradient is not None:
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            matrix = matrix_of(dense, use.axis)
            name = use.first_name
            matrices[name] = matrices[name] + matrix if name in matrices else matrix
    return matrices
