"""Rotations of ``codes.rotation`` on tensors: the additions of its kernels, in their order.

Products and sums are operations of their own, which no device fuses: rows become the same bits as
in the host's memory, whatever PyTorch's settings for matrix products are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.codes.rotation import Rotation


def applied(rotation: Rotation, rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, d), each rotated, as a new tensor."""
    signed = rows * torch.from_numpy(rotation.signs).to(rows.device, rows.dtype)
    return mixed_pieces(_transformed(signed, rotation.width), rotation.mixer.T)


def undone(rotation: Rotation, rows: torch.Tensor) -> torch.Tensor:
    """For rotated rows (n, d), those they came from."""
    found = _transformed(mixed_pieces(rows, rotation.mixer), rotation.width)
    return found * torch.from_numpy(rotation.signs).to(rows.device, rows.dtype)


def mixed_pieces(rows: torch.Tensor, matrix: NDArray[np.floating]) -> torch.Tensor:
    """``rows @ matrix``, where values of rows (n, d) may be pieces of d / m values: a copy."""
    m = len(matrix)
    dtype = np.float64 if rows.dtype == torch.float64 else np.float32
    columns = torch.from_numpy(np.array(matrix, dtype=dtype, order="C")).to(rows.device)
    pieces = rows.reshape(len(rows), m, -1)
    mixed = torch.zeros_like(pieces, memory_format=torch.contiguous_format)
    for b in range(m):
        mixed += columns[b][:, None] * pieces[:, b : b + 1]
    return mixed.view(rows.shape)


def _transformed(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Each piece of ``width`` columns times the orthogonal Hadamard matrix."""
    if width == 1:
        return rows
    shape, half = rows.shape, 1
    while half < width:
        first, second = rows.reshape(-1, 2, half).unbind(1)
        rows = torch.stack((first + second, first - second), dim=1)
        half *= 2
    scale = torch.tensor(1.0 / np.sqrt(width), dtype=rows.dtype, device=rows.device)
    return (rows * scale).reshape(shape)
