"""A model that is only looked at: in evaluation mode meanwhile, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` inside; restore modes, ``requires_grad`` and torch's random numbers.

    The mode of each module is set directly: ``train`` and ``eval`` may be overridden, and do more
    than that (some adapters write their product into the weight).
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {tensor.device for tensor in model.parameters()} - {torch.device("cpu")}
    kinds = sorted({device.type for device in devices})
    # A transformer layer of torch's own would otherwise compute all in one, without its layers.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(
        [device.index or 0 for device in devices], device_type=kinds[0] if kinds else "cuda"
    ):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _ in modes:
                module.training = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
