"""Which tensors of which modules are weights, and how a weight is seen as a matrix of rows."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

ROWS: dict[str, dict[str, int]] = {
    "Linear": {"weight": 0},
    "Embedding": {"weight": 0},
    "EmbeddingBag": {"weight": 0},
    "Conv1d": {"weight": 0},
    "Conv2d": {"weight": 0},
    "Conv3d": {"weight": 0},
    "ConvTranspose1d": {"weight": 1},
    "ConvTranspose2d": {"weight": 1},
    "ConvTranspose3d": {"weight": 1},
    "MultiheadAttention": {
        "in_proj_weight": 0,
        "q_proj_weight": 0,
        "k_proj_weight": 0,
        "v_proj_weight": 0,
    },
    "Conv1D": {"weight": 1},  # of transformers: a linear layer that stores its weight transposed
}
"""Weights by type of module, each with the axis that becomes the rows of its matrix.

Rows are outputs (or words), columns what an output is a sum over, so that a block lies within one
output, as in iPQ. A layer type is added by a row here; derived classes are found by their base.
"""


def type_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's class and its bases, the most derived first."""
    return tuple(cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module))


def weight_axes(module: nn.Module) -> dict[str, int]:
    """The weights of a module that are compressed by default, each with the axis of its rows."""
    for name in type_names(module):
        if name in ROWS:
            return {weight: axis for weight, axis in ROWS[name].items() if _has(module, weight)}
    return {}


def _has(module: nn.Module, tensor_name: str) -> bool:
    """Whether a module has a tensor, without computing it if it is parametrized."""
    lists = module._modules.get("parametrizations")
    if lists is not None and tensor_name in lists._modules:
        return True
    return module._parameters.get(tensor_name) is not None


def row_axis(module: nn.Module, tensor_name: str) -> int:
    """The axis of a tensor that becomes rows: that of the table, or 0 if it is not in there."""
    for name in type_names(module):
        if name in ROWS:
            return ROWS[name].get(tensor_name, 0)
    return 0


def matrix_of(tensor: Tensor, axis: int, group_size: int | None = None) -> Tensor:
    """``tensor`` as a matrix (shape[axis], all other axes flattened); a view where possible.

    With ``group_size``, a divisor of the number of values: (group_size, n_groups), where each
    column is a group of consecutive values of the flattened tensor.
    """
    if group_size is not None:
        return tensor.reshape(-1, group_size).T
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def tensor_of(
    matrix: Tensor,
    shape: tuple[int, ...] | torch.Size,
    axis: int,
    group_size: int | None = None,
) -> Tensor:
    """The opposite of ``matrix_of``: a matrix as a tensor of ``shape``; a view where possible."""
    if group_size is not None:
        return matrix.T.reshape(shape)
    others = tuple(shape[:axis]) + tuple(shape[axis + 1 :])
    if prod(others) != matrix.shape[1] or shape[axis] != matrix.shape[0]:
        raise ValueError(
            f"Got a matrix of shape {tuple(matrix.shape)}, but expected "
            f"{(shape[axis], prod(others))} for a tensor of shape {tuple(shape)}."
        )
    return matrix.reshape(shape[axis], *others).movedim(0, axis)
