"""The carrier of rows in the chunks of a dask array or dataframe.

Tasks are functions of one chunk and of the centres (``tiles.py``, ``tile_memory.py``), so that one
whose worker was lost is simply done again. Rows and labels stay where they are; what travels are
the centres, and the sums of ``ordered_tasks.py``.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, pairwise
from typing import Any

import numpy as np
from dask._task_spec import TaskRef
from dask.delayed import Delayed
from numpy.typing import NDArray

from pgkmeans_sk.engines import ordered_tasks, tile_memory
from pgkmeans_sk.engines.block_checks import prepared_rows, work_dtype
from pgkmeans_sk.engines.block_engine import BlockEngine, Carrier
from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.dask_graph import Tasks
from pgkmeans_sk.engines.dask_rows import LazyRows, StoredChunks, checked_chunks
from pgkmeans_sk.engines.tile_memory import Pass
from pgkmeans_sk.engines.tiles import AssignmentSum, Sum, Tile, Totals
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads

TILES_PER_THREAD = 4
"""Chunks are cut in slices until each thread has as many tiles as any other. More than so many are
not needed for that: the last ones then take little of the time."""


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True)
class TilePlace:
    """Where a tile is: in which chunk, which rows of it, and the number of the first of all."""

    chunk: int
    start: int
    stop: int
    first: int


def _open_tile(
    rows: Any, weights: Any, place: TilePlace, dtype: Any, prepare: Callable[[Any], Any] | None
) -> Tile:
    """A tile of a chunk; weights are those of the chunk, or None."""
    part = prepared_rows(rows[place.start : place.stop], dtype, prepare)
    if weights is not None:
        weights = np.ascontiguousarray(weights[place.start : place.stop], dtype=np.float64)
    return Tile(part, weights, place.first)


def _with_labels(tile: Tile, now: Pass) -> Tile:
    tile_memory.recall_labels(tile, now)
    return tile


def _begin(
    tile: Tile, what: Pass | Sum, share: ordered_tasks.Share
) -> tuple[list[Totals], int | None]:
    """Sums of the chunks that begin in a tile, and how many labels an assignment has changed.

    None changed: the tile could not be labelled (``tile_memory.label_tile``), sums are no sums.
    """
    if not isinstance(what, Pass):
        return ordered_tasks.add_begun(tile, what, share), 0
    found = tile_memory.label_tile(tile, what, share)
    if found is None:
        return [what.sum_of_labelled.zeros()] * share.n_begun, None
    return found


def _last_of(begun: tuple[list[Totals], int]) -> Totals:
    return begun[0][-1]


def _go_on(
    tile: Tile, what: Pass | Sum, share: ordered_tasks.Share, before: Totals, begun: Any
) -> Totals:
    """Sums of the chunk that began in a tile ``before``; this one has ``begun``, and has labels."""
    if not isinstance(what, Pass):
        return ordered_tasks.add_further(tile, what, share, before)
    tile_memory.recall_labels(tile, what)
    return ordered_tasks.add_further(tile, what.sum_of_labelled, share, before)


def _add_run(
    before: tuple[Totals | None, int | None],
    further: Sequence[Totals | None],
    begun: Sequence[tuple[list[Totals], int | None]],
    shares: Sequence[ordered_tasks.Share],
) -> tuple[Totals | None, int | None]:
    totals = ordered_tasks.add_chunks(before[0], further, [own for own, _ in begun], shares)
    n_changed = before[1]
    for _, n_more in begun:
        n_changed = None if n_changed is None or n_more is None else n_changed + n_more
    return totals, n_changed


# ---------------------------------------------------------------- the carrier


def look_at_rows(X: Any, sample_weight: Any) -> BlockRows:
    """See ``engines.block_rows``."""
    chunks = checked_chunks(X, sample_weight)
    n_features = int(chunks.array.shape[1])
    return BlockRows(
        X,
        (sum(chunks.lengths), n_features),
        np.dtype(work_dtype(chunks.array.dtype)),
        lambda prepare: BlockEngine(DaskBlocks(chunks, prepare), X),
    )


class DaskBlocks:
    """The carrier; what methods do is said in ``block_engine.Carrier``."""

    name = "dask"

    def __init__(
        self,
        chunks: StoredChunks,
        prepare: Callable[[Any], Any] | None,
        added: tuple[NDArray[Any], FloatArray | None] | None = None,
    ) -> None:
        self._chunks, self._prepare, self._added = chunks, prepare, added
        self.dtype = np.dtype(work_dtype(chunks.array.dtype))
        self.n_features = int(chunks.array.shape[1])
        self.is_weighted = chunks.weights[0] is not None
        lengths = list(chunks.lengths)
        if added is not None:
            lengths.append(len(added[0]))
        holders = _workers_of(chunks.rows)
        self._places = _tile_places(lengths, _n_slices(len(chunks.rows), holders))
        self.starts: IntArray = np.array([p.first for p in self._places] + [sum(lengths)])
        self._workers = [holders.get(place.chunk) for place in self._places]
        self._runs = ordered_tasks.runs_of(self._workers)
        self._fit = uuid.uuid4().hex
        self._now: Pass | None = None
        self._forgets = False  # whether workers have forgotten centres: they are new, or not kept
        self._extended: DaskBlocks | None = None
        self._typical_distance = float("nan")

    @cached_property
    def n_present(self) -> IntArray:
        if not self.is_weighted:
            return np.diff(self.starts)
        return np.array(self.each(_count_present), dtype=np.int64)

    def _opened(self, tasks: Tasks) -> list[Any]:
        """A step of a task for each tile, which gives the tile."""
        rows: list[Any] = [TaskRef(chunk.key) for chunk in self._chunks.rows]
        weights: list[Any] = [
            None if own is None else TaskRef(own.key) for own in self._chunks.weights
        ]
        if self._added is not None:
            rows.append(tasks.share(self._added[0]))
            weights.append(tasks.share(self._added[1]) if self.is_weighted else None)
        how = self.dtype, self._prepare
        return [
            tasks.step(_open_tile, rows[place.chunk], weights[place.chunk], place, *how)
            for place in self._places
        ]

    def each(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        per_tile: Sequence[Any] | None = None,
        labelled: bool = False,
    ) -> list[Any]:
        tasks = Tasks(self._chunks.parts)
        shared = [tasks.share(argument) for argument in arguments]
        now = tasks.share(self._now) if labelled else None
        wanted = []
        for i, tile in enumerate(self._opened(tasks)):
            own = () if per_tile is None else (per_tile[i],)
            if per_tile is not None and per_tile[i] is None:
                continue
            if now is not None:
                tile = tasks.step(_with_labels, tile, now)
            wanted.append(tasks.add(work, tile, *shared, *own, worker=self._workers[i]))
        return tasks.results(wanted)

    def add_up(self, total: Sum, bounds: IntArray) -> Totals:
        return self._add_up(total, bounds)[0]

    def assign(self, total: AssignmentSum, bounds: IntArray, last: bool = False) -> Totals:
        before, number = None, 0
        if self._now is not None:
            before, number = self._now.centers, self._now.number + 1
        now = Pass(
            self._fit, number, total.centers, None, total.origin, self._typical_distance, last
        )
        if self._forgets:
            now = replace(now, before=before)
        totals, n_changed = self._add_up(now, bounds)
        if n_changed is None:
            self._forgets = True
            now = replace(now, before=before)
            totals, n_changed = self._add_up(now, bounds)
        self._now = now
        totals[3][0] = n_changed
        _, sizes, sq_errors, _ = totals
        self._typical_distance = float(np.sqrt(sq_errors.sum() / max(sizes.sum(), 1e-300)))
        return totals

    def _add_up(self, what: Pass | Sum, bounds: IntArray) -> tuple[Totals, int | None]:
        """Sums over all rows in order, and how many labels changed; None: see ``_begin``."""
        tasks = Tasks(self._chunks.parts)
        shared = tasks.share(what)
        shares = ordered_tasks.shares_of(self.starts, bounds)
        begun: list[TaskRef] = []
        gone_on: list[TaskRef | None] = []
        last: TaskRef | None = None  # of the chunk that the tile before has left open
        for tile, share, worker in zip(self._opened(tasks), shares, self._workers, strict=True):
            on = None
            own = tasks.add(_begin, tile, shared, share, worker=worker)
            if share.goes_on:
                on = tasks.add(_go_on, tile, shared, share, last, own, worker=worker)
            last = tasks.add(_last_of, own, worker=worker) if share.n_begun else on
            begun.append(own)
            gone_on.append(on)
        result: Any = (None, 0)
        for run in self._runs:
            result = tasks.add(
                _add_run,
                result,
                [gone_on[i] for i in run],
                [begun[i] for i in run],
                [shares[i] for i in run],
                worker=self._workers[run[0]],
            )
        ((totals, n_changed),) = tasks.results([result])
        return totals, n_changed

    def labels(self) -> Any:
        """Labels (n,), a dask array that finds them when it is computed."""
        assert self._now is not None
        return LazyRows(self._chunks.array).open(self._prepare).nearest(self._now.centers)

    def with_rows(self, rows: NDArray[Any], weights: FloatArray | None) -> Carrier:
        self._extended = DaskBlocks(self._chunks, self._prepare, (rows, weights))
        return self._extended

    def release(self) -> None:
        """Forget what workers remember."""
        if self._extended is not None:
            self._extended.release()
        tile_memory.forget(self._fit)
        client = _client()
        if client is not None and client.status == "running":
            with contextlib.suppress(Exception):  # a worker that is gone remembers nothing
                client.run(tile_memory.forget, self._fit, on_error="ignore")


def _count_present(tile: Tile) -> int:
    return int(np.count_nonzero(tile.is_present))


def _n_slices(n_chunks: int, holders: dict[int, str]) -> int:
    """In how many tiles each chunk is cut: as few as keep all threads busy to the end.

    ``holders`` tell which worker has which chunk, and works on it.
    """
    client = _client()
    threads = {} if client is None else client.nthreads()
    shares = [(n_chunks, sum(threads.values()) or effective_n_threads())]
    if len(holders) == n_chunks:
        shares = [(n, threads.get(worker, 1)) for worker, n in Counter(holders.values()).items()]

    def is_even(n_tiles: int, n_threads: int) -> bool:
        return n_tiles % n_threads == 0 or n_tiles >= TILES_PER_THREAD * n_threads

    return next(n for n in count(1) if all(is_even(n * own, among) for own, among in shares))


def _tile_places(lengths: list[int], n_slices: int) -> list[TilePlace]:
    """Tiles of the chunks, of which each is cut in slices."""
    places = []
    first = 0
    for chunk, length in enumerate(lengths):
        ends = np.unique(np.linspace(0, length, n_slices + 1).astype(np.int64)).tolist()
        for start, stop in pairwise(ends):
            places.append(TilePlace(chunk, start, stop, first + start))
        first += length
    return places


def _client() -> Any:
    """The client of ``distributed`` that dask would use, if there is one."""
    if "distributed" not in sys.modules:
        return None
    import distributed

    try:
        return distributed.default_client()
    except ValueError:
        return None


def _workers_of(chunks: list[Delayed]) -> dict[int, str]:
    """Which worker has which chunk, of those that are in some worker's memory."""
    client = _client()
    if client is None:
        return {}
    keys = [chunk.key for chunk in chunks]
    holders = client.sync(client.scheduler.who_has, keys=keys)
    return {number: min(holders[key]) for number, key in enumerate(keys) if holders.get(key)}
