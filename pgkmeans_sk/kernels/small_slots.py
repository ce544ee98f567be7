"""What the kernel of ``small_start.py`` works on, and how its numbers are copied, summed, sorted.

A *slot* holds all that is known of one set of centres. There are three: of the state so far, and
two for Lloyd's steps from the centres that are on trial.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.compile import part
from pgkmeans_sk.kernels.split import BINS

MAX_CLUSTERS = 128
"""Sums of so many numbers are added up here as NumPy does it."""

SLOTS = 3


class Addresses(NamedTuple):
    """Where the kernels are that do the work."""

    assign: int  # nearest.assign_dense
    cut: int  # split.cut_nodes
    select: int  # split.select_by_weight, or 0
    moments: int  # split.node_moments


class Slots(NamedTuple):
    """Three sets of centres, and what a pass over the rows has told of each."""

    centers: np.ndarray  # (3, K, d) float64, rounded to the data's dtype
    means: np.ndarray  # (3, K, d) float64
    sizes: np.ndarray  # (3, K) float64
    sq_errors: np.ndarray  # (3, K, 4) float64, in four parts
    errors: np.ndarray  # (3, K) float64
    utilities: np.ndarray  # (3, K) float64
    labels: np.ndarray  # (3, n) int32
    inertias: np.ndarray  # (3,) float64
    changed: np.ndarray  # (3,) int64, labels that differ from those of the pass before


class Nodes(NamedTuple):
    """Sets of rows that are being cut, at most K; laid out as ``split.cut_nodes`` has it."""

    order: np.ndarray  # (n,) int, row numbers
    keys: np.ndarray  # (n,) float64
    ranges: np.ndarray  # (K, 2) int64
    means: np.ndarray  # (K, d) float64
    fractions: np.ndarray  # (K,) float64
    work: np.ndarray  # (2, d) float64
    bins: np.ndarray  # (3, BINS) float64
    middles: np.ndarray  # (K,) int64
    child_weights: np.ndarray  # (K, 2) float64
    child_means: np.ndarray  # (K, 2, d) float64
    child_scatters: np.ndarray  # (K, 2) float64


def new_slots(n_clusters: int, n_features: int, n_rows: int) -> Slots:
    """Slots without content."""
    centers, means = np.empty((2, SLOTS, n_clusters, n_features))
    sizes, errors, utilities = np.empty((3, SLOTS, n_clusters))
    return Slots(
        centers,
        means,
        sizes,
        np.empty((SLOTS, n_clusters, 4)),
        errors,
        utilities,
        np.empty((SLOTS, n_rows), dtype=np.int32),
        np.empty(SLOTS),
        np.empty(SLOTS, dtype=np.int64),
    )


def new_nodes(n_clusters: int, n_features: int, order: np.ndarray) -> Nodes:
    """Nodes without content, of the rows ``order``."""
    return Nodes(
        order,
        np.empty(len(order)),
        np.empty((n_clusters, 2), dtype=np.int64),
        np.empty((n_clusters, n_features)),
        np.empty(n_clusters),
        np.empty((2, n_features)),
        np.empty((3, BINS)),
        np.empty(n_clusters, dtype=np.int64),
        np.empty((n_clusters, 2)),
        np.empty((n_clusters, 2, n_features)),
        np.empty((n_clusters, 2)),
    )


@intrinsic  # type: ignore[untyped-decorator]
def copy_numbers(
    typing_context: Any,
    source: Any,  # IN contiguous array
    target: Any,  # OUT of the same shape and type
) -> Any:
    """``target = source``: one instruction, where a loop over two indices is fifty."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        n_bytes = builder.mul(arrays[0].nitems, arrays[0].itemsize)
        cgutils.raw_memcpy(builder, arrays[1].data, arrays[0].data, n_bytes, 1)
        return context.get_dummy_value()

    return types.void(source, target), generate


@part
def sum_of(values):
    """The sum of at most 128 numbers, in the order in which NumPy adds them up."""
    n = values.size
    total = 0.0
    if n < 8:
        for j in range(n):
            total += values[j]
        return total
    s0, s1, s2, s3 = values[0], values[1], values[2], values[3]
    s4, s5, s6, s7 = values[4], values[5], values[6], values[7]
    whole = n - n % 8
    for j in range(8, whole, 8):
        s0 += values[j]
        s1 += values[j + 1]
        s2 += values[j + 2]
        s3 += values[j + 3]
        s4 += values[j + 4]
        s5 += values[j + 5]
        s6 += values[j + 6]
        s7 += values[j + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for j in range(whole, n):
        total += values[j]
    return total


@part
def sort_falling(values, order):
    """``order`` (m,) such that values fall; of equal ones, the first comes first."""
    for j in range(order.size):
        value = values[j]
        k = j
        while k > 0 and values[order[k - 1]] < value:
            order[k] = order[k - 1]
            k -= 1
        order[k] = j
