"""Tensors as the bytes that files hold, and back: bit for bit, in any dtype."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pgkmeans_sk.nn.selection import DTYPE_NAMES

TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
"""Dtypes of tensors by what files call them."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of so many bytes, for bits of dtypes that NumPy does not have."""


def bytes_of(tensor: Tensor) -> memoryview:
    """The items of a tensor, little-endian, in C order."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.dtype.is_complex:
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(INTEGERS[flat.itemsize]).numpy()
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


def tensor_of_bytes(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The opposite of ``bytes_of``; it may be a view of ``raw``, and must not be written to.

    Raises
    ------
    ValueError
        If there is no such dtype in torch.
    """
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"got dtype {dtype}, but expected one of {', '.join(TORCH_DTYPES)}")
    wanted = TORCH_DTYPES[dtype]
    real = torch.float32 if wanted.is_complex else wanted
    items = np.frombuffer(raw, np.dtype(f"<i{real.itemsize}"))
    items = items.astype(items.dtype.newbyteorder("="), copy=False)
    with warnings.catch_warnings():
        # That writing to it would be undefined: nobody does.
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        bits = torch.from_numpy(items)
    found = bits.view(real)
    return (torch.view_as_complex(found.reshape(-1, 2)) if wanted.is_complex else found).reshape(
        shape
    )
