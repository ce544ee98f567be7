"""Lloyd's iteration of small dense tables in one kernel (``kernels/small_lloyd.py``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.small_kernels import Rows, address_of_assign, arguments_for, kind_of
from pgkmeans_sk.kernels.nearest import room_for_centers
from pgkmeans_sk.kernels.small_lloyd import lloyd_small
from pgkmeans_sk.kernels.small_slots import Slots, new_slots
from pgkmeans_sk.results import Assignment, IntArray, SmallLloyd, State


class Iterated(NamedTuple):
    """Where Lloyd's iteration has led to."""

    state: State
    labels: NDArray[np.int32]  # (n,)
    n_iter: int
    converged: bool


def iterate_small_table(
    rows: Rows,
    labels: NDArray[np.int32],
    origin: NDArray[Any],
    state: State,
    bounds: IntArray,
    plan: SmallLloyd,
) -> Iterated | None:
    """Iterate from ``state``, or None where only the pipeline gets on.

    Parameters
    ----------
    rows : tuple
        Points, weights and weight step, as kernels take them.
    labels : ndarray of shape (n,), int32
        Those of the state; left as they are.
    origin : ndarray of shape (d,)
        A point near the rows, of their dtype.
    state : State
        Where to begin.
    bounds : ndarray of shape (n_chunks + 1,), int64
        Those of ``bounds_if_small``, which says how large all this may be.
    plan : SmallLloyd
        What the pipeline would do.
    """
    n_clusters, n_features = state.centers.shape
    slots = new_slots(2, n_clusters, n_features, bounds, with_utilities=False)

    def make_arguments() -> tuple[Any, ...]:
        frame = room_for_centers(n_clusters, origin)
        return (
            *rows, slots, np.empty((n_clusters, n_features)), np.empty(n_clusters * n_features),
            np.empty(plan.stall_window + 1), frame, np.empty(0, dtype=origin.dtype),
            float(np.finfo(origin.dtype).eps), address_of_assign(rows, frame), plan.max_iter,
            plan.threshold, plan.accelerate, plan.relaxation, plan.stall_share,
        )  # fmt: skip

    arguments = arguments_for(lloyd_small, kind_of(rows[0].base, rows[1]), make_arguments)
    if arguments is None:
        return None
    _fill_first(slots, state, labels)
    slot, n_iter, converged = lloyd_small(*arguments)
    if slot < 0:
        return None
    found = Assignment(
        slots.means[slot],
        slots.sizes[slot].copy(),  # what an estimator remembers holds on to nothing else
        slots.errors[slot],
        int(slots.changed[slot]),
    )
    last = State(slots.centers[slot].astype(origin.dtype), found)
    return Iterated(last, slots.labels[slot], n_iter, converged)


def _fill_first(slots: Slots, state: State, labels: NDArray[np.int32]) -> None:
    """Write what is known of ``state`` into the first slot."""
    found = state.assignment
    slots.centers[0], slots.means[0] = state.centers, found.centroids
    slots.sizes[0], slots.errors[0] = found.sizes, found.sq_errors
    slots.labels[0], slots.changed[0], slots.inertias[0] = labels, 0, state.inertia
