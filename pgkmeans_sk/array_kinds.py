"""What kind of array somebody has passed, without importing the library that it comes from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_tensor(X: Any) -> bool:
    """Whether ``X`` is a PyTorch tensor; if PyTorch was never imported, it is not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(X, getattr(torch, "Tensor", ()))


def is_dask(X: Any) -> bool:
    """Whether ``X`` is a collection of dask, by its protocol."""
    return hasattr(type(X), "__dask_graph__")


def as_numpy(X: Any) -> Any:
    """A tensor as a NumPy array, shared where possible; 16-bit floats as float32. Else ``X``."""
    if not is_tensor(X):
        return X
    X = X.detach().cpu()
    return (X.float() if X.is_floating_point() and X.element_size() < 4 else X).numpy()


def concatenated(parts: Sequence[Any]) -> Any:
    """Arrays, or tensors on one device, below one another."""
    return sys.modules["torch"].cat(parts) if is_tensor(parts[0]) else np.concatenate(parts)
