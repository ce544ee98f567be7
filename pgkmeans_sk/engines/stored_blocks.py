"""Rows in blocks that one process reads, one after another, within a limit of memory.

A source that can be sliced is read by several threads, each at another chunk of rows; an iterable
is read by one, and several look at what it gives. Labels are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines import tiles
from pgkmeans_sk.engines.block_checks import prepared_rows, problem_of_block, work_dtype
from pgkmeans_sk.engines.block_engine import BlockEngine, Carrier
from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.row_source import RowBlocks
from pgkmeans_sk.engines.tiles import AssignmentSum, Sum, Tile, Totals
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads, run_tasks
from pgkmeans_sk.validation import check_weights

LARGEST_BLOCK = 2**26
"""Bytes: larger blocks are not read faster."""
FEWEST_SLICE_ROWS = 4096
"""Arrays of an iterable are labelled in slices, one for each thread if they are as long as that."""


class StoredBlocks:
    """The carrier; what methods do is said in ``block_engine.Carrier``.

    Parameters
    ----------
    source : RowBlocks
        The rows; ``check_stored_blocks`` has seen them.
    sample_weight : ndarray of shape (n,), float64, or None for ones
        Weights >= 0.
    prepare : callable or None
        What rows go through when they have been read.
    added : ndarray of shape (m, d)
        Rows in memory that follow those of the source.
    """

    name = "blocks"

    def __init__(
        self,
        source: RowBlocks,
        sample_weight: FloatArray | None,
        prepare: Callable[[Any], Any] | None,
        added: NDArray[Any] | None = None,
    ) -> None:
        self._source, self._weights, self._prepare = source, sample_weight, prepare
        self._added = added
        self.dtype = np.dtype(work_dtype(source.dtype))
        self.n_features = source.shape[1]
        self.is_weighted = sample_weight is not None
        self._n_threads = effective_n_threads()
        ends = block_bounds(source, self._n_threads)
        if added is not None:
            ends = np.append(ends, ends[-1] + len(added))
        self.starts: IntArray = ends
        self._labels: NDArray[np.int32] | None = None
        self._labels_are_out = False

    @property
    def n_present(self) -> IntArray:
        if self._weights is None:
            return np.diff(self.starts)
        positive = np.append(0, np.cumsum(self._weights > 0.0))
        return np.diff(positive[self.starts])

    # ---------------------------------------------------------------- reading

    def _tile(self, rows: NDArray[Any], start: int, labelled: bool = True) -> Tile:
        """What is known of rows that follow one another from ``start`` on."""
        stop = start + len(rows)
        weights = None if self._weights is None else self._weights[start:stop]
        labels = self._labels[start:stop] if labelled and self._labels is not None else None
        return Tile(rows, weights, start, labels)

    def _read(self, start: int, stop: int) -> NDArray[np.floating]:
        """Rows of a source that can be sliced, or of those that were added."""
        n_stored = self._source.shape[0]
        if start >= n_stored:
            assert self._added is not None
            return self._added[start - n_stored : stop - n_stored]
        return prepared_rows(self._source.read(start, stop), self.dtype, self._prepare)

    def _arrays(self) -> Iterator[NDArray[np.floating]]:
        """The arrays of an iterable, and those that were added."""
        lengths = np.diff(self.starts)
        stored = lengths if self._added is None else lengths[:-1]
        for number, (n_rows, rows) in enumerate(zip_longest(stored, self._source.arrays())):
            if n_rows is None or rows is None or rows.shape != (n_rows, self.n_features):
                raise ValueError(
                    f"Got other rows than before at chunk {number} of the source, but expected it "
                    "to give the same each time that it is iterated over."
                )
            yield prepared_rows(rows, self.dtype, self._prepare)
        if self._added is not None:
            yield self._added

    # ---------------------------------------------------------------- work

    def each(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        per_tile: Sequence[Any] | None = None,
        labelled: bool = False,
    ) -> list[Any]:
        n_tiles = len(self.starts) - 1
        every = range(n_tiles)
        wanted = [i for i in every if per_tile is None or per_tile[i] is not None]
        results: list[Any] = [None] * n_tiles

        def work_on(i: int, rows: NDArray[Any]) -> None:
            own = () if per_tile is None else (per_tile[i],)
            results[i] = work(self._tile(rows, self.starts[i], labelled), *arguments, *own)

        if self._source.is_sliceable:
            run_tasks(
                lambda w: work_on(wanted[w], self._read(*self.starts[wanted[w] : wanted[w] + 2])),
                len(wanted),
                self._n_threads,
            )
        else:
            for i, rows in enumerate(self._arrays()):
                if per_tile is None or per_tile[i] is not None:
                    work_on(i, rows)
        return [results[i] for i in wanted]

    def add_up(self, total: Sum, bounds: IntArray) -> Totals:
        if self._source.is_sliceable:
            return self._add_chunks(total, bounds)
        return self._add_arrays(total, bounds, lambda tile: None)

    def assign(self, total: AssignmentSum, bounds: IntArray, last: bool = False) -> Totals:
        if self._labels is None:
            self._labels = np.full(self.starts[-1], -1, dtype=np.int32)
        elif self._labels_are_out:
            self._labels, self._labels_are_out = self._labels.copy(), False
        if self._source.is_sliceable:
            return self._add_chunks(total, bounds)
        n_changed = 0

        def label_slices(tile: Tile) -> None:
            nonlocal n_changed
            n_slices = max(1, min(self._n_threads, len(tile) // FEWEST_SLICE_ROWS))
            ends = np.linspace(0, len(tile), n_slices + 1).astype(np.int64)
            changed = np.zeros(n_slices, dtype=np.int64)
            tile.points  # noqa: B018  # made once, before threads ask for it

            def label_slice(s: int) -> None:
                changed[s] = tiles.label(tile, total.run_centers, ends[s], ends[s + 1])

            run_tasks(label_slice, n_slices, self._n_threads)
            n_changed += int(changed.sum())

        labelled = replace(total, is_labelled=True)
        totals = self._add_arrays(labelled, bounds, label_slices)
        totals[3][0] = n_changed
        return totals

    def _add_chunks(self, total: Sum, bounds: IntArray) -> Totals:
        """Each chunk of rows is read block after block, several chunks side by side."""
        parts = [total.zeros() for _ in bounds[:-1]]
        n_stored = self._source.shape[0]
        step = int(np.diff(self.starts).max())

        def add_chunk(c: int) -> None:
            start = int(bounds[c])
            while start < bounds[c + 1]:
                end = n_stored if start < n_stored else self.starts[-1]
                stop = int(min(start + step, bounds[c + 1], end))
                tile = self._tile(self._read(start, stop), start)
                total.add(tile, 0, len(tile), parts[c])
                start = stop

        run_tasks(add_chunk, len(parts), self._n_threads)
        return in_order(parts)

    def _add_arrays(self, total: Sum, bounds: IntArray, before: Callable[[Tile], None]) -> Totals:
        """Arrays come one after the other; the chunks in one of them are added up side by side."""
        parts = [total.zeros() for _ in bounds[:-1]]
        for first, rows in zip(self.starts[:-1], self._arrays(), strict=True):
            tile = self._tile(rows, first)
            before(tile)
            low = np.searchsorted(bounds, first, side="right") - 1
            high = np.searchsorted(bounds, first + len(tile))
            ends = np.clip(bounds[low : high + 1] - first, 0, len(tile))
            tile.points  # noqa: B018  # made once, before threads ask for it

            def add_part(c: int, tile: Tile = tile, low: int = low, ends: IntArray = ends) -> None:
                total.add(tile, ends[c], ends[c + 1], parts[low + c])

            run_tasks(add_part, len(ends) - 1, self._n_threads)
        return in_order(parts)

    def labels(self) -> NDArray[np.int32]:
        assert self._labels is not None
        self._labels_are_out = True  # the next assignment makes a copy, not this one
        return self._labels

    def with_rows(self, rows: NDArray[Any], weights: FloatArray | None) -> Carrier:
        both = None
        if self._weights is not None and weights is not None:
            both = np.concatenate([self._weights, weights])
        return StoredBlocks(self._source, both, self._prepare, rows)

    def release(self) -> None:
        """Nothing is kept but the labels, which are wanted."""


def block_bounds(source: RowBlocks, n_threads: int) -> IntArray:
    """Where the blocks of a source begin and end, as many read at once as there are threads."""
    n_rows, n_features = source.shape
    if not source.is_sliceable:
        return np.append(0, np.cumsum([len(rows) for rows in source.arrays()], dtype=np.int64))
    stored, used = np.dtype(source.dtype), np.dtype(work_dtype(source.dtype))
    # A row is there as it is stored, and once more if it is converted.
    row_bytes = n_features * (stored.itemsize + used.itemsize)
    limit = min(source.memory_limit // n_threads, LARGEST_BLOCK)
    step = max(1, limit // row_bytes)
    return np.append(np.arange(0, n_rows, step, dtype=np.int64), n_rows)


def check_stored_blocks(source: RowBlocks) -> None:
    """Read every block once; raise ``ValueError`` for the first that cannot be used."""
    n_features = source.shape[1]
    bounds = block_bounds(source, effective_n_threads())
    if not source.is_sliceable:
        for number, (rows, first) in enumerate(zip(source.arrays(), bounds, strict=False)):
            problem = problem_of_block(rows, f"chunk {number}", int(first), n_features)
            if problem is not None:
                raise ValueError(problem)
        return
    problems: list[str | None] = [None] * (len(bounds) - 1)

    def check(b: int) -> None:
        start, stop = int(bounds[b]), int(bounds[b + 1])
        rows = source.read(start, stop)
        problems[b] = problem_of_block(rows, f"rows {start} to {stop - 1}", start, n_features)

    run_tasks(check, len(problems), effective_n_threads())
    for problem in problems:
        if problem is not None:
            raise ValueError(problem)


def in_order(parts: Sequence[Totals]) -> Totals:
    """The sum of what chunks have found, one after the other."""
    totals = parts[0]
    for part in parts[1:]:
        for total, own in zip(totals, part, strict=True):
            total += own
    return totals


def look_at_rows(source: RowBlocks, sample_weight: Any) -> BlockRows:
    """See ``engines.block_rows``; weights are an array in memory."""
    check_stored_blocks(source)
    weights = check_weights(sample_weight, source)
    return BlockRows(
        source,
        source.shape,
        np.dtype(work_dtype(source.dtype)),
        lambda prepare: BlockEngine(StoredBlocks(source, weights, prepare), source),
    )
