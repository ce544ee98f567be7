"""Plain arrays on their way to kernels: what is accepted, and how a kernel sees it.

Kernels read whatever lies where codes point to, so every array is checked before. Inputs become
flat and read-only, whatever they were: then Numba compiles a kernel for one type, not for each mix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pgkmeans_sk.kernels.points import dense_points
from pgkmeans_sk.validation import check_integer

Codes = NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[Any]  # float32 or float64


class Layout(NamedTuple):
    """The sizes that codebooks (n_stages, n_books, n_codes, block_size) and d columns determine."""

    n_stages: int
    n_books: int
    n_codes: int
    block_size: int
    n_blocks: int

    @property
    def n_columns(self) -> int:
        """How many codes a row has."""
        return self.n_stages * self.n_blocks


def layout_of(codebooks: NDArray[np.floating], n_features: int) -> Layout:
    """Sizes of codebooks for rows of ``n_features`` columns; raise if they do not fit."""
    if codebooks.ndim != 4 or 0 in codebooks.shape:
        raise ValueError(
            f"Got codebooks of shape {codebooks.shape}, but expected (n_stages, n_books, n_codes, "
            "block_size), each at least 1."
        )
    check_integer("n_features", n_features, 1)
    n_stages, n_books, n_codes, block_size = codebooks.shape
    n_blocks = -(-n_features // block_size)
    if n_books not in (1, n_blocks):
        raise ValueError(
            f"Got codebooks with {n_books} books, but expected 1 or {n_blocks}: {n_features} "
            f"columns in blocks of {block_size}."
        )
    return Layout(n_stages, n_books, n_codes, block_size, n_blocks)


# ------------------------------------------------------------------ what is accepted


def check_codes(codes: Codes, n_columns: int, n_codes: int) -> None:
    """Raise unless codes are (n, n_columns) and each of them names a word."""
    if codes.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"Got codes of dtype {codes.dtype}, but expected uint8 or uint16.")
    if codes.ndim != 2 or codes.shape[1] != n_columns:
        raise ValueError(f"Got codes of shape {codes.shape}, but expected (n, {n_columns}).")
    # Where every number of the type is a code, there is nothing to look at.
    if n_codes <= np.iinfo(codes.dtype).max and codes.size and codes.max() >= n_codes:
        raise ValueError(f"Got a code of {codes.max()}, but expected codes below {n_codes}.")


def checked_dtype(name: str, dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype`` as NumPy has it; raise unless it is one that kernels compute in."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"Got {name} {np.dtype(dtype)}, but expected float32 or float64.")
    return np.dtype(dtype)


def check_length(name: str, values: Any, n: int) -> None:
    """Raise unless ``values`` are (n,)."""
    if np.shape(values) != (n,):
        raise ValueError(f"Got {name} of shape {np.shape(values)}, but expected ({n},).")


def check_output(name: str, array: Floats, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless ``array`` has this shape and dtype and can be written to."""
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"Got {name} of shape {array.shape} and dtype {array.dtype}, but expected {shape} and "
            f"{dtype}."
        )
    if not (array.flags.writeable and array.flags.aligned):
        raise ValueError(f"Got {name} that is read-only or not aligned, but it is written to.")


# ------------------------------------------------------------------ how kernels see it


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def flat(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """All numbers in one row; copied only to convert them or to bring them into order."""
    return read_only(np.ascontiguousarray(array, dtype).reshape(-1))


def flat_codes(codes: Codes) -> tuple[NDArray[Any], int]:
    """Codes (n >= 1, n_columns) flat, and the step from row to row.

    They are copied only if the codes of a row do not lie side by side.
    """
    points = dense_points(codes)
    if points.column_step != 1 and codes.shape[1] > 1:
        points = dense_points(np.ascontiguousarray(codes))
    return points.base, points.row_step


def flat_output(out: Floats) -> tuple[Floats, int]:
    """Rows (n, d) to write to as a flat array, and the step from row to row."""
    n_rows, n_features = out.shape
    row_step, column_step = (stride // out.itemsize for stride in out.strides)
    if (column_step != 1 and n_features > 1) or (
        n_rows > 1 and (row_step < n_features or out.strides[0] % out.itemsize)
    ):
        raise ValueError(
            f"Got out with strides {out.strides}, but expected rows that lie one after the other, "
            "and numbers of a row side by side."
        )
    span = max(0, (n_rows - 1) * row_step + n_features)
    return np.lib.stride_tricks.as_strided(out, (span,), (out.itemsize,)), row_step


def one_or_each(
    name: str,
    values: NDArray[np.floating] | None,
    n: int,
    default: float,
    dtype: np.dtype[Any],
    sign: float = 1.0,
) -> tuple[Floats, int]:
    """``sign`` times the values of n rows, with step 1; or a default for all rows, with step 0."""
    if values is None:
        return flat(np.array([sign * default]), dtype), 0
    check_length(name, values, n)
    return flat(values if sign == 1.0 else np.multiply(values, sign, dtype=dtype), dtype), 1
