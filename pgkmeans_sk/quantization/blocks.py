"""Rows cut into blocks of consecutive columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def column_slices(n_features: int, block_size: int) -> list[slice]:
    """The columns of each block; the last may be narrower."""
    return [
        slice(start, min(start + block_size, n_features))
        for start in range(0, n_features, block_size)
    ]


def whole_blocks(rows: NDArray[np.floating], block_size: int) -> NDArray[np.floating]:
    """All blocks of full width below one another, (n * (d // block_size), block_size).

    Row after row: block j of row i is number ``i * (d // block_size) + j``. A view if ``rows``
    (n, d) are C-ordered and d is a multiple of ``block_size``.
    """
    n_whole = rows.shape[1] // block_size
    return rows[:, : n_whole * block_size].reshape(-1, block_size)


def stage_columns(stage: int, n_blocks: int) -> slice:
    """Where the codes of a stage lie in a matrix of codes."""
    return slice(stage * n_blocks, (stage + 1) * n_blocks)
