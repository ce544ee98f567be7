"""Rows in blocks elsewhere on their way to codebooks: what training looks at is brought here.

Steps are written down, and done for the rows of a tile (``engines/tiles.py``) when they are there.
Which blocks of rows are drawn goes by their numbers, as in memory, and a row becomes the same in
any company: so does what comes of it, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.engines.block_engine import GATHERED_NUMBERS, Carrier
from pgkmeans_sk.engines.chunks import chunk_bounds
from pgkmeans_sk.engines.draws import draw_numbers
from pgkmeans_sk.engines.tiles import MomentSum, Tile, Totals
from pgkmeans_sk.quantization.blocks import column_slices
from pgkmeans_sk.quantization.codebooks import Weights, is_drawn_from
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.training_rows import Problem, seeds_of
from pgkmeans_sk.results import IntArray

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """Methods of ``Prepared`` with their arguments, one after the other."""

    calls: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def then(self, method: str, *arguments: Any) -> Steps:
        """These steps and one more."""
        return Steps((*self.calls, (method, arguments)))

    def of(self, rows: NDArray[np.floating], weights: Weights) -> Prepared:
        """What rows become."""
        prepared = Prepared(rows, weights)
        for method, arguments in self.calls:
            prepared = getattr(prepared, method)(*arguments)
        return prepared

    def of_tile(self, tile: Tile, numbers: Positions | None = None) -> Prepared:
        """What the rows of a tile become, or those of these ``numbers``."""
        weights = tile.sample_weight
        if numbers is None:
            return self.of(tile.rows, weights)
        return self.of(tile.rows[numbers], None if weights is None else weights[numbers])


# ---------------------------------------------------------------- what one tile tells


def _sizes_of(tile: Tile, steps: Steps) -> tuple[NDArray[np.floating], Weights]:
    return steps.of_tile(tile).sizes()


def _take_rows(tile: Tile, steps: Steps, numbers: Positions) -> tuple[Any, Weights]:
    taken = steps.of_tile(tile, numbers)
    return np.ascontiguousarray(taken.rows), taken.weights


@dataclass(frozen=True)
class Cutting:
    """How rows are cut into blocks, and the steps that lead there.

    ``weighing`` are as many of the steps as weights of rows depend on; ``block_weights``
    (n_blocks,) are those of the blocks. There are blocks ``slices`` of each row; where
    ``n_shared`` blocks share a codebook, the slice of the first stands for them all.
    """

    steps: Steps
    weighing: Steps
    block_weights: NDArray[np.float64] | None
    slices: list[slice]
    n_shared: int | None

    @property
    def per_row(self) -> int:
        """Blocks of a row for one codebook."""
        return 1 if self.n_shared is None else self.n_shared

    def weights_of(self, prepared: Prepared) -> Weights:
        """What errors of the blocks count for one codebook, row after row."""
        if self.n_shared is None:
            return prepared.weights
        weighed = replace(prepared, block_weights=self.block_weights)
        return weighed.weights_of_blocks(self.n_shared)


def _present_blocks(tile: Tile, cutting: Cutting) -> Positions | None:
    """Blocks of positive weight, by their number among those of a codebook; None for all."""
    weights = cutting.weights_of(cutting.weighing.of_tile(tile))
    return None if weights is None else np.flatnonzero(weights > 0.0)


def _count_present(tile: Tile, cutting: Cutting) -> int:
    present = _present_blocks(tile, cutting)
    return len(tile) * cutting.per_row if present is None else len(present)


def _take_blocks(
    tile: Tile, cutting: Cutting, wanted: list[Positions | None]
) -> list[tuple[NDArray[np.floating], Weights]]:
    """For each codebook the wanted blocks, counted among those of positive weight; None: all."""
    every = np.arange(len(tile) * cutting.per_row)
    present: Positions | None = None
    if any(numbers is not None for numbers in wanted):
        present = _present_blocks(tile, cutting)
    candidates = every if present is None else present
    chosen = [every if numbers is None else candidates[numbers] for numbers in wanted]
    rows = np.unique(np.concatenate([numbers // cutting.per_row for numbers in chosen]))
    prepared = cutting.steps.of_tile(tile, None if len(rows) == len(tile) else rows)
    all_weights = cutting.weights_of(prepared)
    found = []
    for columns, numbers in zip(cutting.slices, chosen, strict=True):
        row, block = np.divmod(numbers, cutting.per_row)
        places = np.searchsorted(rows, row)
        if cutting.n_shared is None:
            blocks = prepared.rows[places, columns]
        else:
            places = places * cutting.n_shared + block
            blocks = prepared.whole_blocks(columns.stop)[0][places]
        own = None if all_weights is None else all_weights[places]
        found.append((np.ascontiguousarray(blocks), own))
    return found


@dataclass(frozen=True)
class _SquareSum:
    """Sums of weighted squares (d,) of prepared rows, as ``MomentSum`` has them."""

    steps: Steps
    n_features: int

    def zeros(self) -> Totals:
        return MomentSum(np.zeros(self.n_features)).zeros()

    def add(self, tile: Tile, start: int, stop: int, totals: Totals) -> None:
        if start == stop:
            return
        prepared = self.steps.of_tile(tile, np.arange(start, stop))
        part = Tile(prepared.rows, prepared.weights, 0)
        MomentSum(np.zeros(self.n_features)).add(part, 0, len(part), totals)


# ---------------------------------------------------------------- all of them


class BlockedRows:
    """Rows that a carrier has; what methods do is said in ``TrainingRows``.

    ``n_weighing`` is as many of the steps as weights of rows depend on.
    """

    def __init__(
        self,
        carrier: Carrier,
        steps: Steps | None = None,
        n_weighing: int = 0,
        block_weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._carrier, self._n_weighing = carrier, n_weighing
        self._steps, self._block_weights = steps or Steps(), block_weights
        self.n_rows, self.n_features = int(carrier.starts[-1]), carrier.n_features
        self.dtype = np.dtype(carrier.dtype)

    def _then(self, method: str, *arguments: Any) -> BlockedRows:
        steps = self._steps.then(method, *arguments)
        return BlockedRows(self._carrier, steps, self._n_weighing, self._block_weights)

    def scaled(self, encoder: Encoder) -> BlockedRows:
        rows = self._then("scaled", encoder)
        if encoder.decoder.row_scales is not None:
            rows._n_weighing = len(rows._steps.calls)
        return rows

    def rotated(self, rotation: Rotation) -> BlockedRows:
        return self._then("rotated", rotation)

    def divided(self, scales: NDArray[np.floating], factors: NDArray[np.floating]) -> BlockedRows:
        rows = self._then("divided", scales, factors)
        rows._block_weights = np.square(scales, dtype=np.float64)
        return rows

    def left_over(self, encoder: Encoder) -> BlockedRows:
        return self._then("left_over", encoder)

    def sizes(self) -> tuple[NDArray[np.floating], Weights]:
        return _joined(self._carrier.each(_sizes_of, self._steps))

    def mean_squares(self) -> NDArray[np.float64]:
        bounds = chunk_bounds(self.n_rows, self.n_rows * self.n_features)
        total = _SquareSum(self._steps, self.n_features)
        _, squares, weight = self._carrier.add_up(total, bounds)
        return np.asarray(squares / weight[0])

    def some(self, n_rows: int, rng: np.random.RandomState) -> Prepared:
        numbers = np.arange(self.n_rows)
        if self.n_rows > n_rows:
            numbers = np.sort(rng.choice(self.n_rows, n_rows, replace=False))
        wanted = _in_tiles(numbers, self._carrier.starts)
        per_tile = [own if len(own) else None for own in wanted]
        return Prepared(*_joined(self._carrier.each(_take_rows, self._steps, per_tile=per_tile)))

    def problems(self, settings: QuantizerSettings, rng: np.random.RandomState) -> list[Problem]:
        cutting = self._cutting(settings)
        n_blocks, counts = self.n_rows * cutting.per_row, None
        states: list[Any] = list(seeds_of(len(cutting.slices), rng))
        limits = [settings.max_rows] * len(states)
        wanted: list[list[Positions | None]] = [[] for _ in self._carrier.starts[:-1]]
        for j, columns in enumerate(cutting.slices):
            own: list[Any] = [None] * len(wanted)
            if settings.train is None and is_drawn_from(
                n_blocks, columns.stop - columns.start, settings.max_rows
            ):
                if counts is None:
                    counts = self._count_present(cutting)
                states[j] = np.random.RandomState(states[j])
                n_drawn = min(int(settings.max_rows or 0), int(counts.sum()))
                drawn = np.sort(draw_numbers(int(counts.sum()), n_drawn, states[j]))
                own, limits[j] = _in_tiles(drawn, np.append(0, np.cumsum(counts))), None
            for of_tile, numbers in zip(wanted, own, strict=True):
                of_tile.append(numbers)
        per_tile = [own if any(n is None or len(n) for n in own) else None for own in wanted]
        found = self._carrier.each(_take_blocks, cutting, per_tile=per_tile)
        return [
            Problem(*_joined([parts[j] for parts in found]), state, limit)
            for j, (state, limit) in enumerate(zip(states, limits, strict=True))
        ]

    def _cutting(self, settings: QuantizerSettings) -> Cutting:
        size = settings.block_size
        known = self._steps, Steps(self._steps.calls[: self._n_weighing]), self._block_weights
        if settings.is_shared:
            return Cutting(*known, [slice(0, size)], self.n_features // size)
        return Cutting(*known, column_slices(self.n_features, size), None)

    def _count_present(self, cutting: Cutting) -> IntArray:
        """Blocks of positive weight for a codebook, in each tile."""
        block_weights = np.ones(1)
        if cutting.n_shared is not None and self._block_weights is not None:
            block_weights = self._block_weights[: cutting.n_shared]
        is_weighted = self._carrier.is_weighted or self._n_weighing > 0
        if not is_weighted and (block_weights > 0.0).all():
            return np.diff(self._carrier.starts) * cutting.per_row
        return np.array(self._carrier.each(_count_present, cutting), dtype=np.int64)


def check_gathered(settings: QuantizerSettings, n_rows: int, n_features: int) -> None:
    """Raise if a fit would look at more values together than may be brought into memory.

    What is drawn for ``rows_per_code`` may always be: that many were asked for.
    """
    size, n_values = settings.block_size, n_rows * n_features
    n_blocks = n_rows * (n_features // size if settings.is_shared else 1)
    needs = {}
    if settings.scale == "row":
        needs["scale='row'"] = n_rows
    if settings.train is not None:
        needs["a quantizer of its own"] = n_values
    elif settings.max_rows is None:
        needs["rows_per_code=None"] = n_values
    elif size == 1 and n_blocks > settings.max_rows:
        needs["block_size=1"] = n_values
    elif not settings.is_shared and n_features % size == 1 and n_rows > settings.max_rows:
        needs[f"block_size={size}, which leaves a last block of one column,"] = n_rows
    for name, n_together in needs.items():
        if n_together > GATHERED_NUMBERS:
            raise ValueError(
                f"Got {name} with rows in blocks of shape {(n_rows, n_features)}, but expected at "
                f"most {GATHERED_NUMBERS} values that have to be looked at together, in one "
                f"place: they are {n_together}."
            )


def _in_tiles(numbers: Positions, starts: IntArray) -> list[Positions]:
    """Rising ``numbers`` counted from the beginning of each tile."""
    ends = np.searchsorted(numbers, starts)
    return [
        numbers[low:high] - start
        for low, high, start in zip(ends[:-1], ends[1:], starts[:-1], strict=True)
    ]


def _joined(parts: list[Any]) -> tuple[NDArray[Any], Weights]:
    """Values and weights that have come in parts."""
    values, weights = zip(*parts, strict=True)
    return np.concatenate(values), None if weights[0] is None else np.concatenate(weights)
