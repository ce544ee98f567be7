"""Dtypes of the arithmetic, and of what it is stored as, from those of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the arithmetic: float64 for numbers in float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The dtype of decoded rows: NumPy has no bfloat16, which float32 holds exactly."""
    return np.dtype("float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))
