"""Second moments of what a weight is multiplied by, and how often rows are looked up, added up.

Note [Precision of sums]: products are taken in the precision of the rows, but at least float32,
over at most 4096 rows; what they give is added up in float64. So the error stays that of one
product, some 1e-7 of ``sqrt(H_ii H_jj)``, however many rows there are.

Note [Upper strips]: H is symmetric. It is kept as horizontal strips that begin at the diagonal,
which halves both the work and the memory. Beyond a limit of memory, the strips end where the
diagonal tile does, and only the tiles along the diagonal are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgkmeans_sk.validation import check_integer

ROWS_AT_ONCE = 4096
"""Rows of a product in float32, see Note [Precision of sums]."""
STRIP = 256
"""Columns of a strip: narrower ones waste less below the diagonal, but slow down the product."""
DIAGONAL_TILE = 720
"""Columns of a tile where only those along the diagonal are kept: most block sizes divide it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """Mean and second moment of the vectors x that the rows of a weight matrix are multiplied by.

    Attributes
    ----------
    full : ndarray of shape (in, in), float64, or None
        ``E[x x^T]``, symmetric; None if it would take more than the allowed bytes.
    diagonal : ndarray of shape (in,), float64
        Its diagonal, ``E[x**2]``.
    mean : ndarray of shape (in,), float64
        ``E[x]``.
    n_rows : int
        Vectors that were seen.
    tiles : tuple of ndarray, float64
        If ``full`` is None: the parts of it along the diagonal, of ``DIAGONAL_TILE`` columns each,
        the last one narrower.
    groups : tuple of SecondMoment
        If not all rows of the matrix are multiplied by the same vectors, as in a grouped
        convolution: what is true for each group of ``out / len(groups)`` consecutive rows. The
        record itself then is the average over all their vectors. Else empty.
    row_counts : ndarray of shape (out,), int64, or None
        How often each row was looked up, if the weight is that of an embedding as well.
    """

    full: Floats | None
    diagonal: Floats
    mean: Floats
    n_rows: int
    tiles: tuple[Floats, ...] = ()
    groups: tuple[SecondMoment, ...] = ()
    row_counts: NDArray[np.int64] | None = None

    def block_metric(self, block_size: int) -> Floats:
        """The average of the diagonal blocks of H over all whole blocks of columns.

        Parameters
        ----------
        block_size : int
            Columns of a block; more than there are mean all of them.

        Returns
        -------
        ndarray of shape (block_size, block_size), float64
            What ``ProductQuantizer.fit`` takes as ``importance``.

        Raises
        ------
        ValueError
            If ``full`` is None and the tiles cannot be cut into such blocks.
        """
        check_integer("block_size", block_size, 1)
        block_size = min(block_size, len(self.diagonal))
        if self.full is None and DIAGONAL_TILE % block_size:
            raise ValueError(
                f"Got block_size={block_size}, but expected a divisor of {DIAGONAL_TILE}: of this "
                f"moment of {len(self.diagonal)} columns, only tiles of {DIAGONAL_TILE} along the "
                "diagonal were kept. A larger max_bytes of calibrate keeps all of it."
            )
        total = np.zeros((block_size, block_size))
        for part in (self.full,) if self.full is not None else self.tiles:
            for start in range(0, len(part) - block_size + 1, block_size):
                block = slice(start, start + block_size)
                total += part[block, block]
        return total / (len(self.diagonal) // block_size)


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """How often each row of an embedding was looked up.

    Attributes
    ----------
    counts : ndarray of shape (num_embeddings,), int64
        Lookups of each row, those of padding left out.
    """

    counts: NDArray[np.int64]


class MomentSums:
    """Sums over the vectors that a weight is multiplied by; ``record`` makes averages of them.

    Parameters
    ----------
    n_columns : int
        Length of a vector.
    n_groups : int
        Groups of rows of the matrix, each with vectors of its own.
    max_bytes : int
        Above that, counting (n_groups, n_columns, n_columns) in float64, only the tiles along the
        diagonal are kept.
    device : torch.device
        Where the sums are.
    """

    def __init__(self, n_columns: int, n_groups: int, max_bytes: int, device: torch.device) -> None:
        self.is_full = 8 * n_groups * n_columns**2 <= max_bytes
        width = STRIP if self.is_full else DIAGONAL_TILE
        stops = [min(start + width, n_columns) for start in range(0, n_columns, width)]
        # Rows from start to stop, columns from start to end, see Note [Upper strips].
        self.bounds = [
            (i * width, stop, n_columns if self.is_full else stop) for i, stop in enumerate(stops)
        ]
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.strips = [
            torch.zeros(n_groups, stop - start, end - start, **options)
            for start, stop, end in self.bounds
        ]
        self.sums = torch.zeros(n_groups, n_columns, **options)
        self.counts = np.zeros(n_groups, np.int64)

    def add(self, vectors: Tensor, groups: slice) -> None:
        """Add vectors (n, h, in), float32 or float64, to groups; h is 1 for the same for all."""
        for chunk in torch.split(vectors, ROWS_AT_ONCE):
            by_group = chunk.movedim(1, 0)
            for strip, (start, stop, end) in zip(self.strips, self.bounds, strict=True):
                product = by_group[:, :, start:stop].mT @ by_group[:, :, start:end]
                strip[groups] += product.to(strip.device)
            self.sums[groups] += by_group.sum(1).to(self.sums.device)
            self.counts[groups] += len(chunk)

    def record(self, column_groups: int) -> SecondMoment | None:
        """Averages of what was added; None if it was nothing.

        Parameters
        ----------
        column_groups : int
            Groups of columns that never count together: H is 0 between them.
        """
        if not self.counts.any():
            return None
        strips = [strip.cpu().numpy() for strip in self.strips]
        sums = self.sums.cpu().numpy()
        groups = [
            self._average([strip[g] for strip in strips], sums[g], int(count), column_groups)
            for g, count in enumerate(self.counts)
        ]
        if len(groups) == 1:
            return groups[0]
        total = int(self.counts.sum())
        average = self._average([s.sum(0) for s in strips], sums.sum(0), total, column_groups)
        return replace(average, groups=tuple(groups))

    def _average(
        self, strips: list[Floats], sums: Floats, count: int, column_groups: int
    ) -> SecondMoment:
        """The record of one group, or of all together."""
        n_columns, n_rows = len(sums), max(count, 1)
        group_of = np.arange(n_columns) // (n_columns // column_groups)
        full = np.empty((n_columns, n_columns)) if self.is_full else None
        tiles = []
        for strip, (start, stop, end) in zip(strips, self.bounds, strict=True):
            values = strip / n_rows
            if column_groups > 1:
                values *= group_of[start:stop, None] == group_of[None, start:end]
            upper = np.triu(values[:, : stop - start])
            tile = upper + np.triu(upper, 1).T
            if full is None:
                tiles.append(tile)
                continue
            full[start:stop, start:stop] = tile
            full[start:stop, stop:] = values[:, stop - start :]
            full[stop:, start:stop] = values[:, stop - start :].T
        parts = tiles if full is None else [full]
        return SecondMoment(
            full=full,
            diagonal=np.concatenate([np.diagonal(part) for part in parts]),
            mean=sums / n_rows,
            n_rows=count,
            tiles=tuple(tiles),
        )
