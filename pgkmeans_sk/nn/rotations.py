"""Rotations of ``codes.rotation`` undone in torch, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor


def undo_rotation(rows: Tensor, mixer: Tensor, signs: Tensor) -> Tensor:
    """Rows (n, d) before they were rotated by ``kron(mixer, H) @ diag(signs)``.

    Parameters
    ----------
    rows : tensor of shape (n, d), float32 or float64
        Rotated rows.
    mixer : tensor of shape (m, m), floating
        As of ``Rotation``; m divides d, and d / m, the width of the Hadamard matrix H, is a power
        of two.
    signs : tensor of shape (d,), int8
        Each 1 or -1.
    """
    m = len(mixer)
    pieces = rows.reshape(len(rows), m, -1)
    if m > 1:
        # Autocast would compute this in half the digits.
        with torch.autocast(rows.device.type, enabled=False):
            pieces = torch.matmul(mixer.to(rows.dtype).T, pieces)
    return (hadamard(pieces).reshape(rows.shape)) * signs.to(rows.dtype)


def hadamard(pieces: Tensor) -> Tensor:
    """The last axis, whose length is a power of two, times the orthogonal Hadamard matrix.

    The fast Walsh-Hadamard transform: log2(width) additions for each value.
    """
    shape, width = pieces.shape, pieces.shape[-1]
    half = 1
    while half < width:
        pairs = pieces.reshape(-1, width // (2 * half), 2, half)
        first, second = pairs.unbind(2)
        pieces = torch.stack((first + second, first - second), dim=2)
        half *= 2
    scale: float = width**-0.5
    return pieces.reshape(shape) * scale
