"""A tensor in the place of another, whose gradient it passes on unchanged.

References
----------
Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons",
arXiv:1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(exact: Tensor, noisy: Tensor) -> Tensor:
    """``noisy``, a new tensor, with its gradient given to ``exact``."""
    apply: Any = _StraightThrough.apply
    used: Tensor = apply(exact, noisy)
    return used


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(exact: Tensor, noisy: Tensor) -> Tensor:
        return noisy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        # Otherwise the result would be a view, which nobody may change: x = embed(i); x += y
        ctx.mark_dirty(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
