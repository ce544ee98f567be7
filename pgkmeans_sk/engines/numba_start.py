"""The start "partition" of small dense tables in one kernel (``kernels/small_start.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.node_members import NODE_NUMBERS
from pgkmeans_sk.engines.small_kernels import (
    Rows,
    address_of_assign,
    arguments_for,
    bounds_if_small,
    kind_of,
)
from pgkmeans_sk.kernels import split
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.nearest import PackedCenters, room_for_centers
from pgkmeans_sk.kernels.small_slots import Addresses, new_nodes, new_slots
from pgkmeans_sk.kernels.small_start import NOT_GROWN, NOT_MENDED, SETTLED, start_small
from pgkmeans_sk.results import IntArray, SmallStart, Started

_RULES = {"ball": split.BALL, "principal": split.PRINCIPAL}


def bounds_for_start(n_rows: int, n_features: int, n_clusters: int) -> IntArray | None:
    """Bounds of the chunks of a pass; None if only the pipeline does what is to be done."""
    if n_clusters < 2 or n_rows * n_features > NODE_NUMBERS:
        return None
    return bounds_if_small(n_rows, n_features, n_clusters)


def start_of_small_table(
    rows: Rows,
    present: IntArray,
    bounds: IntArray,
    origin: NDArray[Any],
    n_clusters: int,
    plan: SmallStart,
    leaves: NDArray[np.floating] | None,
) -> Started | None:
    """What the kernel finds, or None where only the pipeline gets on.

    Parameters
    ----------
    rows : tuple
        Points, weights and weight step, as kernels take them.
    present : ndarray of shape (m,), int
        The rows of positive weight, in order.
    bounds : ndarray of shape (n_chunks + 1,), int64
        Those of ``bounds_for_start``, which says how large all this may be.
    origin : ndarray of shape (d,)
        A point near the rows, of their dtype.
    n_clusters : int
        At least 2.
    plan : SmallStart
        What the pipeline would do.
    leaves : ndarray of shape (K, d), or None
        The leaves of a tree, each of which owns rows; None if a tree is to be grown.
    """
    n_features = len(origin)
    kind = kind_of(rows[0].base, rows[1], present)
    mean, found = np.empty(n_features), np.zeros((n_clusters, n_features))
    if leaves is not None:
        found[:] = leaves

    def make_arguments() -> tuple[Any, ...]:
        frame = room_for_centers(n_clusters, origin)
        addresses = _addresses(kind, rows, frame, present, plan.share == "population")
        return (
            *rows, new_slots(3, n_clusters, n_features, bounds, with_utilities=True),
            new_nodes(n_clusters, n_features, present), np.empty((2, n_clusters)),
            np.empty((6, n_clusters), dtype=np.int64), mean, leaves is not None, _RULES[plan.cut],
            plan.share == "error", frame, np.empty(0, dtype=origin.dtype),
            float(np.finfo(origin.dtype).eps), addresses, plan.n_steps, plan.max_rounds,
            max(1, int(plan.donor_share * n_clusters)), plan.n_two_means, *plan.shares_of_utility,
            plan.smallest_gain, plan.hopeless_share, found,
        )  # fmt: skip

    arguments = arguments_for(start_small, kind, make_arguments)
    if arguments is None:
        return None
    if leaves is None:
        split.node_moments(*rows, present, 0, len(present), mean)
    progress, inertia = start_small(*arguments)
    if progress == NOT_GROWN:
        return None
    centers = found.astype(origin.dtype)
    if progress == NOT_MENDED:
        return Started(centers, None)
    return Started(centers, float(inertia), progress == SETTLED)


_known: dict[Any, Addresses] = {}


def _addresses(
    kind: Any, rows: Rows, frame: PackedCenters, present: NDArray[Any], by_population: bool
) -> Addresses:
    """Where the kernels for rows of this kind are; that for cuts by shares, if it is needed."""
    known = kind, by_population
    if known not in _known:
        n_features = frame.rows.shape[1]
        empty, sums = np.empty(0), frame.rows
        quads, triples = np.empty((0, 2)), np.empty((0, 2, n_features))
        places = np.empty(0, dtype=np.int64)
        ranges = np.empty((0, 2), dtype=np.int64)
        _known[known] = Addresses(
            address_of_assign(rows, frame),
            address_of(
                split.cut_nodes, *rows, present, empty, ranges, sums, empty, 0, 0, 0, 0, 0, 0,
                sums, sums, places, quads, triples, quads,
            ),
            address_of(split.select_by_weight, *rows[1:], present, empty, 0, 0, 0.0)
            if by_population
            else 0,
            address_of(split.node_moments, *rows, present, 0, 0, empty),
        )  # fmt: skip
    return _known[known]
