"""Which code words occur in matrices of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_kinds import StoredMatrix


def used_words(matrix: CompressedMatrix) -> NDArray[np.bool_]:
    """Which code words occur, (n_stages, n_books, n_codes)."""
    decoder = matrix.decoder
    codes = matrix.codes()
    used = np.zeros(decoder.codebooks.shape[:3], dtype=np.bool_)
    for column in range(decoder.n_block_codes):
        stage, block = divmod(column, decoder.n_blocks)
        used[stage, 0 if decoder.is_shared else block, codes[:, column]] = True
    return used


class Usage:
    """Which words occur in any of the matrices that share codebooks, group by group."""

    def __init__(self) -> None:
        self._used: dict[str, NDArray[np.bool_]] = {}

    def add(self, group: str, matrix: StoredMatrix) -> None:
        """Take a matrix into account; those of a group have codebooks of one shape.

        One of levels has no code words.
        """
        if isinstance(matrix, LevelMatrix):
            return
        used = used_words(matrix)
        known = self._used.get(group)
        self._used[group] = used if known is None else known | used

    def counts(self, group: str) -> tuple[int, int]:
        """Code words of a group, and how many of them no code means."""
        used = self._used.get(group, np.empty(0, dtype=np.bool_))
        return used.size, int(used.size - used.sum())
