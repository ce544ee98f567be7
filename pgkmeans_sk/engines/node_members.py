"""Which rows speak for a large cluster when it is partitioned.

Where a cluster is cut, and what that gains, is told by some thousand of its rows as well as by all.
So beyond ``NODE_NUMBERS`` numbers in the rows of all opened clusters, only some rows of the large
ones are looked at: one from each of as many stretches of equal length, in the order of the rows.
The choice depends on nothing but how many rows there are, so that it is the same for rows in
memory, on disk or on other machines; those have to send no more than that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.results import FloatArray, IntArray

NODE_NUMBERS = 2**23
"""Numbers in the rows of all nodes that are opened together: 32 or 64 MiB."""
FEWEST_MEMBERS = 256
"""So many rows a node may keep in any case."""


def members_taken(counts: IntArray, n_features: int) -> IntArray:
    """How many rows (m,) are looked at, of nodes with ``counts`` (m,) rows."""
    n_allowed = NODE_NUMBERS // n_features
    if counts.sum() <= n_allowed:
        return counts
    return np.minimum(counts, max(FEWEST_MEMBERS, n_allowed // len(counts)))


def positions_taken(n_members: int, n_taken: int) -> IntArray:
    """Rising positions (n_taken,) below ``n_members``: somewhere in each of equal stretches."""
    steps = np.arange(n_taken + 1, dtype=np.int64)
    if n_taken in (0, n_members):
        return steps[:-1]
    ends = steps * n_members // n_taken
    # A place that looks random: rows may come in a rhythm.
    hashed = steps[:-1].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    offsets = (hashed >> np.uint64(33)).astype(np.int64) % np.diff(ends)
    return ends[:-1] + offsets


def taken_ranges(counts: IntArray, taken: IntArray) -> tuple[IntArray, FloatArray]:
    """Where nodes lie (m, 2) with ``taken`` of ``counts`` rows, and what a row stands for (m,)."""
    ends = np.append(0, np.cumsum(taken))
    stand_for = np.divide(counts, taken, out=np.ones(len(taken)), where=taken > 0)
    return np.column_stack([ends[:-1], ends[1:]]), stand_for


def listed_members(
    labels: NDArray[np.int32],
    position: IntArray,
    weights: FloatArray,
    weight_step: int,
    n_nodes: int,
    dtype: Any,
) -> tuple[NDArray[Any], IntArray]:
    """What ``kernels.split.list_members`` lists, node by node, and how many rows each node has."""
    nodes = position[labels]
    is_member = nodes >= 0
    if weight_step:
        is_member &= weights > 0.0
    rows = np.flatnonzero(is_member).astype(dtype)
    nodes = nodes[rows]
    return rows[np.argsort(nodes, kind="stable")], np.bincount(nodes, minlength=n_nodes)
