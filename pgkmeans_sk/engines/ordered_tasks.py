"""A sum over rows in the order of ``chunks.py``, as tasks of which most can run at the same time.

A chunk of rows may lie in several tiles, and a tile may hold several chunks. Each tile adds up the
chunks, or their beginnings, that begin in it: that needs nobody else. A chunk that goes on in the
next tile is added to there, row after row, to what has come from the tile before. Whole chunks are
then added up one after the other, by one task for each run of tiles on the same worker, so that one
set of sums travels from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from pgkmeans_sk.engines.tiles import Sum, Tile, Totals
from pgkmeans_sk.results import IntArray


@dataclass(frozen=True)
class Share:
    """Which rows of a tile belong to which chunk.

    Rows before ``cuts[0]`` go on with a chunk that began in a tile before; a chunk begins at
    each of ``cuts[:-1]``, and the last one is over with the tile if ``is_closed``.
    """

    cuts: tuple[int, ...]  # rising, within the tile; the last is its length
    is_closed: bool

    @property
    def goes_on(self) -> bool:
        """Whether the first rows belong to a chunk that began before."""
        return self.cuts[0] > 0

    @property
    def n_begun(self) -> int:
        """Chunks that begin in the tile."""
        return len(self.cuts) - 1


def shares_of(starts: IntArray, bounds: IntArray) -> list[Share]:
    """The share of each tile, of those that begin at ``starts[:-1]``, in chunks with ``bounds``."""
    shares = []
    for first, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        low, high = np.searchsorted(bounds, [first, stop])
        cuts = (*(bounds[low:high] - first).tolist(), stop - first)
        shares.append(Share(cuts, bool(bounds[high] == stop)))
    return shares


def add_begun(tile: Tile, total: Sum, share: Share) -> list[Totals]:
    """Sums of the chunks that begin in a tile, as far as they reach."""
    parts = []
    for start, stop in zip(share.cuts[:-1], share.cuts[1:], strict=True):
        part = total.zeros()
        total.add(tile, start, stop, part)
        parts.append(part)
    return parts


def add_further(tile: Tile, total: Sum, share: Share, before: Totals) -> Totals:
    """Sums of the chunk that began in a tile before, with its rows in this one."""
    totals = tuple(part.copy() for part in before)  # tasks do not change what others have made
    total.add(tile, 0, share.cuts[0], totals)
    return totals


def add_chunks(
    before: Totals | None,
    further: Sequence[Totals | None],
    begun: Sequence[Sequence[Totals]],
    shares: Sequence[Share],
) -> Totals | None:
    """Add the chunks that end in consecutive tiles to those ``before``, one after the other."""
    totals = None if before is None else tuple(part.copy() for part in before)
    for gone_on, own, share in zip(further, begun, shares, strict=True):
        ended = list(own) if share.is_closed or not own else list(own[:-1])
        if gone_on is not None and (share.n_begun or share.is_closed):
            ended.insert(0, gone_on)
        for chunk in ended:
            if totals is None:
                totals = tuple(part.copy() for part in chunk)
            else:
                for total, part in zip(totals, chunk, strict=True):
                    total += part
    return totals


def runs_of(places: Sequence[Any]) -> list[list[int]]:
    """Numbers of tiles that follow one another in the same place."""
    return [
        [number for number, _ in run]
        for _, run in groupby(enumerate(places), key=lambda pair: pair[1])
    ]
