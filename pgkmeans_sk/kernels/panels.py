"""A few rows against one panel of centres, in vector registers: centres in lanes.

The other way round than ``sweep.py``: rows lie as the user has them, one after the other, and need
not be neighbours; a register holds the same feature of several centres. This is the form for rows
that have only a few panels left to look at (``pruned.py``).

Layout
------
A *panel* holds P = 16 centres, feature by feature: ``panels[(g * d + t) * P + j]`` is feature t of
centre g * P + j, times -2. It fills V = P / W registers of W lanes. Q rows are taken together, so
that Q * V accumulators keep the multipliers busy:

    accumulator[q][v] = starts[g * P + v * W + lane]           # the centres' squared norms
    for each feature t:                                        # blocks of 32, as in sweep.py
        accumulator[q][v] += panels[g, t, v] * rows[q][t]      # one number for all lanes
    the lane of row q's own centre, if it is in this panel, is put to the largest number
    least[q] = the smallest of the P values, with its lane as a tag (Note [Tags] of sweep.py)

``panel_values`` and ``least_of_panel`` in ``tests/reference.py`` are the same in NumPy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.sweep import padding
from pgkmeans_sk.kernels.vectors import (
    PANEL_WIDTH,
    VectorBuilder,
    accumulate,
    array_pointer,
    smallest_lanes,
    vector_bytes,
)

TAG_BITS = 4
"""log2(P): bits at the end of a value that name its lane."""

BOUNDS_AT_ONCE = 4
"""Bounds of the exact look that are compared together; a panel is a multiple of it."""

ACCUMULATORS = 8
"""Two multiply-adds of four cycles each: so many sums have to be on their way at once."""


def rows_at_once(itemsize: int) -> int:
    """Q, for numbers of ``itemsize`` bytes."""
    return max(1, ACCUMULATORS * vector_bytes() // itemsize // PANEL_WIDTH)


@intrinsic  # type: ignore[untyped-decorator]
def batch_rows(typing_context: Any, rows: Any) -> Any:
    """``rows_at_once`` as a compile-time constant for the element type of ``rows``."""
    number = rows_at_once(rows.dtype.bitwidth // 8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, number)

    return types.intp(rows), generate


@intrinsic  # type: ignore[untyped-decorator]
def least_of_panel(
    typing_context: Any,
    rows: Any,  # IN (R * d,) float, a block of rows, one after the other
    which: Any,  # IN (m,) int32; rows which[at : at + Q] are looked at
    at: Any,  # IN intp
    panels: Any,  # IN (n_panels * d * P,) float, centres times -2
    starts: Any,  # IN (n_panels * P,) float, where each accumulator starts
    panel: Any,  # IN intp, g
    n_features: Any,  # IN intp, d
    own: Any,  # IN (R,) int32, position of each row's own centre, which is left out
    least: Any,  # OUT float, smallest value: least[to : to + Q]
    position: Any,  # OUT int32, its position g * P + lane: position[to : to + Q]
    to: Any,  # IN intp
) -> Any:
    """The smallest of ``starts[j] + panels[j] . x`` in one panel, for Q rows."""
    signature = types.void(
        rows,
        which,
        types.intp,
        panels,
        starts,
        types.intp,
        types.intp,
        own,
        least,
        position,
        types.intp,
    )
    bits = rows.dtype.bitwidth
    n_rows, largest = rows_at_once(bits // 8), padding(f"f{bits // 8}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> Any:
            return array_pointer(context, builder, signature.args[i], arguments[i])

        at_v, panel_v, n_features_v = arguments[2], arguments[5], arguments[6]
        emit = _builder(context, builder, rows.dtype, n_features_v.type)
        numbers = []  # of the rows
        for q in range(n_rows):
            number = builder.load(builder.gep(pointer(1), [builder.add(at_v, emit.index(q))]))
            numbers.append(builder.sext(number, emit.intp))
        row_pointers = [builder.gep(pointer(0), [builder.mul(i, n_features_v)]) for i in numbers]
        first = builder.mul(panel_v, emit.index(PANEL_WIDTH))
        values = _values(emit, row_pointers, pointer(3), pointer(4), panel_v, n_features_v)
        smallest = []
        for q in range(n_rows):
            own_position = builder.load(builder.gep(pointer(7), [numbers[q]]))
            own_position = builder.sext(own_position, emit.intp)
            own_lane = emit.splat(emit.resized(builder.sub(own_position, first), emit.lane_int))
            of_row = None
            for v, value in enumerate(values[q]):
                lanes = emit.lane_numbers(v * emit.lanes)
                is_own = builder.icmp_signed("==", lanes, own_lane)
                value = builder.select(
                    is_own, emit.constant(largest), emit.tag(value, TAG_BITS, lanes)
                )
                of_row = value if of_row is None else emit.smaller(of_row, value)
            smallest.append(of_row)
        found = smallest_lanes(emit, smallest)
        several = VectorBuilder(builder, emit.element, bits, n_rows, emit.intp)
        lanes = several.resized(several.tags(found, TAG_BITS), several.int32_vector)
        places = builder.add(lanes, several.splat(builder.trunc(first, emit.int32)))
        several.store(found, pointer(8), arguments[10])
        several.store(places, pointer(9), arguments[10])
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def panel_values(
    typing_context: Any,
    rows: Any,  # IN float, a row is rows[at : at + d]
    at: Any,  # IN intp
    panels: Any,  # IN (n_panels * d * P,) float, centres times -2
    starts: Any,  # IN (n_panels * P,) float, where each accumulator starts
    panel: Any,  # IN intp, g
    n_features: Any,  # IN intp, d
    values: Any,  # OUT (n_panels * P,) float, in the places of the panel
) -> Any:
    """All ``starts[j] + panels[j] . x`` of one panel, for one row."""
    signature = types.void(rows, types.intp, panels, starts, types.intp, types.intp, values)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> Any:
            return array_pointer(context, builder, signature.args[i], arguments[i])

        emit = _builder(context, builder, rows.dtype, arguments[5].type)
        row = builder.gep(pointer(0), [arguments[1]])
        (found,) = _values(emit, [row], pointer(2), pointer(3), arguments[4], arguments[5])
        first = builder.mul(arguments[4], emit.index(PANEL_WIDTH))
        for v, value in enumerate(found):
            emit.store(value, pointer(6), builder.add(first, emit.index(v * emit.lanes)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def least_bound(
    typing_context: Any,
    values: Any,  # IN (n_panels * P,) float
    starts: Any,  # IN (n_panels * P,) float
    share: Any,  # IN float64
    norm: Any,  # IN float64
    smallest: Any,  # IN float64
) -> Any:
    """The least ``values[j] + share (norm + starts[j]) + smallest``, in float64."""
    double = types.float64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = VectorBuilder(builder, ir.DoubleType(), 64, BOUNDS_AT_ONCE, cgutils.intp_t)
        arrays = [
            context.make_array(kind)(context, builder, array)
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        share, norm, smallest = (emit.splat(number) for number in arguments[2:])
        least_r = emit.register(emit.constant(float("inf")))
        places = cgutils.for_range_slice(
            builder, emit.index(0), arrays[0].nitems, emit.index(BOUNDS_AT_ONCE)
        )
        with places as (place, _):
            value, start = (_load_wide(emit, array.data, place) for array in arrays)
            margin = builder.fadd(builder.fmul(share, builder.fadd(norm, start)), smallest)
            bound = builder.fadd(value, margin)
            builder.store(emit.smaller(bound, builder.load(least_r)), least_r)
        least = builder.load(least_r)
        found = builder.extract_element(least, ir.Constant(emit.int32, 0))
        for lane in range(1, BOUNDS_AT_ONCE):
            other = builder.extract_element(least, ir.Constant(emit.int32, lane))
            found = builder.select(builder.fcmp_ordered("<", other, found), other, found)
        return found

    return double(values, starts, double, double, double), generate


def _load_wide(emit: VectorBuilder, numbers: Any, at: Any) -> Any:
    """Numbers of either precision as float64."""
    loaded = emit.load(numbers, at)
    if loaded.type == emit.vector:
        return loaded
    loaded.align = 4
    return emit.builder.fpext(loaded, emit.vector)


def _builder(context: Any, builder: Any, dtype: Any, intp: Any) -> VectorBuilder:
    """The builder for vectors of ``dtype`` as wide as a register, or as a panel."""
    lanes = min(vector_bytes() * 8 // dtype.bitwidth, PANEL_WIDTH)
    return VectorBuilder(builder, context.get_value_type(dtype), dtype.bitwidth, lanes, intp)


def _values(
    emit: VectorBuilder, rows: list[Any], panels: Any, starts: Any, panel: Any, n_features: Any
) -> list[list[Any]]:
    """Values (row by row, V vectors each) of the centres of a panel."""
    builder, vectors = emit.builder, range(PANEL_WIDTH // emit.lanes)
    first = builder.mul(panel, emit.index(PANEL_WIDTH))
    center_p = builder.gep(panels, [builder.mul(first, n_features)])
    initial = [emit.load(starts, builder.add(first, emit.index(v * emit.lanes))) for v in vectors]
    totals = [[emit.register(initial[v]) for v in vectors] for _ in rows]

    def add_products(feature: Any, registers: list[list[Any]]) -> None:
        offset = builder.mul(feature, emit.index(PANEL_WIDTH))
        centers = [
            emit.load(center_p, builder.add(offset, emit.index(v * emit.lanes))) for v in vectors
        ]
        for row, sums in zip(rows, registers, strict=True):
            x = emit.broadcast(row, feature)
            for center, register in zip(centers, sums, strict=True):
                emit.add_product(center, x, register)

    accumulate(emit, n_features, totals, add_products)
    return [[builder.load(register) for register in sums] for sums in totals]
