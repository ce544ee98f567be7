"""Weights decoded once instead of each time they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pgkmeans_sk.nn.state import compressed_state
from pgkmeans_sk.nn.stored_weight import StoredWeight


@contextmanager
def cached(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block, compressed weights of a model in evaluation mode are decoded only once.

    Needs the memory of the plain weights for as long. Codebooks must not change meanwhile; modules
    in training mode decode as before. Not for modules that run in several threads at once while
    the block begins or ends.

    Parameters
    ----------
    model : Module
        With weights compressed by ``compress_model`` or ``load``.

    Yields
    ------
    model : Module
        The same.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).eval()
    >>> report = nn.compress_model(model, {"defaults": {"n_codes": 16}})
    >>> with nn.cached(model), torch.inference_mode():
    ...     outputs = [model(torch.ones(1, 64)) for _ in range(3)]
    """
    weights: list[StoredWeight] = []
    try:
        for state in compressed_state(model):
            weights.append(state.weight)
            state.weight.keep_decoded(state.original)
        yield model
    finally:
        for weight in weights:
            weight.forget_decoded()
