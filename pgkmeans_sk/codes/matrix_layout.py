"""MatrixLayout: which arrays a compressed matrix is stored as, known before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import N_SCALE_CODES, Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.packing import code_bits, packed_bytes
from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.codes.tensor_dtypes import NUMPY_NAMES, dtype_name
from pgkmeans_sk.codes.tensor_file import LARGEST_SIZE

FLOATS = ("F64", "F32", "F16")
"""Dtypes of codebooks, scales and decoded rows."""

LARGEST_N_CODES = 65536

Parts: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each stored array, by name."""


@dataclass(frozen=True, kw_only=True)
class MatrixLayout:
    """Sizes and dtypes of a compressed matrix: all but its values.

    Dtypes are named as in safetensors files: "F64", "F32" or "F16".

    Attributes
    ----------
    n_rows, n_features : int
        Shape of the matrix.
    block_size, n_codes, n_stages : int
        As of ``Decoder``; n_codes is 2 to 65536.
    n_books : int
        Codebooks in a stage: one for each block, or 1 if all blocks share one.
    dtype : str
        Of decoded rows.
    codebook_dtype : str
        Of codebooks.
    row_scale_dtype, block_scale_dtype, column_scale_dtype : str or None
        Of scales; None means that there are none.
    mixer_size : int or None
        Rows of the rotation's mixer, a divisor of n_features; None means no rotation.
    mixer_dtype : str or None
        Of the mixer; None means no rotation.

    Raises
    ------
    ValueError
        If a size is not an int >= 1 or does not go with the others, a dtype is none of the three.
    """

    n_rows: int
    n_features: int
    block_size: int
    n_codes: int
    n_books: int
    n_stages: int = 1
    dtype: str = "F32"
    codebook_dtype: str = "F32"
    row_scale_dtype: str | None = None
    block_scale_dtype: str | None = None
    column_scale_dtype: str | None = None
    mixer_size: int | None = None
    mixer_dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("n_rows", "n_features", "block_size", "n_codes", "n_books", "n_stages"):
            check_size(name, getattr(self, name))
        if not 2 <= self.n_codes <= LARGEST_N_CODES:
            raise ValueError(f"got n_codes={self.n_codes}, but expected 2 to {LARGEST_N_CODES}")
        if self.n_books not in (1, self.n_blocks):
            raise ValueError(
                f"got n_books={self.n_books}, but expected 1 or {self.n_blocks}, one for each block"
            )
        for name in ("dtype", "codebook_dtype"):
            check_float(name, getattr(self, name))
        for name in ("row_scale_dtype", "block_scale_dtype", "column_scale_dtype", "mixer_dtype"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name))
        if (self.mixer_size is None) != (self.mixer_dtype is None):
            raise ValueError(
                f"got mixer_size={self.mixer_size!r} and mixer_dtype={self.mixer_dtype!r}, "
                "but expected both or neither"
            )
        if self.mixer_size is not None:
            check_size("mixer_size", self.mixer_size)
            width, rest = divmod(self.n_features, self.mixer_size)
            if rest or width & (width - 1):
                raise ValueError(
                    f"got mixer_size={self.mixer_size}, but expected a divisor of "
                    f"n_features={self.n_features} with a power of two as quotient"
                )

    @property
    def n_blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.n_features // self.block_size)

    @property
    def n_packed_codes(self) -> int:
        """Codes of blocks in all rows and stages."""
        return self.n_rows * self.n_stages * self.n_blocks

    @property
    def code_bits(self) -> int:
        """Bits of a packed code."""
        return code_bits(self.n_codes)

    def parts(self) -> Parts:
        """Dtype and shape of each stored array, by name."""
        books = (self.n_stages, self.n_books, self.n_codes, self.block_size)
        found: Parts = {
            "codes": ("U8", (packed_bytes(self.n_packed_codes, self.code_bits),)),
            "codebooks": (self.codebook_dtype, books),
        }
        if self.row_scale_dtype is not None:
            found["scale_codes"] = ("U8", (self.n_rows,))
            found["row_scales"] = (self.row_scale_dtype, (N_SCALE_CODES,))
        if self.block_scale_dtype is not None:
            found["block_scales"] = (self.block_scale_dtype, (self.n_blocks,))
        if self.column_scale_dtype is not None:
            found["column_scales"] = (self.column_scale_dtype, (self.n_features,))
        if self.mixer_size is not None and self.mixer_dtype is not None:
            found["rotation_mixer"] = (self.mixer_dtype, (self.mixer_size, self.mixer_size))
            found["rotation_signs"] = ("U8", (-(-self.n_features // 8),))
        return found


def layout_of(matrix: CompressedMatrix) -> MatrixLayout:
    """The layout of a matrix; ValueError if its sizes or dtypes are none that a file can say."""
    decoder = matrix.decoder
    if decoder.codebooks.ndim != 4:
        raise ValueError(
            f"got codebooks of the shape {decoder.codebooks.shape}, but expected four axes"
        )
    n_stages, n_books, n_codes, block_size = decoder.codebooks.shape
    mixer = None
    if decoder.rotation is not None:
        mixer, signs = decoder.rotation.mixer, decoder.rotation.signs
        if signs.shape != (decoder.n_features,) or not (np.abs(signs) == 1).all():
            raise ValueError(
                f"got the rotation's signs {signs}, but expected {decoder.n_features} of 1 or -1"
            )
    return MatrixLayout(
        n_rows=int(matrix.n_rows),
        n_features=int(decoder.n_features),
        block_size=block_size,
        n_codes=n_codes,
        n_books=n_books,
        n_stages=n_stages,
        dtype=dtype_name(decoder.dtype),
        codebook_dtype=dtype_name(decoder.codebooks.dtype),
        row_scale_dtype=_dtype_or_none(decoder.row_scales),
        block_scale_dtype=_dtype_or_none(decoder.block_scales),
        column_scale_dtype=_dtype_or_none(decoder.column_scales),
        mixer_size=None if mixer is None else len(mixer),
        mixer_dtype=_dtype_or_none(mixer),
    )


def parts_of(matrix: CompressedMatrix) -> dict[str, NDArray[Any]]:
    """The arrays that a matrix is stored as, by name."""
    found = {"codes": matrix.packed, **matrix.decoder.arrays()}
    if matrix.scale_codes is not None:
        found["scale_codes"] = matrix.scale_codes
    return found


def matrix_of(
    layout: MatrixLayout, parts: Mapping[str, NDArray[Any]], relative_error: float, entropy: float
) -> CompressedMatrix:
    """The matrix that was stored as ``parts``, which have the dtypes and shapes of the layout."""
    rotation = None
    if layout.mixer_size is not None:
        packed = parts["rotation_signs"]
        negative = np.unpackbits(packed, count=layout.n_features, bitorder="little")
        rotation = Rotation(parts["rotation_mixer"], 1 - 2 * negative.astype(np.int8))
    decoder = Decoder(
        codebooks=parts["codebooks"],
        n_features=layout.n_features,
        dtype=np.dtype(NUMPY_NAMES[layout.dtype]),
        row_scales=parts.get("row_scales"),
        block_scales=parts.get("block_scales"),
        column_scales=parts.get("column_scales"),
        rotation=rotation,
    )
    return CompressedMatrix(
        decoder=decoder,
        packed=parts["codes"],
        scale_codes=parts.get("scale_codes"),
        n_rows=layout.n_rows,
        relative_error=relative_error,
        entropy=entropy,
    )


def check_size(name: str, value: Any) -> None:
    """Raise unless it is an int >= 1 that NumPy can count to; True is not an int here."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"got {name}={value!r}, but expected an int from 1 to {LARGEST_SIZE}")


def check_float(name: str, value: Any) -> None:
    """Raise unless it is one of ``FLOATS``."""
    if value not in FLOATS:
        raise ValueError(f"got {name}={value!r}, but expected one of {', '.join(FLOATS)}")


def _dtype_or_none(array: NDArray[Any] | None) -> str | None:
    return None if array is None else dtype_name(array.dtype)
