"""Rows in the chunks of a dask array or dataframe: the only file that knows dask.

Tasks are functions of one chunk and of the centres (``tiles.py``, ``tile_memory.py``), so that one
whose worker was lost is simply done again. Rows and labels stay where they are; what travels are
the centres, and the sums of ``ordered_tasks.py``.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from pgkmeans_sk.engines import ordered_tasks, tile_memory, tiles
from pgkmeans_sk.engines.block_checks import prepared_rows, problem_of_block, work_dtype
from pgkmeans_sk.engines.block_engine import BlockEngine, Carrier
from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.tile_memory import Pass
from pgkmeans_sk.engines.tiles import AssignmentSum, Sum, Tile, Totals
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads

TILES_PER_THREAD = 2
"""Large chunks are worked on in slices, so that each thread has so many of them."""


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


def _work_on(
    opened: tuple[Any, ...], now: Pass | None, work: Callable[..., Any], *arguments: Any
) -> Any:
    tile = _open_tile(*opened)
    if now is not None:
        tile_memory.recall_labels(tile, now)
    return work(tile, *arguments)


def _begin(
    opened: tuple[Any, ...], what: Pass | Sum, share: ordered_tasks.Share
) -> tuple[list[Totals], int]:
    """Sums of the chunks that begin in a tile, and how many labels an assignment has changed."""
    tile, n_changed = _open_tile(*opened), 0
    if isinstance(what, Pass):
        n_changed = tile_memory.label_tile(tile, what)
    return ordered_tasks.add_begun(tile, _sum_of(what), share), n_changed


def _sum_of(what: Pass | Sum) -> Sum:
    if isinstance(what, Pass):
        return AssignmentSum(what.centers, what.origin, is_labelled=True)
    return what


def _last_of(begun: tuple[list[Totals], int]) -> Totals:
    return begun[0][-1]


def _go_on(
    opened: tuple[Any, ...],
    what: Pass | Sum,
    share: ordered_tasks.Share,
    before: Totals,
    begun: Any,
) -> Totals:
    """Sums of the chunk that began in a tile ``before``; this one has ``begun``, and has labels."""
    tile = _open_tile(*opened)
    if isinstance(what, Pass):
        tile_memory.recall_labels(tile, what)
    return ordered_tasks.add_further(tile, _sum_of(what), share, before)


def _add_run(
    before: tuple[Totals | None, int],
    further: Sequence[Totals | None],
    begun: Sequence[tuple[list[Totals], int]],
    shares: Sequence[ordered_tasks.Share],
) -> tuple[Totals | None, int]:
    totals = ordered_tasks.add_chunks(before[0], further, [own for own, _ in begun], shares)
    return totals, before[1] + sum(n_changed for _, n_changed in begun)


def _look(
    rows: Any, weights: Any, number: int, n_features: int
) -> tuple[int, str | None, tuple[int, float, float]]:
    """Rows of a chunk, what is wrong with it, and of its weights: how many > 0, least and sum."""
    name = f"chunk {number}"
    problem = problem_of_block(rows, name, 0, n_features)
    n_rows = len(rows)
    if problem is not None or weights is None:
        return n_rows, problem, (n_rows, 1.0, float(n_rows))
    if np.shape(weights) != (n_rows,):
        return (
            n_rows,
            (
                f"Got sample_weight of shape {np.shape(weights)} in {name}, "
                f"but expected ({n_rows},)."
            ),
            (0, 0.0, 0.0),
        )
    weights = np.asarray(weights, dtype=np.float64)
    if np.isnan(weights).any():
        return n_rows, f"Input sample_weight contains NaN: got it in {name}.", (0, 0.0, 0.0)
    with np.errstate(over="ignore"):
        total = weights.sum()
    summary = int(np.count_nonzero(weights > 0)), weights.min(initial=0.0), total
    return n_rows, None, (summary[0], float(summary[1]), float(summary[2]))


def _labels_of_chunk(rows: Any, centers: Any, dtype: Any, prepare: Any, number: int) -> Any:
    """Labels (m,) of a chunk, int32."""
    return _for_chunk(rows, centers, dtype, prepare, number, tiles.label_alone, _middle(centers))


def _distances_of_chunk(rows: Any, centers: Any, dtype: Any, prepare: Any, number: int) -> Any:
    """Distances (m, K) of a chunk, not squared."""
    return _for_chunk(rows, centers, dtype, prepare, number, tiles.distances_to)


def _for_chunk(
    rows: Any, centers: Any, dtype: Any, prepare: Any, number: int, work: Any, *arguments: Any
) -> Any:
    problem = problem_of_block(rows, f"chunk {number}", 0, centers.shape[1])
    if problem is not None:
        raise ValueError(problem)
    if not len(rows):  # no rows to be a tile; one that is not there stands for their kind
        return work(Tile(np.zeros((1, centers.shape[1]), dtype), None, 0), centers, *arguments)[:0]
    return work(Tile(prepared_rows(rows, dtype, prepare), None, 0), centers, *arguments)


def _middle(centers: NDArray[np.floating]) -> NDArray[np.floating]:
    """A point near the rows, which only rounding depends on."""
    return np.asarray(np.median(centers, axis=0), dtype=centers.dtype)


# ---------------------------------------------------------------- collections


def _as_array(X: Any) -> Any:
    """A dask array (n, d) with all columns in each chunk, of an array or a dataframe."""
    if hasattr(X, "to_dask_array"):
        X = X.to_dask_array()
    if not isinstance(X, da.Array):
        raise TypeError(
            f"Got X of type {type(X).__name__}, but expected a dask array or dataframe."
        )
    if X.dtype.kind not in "fiub":
        raise ValueError(f"Got X of dtype {X.dtype}, but expected real numbers.")
    if not isinstance(X._meta, np.ndarray):
        raise ValueError(
            f"Got X with chunks of type {type(X._meta).__name__}, but expected dense arrays."
        )
    return X if X.numblocks[1] == 1 else X.rechunk({1: -1})


def _weights_of_chunks(sample_weight: Any, lengths: list[int] | None, n_chunks: int) -> list[Any]:
    """Weights of each chunk, as something that a task can depend on."""
    if sample_weight is None:
        return [None] * n_chunks
    if hasattr(sample_weight, "to_dask_array"):
        sample_weight = sample_weight.to_dask_array()
    if not isinstance(sample_weight, da.Array):
        sample_weight = da.from_array(np.asarray(sample_weight), chunks=-1)
    if sample_weight.ndim != 1:
        raise ValueError(
            f"Got sample_weight of shape {sample_weight.shape}, but expected (n_samples,)."
        )
    is_known = not np.isnan(sample_weight.shape[0])
    if lengths is not None and is_known:
        if sample_weight.shape[0] != sum(lengths):
            raise ValueError(
                f"sample_weight.shape == {sample_weight.shape}, expected {(sum(lengths),)}!"
            )
        sample_weight = sample_weight.rechunk((tuple(lengths),))
    if sample_weight.numblocks[0] != n_chunks:
        raise ValueError(
            f"Got sample_weight in {sample_weight.numblocks[0]} chunks, but expected {n_chunks}, "
            "as X has: chunks of unknown length cannot be cut anew."
        )
    return list(sample_weight.to_delayed().ravel())


def look_at_rows(X: Any, sample_weight: Any) -> BlockRows:
    """See ``engines.block_rows``; each chunk is looked at once, where it is."""
    array = _as_array(X)
    chunks = list(array.to_delayed().ravel())
    lengths: list[int] | None = None
    if not np.isnan(array.shape[0]):
        lengths = [int(length) for length in array.chunks[0]]
    elif sample_weight is not None and not hasattr(sample_weight, "__dask_graph__"):
        lengths = list(_compute([delayed(len)(chunk) for chunk in chunks]))
    weights = _weights_of_chunks(sample_weight, lengths, len(chunks))
    looks = _compute(
        [
            delayed(_look)(chunk, own, number, array.shape[1])
            for number, (chunk, own) in enumerate(zip(chunks, weights, strict=True))
        ]
    )
    for _, problem, (_, least, _) in looks:
        if problem is not None:
            raise ValueError(problem)
        if least < 0.0:
            raise ValueError(
                f"Negative values in sample_weight: got {least}, but expected weights >= 0."
            )
    found = [n_rows for n_rows, _, _ in looks]
    total = sum(summary[2] for _, _, summary in looks)
    if sum(found) == 0:
        raise ValueError("Found array with 0 sample(s), but expected at least 1 row in X.")
    if total == 0.0:
        raise ValueError("Sample weights must contain at least one non-zero number; got all zero.")
    if not np.isfinite(total):
        raise ValueError(f"Got sample_weight with sum {total}, but expected a finite sum.")
    present = [summary[0] for _, _, summary in looks]
    stored = StoredChunks(array, chunks, weights, found, present)
    return BlockRows(
        X,
        (sum(found), int(array.shape[1])),
        np.dtype(work_dtype(array.dtype)),
        lambda prepare: BlockEngine(DaskBlocks(stored, prepare), X),
    )


class LazyRows:
    """Rows of which nothing is looked at before labels or distances are computed."""

    def __init__(self, X: Any) -> None:
        self._array = _as_array(X)

    def open(self, prepare: Callable[[Any], Any] | None) -> LazyRows:
        self._prepare = prepare
        return self

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        """Labels (n,), a dask array of int32 with the chunks of the rows."""
        return self._of_chunks(_labels_of_chunk, centers, np.int32, ())

    def distances(self, centers: NDArray[np.floating]) -> Any:
        """Distances (n, K), a dask array of the dtype of the work."""
        dtype = work_dtype(self._array.dtype)
        return self._of_chunks(_distances_of_chunk, centers, dtype, (len(centers),))

    def _of_chunks(self, work: Any, centers: Any, dtype: Any, columns: tuple[int, ...]) -> Any:
        shared = delayed(np.array(centers, order="C"), traverse=False)
        kind = np.dtype(work_dtype(self._array.dtype))
        parts = [
            da.from_delayed(
                delayed(work)(chunk, shared, kind, self._prepare, number),
                shape=(length, *columns),
                dtype=dtype,
            )
            for number, (chunk, length) in enumerate(
                zip(self._array.to_delayed().ravel(), self._array.chunks[0], strict=True)
            )
        ]
        return da.concatenate(parts)


def _compute(tasks: list[Delayed]) -> Sequence[Any]:
    """The results of tasks, by the scheduler that dask would take."""
    with _clear_errors():
        return tuple(dask.compute(*tasks, traverse=False))


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Say what a user can make of it when tasks are cancelled."""
    try:
        yield
    except Exception as error:
        is_closed = type(error).__name__ == "ClosedClientError"  # has no other base than Exception
        if not is_closed and not isinstance(error, CancelledError | ConnectionError):
            raise
        raise ConnectionError(
            "Tasks of the dask cluster were cancelled, as they are when its scheduler is gone or "
            f"the client was closed; the estimator is what it was before. dask says: {error}"
        ) from error


# ---------------------------------------------------------------- the carrier


@dataclass(frozen=True)
class StoredChunks:
    """Chunks that were looked at; those without rows are left out by ``DaskBlocks``."""

    array: Any  # dask array (n, d)
    rows: list[Delayed]
    weights: list[Any]
    lengths: list[int]
    n_present: list[int]


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
        rows, weights, lengths = list(chunks.rows), list(chunks.weights), list(chunks.lengths)
        if added is not None:
            rows.append(delayed(added[0], traverse=False))
            weights.append(delayed(added[1], traverse=False) if self.is_weighted else None)
            lengths.append(len(added[0]))
        self._rows, self._weights = rows, weights
        self._places = _tile_places(lengths, chunks.array)
        self.starts: IntArray = np.array([p.first for p in self._places] + [sum(lengths)])
        holders = _workers_of(chunks.rows)
        self._workers = [holders.get(place.chunk) for place in self._places]
        self._runs = ordered_tasks.runs_of(self._workers)
        self._fit = uuid.uuid4().hex
        self._now: Pass | None = None
        self._extended: DaskBlocks | None = None
        self._typical_distance = float("nan")

    @property
    def n_present(self) -> IntArray:
        if not self.is_weighted:
            return np.diff(self.starts)
        if not hasattr(self, "_n_present"):
            counts = self.each(_count_present)
            self._n_present = np.array(counts, dtype=np.int64)
        return self._n_present

    def _opened(self, tile: int) -> tuple[Any, ...]:
        """What ``_open_tile`` takes, for a task."""
        place = self._places[tile]
        chunk = place.chunk
        return self._rows[chunk], self._weights[chunk], place, self.dtype, self._prepare

    def each(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        per_tile: Sequence[Any] | None = None,
        labelled: bool = False,
    ) -> list[Any]:
        shared = [delayed(argument, traverse=False) for argument in arguments]
        now = delayed(self._now, traverse=False) if labelled else None
        tasks = []
        for i in range(len(self._places)):
            own: list[Any] = []
            if per_tile is not None:
                if per_tile[i] is None:
                    continue
                own = [delayed(per_tile[i], traverse=False)]
            with _preferring(self._workers[i]):
                tasks.append(delayed(_work_on)(self._opened(i), now, work, *shared, *own))
        return list(_compute(tasks))

    def add_up(self, total: Sum, bounds: IntArray) -> Totals:
        return self._add_up(total, bounds)[0]

    def assign(self, total: AssignmentSum, bounds: IntArray) -> Totals:
        before = self._now
        self._now = Pass(
            self._fit,
            0 if before is None else before.number + 1,
            total.centers,
            None if before is None else before.centers,
            total.origin,
            self._typical_distance,
        )
        totals, n_changed = self._add_up(self._now, bounds)
        totals[3][0] = n_changed
        _, sizes, sq_errors, _ = totals
        self._typical_distance = float(np.sqrt(sq_errors.sum() / max(sizes.sum(), 1e-300)))
        return totals

    def _add_up(self, what: Pass | Sum, bounds: IntArray) -> tuple[Totals, int]:
        """Sums over all rows in order, and how many labels changed."""
        shared = delayed(what, traverse=False)
        shares = ordered_tasks.shares_of(self.starts, bounds)
        begun: list[Any] = []
        gone_on: list[Any] = []
        last: Any = None  # of the chunk that the tile before has left open
        for i, share in enumerate(shares):
            on = None
            with _preferring(self._workers[i]):
                own = delayed(_begin)(self._opened(i), shared, share)
                if share.goes_on:
                    on = delayed(_go_on)(self._opened(i), shared, share, last, own)
                last = delayed(_last_of)(own) if share.n_begun else on
            begun.append(own)
            gone_on.append(on)
        result: Any = (None, 0)
        for run in self._runs:
            with _preferring(self._workers[run[0]]):
                result = delayed(_add_run)(
                    result,
                    [gone_on[i] for i in run],
                    [begun[i] for i in run],
                    [shares[i] for i in run],
                )
        ((totals, n_changed),) = _compute([result])
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


def _tile_places(lengths: list[int], array: Any) -> list[TilePlace]:
    """Tiles of the chunks, which are cut in slices where there are too few for all threads."""
    n_slices = max(1, -(-TILES_PER_THREAD * _n_threads() // max(1, len(lengths))))
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


def _n_threads() -> int:
    """Threads that work on tasks."""
    client = _client()
    return effective_n_threads() if client is None else sum(client.nthreads().values())


def _preferring(worker: str | None) -> contextlib.AbstractContextManager[Any]:
    """Tasks that are made in this context run on a worker, if it is there and not too busy.

    Otherwise dask may take rows to an idle worker, which then are sent in each pass.
    """
    if worker is None:
        return contextlib.nullcontext()
    preference: contextlib.AbstractContextManager[Any] = dask.annotate(
        workers=[worker], allow_other_workers=True
    )
    return preference


def _workers_of(chunks: list[Delayed]) -> dict[int, str]:
    """Which worker has which chunk, of those that are in some worker's memory."""
    client = _client()
    if client is None:
        return {}
    keys = [chunk.key for chunk in chunks]
    holders = client.sync(client.scheduler.who_has, keys=keys)
    return {number: min(holders[key]) for number, key in enumerate(keys) if holders.get(key)}
