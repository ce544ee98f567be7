"""The start "partition" of small dense tables in one kernel (``kernels/small_start.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import pass_bounds
from pgkmeans_sk.engines.node_members import NODE_NUMBERS
from pgkmeans_sk.kernels import split
from pgkmeans_sk.kernels.compile import lies_ready
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.nearest import ALL_ROWS, PackedCenters, assign_dense, room_for_centers
from pgkmeans_sk.kernels.small_slots import MAX_CLUSTERS, Addresses, new_nodes, new_slots
from pgkmeans_sk.kernels.small_start import start_small
from pgkmeans_sk.results import FloatArray, IntArray, SmallStart

PATIENCE = 50
"""So many starts of a process are left to the pipeline before the kernel is compiled, which takes
some seconds, once: a start saves a millisecond. A kernel that lies on disk is used at once."""

OWN_DATA = 4
"""The one flag of an array that makes no difference: whether its memory is its own."""

_n_waited: dict[Any, int] = {}
"""How many starts were, for each kind of rows; ``PATIENCE`` where the kernel is there."""

_RULES = {"ball": split.BALL, "principal": split.PRINCIPAL}


def is_small(n_rows: int, n_features: int, n_clusters: int) -> bool:
    """Whether the kernel does what the pipeline would do, with one chunk of rows."""
    centers = np.empty((n_clusters, n_features), dtype=np.float32)
    return (
        2 <= n_clusters <= MAX_CLUSTERS
        and n_rows * n_features <= NODE_NUMBERS
        and len(pass_bounds(n_rows, centers)) == 2
    )


def start_of_small_table(
    rows: tuple[Any, FloatArray, int],
    present: IntArray,
    n_rows: int,
    origin: NDArray[Any],
    n_clusters: int,
    plan: SmallStart,
) -> tuple[NDArray[np.floating], float] | None:
    """Centres (K, d) and their inertia, or None where only the pipeline gets on.

    Parameters
    ----------
    rows : tuple
        Points, weights and weight step, as kernels take them.
    present : ndarray of shape (m,), int
        The rows of positive weight, in order.
    n_rows, n_clusters : int
        How many there are; ``is_small`` says how many there may be.
    origin : ndarray of shape (d,)
        A point near the rows, of their dtype.
    plan : SmallStart
        What the pipeline would do.
    """
    kind = _kind_of(rows[0].base), _kind_of(rows[1]), _kind_of(present)
    n_waited = _n_waited.get(kind)
    if n_waited is not None and n_waited < PATIENCE:
        _n_waited[kind] = n_waited + 1
        return None
    n_features = len(origin)
    mean, found = np.empty(n_features), np.zeros((n_clusters, n_features))
    frame, no_bounds = room_for_centers(n_clusters, origin), np.empty(0, dtype=origin.dtype)
    addresses = _addresses(kind, rows, frame, present, plan.share == "population")
    arguments = (
        *rows, new_slots(n_clusters, n_features, n_rows),
        new_nodes(n_clusters, n_features, present),
        np.empty((2, n_clusters)), np.empty((6, n_clusters), dtype=np.int64), mean,
        _RULES[plan.cut], plan.share == "error", frame, no_bounds,
        float(np.finfo(origin.dtype).eps), addresses, plan.n_steps, plan.max_rounds,
        max(1, int(plan.donor_share * n_clusters)), plan.n_two_means, *plan.shares_of_utility,
        plan.smallest_gain, found,
    )  # fmt: skip
    if n_waited is None:
        _n_waited[kind] = PATIENCE if lies_ready(start_small, *arguments) else min(1, PATIENCE)
        if _n_waited[kind] < PATIENCE:
            return None
    split.node_moments(*rows, present, 0, len(present), mean)
    inertia = start_small(*arguments)
    return None if inertia < 0.0 else (found.astype(origin.dtype), float(inertia))


def _kind_of(array: NDArray[Any]) -> tuple[Any, int]:
    """What decides for Numba which type an array of one dimension is."""
    return array.dtype, array.flags.num & ~OWN_DATA


_known: dict[Any, Addresses] = {}


def _addresses(
    kind: Any, rows: tuple[Any, FloatArray, int], frame: PackedCenters, present: NDArray[Any],
    by_population: bool,
) -> Addresses:  # fmt: skip
    """Where the kernels for rows of this kind are; that for cuts by shares, if it is needed."""
    known = kind, by_population
    if known not in _known:
        n_features = frame.rows.shape[1]
        labels, empty = np.empty(0, dtype=np.int32), np.empty(0)
        sums, quads, triples = frame.rows, np.empty((0, 2)), np.empty((0, 2, n_features))
        places = np.empty(0, dtype=np.int64)
        ranges = np.empty((0, 2), dtype=np.int64)
        _known[known] = Addresses(
            address_of(
                assign_dense, *rows, 0, 0, frame, True, labels, sums, empty, quads, empty,
                np.empty(0, dtype=frame.origin.dtype), ALL_ROWS,
            ),
            address_of(
                split.cut_nodes, *rows, present, empty, ranges, sums, empty, 0, 0, 0, 0, 0, sums,
                sums, places, quads, triples, quads,
            ),
            address_of(split.select_by_weight, *rows[1:], present, empty, 0, 0, 0.0)
            if by_population
            else 0,
            address_of(split.node_moments, *rows, present, 0, 0, empty),
        )  # fmt: skip
    return _known[known]
