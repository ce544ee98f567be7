"""What turns codes into rows: codebooks, and what was undone before rows were cut into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.lookup import decode_blocks
from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.codes.tensor_dtypes import work_dtype

__all__ = ["Decoder"]

N_SCALE_CODES = 256
"""Codes for the size of a row: one byte."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoder:
    """All that is needed to decode, and nothing of how it was found.

    A row is cut into ``n_blocks`` blocks of ``block_size`` consecutive columns; the last may be
    narrower. In a matrix of codes (n, n_columns), column ``s * n_blocks + j`` holds the code of
    block j in stage s, and a last column the code of the row's size if there are ``row_scales``. ::

        block_j = block_scales[j] * sum_s codebooks[s, j, code[s, j]]
        row = column_scales * rotation.undo(row_scales[last code] * (block_0, block_1, ...))

    Attributes
    ----------
    codebooks : ndarray of shape (n_stages, n_books, n_codes, block_size), floating
        ``n_books`` is the number of blocks, or 1 if all share one. A narrower last block has zeros
        behind its values in a codebook of its own, and takes the first values in a shared one.
    n_features : int
        Columns of a decoded row.
    dtype : dtype
        Of decoded rows: float16, float32 or float64. Arithmetic is in float64 for the last of
        these, else in float32.
    row_scales : ndarray of shape (256,), floating, or None
        What each code for a row's size means.
    block_scales : ndarray of shape (n_blocks,), floating, or None
        A factor for each block.
    column_scales : ndarray of shape (n_features,), floating, or None
        A factor for each column, after the rotation is undone.
    rotation : Rotation or None
        What rows were rotated by before they were cut into blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> X = np.random.default_rng(0).normal(size=(500, 8))
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> rows = pq.decoder_.decode(pq.transform(X))
    >>> bool((rows == pq.inverse_transform(pq.transform(X))).all())
    True
    """

    codebooks: NDArray[np.floating]
    n_features: int
    dtype: np.dtype[Any]
    row_scales: NDArray[np.floating] | None = None
    block_scales: NDArray[np.floating] | None = None
    column_scales: NDArray[np.floating] | None = None
    rotation: Rotation | None = None

    @property
    def n_stages(self) -> int:
        """Code words that are added up for a block."""
        return int(self.codebooks.shape[0])

    @property
    def is_shared(self) -> bool:
        """Whether all blocks use one codebook, although there is more than one."""
        return bool(self.codebooks.shape[1] < self.n_blocks)

    @property
    def n_codes(self) -> int:
        """Code words of a codebook."""
        return int(self.codebooks.shape[2])

    @property
    def block_size(self) -> int:
        """Columns of a block."""
        return int(self.codebooks.shape[3])

    @property
    def n_blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.n_features // self.block_size)

    @property
    def n_block_codes(self) -> int:
        """Codes for the blocks of a row, in all stages."""
        return self.n_stages * self.n_blocks

    @property
    def n_columns(self) -> int:
        """Codes for a row in all."""
        return self.n_block_codes + (self.row_scales is not None)

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned dtype for a matrix of codes: uint8 or uint16."""
        return np.dtype(np.uint8 if self.n_codes <= 256 else np.uint16)

    @property
    def nbytes(self) -> int:
        """Bytes of codebooks, scales and rotation as they are stored."""
        return int(sum(array.nbytes for array in self.arrays().values()))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is to be stored, by name."""
        found: dict[str, NDArray[Any]] = {"codebooks": self.codebooks}
        for name in ("row_scales", "block_scales", "column_scales"):
            scales = getattr(self, name)
            if scales is not None:
                found[name] = scales
        if self.rotation is not None:
            found["rotation_mixer"] = self.rotation.mixer
            found["rotation_signs"] = np.packbits(self.rotation.signs < 0, bitorder="little")
        return found

    @property
    def work_dtype(self) -> np.dtype[Any]:
        """Dtype of the arithmetic: float64 for rows in float64, else float32."""
        return work_dtype(self.dtype)

    def decode(self, codes: NDArray[Any]) -> NDArray[np.floating]:
        """The rows (n, n_features) that ``codes`` (n, n_columns) stand for, in ``dtype``.

        Codes must be below ``n_codes``; that is checked by whoever reads them.
        """
        return self.rows_of(codes).astype(self.dtype, copy=False)

    def rows_of(self, codes: NDArray[Any]) -> NDArray[np.floating]:
        """The same in the dtype of the arithmetic."""
        factors = None
        if self.row_scales is not None:
            factors = self.row_scales.astype(self.work_dtype)[codes[:, -1]]
        rows = decode_blocks(
            codes[:, : self.n_block_codes],
            self.codebooks,
            self.n_features,
            out_dtype=self.work_dtype,
            block_scales=self.block_scales,
            row_factors=factors,
        )
        if self.rotation is not None:
            rows = self.rotation.undo(rows)
        if self.column_scales is not None:
            rows *= self.column_scales.astype(self.work_dtype)
        return rows

    def stage_rows(self, codes: NDArray[Any], stage: int, dtype: Any) -> NDArray[np.floating]:
        """What ``codes`` (n, n_blocks) of one stage add, (n, n_features), before any scales."""
        books = self.codebooks[stage : stage + 1]
        return decode_blocks(codes, books, self.n_features, out_dtype=dtype)

    def block_factors(self) -> NDArray[np.floating]:
        """``block_scales`` for each column, (n_features,); ones if there are none."""
        if self.block_scales is None:
            return np.ones(self.n_features, dtype=self.work_dtype)
        widths = np.diff([*range(0, self.n_features, self.block_size), self.n_features])
        return np.repeat(self.block_scales.astype(self.work_dtype), widths)
