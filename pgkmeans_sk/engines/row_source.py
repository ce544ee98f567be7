"""RowBlocks: rows that are read block by block, because they do not fit into memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_LIMIT = 2**28


class RowBlocks:
    """Rows outside memory, as ``fit`` and the other methods of :class:`PGKMeans` take them.

    They are read block after block, in each pass anew, and never all at once. A fit finds the same
    bytes as on the same rows in memory.

    Parameters
    ----------
    source : array-like with rows that can be sliced, or iterable of arrays
        Either something with a ``shape`` (n_samples, n_features) whose rows ``source[i:j]`` give an
        array: ``numpy.memmap``, a dataset of h5py, an array of zarr. Or an object whose
        ``__iter__`` gives arrays of shape (m, n_features) with the rows, the same each time that it
        is called: a list of arrays, or an object that opens files one after the other. A generator
        can be read only once, and is refused.
    memory_limit : int, default=268435456
        Bytes that blocks may take while they are read, all threads together. Beside it a fit holds
        4 bytes a row for labels (and 4 more for each solution that it keeps, 8 for weights), a
        sample of some 10 to 100 MB, and sums of 64 chunks of rows. The arrays of an iterable are as
        large as they are.

    Attributes
    ----------
    shape : tuple of int
        Number of rows and of columns. Those of an iterable are counted, which takes a pass.

    Raises
    ------
    TypeError
        If the source can be neither sliced nor iterated over twice.
    ValueError
        If the shape is not that of a table, or ``memory_limit`` has no room for a row.

    Notes
    -----
    Pages of a ``numpy.memmap`` that were read are given back, so that they do not count as memory
    of the process (on systems that have ``madvise``).

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import PGKMeans, RowBlocks
    >>> X = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    >>> X.tofile("rows.bin")
    >>> stored = np.memmap("rows.bin", np.float32, "r", shape=(4000, 3))
    >>> kmeans = PGKMeans(5, random_state=0).fit(RowBlocks(stored, memory_limit=10_000))
    >>> bool((kmeans.labels_ == PGKMeans(5, random_state=0).fit(X).labels_).all())
    True
    >>> import os
    >>> os.remove("rows.bin")
    """

    def __init__(self, source: Any, *, memory_limit: int = DEFAULT_LIMIT) -> None:
        if isinstance(memory_limit, bool) or not isinstance(memory_limit, int | np.integer):
            raise TypeError(f"Got memory_limit={memory_limit!r}, but expected a number of bytes.")
        self.source, self.memory_limit = source, int(memory_limit)
        self.is_sliceable = hasattr(source, "shape") and hasattr(source, "__getitem__")
        self._shape: tuple[int, int] | None = None
        if self.is_sliceable:
            self._shape = _table_shape(source)
            row = self._shape[1] * 8
            if self.memory_limit < row:
                raise ValueError(
                    f"Got memory_limit={memory_limit}, but expected at least {row}, the bytes of a "
                    "row in float64."
                )
            return
        if not isinstance(source, Iterable):
            raise TypeError(
                f"Got a source of type {type(source).__name__}, but expected something with a "
                "shape and rows that can be sliced, or an iterable of arrays."
            )
        if isinstance(source, Iterator):
            raise TypeError(
                f"Got a source of type {type(source).__name__}, which can be read only once, but "
                "expected an object that gives its arrays again each time that it is iterated over."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        if self._shape is None:
            self._shape = _count_rows(self.source)
        return self._shape

    @property
    def dtype(self) -> Any:
        """Of the rows as they are stored: of an iterable, that of its first array."""
        return getattr(self._first_rows, "dtype", None)

    @property
    def _first_rows(self) -> Any:
        if self.is_sliceable:
            return self.source if hasattr(self.source, "dtype") else np.asarray(self.source[:1])
        return next((np.asarray(rows) for rows in self.source if len(rows)), np.empty((0, 0)))

    def __repr__(self) -> str:
        return f"RowBlocks({type(self.source).__name__}, memory_limit={self.memory_limit})"

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` of a source that can be sliced, in memory."""
        part = self.source[start:stop]
        mapped = _map_below(part)
        if mapped is None:
            return np.asarray(part)
        rows = np.array(part)
        _give_back_pages(part, mapped)
        return rows

    def arrays(self) -> Iterator[NDArray[Any]]:
        """The arrays of an iterable, those without rows left out."""
        return (array for array in map(np.asarray, self.source) if len(array))


def _table_shape(source: Any) -> tuple[int, int]:
    shape = tuple(source.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"Got a source of shape {shape}, but expected a table with rows and columns."
        )
    return int(shape[0]), int(shape[1])


def _count_rows(arrays: Iterable[Any]) -> tuple[int, int]:
    """Shape of the table that the arrays are one after the other."""
    n_rows, n_features = 0, 0
    for number, rows in enumerate(arrays):
        array = np.asarray(rows)
        if array.ndim != 2 or (n_features and array.shape[1] != n_features):
            width = str(n_features) if n_features else "n_features"
            raise ValueError(
                f"Got chunk {number} of shape {array.shape}, but expected (rows, {width})."
            )
        n_rows, n_features = n_rows + len(array), array.shape[1]
    if n_rows == 0 or n_features == 0:
        raise ValueError("Got a source without rows, but expected at least one.")
    return n_rows, n_features


def _map_below(part: Any) -> mmap.mmap | None:
    """The memory map that an array looks into, if its pages may be dropped."""
    base, is_private = part, False
    while isinstance(base, np.ndarray):
        # What was written into a private copy would be lost with its page.
        is_private = is_private or getattr(base, "mode", None) == "c"
        base = base.base
    return base if isinstance(base, mmap.mmap) and not is_private else None


def _give_back_pages(part: NDArray[Any], mapped: mmap.mmap) -> None:
    """Tell the system that the pages below ``part`` are not needed: they stay in its cache."""
    if not hasattr(mapped, "madvise") or not part.size:
        return
    begin = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    low = high = part.ctypes.data
    for length, stride in zip(part.shape, part.strides, strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    high += part.itemsize
    first = (low - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, high - begin - first)
