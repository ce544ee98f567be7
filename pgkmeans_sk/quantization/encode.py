"""From rows to codes: the nearest code word of each block, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.rotation import mixed_pieces
from pgkmeans_sk.engines import open_engine
from pgkmeans_sk.engines.closest import sq_lengths
from pgkmeans_sk.quantization.blocks import column_slices, stage_columns, whole_blocks
from pgkmeans_sk.threads import effective_n_threads, run_tasks

NUMBERS_AT_ONCE = 2**22
"""Values that are scaled, rotated or left over at a time."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A decoder, and the metric of the blocks in which code words are nearest.

    Attributes
    ----------
    decoder : Decoder
        What codes will mean.
    metric_factor : ndarray of shape (block_size, block_size), float64, or None
        Lower triangular L; distances between blocks are ``|L^T (v - c)|``. None: Euclidean.
    """

    decoder: Decoder
    metric_factor: NDArray[np.float64] | None = None

    def with_parts(self, **parts: Any) -> Encoder:
        """The encoder with other parts of its decoder."""
        return replace(self, decoder=replace(self.decoder, **parts))

    def encode(self, X: NDArray[np.floating]) -> NDArray[Any]:
        """Codes (n, n_columns) of the rows of ``X`` (n, d), float32 or float64."""
        decoder = self.decoder
        codes = np.empty((len(X), decoder.n_columns), dtype=decoder.code_dtype)
        # Rows that are changed on the way are copied: some of them at a time.
        step = len(X) if self.is_plain else max(1, NUMBERS_AT_ONCE // decoder.n_features)
        for start in range(0, len(X), max(1, step)):
            some = slice(start, start + step)
            self._encode_rows(X[some], codes[some])
        return codes

    @property
    def is_plain(self) -> bool:
        """Whether rows are encoded as they are: in one stage, without scales or rotation."""
        decoder = self.decoder
        scales = decoder.column_scales, decoder.row_scales, decoder.block_scales
        is_prepared = decoder.rotation is not None or any(part is not None for part in scales)
        return decoder.n_stages == 1 and not is_prepared

    def _encode_rows(self, X: NDArray[np.floating], codes: NDArray[Any]) -> None:
        """Set ``codes`` (n, n_columns), all at once."""
        decoder = self.decoder
        rows, scale_codes = self.prepare(X)
        if scale_codes is not None:
            codes[:, -1] = scale_codes
        for s in range(decoder.n_stages):
            stage = codes[:, stage_columns(s, decoder.n_blocks)]
            self.encode_stage(rows, s, stage)
            if s + 1 < decoder.n_stages:
                rows = rows - decoder.stage_rows(stage, s, rows.dtype)

    def prepare(
        self, X: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.uint8] | None]:
        """Rows as the codebooks see them, and the codes of their sizes; ``X`` itself if it can be.

        ``X`` is divided by the scales of columns and rows, rotated, and divided by those of blocks.
        """
        decoder = self.decoder
        rows, scale_codes = X, None
        if decoder.column_scales is not None:
            rows = rows / decoder.column_scales.astype(rows.dtype)
        if decoder.row_scales is not None:
            scale_codes = nearest_words(
                row_sizes(rows)[:, np.newaxis], decoder.row_scales[:, np.newaxis]
            ).astype(np.uint8)
            rows = rows / divisors(decoder.row_scales, rows.dtype)[scale_codes, np.newaxis]
        if decoder.rotation is not None:
            rows = decoder.rotation.apply(rows)
        if decoder.block_scales is not None:
            rows = rows / decoder.block_factors().astype(rows.dtype)
        return rows, scale_codes

    def encode_stage(self, rows: NDArray[np.floating], stage: int, codes: NDArray[Any]) -> None:
        """Set ``codes`` (n, n_blocks) to the code words of a stage nearest to prepared ``rows``."""
        decoder = self.decoder
        books = decoder.codebooks[stage].astype(rows.dtype)
        slices = column_slices(decoder.n_features, decoder.block_size)
        n_whole = decoder.n_features // decoder.block_size
        if decoder.is_shared:
            blocks = whole_blocks(rows, decoder.block_size)
            found = self._nearest(blocks, books[0]).reshape(len(rows), n_whole)
            codes[:, :n_whole] = found
            slices = [columns if j >= n_whole else slice(0) for j, columns in enumerate(slices)]

        def encode_block(j: int) -> None:
            columns = slices[j]
            if columns.stop:
                width = columns.stop - columns.start
                book = books[0 if decoder.is_shared else j]
                codes[:, j] = self._nearest(rows[:, columns], book[:, :width])

        run_tasks(encode_block, len(slices), effective_n_threads())

    def _nearest(
        self, blocks: NDArray[np.floating], words: NDArray[np.floating]
    ) -> NDArray[np.int32]:
        """Numbers of the nearest of ``words`` (K, width), in the metric, for ``blocks``."""
        blocks, words = in_metric(blocks, self.metric_factor), in_metric(words, self.metric_factor)
        return nearest_words(blocks, words)


def nearest_words(blocks: NDArray[np.floating], words: NDArray[np.floating]) -> NDArray[np.int32]:
    """Number of the nearest of ``words`` (K, width) for ``blocks`` (n, width), in their dtype."""
    words = words.astype(blocks.dtype, copy=False)
    return np.asarray(open_engine("numba", blocks, None).nearest(words))


def in_metric(
    blocks: NDArray[np.floating], factor: NDArray[np.float64] | None
) -> NDArray[np.floating]:
    """``blocks`` (n, width) so that Euclidean distances are those of the metric.

    A narrower block takes the leading part of the triangular factor: that of its leading values.
    """
    if factor is None:
        return blocks
    width = blocks.shape[1]
    return mixed_pieces(blocks, factor[:width, :width])


def row_sizes(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Root of the mean square of each row (n, d), (n,) in the rows' dtype."""
    return np.asarray(np.sqrt(sq_lengths(rows) / rows.shape[1]), dtype=rows.dtype)


def divisors(scales: NDArray[np.floating], dtype: Any) -> NDArray[np.floating]:
    """Scales to divide by: 1 stands in for 0, which is multiplied back to 0 anyway."""
    return np.asarray(np.where(scales == 0.0, 1.0, scales), dtype=dtype)
