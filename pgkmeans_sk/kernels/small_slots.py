"""What the kernels for small tables work on, and how their numbers are copied, summed, sorted.

A *slot* holds all that is known of one set of centres: a pass over the rows fills it. There is one
for the state so far, and one or two for the centres that are on trial.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.compile import part
from pgkmeans_sk.kernels.linked import call_for_two_ints
from pgkmeans_sk.kernels.nearest import PackedCenters, fill_panels
from pgkmeans_sk.kernels.split import BINS
from pgkmeans_sk.kernels.steps import clear

MAX_CLUSTERS = 128
"""Lists of clusters are sorted by insertion, and the inertia is summed in one go."""

LONGEST_SUM = 128
"""So many numbers NumPy adds up without halving the list first."""
MOST_HALVINGS = 48


class Addresses(NamedTuple):
    """Where the kernels are that do the work."""

    assign: int  # nearest.assign_dense
    cut: int  # split.cut_nodes
    select: int  # split.select_by_weight, or 0
    moments: int  # split.node_moments


class Chunks(NamedTuple):
    """Rows are added up chunk by chunk, as in the pipeline; here is room for the sums of one."""

    bounds: np.ndarray  # (n_chunks + 1,) int64, where they begin and end
    means: np.ndarray  # as in Slots, of one slot
    sizes: np.ndarray
    sq_errors: np.ndarray
    utilities: np.ndarray


class Slots(NamedTuple):
    """Sets of centres, s of them, and what a pass over the rows has told of each."""

    centers: np.ndarray  # (s, K, d) float64, rounded to the data's dtype
    means: np.ndarray  # (s, K, d) float64
    sizes: np.ndarray  # (s, K) float64
    sq_errors: np.ndarray  # (s, K, 4) float64, in four parts
    errors: np.ndarray  # (s, K) float64
    utilities: np.ndarray  # (s, K) float64, or (s, 0) where nobody wants to know
    labels: np.ndarray  # (s, n) int32
    inertias: np.ndarray  # (s,) float64
    changed: np.ndarray  # (s,) int64, labels that differ from those of the pass before
    chunk: Chunks


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


def new_slots(
    n_slots: int, n_clusters: int, n_features: int, bounds: np.ndarray, *, with_utilities: bool
) -> Slots:
    """Slots without content, for rows in chunks with these ``bounds``."""
    n_rows = bounds[-1]
    centers, means = np.empty((2, n_slots, n_clusters, n_features))
    sizes, errors = np.empty((2, n_slots, n_clusters))
    n_summed = n_clusters if len(bounds) > 2 else 0  # the first chunk is added up in the slot
    chunk = Chunks(
        bounds,
        np.empty((n_summed, n_features)),
        np.empty(n_summed),
        np.empty((n_summed, 4)),
        np.empty(n_summed if with_utilities else 0),
    )
    return Slots(
        centers,
        means,
        sizes,
        np.empty((n_slots, n_clusters, 4)),
        errors,
        np.empty((n_slots, n_clusters if with_utilities else 0)),
        np.empty((n_slots, n_rows), dtype=np.int32),
        np.empty(n_slots),
        np.empty(n_slots, dtype=np.int64),
        chunk,
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


@intrinsic  # type: ignore[untyped-decorator]
def add_numbers(
    typing_context: Any,
    source: Any,  # IN contiguous array of float64
    target: Any,  # INOUT of the same shape and type
) -> Any:
    """``target += source``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        with cgutils.for_range(builder, arrays[0].nitems) as number:
            places = [builder.gep(array.data, [number.index]) for array in arrays]
            total = builder.fadd(builder.load(places[1]), builder.load(places[0]))
            builder.store(total, places[1])
        return context.get_dummy_value()

    return types.void(source, target), generate


@part
def sum_of(values):
    """The sum of at most ``LONGEST_SUM`` numbers, in the order in which NumPy adds them up."""
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
def sum_of_many(values):
    """The sum of any number of numbers, as NumPy has it: halves of halves, and then their sums."""
    lengths, depths = np.empty(MOST_HALVINGS, np.int64), np.empty(MOST_HALVINGS, np.int64)
    sums, halvings = np.empty(MOST_HALVINGS), np.empty(MOST_HALVINGS, np.int64)
    lengths[0], depths[0] = values.size, 0  # of the parts to come; the last one comes first
    n_parts, n_sums, start = 1, 0, 0
    while n_parts > 0:
        length, depth = lengths[n_parts - 1], depths[n_parts - 1]
        if length > LONGEST_SUM:
            left = length // 2
            left -= left % 8
            lengths[n_parts - 1], lengths[n_parts] = length - left, left
            depths[n_parts - 1] = depths[n_parts] = depth + 1
            n_parts += 1
        else:
            n_parts -= 1
            total = sum_of(values[start : start + length])
            start += length
            while n_sums > 0 and halvings[n_sums - 1] == depth:  # its other half
                n_sums -= 1
                depth -= 1
                total = sums[n_sums] + total
            sums[n_sums], halvings[n_sums] = total, depth
            n_sums += 1
    return sums[0]


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


@part
def assign_slot(
    points, weights, weight_step,
    assign,  # IN address of nearest.assign_dense
    frame,  # IN PackedCenters without centres; its panels and starts are room to work in
    padding,  # IN float, where the accumulators of centres that do not exist start
    no_bounds,  # IN (0,) float
    slots,  # INOUT Slots
    slot,  # IN which
):  # fmt: skip
    """A pass over the rows for the centres of a slot; whether all of them own rows."""
    centers, means, sizes = slots.centers[slot], slots.means[slot], slots.sizes[slot]
    sq_errors, errors, utilities = slots.sq_errors[slot], slots.errors[slot], slots.utilities[slot]
    n_clusters, n_features = centers.shape
    real = frame.panels.dtype.type
    for j in range(n_clusters):
        for t in range(n_features):
            centers[j, t] = real(centers[j, t])
    for place in range(frame.starts.size):
        frame.starts[place] = padding
    norm = fill_panels(centers, frame.origin, frame.order, frame.kappa, frame.panels, frame.starts)
    packed = PackedCenters(
        centers, frame.origin, frame.panels, frame.starts, frame.order,
        frame.kappa if norm < frame.largest else np.inf, frame.smallest, frame.largest,
    )  # fmt: skip
    chunk, labels, changed = slots.chunk, slots.labels[slot], slots.changed
    changed[slot] = 0
    for c in range(chunk.bounds.size - 1):
        added, counted = (means, sizes) if c == 0 else (chunk.means, chunk.sizes)
        wrong, useful = (sq_errors, utilities) if c == 0 else (chunk.sq_errors, chunk.utilities)
        clear(added)
        clear(counted)
        clear(wrong)
        clear(useful)
        n_changed, _ = call_for_two_ints(
            assign,
            (points, weights, weight_step, chunk.bounds[c], chunk.bounds[c + 1], packed, True,
             labels, added, counted, wrong, useful, no_bounds, changed[:0]),
        )  # fmt: skip
        changed[slot] += n_changed
        if c > 0:
            add_numbers(added, means)
            add_numbers(counted, sizes)
            add_numbers(wrong, sq_errors)
            add_numbers(useful, utilities)
    all_own = True
    for j in range(n_clusters):
        if not sizes[j] > 0.0:
            all_own = False
        errors[j] = ((sq_errors[j, 0] + sq_errors[j, 1]) + sq_errors[j, 2]) + sq_errors[j, 3]
        for t in range(n_features):
            means[j, t] = means[j, t] / sizes[j] + centers[j, t]
    slots.inertias[slot] = sum_of(errors)
    return all_own


@part
def rests(
    slots,  # IN Slots
    slot,  # IN which
    eps,  # IN float64, of the data's dtype
):
    """Whether the centres of a slot are the means, up to rounding (``pipeline/lloyd.py``)."""
    centers, means = slots.centers[slot], slots.means[slot]
    largest = farthest = 0.0
    for j in range(centers.shape[0]):
        for t in range(centers.shape[1]):
            largest = max(largest, abs(means[j, t]))
            farthest = max(farthest, abs(means[j, t] - centers[j, t]))
    return farthest <= 8.0 * eps * largest
