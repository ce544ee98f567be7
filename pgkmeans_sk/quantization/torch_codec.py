"""From tensors to codes and back on their device: ``Encoder`` and ``Decoder`` in PyTorch.

Everything here is done with single numbers, in the order of the host's kernels: the same decoder
gives the same codes and the same rows there and here, to the last bit. Codebooks live on the host,
and are sent along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.torch_device import open_device_engine
from pgkmeans_sk.engines.torch_labels import sq_distances
from pgkmeans_sk.engines.torch_memory import block_rows, blocks
from pgkmeans_sk.engines.torch_rows import reported_dtype
from pgkmeans_sk.quantization.blocks import column_slices, stage_columns, whole_blocks
from pgkmeans_sk.quantization.encode import Encoder, divisors
from pgkmeans_sk.quantization.encode import in_metric as on_host_in_metric
from pgkmeans_sk.quantization.torch_rotation import applied, mixed_pieces, undone

DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}
"""Of codes and decoded rows."""
COPIES = 5
"""Numbers of 8 bytes for each of a row, about, while it is prepared, encoded or decoded."""


class TensorCodec:
    """An encoder at work on ``device``. Rows are float32 or float64; none is written."""

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self.encoder, self.decoder, self.device = encoder, encoder.decoder, device

    def sent(self, values: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
        """Some numbers of the decoder on the device."""
        return torch.from_numpy(np.array(values)).to(self.device, dtype)

    # ---------------------------------------------------------------- rows to codes

    def encode(self, X: torch.Tensor) -> torch.Tensor:
        """Codes (n, n_columns) of the rows ``X`` (n, d), floats of any kind."""
        decoder = self.decoder
        shape = len(X), decoder.n_columns
        codes = torch.empty(shape, dtype=DTYPES[decoder.code_dtype], device=self.device)
        if self.encoder.is_plain:  # the engine alone says how many rows at a time
            self.encode_stage(X, 0, codes)
            return codes
        for start, stop in self.row_blocks(len(X)):
            rows, scale_codes = self.prepare(X[start:stop].to(reported_dtype(X.dtype)))
            if scale_codes is not None:
                codes[start:stop, -1] = scale_codes.to(codes.dtype)
            for s in range(decoder.n_stages):
                stage = codes[start:stop, stage_columns(s, decoder.n_blocks)]
                self.encode_stage(rows, s, stage)
                if s + 1 < decoder.n_stages:
                    rows = rows - self.stage_rows(stage, s, rows.dtype)
        return codes

    def row_blocks(self, n_rows: int) -> Any:
        """Bounds of blocks of rows that may be worked on at a time."""
        row_bytes = 8 * COPIES * self.decoder.n_features
        return blocks(n_rows, block_rows(self.device, row_bytes))

    def prepare(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``Encoder.prepare``; codes of sizes are int64."""
        decoder, scale_codes, dtype = self.decoder, None, rows.dtype
        if decoder.column_scales is not None:
            rows = rows / self.sent(decoder.column_scales, dtype)
        if decoder.row_scales is not None:
            words = decoder.row_scales[:, np.newaxis]
            scale_codes = _nearest(row_sizes(rows)[:, None], words).to(torch.int64)
            scales = divisors(decoder.row_scales, _of_numpy(dtype))
            rows = rows / self.sent(scales, dtype)[scale_codes][:, None]
        if decoder.rotation is not None:
            rows = applied(decoder.rotation, rows)
        if decoder.block_scales is not None:
            rows = rows / self.sent(decoder.block_factors(), dtype)
        return rows, scale_codes

    def encode_stage(self, rows: torch.Tensor, stage: int, codes: torch.Tensor) -> None:
        """Set ``codes`` (n, n_blocks) to the words of a stage nearest to prepared ``rows``."""
        decoder, factor = self.decoder, self.encoder.metric_factor
        size, n_whole = decoder.block_size, decoder.n_features // decoder.block_size
        books = decoder.codebooks[stage].astype(_of_numpy(rows.dtype))
        for j, columns in enumerate(column_slices(decoder.n_features, size)):
            width = columns.stop - columns.start
            book = on_host_in_metric(books[0 if decoder.is_shared else j][:, :width], factor)
            if not decoder.is_shared or j >= n_whole:
                codes[:, j] = _nearest(in_metric(rows[:, columns], factor), book)
            elif j == 0:  # with all others of full width
                every = in_metric(_whole_blocks(rows, size), factor)
                codes[:, :n_whole] = _nearest(every, book).view(len(rows), n_whole)

    def stage_codes(self, rows: torch.Tensor, stage: int) -> torch.Tensor:
        """The same as a new tensor."""
        shape = len(rows), self.decoder.n_blocks
        codes = torch.empty(shape, dtype=DTYPES[self.decoder.code_dtype], device=self.device)
        self.encode_stage(rows, stage, codes)
        return codes

    # ---------------------------------------------------------------- codes to rows

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The rows (n, n_features) that checked ``codes`` stand for, in the dtype of ``fit``."""
        decoder = self.decoder
        shape = len(codes), decoder.n_features
        rows = torch.empty(shape, dtype=DTYPES[decoder.dtype], device=self.device)
        for start, stop in self.row_blocks(len(codes)):
            rows[start:stop] = self.rows_of(codes[start:stop])
        return rows

    def rows_of(self, codes: torch.Tensor) -> torch.Tensor:
        """The same in the dtype of the arithmetic, all at once."""
        decoder, dtype = self.decoder, DTYPES[self.decoder.work_dtype]
        rows = self.stage_rows(codes[:, stage_columns(0, decoder.n_blocks)], 0, dtype)
        for s in range(1, decoder.n_stages):
            rows = rows + self.stage_rows(codes[:, stage_columns(s, decoder.n_blocks)], s, dtype)
        if decoder.block_scales is not None:
            rows = rows * self.sent(decoder.block_factors(), dtype)
        if decoder.row_scales is not None:
            sizes = self.sent(decoder.row_scales, dtype)[codes[:, -1].to(torch.int64)]
            rows = rows * sizes[:, None]
        if decoder.rotation is not None:
            rows = undone(decoder.rotation, rows)
        if decoder.column_scales is not None:
            rows = rows * self.sent(decoder.column_scales, dtype)
        return rows

    def stage_rows(self, codes: torch.Tensor, stage: int, dtype: torch.dtype) -> torch.Tensor:
        """What ``codes`` (n, n_blocks) of one stage add, before any scales."""
        decoder, codes = self.decoder, codes.to(torch.int64)
        words = self.sent(decoder.codebooks[stage], dtype).reshape(-1, decoder.block_size)
        if decoder.codebooks.shape[1] > 1:
            first = torch.arange(decoder.n_blocks, device=self.device) * decoder.n_codes
            codes = codes + first
        return words[codes].reshape(len(codes), -1)[:, : decoder.n_features]

    # ---------------------------------------------------------------- how far they are off

    def sq_errors(self, X: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Squared distance (n,), float64, of each row to what its codes decode to."""
        errors = torch.empty(len(X), dtype=torch.float64, device=self.device)
        for start, stop in self.row_blocks(len(X)):
            decoded = self.decode(codes[start:stop]).to(torch.float64)
            errors[start:stop] = sq_distances(X[start:stop], decoded)
        return errors

    def sq_lengths(self, X: torch.Tensor) -> torch.Tensor:
        """Squared length (n,), float64, of each row."""
        return by_blocks(self.row_blocks(len(X)), X, sq_lengths)


def by_blocks(
    bounds: Any, rows: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``work`` on some rows at a time."""
    return torch.cat([work(rows[start:stop]) for start, stop in bounds])


def in_metric(blocks: torch.Tensor, factor: NDArray[np.float64] | None) -> torch.Tensor:
    """``blocks`` (n, width) so that Euclidean distances are those of the metric."""
    if factor is None:
        return blocks
    width = blocks.shape[1]
    return mixed_pieces(blocks, factor[:width, :width])


def row_sizes(rows: torch.Tensor) -> torch.Tensor:
    """Root of the mean square of each row (n, d), (n,) in the rows' dtype."""
    return (sq_lengths(rows) / rows.shape[1]).sqrt().to(rows.dtype)


def sq_lengths(rows: torch.Tensor) -> torch.Tensor:
    """Squared length (n,), float64, added up in the order of the features."""
    return sq_distances(rows, torch.zeros((), dtype=torch.float64, device=rows.device))


def _nearest(points: torch.Tensor, words: NDArray[np.floating]) -> torch.Tensor:
    """Numbers (n,) int32 of the nearest of ``words`` (K, width), in the dtype of ``points``."""
    engine = open_device_engine(points, None, points.device)
    found: torch.Tensor = engine.nearest(words.astype(_of_numpy(points.dtype)))
    return found


def _whole_blocks(rows: torch.Tensor, block_size: int) -> torch.Tensor:
    found: torch.Tensor = whole_blocks(rows, block_size)  # type: ignore[arg-type,assignment]
    return found


def _of_numpy(dtype: torch.dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32
