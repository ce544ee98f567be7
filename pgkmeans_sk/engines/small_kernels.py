"""When the kernels for small tables are used, and where the kernel is that all of them call.

Such a kernel does in one go what the pipeline does with many calls, and saves a millisecond of a
fit or two. To compile it takes some seconds, once on a machine. So a first fit never does: a kernel
that lies ready on disk is used at once, any other after a process has wanted it many times.

The same holds for short steps that NumPy does nearly as fast on small tables (``moments.py``,
``node_members.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.chunks import pass_bounds
from pgkmeans_sk.kernels.compile import lies_ready
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.nearest import ALL_ROWS, PackedCenters, assign_dense
from pgkmeans_sk.kernels.small_slots import MAX_CLUSTERS
from pgkmeans_sk.results import FloatArray, IntArray

MOST_CHUNKS = 6
"""Of rows: a pass over so many takes as long as two threads and the pipeline take for it together.
"""

PATIENCE = 50
"""So many calls of a process are left to others before a kernel is compiled."""

OWN_DATA = 4
"""The one flag of an array that makes no difference: whether its memory is its own."""

Rows = tuple[Any, FloatArray, int]
"""Points, weights and weight step, as kernels take them."""

_n_waited: dict[Any, int] = {}
"""How often each kernel was wanted for each kind of rows; ``PATIENCE`` where it is there."""


def bounds_if_small(n_rows: int, n_features: int, n_clusters: int) -> IntArray | None:
    """Bounds of the chunks of a pass; None if a kernel had better not do what the pipeline does.

    That is where there are many centres, or threads have much to do.
    """
    if not 1 <= n_clusters <= MAX_CLUSTERS:
        return None
    centers = np.broadcast_to(np.float32(0.0), (n_clusters, n_features))
    bounds = pass_bounds(n_rows, centers)
    return bounds if len(bounds) - 1 <= MOST_CHUNKS else None


def arguments_for(kernel: Any, kind: Any, make: Callable[[], tuple[Any, ...]]) -> Any:
    """The arguments that ``make`` makes; or None, where the kernel had better not be called.

    ``kind`` tells rows apart for which a kernel has to be compiled anew (``kind_of``).
    """
    wanted = kernel, kind
    n_waited = _n_waited.get(wanted)
    if n_waited is not None and n_waited < PATIENCE:
        _n_waited[wanted] = n_waited + 1
        return None
    arguments = make()
    if n_waited is None:
        _n_waited[wanted] = PATIENCE if lies_ready(kernel, *arguments) else min(1, PATIENCE)
        if _n_waited[wanted] < PATIENCE:
            return None
    return arguments


def kind_of(*arrays: NDArray[Any]) -> tuple[Any, ...]:
    """What decides for Numba which types arrays of one dimension are."""
    return tuple((array.dtype, array.flags.num & ~OWN_DATA) for array in arrays)


_addresses: dict[Any, int] = {}


def address_of_assign(rows: Rows, frame: PackedCenters) -> int:
    """Where ``assign_dense`` is, for rows like these."""
    kind = kind_of(rows[0].base, rows[1])
    if kind not in _addresses:
        labels, empty = np.empty(0, dtype=np.int32), np.empty(0)
        _addresses[kind] = address_of(
            assign_dense, *rows, 0, 0, frame, True, labels, frame.rows, empty, np.empty((0, 4)),
            empty, np.empty(0, dtype=frame.origin.dtype), ALL_ROWS,
        )  # fmt: skip
    return _addresses[kind]
