"""A sum over rows in memory, in the order in which rows in blocks are added up, too."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pgkmeans_sk.engines.stored_blocks import in_order
from pgkmeans_sk.engines.tiles import Sum, Tile, Totals
from pgkmeans_sk.results import FloatArray, IntArray
from pgkmeans_sk.threads import effective_n_threads, run_tasks


def add_up(total: Sum, rows: NDArray[Any], weights: FloatArray | None, bounds: IntArray) -> Totals:
    """``total`` over ``rows`` (n, d) and their weights, for chunks with these ``bounds``."""
    parts = [total.zeros() for _ in bounds[:-1]]
    tile = Tile(rows, weights, 0)
    tile.points  # noqa: B018  # made once, before threads ask for it

    def add_chunk(c: int) -> None:
        total.add(tile, bounds[c], bounds[c + 1], parts[c])

    run_tasks(add_chunk, len(parts), effective_n_threads())
    return in_order(parts)
