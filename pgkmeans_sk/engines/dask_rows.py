"""Collections of dask as rows: their chunks, looked at once, and labels that are computed later.

This file and ``dask_blocks.py`` are the only ones that know dask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from pgkmeans_sk.array_kinds import is_dask
from pgkmeans_sk.engines import tiles
from pgkmeans_sk.engines.block_checks import prepared_rows, problem_of_block, work_dtype
from pgkmeans_sk.engines.tiles import Tile
from pgkmeans_sk.validation import check_sums_of_weights


@dataclass(frozen=True)
class StoredChunks:
    """Chunks of rows and weights that were looked at."""

    array: Any  # dask array (n, d)
    rows: list[Delayed]
    weights: list[Any]  # Delayed, or None
    lengths: list[int]

    @property
    def parts(self) -> list[Delayed]:
        """Rows and weights, all that tasks can refer to."""
        return self.rows + [own for own in self.weights if own is not None]


def constant(value: Any) -> Delayed:
    """A value that tasks share."""
    return delayed(value, traverse=False)


def compute(tasks: list[Delayed]) -> Sequence[Any]:
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


# ---------------------------------------------------------------- looking at chunks


def as_array(X: Any) -> Any:
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


def _look(
    rows: Any, weights: Any, number: int, n_features: int
) -> tuple[int, str | None, float, float]:
    """Rows of a chunk, what is wrong with it, and the least and the sum of its weights."""
    name, n_rows = f"chunk {number}", len(rows)
    problem = problem_of_block(rows, name, 0, n_features)
    if problem is not None or weights is None:
        return n_rows, problem, 1.0, float(n_rows)
    if np.shape(weights) != (n_rows,):
        problem = (
            f"Got sample_weight of shape {np.shape(weights)} in {name}, but expected ({n_rows},)."
        )
        return n_rows, problem, 0.0, 0.0
    weights = np.asarray(weights, dtype=np.float64)
    if np.isnan(weights).any():
        problem = f"Input sample_weight contains NaN: got it in {name}."
    with np.errstate(over="ignore"):  # said clearly when all chunks are known
        total = float(weights.sum())
    return n_rows, problem, float(weights.min(initial=np.inf)), total


def checked_chunks(X: Any, sample_weight: Any) -> StoredChunks:
    """The chunks of a collection, looked at once where they are; raises for the first bad one."""
    array = as_array(X)
    chunks = list(array.to_delayed().ravel())
    lengths: list[int] | None = None
    if not np.isnan(array.shape[0]):
        lengths = [int(length) for length in array.chunks[0]]
    elif sample_weight is not None and not is_dask(sample_weight):
        lengths = list(compute([delayed(len)(chunk) for chunk in chunks]))
    weights = _weights_of_chunks(sample_weight, lengths, len(chunks))
    looks = compute(
        [
            delayed(_look)(chunk, own, number, array.shape[1])
            for number, (chunk, own) in enumerate(zip(chunks, weights, strict=True))
        ]
    )
    for _, problem, _, _ in looks:
        if problem is not None:
            raise ValueError(problem)
    lengths = [n_rows for n_rows, _, _, _ in looks]
    if sum(lengths) == 0:
        raise ValueError("Found array with 0 sample(s), but expected at least 1 row in X.")
    check_sums_of_weights(min(least for *_, least, _ in looks), sum(total for *_, total in looks))
    return StoredChunks(array, chunks, weights, lengths)


# ---------------------------------------------------------------- labels and distances, later


def _call(chunk: Any, work: Any, number: int) -> Any:
    """``work`` on a chunk."""
    return work(chunk, f"chunk {number}")


def _labels_of_chunk(rows: Any, shared: Any, number: int) -> Any:
    """Labels (m,) of a chunk, int32."""
    return _for_chunk(rows, *shared, number, tiles.label_alone, _middle(shared[0]))


def _distances_of_chunk(rows: Any, shared: Any, number: int) -> Any:
    """Distances (m, K) of a chunk, not squared."""
    return _for_chunk(rows, *shared, number, tiles.distances_to)


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


class LazyRows:
    """Rows of which nothing is looked at before labels or distances are computed."""

    def __init__(self, X: Any) -> None:
        self._array = as_array(X)

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

    @property
    def dtype(self) -> Any:
        """Of the rows as they are."""
        return self._array.dtype

    @property
    def n_columns(self) -> int:
        """Numbers in a row."""
        return int(self._array.shape[1])

    def each(self, work: Callable[[Any, str], Any], n_columns: int, dtype: Any) -> Any:
        """``work(chunk, name)``, arrays (m, n_columns), as a dask array that is computed later."""
        return self._joined(_call, constant(work), (n_columns,), dtype)

    def _of_chunks(self, work: Any, centers: Any, dtype: Any, columns: tuple[int, ...]) -> Any:
        kind = np.dtype(work_dtype(self._array.dtype))
        shared = np.array(centers, order="C"), kind, self._prepare
        return self._joined(work, constant(shared), columns, dtype)

    def _joined(self, work: Any, shared: Any, columns: tuple[int, ...], dtype: Any) -> Any:
        """``work(chunk, shared, number)`` for each chunk."""
        parts = [
            da.from_delayed(
                delayed(work)(chunk, shared, number),
                shape=(length, *columns),
                dtype=dtype,
            )
            for number, (chunk, length) in enumerate(
                zip(self._array.to_delayed().ravel(), self._array.chunks[0], strict=True)
            )
        ]
        return da.concatenate(parts)
