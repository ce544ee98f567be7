"""Values of a file's description as JSON: how they are written, and read without being believed."""

from __future__ import annotations

import re
from math import isfinite
from reprlib import repr as short
from typing import Any

from pgkmeans_sk.codes.tensor_file import TensorFile

SMALLEST_NUMBER, LARGEST_NUMBER = 1e-99, 1e99
"""Positive numbers with an exponent of two digits: all numbers are written in the same width."""


# ------------------------------------------------------------------ writing


def checksum_text(checksum: int) -> str:
    """A CRC-32 as 8 hexadecimal digits."""
    return f"{checksum:08x}"


def number_text(name: str, value: float) -> str:
    """A number >= 0 in 22 characters, from which the same float64 is read; tiny ones become 0."""
    if not isfinite(value) or not 0.0 <= value < LARGEST_NUMBER:
        raise ValueError(
            f"got {name}={value!r}, but expected a number from 0 to {LARGEST_NUMBER:.0e}"
        )
    return f"{value if value >= SMALLEST_NUMBER else 0.0:.16e}"


# ------------------------------------------------------------------ reading


def stored_array(name: str, file: TensorFile) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of a tensor of a file."""
    if name not in file:
        raise ValueError(f"got no tensor {name!r} in the file, but expected one")
    return file.dtype(name), file.shape(name)


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"got {short(value)}, but expected a JSON object")
    return value


def list_of(value: Any) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise ValueError(f"got {short(value)}, but expected a JSON array")
    return value


def fields_of(value: Any, *names: str) -> dict[str, Any]:
    """An object with exactly these keys."""
    found = object_of(value)
    if found.keys() != set(names):
        raise ValueError(f"got the keys {short(sorted(found))}, but expected {sorted(names)}")
    return found


def names_of(value: Any) -> tuple[str, ...]:
    """An array of strings: the aliases of a tensor."""
    found = list_of(value)
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f"got aliases {short(value)}, but expected an array of strings")
    return tuple(found)


def number_of(name: str, value: Any) -> float:
    """A number as ``number_text`` writes it."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]\.[0-9]{16}e[+-][0-9]{2}", value):
        raise ValueError(f"got {name}={short(value)}, but expected a number such as '{0.5:.16e}'")
    return float(value)


def checksum_of(value: Any) -> int:
    """A CRC-32 as ``checksum_text`` writes it."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{8}", value):
        raise ValueError(f"got the CRC-32 {short(value)}, but expected 8 hexadecimal digits")
    return int(value, 16)
