"""Stands in until the real one is merged."""

from __future__ import annotations

from torch import nn


def remove_quant_noise(model: nn.Module) -> nn.Module:
    """Nothing to remove."""
    return model
