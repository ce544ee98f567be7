"""Dtypes of safetensors files: how wide items are, and which of them NumPy can say."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an item of each dtype that the format knows."""

NUMPY_NAMES = {
    **{"F64": "f8", "F32": "f4", "F16": "f2"},
    **{"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"},
    **{"U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1"},
}
"""Those that are read as they are. All items of a file are little-endian."""


def stored_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor.

    Raises
    ------
    ValueError
        If the dtype is not in the format, or the last byte would not be full.
    """
    if dtype not in ITEM_BITS:
        raise ValueError(f"got dtype {dtype!r}, but expected one of {', '.join(ITEM_BITS)}")
    bits = prod(shape) * ITEM_BITS[dtype]
    if bits % 8:
        raise ValueError(f"got {bits} bits of {dtype}, but expected whole bytes")
    return bits // 8


def dtype_name(dtype: np.dtype[Any]) -> str:
    """What the format calls a NumPy dtype of either byte order; ValueError if it does not."""
    for name, numpy_name in NUMPY_NAMES.items():
        if dtype == np.dtype(numpy_name) or dtype == np.dtype(f">{numpy_name}"):
            return name
    raise ValueError(f"got dtype {dtype}, but expected one of {', '.join(NUMPY_NAMES)}")


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Of the arithmetic for rows of a dtype: float64 for those in float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def to_array(raw: bytes | memoryview, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """The bytes of a tensor as a new array of native byte order; BF16 exactly as float32.

    Raises
    ------
    ValueError
        If NumPy has no such dtype, or the number of bytes is not what the shape needs.
    """
    if dtype != "BF16" and dtype not in NUMPY_NAMES:
        known = ", ".join([*NUMPY_NAMES, "BF16"])
        raise ValueError(f"got dtype {dtype}, but expected one that NumPy can hold: {known}")
    n_bytes = memoryview(raw).nbytes
    if n_bytes != stored_bytes(dtype, shape):
        raise ValueError(
            f"got {n_bytes} bytes, but expected {stored_bytes(dtype, shape)} "
            f"for dtype {dtype} and shape {tuple(shape)}"
        )
    if dtype == "BF16":  # the upper half of a float32
        found = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        items = np.frombuffer(raw, dtype="<" + NUMPY_NAMES[dtype])
        found = items.astype(items.dtype.newbyteorder("="))
    return found.reshape(shape)


def to_bytes(array: NDArray[Any], dtype: str) -> memoryview:
    """The bytes of an array as a tensor of ``dtype``; BF16 is rounded to nearest, ties to even.

    Raises
    ------
    ValueError
        If NumPy has no such dtype.
    """
    if dtype == "BF16":
        items = _rounded_to_bfloat16(np.ascontiguousarray(array, dtype=np.float32))
    elif dtype in NUMPY_NAMES:
        items = np.ascontiguousarray(array, dtype="<" + NUMPY_NAMES[dtype])
    else:
        known = ", ".join([*NUMPY_NAMES, "BF16"])
        raise ValueError(f"got dtype {dtype}, but expected one that NumPy can hold: {known}")
    # Through uint8, since memoryview cannot cast an array that has no items.
    return items.reshape(-1).view(np.uint8).data


def _rounded_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32 values, rounded, as ``<u2``."""
    bits = values.reshape(-1).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # The sum would carry a NaN with a full mantissa over into another number.
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values.reshape(-1)), quiet_nan, rounded).astype("<u2")
