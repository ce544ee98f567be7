"""What the values of a compressed matrix must be, beyond their dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.level_layout import LevelLayout, check_spare_bits
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.packing import unpack
from pgkmeans_sk.codes.tensor_dtypes import dtype_name

CODES_AT_ONCE = 1 << 20
"""Codes that are unpacked together: the check of a large matrix takes a few MB."""

ORTHOGONALITY = 5e-2
"""What a mixer may be off by: the check is for damage, and mixers may be rounded to float16."""


def check_values(layout: MatrixLayout, parts: Mapping[str, NDArray[Any]]) -> None:
    """Raise unless the arrays are those of a matrix with this layout, and can be decoded.

    Raises
    ------
    ValueError
        If an array is missing, or has another dtype or shape; a code is ``n_codes`` or more, or
        the bits behind the last code are not 0; a codebook, scale or mixer is not finite; the
        mixer is not orthogonal. The message names the array.
    """
    check_parts(layout, {name: (dtype_name(a.dtype), a.shape) for name, a in parts.items()})
    check_spare_bits("codes", parts["codes"], layout.n_packed_codes * layout.code_bits)
    _check_codes(layout, parts["codes"])
    for name, array in parts.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            worst = array[~np.isfinite(array)][0]
            raise ValueError(f"{name!r}: got the value {worst}, but expected finite numbers")
    if layout.mixer_size is not None:
        check_spare_bits("rotation_signs", parts["rotation_signs"], layout.n_features)
        _check_orthogonal(parts["rotation_mixer"])


def check_parts(
    layout: MatrixLayout | LevelLayout, found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Raise unless these are the names, dtypes and shapes of the layout's arrays."""
    expected = layout.parts()
    for name in sorted(expected.keys() ^ found.keys()):
        if name in expected:
            raise ValueError(f"{name!r}: got none, but expected one")
        raise ValueError(f"{name!r}: got one, but expected none")
    for name, (dtype, shape) in expected.items():
        if found[name] != (dtype, shape):
            raise ValueError(
                f"{name!r}: got dtype {found[name][0]} and shape {found[name][1]}, "
                f"but expected {dtype} and {shape}"
            )


def _check_codes(layout: MatrixLayout, packed: NDArray[np.uint8]) -> None:
    if layout.n_codes == 1 << layout.code_bits:
        return  # whatever the bits are, they say a code
    for start in range(0, layout.n_packed_codes, CODES_AT_ONCE):
        count = min(CODES_AT_ONCE, layout.n_packed_codes - start)
        largest = unpack(packed, layout.code_bits, count, start).max()
        if largest >= layout.n_codes:
            raise ValueError(
                f"'codes': got the code {largest}, but expected codes below "
                f"n_codes={layout.n_codes}"
            )


def _check_orthogonal(mixer: NDArray[np.floating]) -> None:
    """In O(m^2), by one vector that has a part in every direction; not in O(m^3), as M'M = 1."""
    probe = 1.0 + np.cos(np.arange(len(mixer)))
    wide = mixer.astype(np.float64)
    with np.errstate(all="ignore"):
        back = wide.T @ (wide @ probe)
        error = float(np.linalg.norm(back - probe) / np.linalg.norm(probe))
    if not error <= ORTHOGONALITY:
        raise ValueError(
            f"'rotation_mixer': got a matrix M for which M'M is off by {error:.3g}, but expected "
            f"an orthogonal one (at most {ORTHOGONALITY})"
        )
