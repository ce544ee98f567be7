"""Embeddings that decode only the rows they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.stored_weight import StoredWeight


def look_rows_up(module: nn.Module) -> None:
    """Let a compressed ``nn.Embedding`` decode the rows of its tokens only.

    Parametrized modules have a class of their own, which is given another ``forward``; removing
    the parametrization brings the old class back, and copies of the module have the new one too.
    Modules whose forward is not that of ``nn.Embedding`` are left alone, as are those that change
    rows or gradients with a view of all tokens (``max_norm``, ``scale_grad_by_freq``).
    """
    if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
        return
    if module.max_norm is None and not module.scale_grad_by_freq:
        cls: Any = type(module)
        cls.forward = _forward


def _forward(self: nn.Embedding, input: Tensor) -> Tensor:
    parametrized: Any = self
    lists = parametrized.parametrizations["weight"]
    parametrization: StoredWeight = lists[0]
    is_decoded = parametrization.is_cached
    has_rows = parametrization.axis == 0 and parametrization.group_size is None
    if len(lists) > 1 or is_decoded or not has_rows or input.numel() >= self.num_embeddings:
        return nn.Embedding.forward(self, input)
    rows = parametrization.decode(lists.original, input.reshape(-1))
    found = rows.reshape(*input.shape, self.embedding_dim)
    if self.padding_idx is None:
        return found
    # As in a plain embedding, padding teaches its row nothing.
    return torch.where((input == self.padding_idx).unsqueeze(-1), found.detach(), found)
