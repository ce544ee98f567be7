"""What ``PGKMeans`` takes as rows: arrays and matrices in memory, or rows in blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from pgkmeans_sk import validation
from pgkmeans_sk.array_kinds import is_dask
from pgkmeans_sk.arrays import check_rows, check_same_kind, check_weights
from pgkmeans_sk.engines import block_rows, is_in_blocks, lazy_rows, open_engine
from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.kernels.directions import to_directions

BLOCK_ENGINES = ("auto", "numba")
"""Values of ``engine`` that rows in blocks can be worked on with."""


def check_input(estimator: Any, X: Any, sample_weight: Any, *, reset: bool) -> tuple[Any, Any]:
    """Rows and weights of ``fit``, ``partial_fit`` and ``score``, checked before any work.

    Rows in blocks come back as ``BlockRows``, which have their weights.
    """
    if not is_in_blocks(X):
        X = check_rows(estimator, X, reset=reset)
        return X, check_weights(sample_weight, X)
    _check_columns(estimator, X, reset=reset)
    return block_rows(X, sample_weight), None


def check_kind(estimator: Any, X: Any, method: str) -> None:
    """Raise if scikit-learn asks for arrays of the kind that ``fit`` has seen (``arrays.py``)."""
    if not is_in_blocks(X):
        check_same_kind(estimator, X, method)


def as_given(X: Any) -> Any:
    """Checked rows as a callback can use them: rows in blocks as the user gave them."""
    return X.data if isinstance(X, BlockRows) else X


def check_rows_alone(estimator: Any, X: Any) -> Any:
    """Rows of ``predict`` and ``transform``; those of dask are not looked at yet."""
    if not is_in_blocks(X):
        return check_rows(estimator, X, reset=False)
    _check_columns(estimator, X, reset=False)
    return lazy_rows(X) if is_dask(X) else block_rows(X, None)


def _check_columns(estimator: Any, X: Any, *, reset: bool) -> None:
    """``check_columns``, if the engine that was asked for can work on rows in blocks."""
    validation.check_choice("engine", estimator.engine, BLOCK_ENGINES)
    if estimator.device is not None and str(estimator.device) != "cpu":
        raise ValueError(
            f"Got device={str(estimator.device)!r} with rows in blocks, but expected None or 'cpu'."
        )
    check_columns(estimator, X, reset=reset)


def check_columns(estimator: Any, X: Any, *, reset: bool) -> None:
    """Set or compare number and names of the features, by a table without rows."""
    shape: tuple[Any, ...] = getattr(X, "shape", ())
    if len(shape) != 2:
        raise ValueError(
            f"Expected 2D array, got X of shape {shape}, but expected (n_samples, n_features)."
        )
    head = getattr(X, "_meta", None)  # of dask: a table like its blocks, but empty
    if not hasattr(head, "columns"):
        head = np.empty((0, int(shape[1])))
    validate_data(estimator, head, ensure_min_samples=0, reset=reset)


def check_fit_of_blocks(estimator: Any, X: Any) -> None:
    """Raise for what cannot be done with rows in blocks, before they are looked at."""
    if not is_in_blocks(X):
        return
    for name in ("size_min", "size_max", "consolidate"):
        if getattr(estimator, name) is not None:
            raise ValueError(
                f"Got {name}={getattr(estimator, name)!r} with rows in blocks, but expected None: "
                "it needs all rows in memory."
            )


def check_tree_of_blocks(estimator: Any, X: Any) -> None:
    """Raise if a plain partition tree is to be grown over more rows than can be gathered."""
    init = estimator.init
    is_plain = isinstance(init, str) and init.startswith("partition-")
    if not isinstance(X, BlockRows) or not is_plain:
        return
    from pgkmeans_sk.engines.block_engine import fits_memory  # loaded by then; arrays need not wait

    if not fits_memory(*X.shape, estimator.n_clusters):
        raise ValueError(
            f"Got init={init!r} with rows in blocks of shape {X.shape}, but expected "
            "init='partition': a plain tree needs all rows in memory."
        )


def open_input(estimator: Any, X: Any, weights: Any) -> Engine:
    """An engine over checked rows, as the metric sees them."""
    prepare = to_directions if estimator.metric == "cosine" else None
    if hasattr(X, "open"):
        opened: Engine = X.open(prepare)
        return opened
    return open_engine(
        estimator.engine,
        X,
        weights,
        device=estimator.device,
        directions=estimator.metric == "cosine",
    )


@contextlib.contextmanager
def opened_input(estimator: Any, X: Any, weights: Any) -> Iterator[Engine]:
    """The same for several passes, after which workers may forget what they have kept."""
    engine: Any = open_input(estimator, X, weights)
    try:
        yield engine
    finally:
        if isinstance(X, BlockRows):
            engine.release()


def fit_batches(estimator: Any, batches: Iterator[Any], sample_weight: Any) -> None:
    """Call ``partial_fit`` with each of ``batches``."""
    if sample_weight is not None:
        raise ValueError(
            "Got sample_weight with an iterator of batches, but expected None: give each batch to "
            "partial_fit with its own weights."
        )
    is_empty = True
    for batch in batches:
        estimator.partial_fit(batch)
        is_empty = False
    if is_empty:
        raise ValueError("Got an iterator without a batch, but expected at least one.")
