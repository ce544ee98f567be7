"""Embeddings with Quant-Noise that compute only the rows they are asked for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from pgkmeans_sk.nn.diffq_weight import DiffQWeight
from pgkmeans_sk.nn.noisy_weight import NoisyWeight


def look_noisy_rows_up(module: nn.Module) -> None:
    """Let an ``nn.Embedding`` with noise look its rows up before they become noisy, not after.

    The result is the same to the last bit; but a batch asks for a few thousand words, and a noisy
    copy of all 30 000 would cost more than the rest of a small model. The class that the
    parametrization gave to the module gets another ``forward``, and goes with the parametrization.
    With learned bits (``DiffQWeight``) it is so in evaluation mode, too, where rows are rounded.
    Modules with a forward of their own, or ``max_norm``, which writes rows, are left alone.
    """
    is_plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    if is_plain and module.max_norm is None:
        cls: Any = type(module)
        cls.forward = _forward


def _forward(self: nn.Embedding, input: Tensor) -> Tensor:
    parametrized: Any = self
    lists = parametrized.parametrizations["weight"]
    noise: NoisyWeight | DiffQWeight = lists[0]
    is_plain = not noise.training and (isinstance(noise, NoisyWeight) or noise.is_cached)
    is_shared = getattr(parametrize, "_cache_enabled", 0)  # parametrize.cached(): one draw for all
    if is_plain or is_shared or len(lists) > 1 or input.numel() >= self.num_embeddings:
        return nn.Embedding.forward(self, input)
    found = functional.embedding(
        input,
        lists.original,
        padding_idx=self.padding_idx,
        scale_grad_by_freq=self.scale_grad_by_freq,
        sparse=self.sparse,
    )
    rows = noise.rows(lists.original, input.reshape(-1), found.reshape(-1, self.embedding_dim))
    return rows.view_as(found)
