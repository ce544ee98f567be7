"""Rows of a tensor on their way to codebooks, where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.engines.torch_memory import block_rows, blocks, sum_rows
from pgkmeans_sk.engines.torch_rows import numpy_dtype
from pgkmeans_sk.engines.torch_sums import sums_of_runs
from pgkmeans_sk.quantization.blocks import column_slices, whole_blocks
from pgkmeans_sk.quantization.codebooks import Weights
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.torch_codec import (
    COPIES,
    TensorCodec,
    by_blocks,
    in_metric,
    row_sizes,
)
from pgkmeans_sk.quantization.torch_rotation import applied
from pgkmeans_sk.quantization.training_rows import Problem, seeds_of


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Rows (n, d), float32 or float64; what methods do is said in ``TrainingRows``.

    A step that changes rows makes a copy of them on the device.
    """

    rows: torch.Tensor
    weights: torch.Tensor | None
    block_weights: NDArray[np.float64] | None = None

    @property
    def n_features(self) -> int:
        return int(self.rows.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.rows.dtype)

    def _by_blocks(self, work: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        size = block_rows(self.rows.device, 8 * COPIES * self.n_features)
        return by_blocks(blocks(len(self.rows), size), self.rows, work)

    # ---------------------------------------------------------------- steps

    def scaled(self, encoder: Encoder) -> TensorRows:
        codec, scales = TensorCodec(encoder, self.rows.device), encoder.decoder.row_scales
        if scales is None and encoder.decoder.column_scales is None:
            return self
        scale_codes: list[Any] = []

        def prepare(rows: torch.Tensor) -> torch.Tensor:
            prepared, codes = codec.prepare(rows)
            scale_codes.append(codes)
            return prepared

        found = replace(self, rows=self._by_blocks(prepare))
        if scales is None:
            return found
        squares = np.square(scales, dtype=np.float64)
        if not squares.any():  # nothing but zeros: any codebook will do
            squares = np.ones_like(squares)
        own = codec.sent(squares, torch.float64)[torch.cat(scale_codes)]
        return replace(found, weights=own if self.weights is None else own * self.weights)

    def rotated(self, rotation: Rotation) -> TensorRows:
        return replace(self, rows=self._by_blocks(lambda rows: applied(rotation, rows)))

    def divided(self, scales: NDArray[np.floating], factors: NDArray[np.floating]) -> TensorRows:
        divisors = torch.from_numpy(factors).to(self.rows.device, self.rows.dtype)
        return TensorRows(self.rows / divisors, self.weights, np.square(scales, dtype=np.float64))

    def left_over(self, encoder: Encoder) -> TensorRows:
        codec = TensorCodec(encoder, self.rows.device)

        def rest(rows: torch.Tensor) -> torch.Tensor:
            return rows - codec.stage_rows(codec.stage_codes(rows, 0), 0, rows.dtype)

        return replace(self, rows=self._by_blocks(rest))

    # ---------------------------------------------------------------- what they tell

    def sizes(self) -> tuple[NDArray[np.floating], Weights]:
        sizes = self._by_blocks(row_sizes).cpu().numpy()
        return sizes, None if self.weights is None else self.weights.cpu().numpy()

    def mean_squares(self) -> NDArray[np.float64]:
        n_rows, d = self.rows.shape
        totals = torch.zeros(d + 1, dtype=torch.float64, device=self.rows.device)
        for start, stop in blocks(n_rows, sum_rows(d)):
            squares = self.rows[start:stop].to(torch.float64).square()
            values = torch.nn.functional.pad(squares, (0, 1), value=1.0)
            if self.weights is not None:
                values *= self.weights[start:stop, None]
            end = torch.tensor([stop - start], device=values.device)
            totals += sums_of_runs(values, end)[0]
        sums = totals.cpu().numpy()
        return np.asarray(sums[:-1] / sums[-1])

    def some(self, n_rows: int, rng: np.random.RandomState) -> Prepared:
        numbers = np.arange(len(self.rows))
        if len(self.rows) > n_rows:
            numbers = np.sort(rng.choice(len(self.rows), n_rows, replace=False))
        chosen = torch.from_numpy(numbers).to(self.rows.device)
        weights = None if self.weights is None else self.weights[chosen].cpu().numpy()
        return Prepared(self.rows[chosen].cpu().numpy(), weights)

    def problems(self, settings: QuantizerSettings, rng: np.random.RandomState) -> list[Problem]:
        size, max_rows = settings.block_size, settings.max_rows
        if settings.is_shared:
            (seed,) = seeds_of(1, rng)
            blocks: Any = whole_blocks(self.rows, size)  # type: ignore[arg-type]
            weights = self._weights_of_blocks(self.n_features // size)
            return [Problem(blocks, weights, seed, max_rows, in_metric)]
        slices = column_slices(self.n_features, size)
        return [
            Problem(self.rows[:, columns], self.weights, seed, max_rows, in_metric)
            for columns, seed in zip(slices, seeds_of(len(slices), rng), strict=True)
        ]

    def _weights_of_blocks(self, n_whole: int) -> torch.Tensor | None:
        """As ``Prepared.weights_of_blocks``."""
        if self.block_weights is None:
            return None if self.weights is None else self.weights.repeat_interleave(n_whole)
        of_blocks = torch.from_numpy(self.block_weights[:n_whole]).to(self.rows.device)
        if self.weights is None:
            return of_blocks.repeat(len(self.rows))
        return (self.weights[:, None] * of_blocks).view(-1)
