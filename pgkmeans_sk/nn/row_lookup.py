"""Embeddings that decode only the rows they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.codebook_weight import CodebookWeight
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
    rows = None
    if len(lists) == 1 and not parametrization.is_cached and input.numel() < self.num_embeddings:
        rows = _rows(parametrization, lists.original, input.reshape(-1))
    if rows is None:
        return nn.Embedding.forward(self, input)
    found = rows.reshape(*input.shape, self.embedding_dim)
    if self.padding_idx is None:
        return found
    # As in a plain embedding, padding teaches its row nothing.
    return torch.where((input == self.padding_idx).unsqueeze(-1), found.detach(), found)


def _rows(weight: StoredWeight, original: Tensor, numbers: Tensor) -> Tensor | None:
    """Rows (n, d) of a weight; None if it has to be decoded as a whole."""
    if weight.axis == 0 and weight.group_size is None:
        return weight.decode(original, numbers)
    if not isinstance(weight, CodebookWeight) or not weight.has_column_codebooks(original):
        return None
    width = weight.shape[1]
    n_columns, rest = divmod(width, weight.group_size or width)
    if rest:
        return None
    places = torch.arange(n_columns, device=numbers.device)
    columns = numbers[:, None] * n_columns + places
    return weight.decode_columns(original, columns.reshape(-1)).reshape(len(numbers), width)
