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
    Lanes,
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

        panel_v, n_features_v = arguments[5], arguments[6]
        emit = _builder(context, builder, rows.dtype, n_features_v.type)
        numbers = listed_numbers(emit, pointer(1), arguments[2], n_rows)
        row_pointers = [builder.gep(pointer(0), [builder.mul(i, n_features_v)]) for i in numbers]
        values = _values(emit, row_pointers, pointer(3), pointer(4), panel_v, n_features_v)
        first = builder.mul(panel_v, emit.index(PANEL_WIDTH))
        found = least_but_own(emit, values, pointer(7), numbers, first, largest)
        several = emit.with_lanes(n_rows)
        lanes = several.resized(several.tags(found, TAG_BITS), several.int32_vector)
        places = builder.add(lanes, several.splat(builder.trunc(first, emit.int32)))
        several.store(found, pointer(8), arguments[10])
        several.store(places, pointer(9), arguments[10])
        return context.get_dummy_value()

    return signature, generate


def listed_numbers(emit: Lanes, which: Any, at: Any, n_rows: int) -> list[Any]:
    """The integers ``which[at : at + n_rows]``."""
    builder = emit.builder
    places = [builder.gep(which, [builder.add(at, emit.index(q))]) for q in range(n_rows)]
    return [builder.sext(builder.load(place), emit.intp) for place in places]


def least_but_own(
    emit: Any,  # for floats or integers
    values: list[list[Any]],  # row by row, V vectors each
    own: Any,  # pointer to the position of each row's own centre
    numbers: list[Any],  # of the rows
    first: Any,  # position of the first centre of the panel
    largest: float,
) -> Any:
    """The smallest value of each row, tagged with its lane; the own centre's is left out."""
    builder = emit.builder
    smallest = []
    for number, of_panel in zip(numbers, values, strict=True):
        position = builder.sext(builder.load(builder.gep(own, [number])), emit.intp)
        own_lane = emit.splat(emit.resized(builder.sub(position, first), emit.lane_int))
        of_row = None
        for v, value in enumerate(of_panel):
            lanes = emit.lane_numbers(v * emit.lanes)
            is_own = builder.icmp_signed("==", lanes, own_lane)
            tagged = emit.tag(value, TAG_BITS, lanes)
            here = builder.select(is_own, emit.constant(largest), tagged)
            of_row = here if of_row is None else emit.smaller(of_row, here)
        smallest.append(of_row)
    return smallest_lanes(emit, smallest)


@intrinsic  # type: ignore[untyped-decorator]
def panel_values(
    typing_context: Any,
    rows: Any,  # IN float, a row is rows[at : at + d]
    at: Any,  # IN intp
    panels: Any,  # IN (n_panels * d * P,) float, centres times -2
    starts: Any,  # IN (n_panels * P,) float, where each accumulator starts
    first: Any,  # IN intp, the first panel
    n_panels: Any,  # IN intp, how many of them
    n_features: Any,  # IN intp, d
    values: Any,  # OUT (at least so many panels * P,) float, in the places of the panels
) -> Any:
    """All ``starts[j] + panels[j] . x`` of panels that follow on one another, for one row.

    Several features are taken together, as rows are in ``least_of_panel``, each with sums of its
    own.
    """
    integer = types.intp
    signature = types.void(rows, integer, panels, starts, integer, integer, integer, values)
    n_chains = rows_at_once(rows.dtype.bitwidth // 8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> Any:
            return array_pointer(context, builder, signature.args[i], arguments[i])

        first, n_panels, n_features = arguments[4:7]
        emit = _builder(context, builder, rows.dtype, n_features.type)
        row = builder.gep(pointer(0), [arguments[1]])
        end = builder.add(first, n_panels)
        with cgutils.for_range(builder, end, start=first) as panel:
            panel_p, initial = _panel(emit, pointer(2), pointer(3), panel.index, n_features)
            found = _values_of_row(emit, row, panel_p, initial, n_features, n_chains)
            place = builder.mul(panel.index, emit.index(PANEL_WIDTH))
            for v, value in enumerate(found):
                emit.store(value, pointer(7), builder.add(place, emit.index(v * emit.lanes)))
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


def _panel(
    emit: VectorBuilder, panels: Any, starts: Any, panel: Any, n_features: Any
) -> tuple[Any, list[Any]]:
    """Where a panel begins, and where its accumulators start."""
    builder = emit.builder
    first = builder.mul(panel, emit.index(PANEL_WIDTH))
    places = [builder.add(first, emit.index(lane)) for lane in range(0, PANEL_WIDTH, emit.lanes)]
    initial = [emit.load(starts, place) for place in places]
    return builder.gep(panels, [builder.mul(first, n_features)]), initial


def _add_products(
    emit: VectorBuilder, panel_p: Any, feature: Any, rows: list[Any], totals: list[list[Any]]
) -> None:
    """Add the products of a feature of a panel and of some rows."""
    builder = emit.builder
    offset = builder.mul(feature, emit.index(PANEL_WIDTH))
    places = [builder.add(offset, emit.index(lane)) for lane in range(0, PANEL_WIDTH, emit.lanes)]
    centers = [emit.load(panel_p, place) for place in places]
    for row, sums in zip(rows, totals, strict=True):
        x = emit.broadcast(row, feature)
        for center, register in zip(centers, sums, strict=True):
            emit.add_product(center, x, register)


def _values(
    emit: VectorBuilder, rows: list[Any], panels: Any, starts: Any, panel: Any, n_features: Any
) -> list[list[Any]]:
    """Values (row by row, V vectors each) of the centres of a panel."""
    panel_p, initial = _panel(emit, panels, starts, panel, n_features)
    totals = [[emit.register(start) for start in initial] for _ in rows]

    def add_products(feature: Any, registers: list[list[Any]]) -> None:
        _add_products(emit, panel_p, feature, rows, registers)

    accumulate(emit, n_features, totals, add_products)
    return [[emit.builder.load(register) for register in sums] for sums in totals]


def _values_of_row(
    emit: VectorBuilder, row: Any, panel_p: Any, initial: list[Any], n_features: Any, n_chains: int
) -> list[Any]:
    """Values (V vectors) of the centres of a panel for one row."""
    builder = emit.builder
    totals = [[emit.register(emit.zero) for _ in initial] for _ in range(n_chains)]
    for register, start in zip(totals[0], initial, strict=True):
        builder.store(start, register)

    def add_products(step: Any, registers: list[list[Any]]) -> None:
        first = builder.mul(step, emit.index(n_chains))
        for i, sums in enumerate(registers):
            _add_products(emit, panel_p, builder.add(first, emit.index(i)), [row], [sums])

    n_steps = builder.udiv(n_features, emit.index(n_chains))
    accumulate(emit, n_steps, totals, add_products)
    rest = builder.mul(n_steps, emit.index(n_chains))
    with cgutils.for_range(builder, n_features, start=rest) as feature:
        _add_products(emit, panel_p, feature.index, [row], totals[-1:])
    for sums in totals[1:]:
        for total, register in zip(totals[0], sums, strict=True):
            emit.add(register, total)
    return [builder.load(register) for register in totals[0]]
