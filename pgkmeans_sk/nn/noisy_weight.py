"""NoisyWeight: a weight some of whose blocks are quantized each time it is read in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.counter_noise import WORD_BITS, random_words, random_words_at
from pgkmeans_sk.nn.layers import matrix_of, tensor_of
from pgkmeans_sk.nn.noise_kinds import NearestWord

RATE_UNIT = 1 << WORD_BITS
"""Rates are held as multiples of ``1 / RATE_UNIT``: integers stay exact in a model of halves."""


class NoisyWeight(nn.Module):
    """The parametrization of a weight with Quant-Noise; registered by ``quant_noise``.

    In evaluation mode it returns the weight itself. In training mode it returns a new tensor, where
    blocks drawn at random are replaced by phi of the block, and the weight is not written. The
    gradient of that tensor is passed on to the weight as it is, for all blocks.

    The noise of a read is a function of ``key``, ``n_reads`` and ``rate``, three integers that are
    part of the ``state_dict``.

    Parameters
    ----------
    phi : Module
        One of ``noise_kinds``: from a matrix to what its blocks may become.
    key : int
        Of the random stream.
    axis : int
        The axis of the weight that is the rows of its matrix.
    block_size : int
        Columns that are replaced together. 1: single values.
    scales_survivors : bool
        Whether blocks that are not replaced are divided by ``1 - p``.
    exact_row : int or None
        A row without noise: that of padding, in an embedding.
    refresh_every : int or None
        After how many reads codebooks are found anew.
    """

    is_noise = True
    """For whoever meets it among other parametrizations."""

    key: Tensor
    n_reads: Tensor
    rate: Tensor

    def __init__(
        self,
        phi: nn.Module,
        *,
        key: int,
        axis: int,
        block_size: int,
        scales_survivors: bool,
        exact_row: int | None,
        refresh_every: int | None,
    ) -> None:
        super().__init__()
        self.phi = phi
        self.axis = axis
        self.block_size = block_size
        self.scales_survivors = scales_survivors
        self.exact_row = exact_row
        self.refresh_every = refresh_every
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64))
        self.register_buffer("n_reads", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("rate", torch.tensor(0, dtype=torch.int64))

    def set_rate(self, p: float) -> None:
        """Replace a share ``p`` of the blocks, 0 <= p < 1, from the next read on."""
        self.rate.fill_(min(round(p * RATE_UNIT), RATE_UNIT - 1))

    @property
    def p(self) -> float:
        """The share of the blocks that is replaced."""
        return round(int(self.rate) / RATE_UNIT, 9)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used."""
        if not self.training:
            return weight
        exact = matrix_of(weight, self.axis)
        matrix = exact.detach()
        self._begin_read(matrix)
        noisy = self._mixed(matrix, self._chosen(matrix), self.phi(matrix))
        if self.exact_row is not None:
            noisy[self.exact_row] = matrix[self.exact_row]
        return tensor_of(_straight_through(exact, noisy), weight.shape, self.axis)

    def rows(self, weight: Tensor, numbers: Tensor, exact: Tensor) -> Tensor:
        """Some rows of what ``forward`` returns in training mode, without the others; a read.

        Parameters
        ----------
        weight : tensor of shape (n_rows, n_columns)
            The original; rows are those of its first axis.
        numbers : integer tensor of shape (n,)
            Which rows; a row may come several times.
        exact : tensor of shape (n, n_columns)
            These rows of the original, which get the gradient.

        Returns
        -------
        rows : tensor of shape (n, n_columns)
            With noise.
        """
        matrix, values = weight.detach(), exact.detach()
        self._begin_read(matrix)
        noisy = self._mixed(values, self._chosen(matrix, numbers), self.phi(matrix, numbers))
        if self.exact_row is not None:
            noisy = torch.where((numbers == self.exact_row).unsqueeze(1), values, noisy)
        return _straight_through(exact, noisy)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What the original becomes when the weight is set: the same."""
        return weight

    def refresh(self, weight: Tensor) -> None:
        """Find the codebook for ``weight``, if this kind of noise has one."""
        if isinstance(self.phi, NearestWord):
            self.phi.refresh(matrix_of(weight.detach(), self.axis))

    def _begin_read(self, matrix: Tensor) -> None:
        if not torch.compiler.is_compiling():
            # Checkpointed activations are computed again within the backward pass, and gradients
            # are right only if they come out as before: the last draw is repeated there.
            if torch._C._current_graph_task_id() != -1:
                return
            if self.refresh_every is not None and isinstance(self.phi, NearestWord):
                n_reads = int(self.n_reads)
                if n_reads and n_reads % self.refresh_every == 0:
                    self.phi.refresh(matrix)
        self.n_reads.add_(1)

    def _chosen(self, matrix: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which values of rows of the matrix are replaced in this draw, as booleans."""
        n_rows, n_columns = matrix.shape
        n_blocks = -(-n_columns // self.block_size)
        if rows is None:
            words = random_words(self.key, self.n_reads, n_rows * n_blocks).view(n_rows, n_blocks)
        else:
            blocks = torch.arange(n_blocks, device=rows.device)
            numbers = rows.to(torch.int64).unsqueeze(1) * n_blocks + blocks
            words = random_words_at(self.key, self.n_reads, numbers)
        chosen = words < (self.rate - RATE_UNIT // 2).to(torch.int32)
        if self.block_size > 1:
            chosen = chosen.repeat_interleave(self.block_size, 1)[:, :n_columns]
        return chosen

    def _mixed(self, values: Tensor, chosen: Tensor, phi: Tensor) -> Tensor:
        if self.scales_survivors:
            dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
            share = (RATE_UNIT - self.rate).to(dtype) / RATE_UNIT
            values = values * share.reciprocal()
        return torch.where(chosen, phi, values)

    def extra_repr(self) -> str:
        """Settings, for printed modules."""
        return f"p={self.p}, block_size={self.block_size}"


def _straight_through(exact: Tensor, noisy: Tensor) -> Tensor:
    """``noisy``, with its gradient given to ``exact``."""
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
