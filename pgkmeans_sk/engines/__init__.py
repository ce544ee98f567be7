"""Where the rows live, and who does the work on them.

The table below is the only place that knows which engines exist, and ``open_engine`` the only one
that decides what ``engine="auto"`` means.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.engines.row_source import RowBlocks

# name -> module and function that opens it; imported only when asked for
_ENGINES = {"numba": ("pgkmeans_sk.engines.numba_cpu", "open_numba_engine")}

ENGINE_NAMES = ("auto", *_ENGINES)
"""Accepted values of the parameter ``engine``."""


def open_engine(name: str, X: Any, sample_weight: NDArray[np.float64] | None) -> Engine:
    """Open an engine over validated rows.

    Parameters
    ----------
    name : str
        One of ``ENGINE_NAMES``. "auto" takes the engine that fits where the data is: "numba" for
        arrays and sparse matrices in host memory.
    X : ndarray or CSR matrix of shape (n_samples, n_features), float32 or float64
        The rows. Never written.
    sample_weight : ndarray of shape (n_samples,), float64, or None for ones
        Weights >= 0. Never written.

    Returns
    -------
    Engine
    """
    module, function = _ENGINES["numba" if name == "auto" else name]
    opener = cast(Callable[..., Engine], getattr(import_module(module), function))
    return opener(X, sample_weight)


def is_in_blocks(X: Any) -> bool:
    """Whether rows are in blocks elsewhere: ``RowBlocks``, or a collection of dask."""
    # The protocol of dask, so that it need not be imported to see that somebody has.
    return isinstance(X, RowBlocks) or hasattr(type(X), "__dask_graph__")


def block_rows(X: Any, sample_weight: Any) -> BlockRows:
    """Rows in blocks, looked at once: shape, dtype, and how to open an engine over them.

    Raises ``ValueError`` for the first block, in the order of the rows, that cannot be used.
    """
    kind = "stored_blocks" if isinstance(X, RowBlocks) else "dask_blocks"
    look = import_module(f"pgkmeans_sk.engines.{kind}").look_at_rows
    return cast(BlockRows, look(X, sample_weight))


def lazy_rows(X: Any) -> Any:
    """Rows of dask for ``predict`` and ``transform``, of which nothing is looked at yet."""
    return import_module("pgkmeans_sk.engines.dask_blocks").LazyRows(X)
