"""What runs before a time or a peak is taken: imports, compilation and threads are paid once."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import data
from benchmarks.peers import OURS, PEERS
from benchmarks.small import COMPILING_FITS

LARGER_SLICE = 5000
"""Rows, more than a start takes whole."""


@functools.cache
def compile_for_short_fits(dtype: Any) -> None:
    """Fit until ours uses the kernels for small tables (engines/small_kernels.py)."""
    from pgkmeans_sk import PGKMeans

    rows = np.random.default_rng(0).standard_normal((100, 3)).astype(dtype)
    for _ in range(COMPILING_FITS):
        PGKMeans(8).fit(rows)


@functools.cache
def compile_for_long_fits(dtype: Any) -> None:
    """Fit until ours has needed the kernels that small tables never do.

    They are those that ``engines/patience.py`` would wait with for some seconds of passes.
    """
    from pgkmeans_sk import PGKMeans
    from pgkmeans_sk.engines import patience

    rows = np.random.default_rng(0).standard_normal((130_000, 8)).astype(dtype)
    with mock.patch.object(patience, "PATIENCE", 0.0):
        model = PGKMeans(1024, init=rows[:1024], n_init=1, max_iter=28, tol=0.0).fit(rows)
        model.predict(rows)


def warm_up(peer_name: str, X: data.Points, n_clusters: int, same_start: bool) -> None:
    """Run two iterations on a small slice: imports, compilation and thread pools are then paid.

    Ours fits a larger one, too, and a very small one many times, for which it takes other kernels.
    """
    sizes = [4 * n_clusters]
    if peer_name == OURS:
        compile_for_short_fits(X.dtype)
        compile_for_long_fits(X.dtype)
        sizes.append(max(4 * n_clusters, LARGER_SLICE))
    peer = PEERS[peer_name]
    for size in sizes:
        rows = data.draw_rows(X, min(len(X), size))
        start = data.sampled_start(rows, n_clusters, 0) if same_start and peer.takes_start else None
        peer.fit(rows, n_clusters, start, 2, 0)
