"""A few rows against one panel of centres, in 16-bit integers: ``panels.py`` once more.

Why the result can be trusted is in ``integers.py``; here numbers are finer, since no bits of them
are needed as tags.

Layout
------
Rows, minus the origin, are multiples of a *row unit*, one after the other; centres are multiples of
a *centre unit*. Two features that follow on one another make a *pair*, 32 bits. A panel holds P =
16 centres: ``panels[(g * n_pairs + p) * P + j]`` is pair p of centre g * P + j, times -1.

Note [Finer units]
~~~~~~~~~~~~~~~~~~
The *reach* R is the length of the longest centre, or that of nearly all rows if that is more; what
is longer has no value. With R / 32767 as both units, ``|x.c| <= R^2`` is at most 2^30 units, by
Cauchy and Schwarz, and a value at most 2^30 + 2^29 < 2^31. With e_j and r(x) as in Note [Integer
error] of ``integers.py``, accumulators start at ``|c_j|^2 / 2 - e_j``, so that

    2 u value_j + |x|^2 - 2 r(x)

is a lower bound on the squared distance to centre j, where u is the product of the units. A tag
replaces the last four bits of a value, which its ``MARGIN`` contains.

``least_of_integers`` in ``tests/reference_integers.py`` is the same in NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.integers import ABSENT, MARGIN, ROUNDING, ROW_LIMIT, SAFE
from pgkmeans_sk.kernels.nearest import PackedCenters
from pgkmeans_sk.kernels.panels import TAG_BITS, least_but_own, listed_numbers
from pgkmeans_sk.kernels.vectors import (
    PANEL_WIDTH,
    IntegerBuilder,
    VectorBuilder,
    array_pointer,
    vector_bytes,
)

ROWS_AT_ONCE = {16: 2, 32: 4, 64: 8}
"""Q, by bytes in a register: as many sums on their way as registers hold."""


class IntegerPanels(NamedTuple):
    """Centres in panels, as ``least_of_integers`` reads them; ``float`` is the data's dtype."""

    panels: np.ndarray  # (n_panels * n_pairs * P,) int32, pairs of int16; (0,): there are none
    starts: np.ndarray  # (n_panels * P,) int32
    per_unit: float  # 1 / row unit
    scale: float  # 2 u
    reach_sq: float  # R^2
    error: float  # 2 r(x) = error + error_per_length |x| + error_per_norm |x|^2
    error_per_length: float
    error_per_norm: float


def no_integers() -> IntegerPanels:
    """Panels that stand for none."""
    nothing = np.empty(0, dtype=np.int32)
    return IntegerPanels(nothing, nothing, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def integer_panels(centers: PackedCenters, row_length: float) -> IntegerPanels | None:
    """The same centres in integers, or None where numbers are too large or too small for that.

    Nearly all rows, minus the origin, are at most ``row_length`` long.
    """
    rows, origin, kappa = centers.rows, centers.origin, centers.kappa
    shifted = rows - origin
    norms = np.einsum("jt,jt->j", shifted, shifted)
    reach = max(row_length, float(np.sqrt(norms.max()))) * (1.0 + 1e-6)
    least, most = SAFE[origin.dtype.str[1:]]
    if not least < reach < most or not kappa < np.inf:
        return None
    n_features = len(origin)
    unit = reach / ROW_LIMIT
    units = np.rint(shifted / unit)
    np.subtract(shifted, unit * units, out=shifted)
    center_error = float(np.sqrt(np.einsum("jt,jt->j", shifted, shifted).max()))
    row_error = ROUNDING * np.sqrt(n_features) * unit

    places = centers.order[centers.order >= 0]
    is_there = centers.order >= 0
    panels = np.zeros((len(is_there), n_features + n_features % 2), dtype=np.int16)
    panels[is_there, :n_features] = -units[places]
    pairs = panels.view(np.int32).reshape(-1, PANEL_WIDTH, panels.shape[1] // 2)
    starts = np.full(len(is_there), ABSENT, dtype=np.int32)
    lowered = norms / 2.0 - row_error * np.sqrt(norms) - kappa / 2.0 * norms
    starts[is_there] = np.floor(lowered[places] / unit**2)
    return IntegerPanels(
        np.ascontiguousarray(pairs.transpose(0, 2, 1)).ravel(), starts, 1.0 / unit,
        2.0 * unit**2, reach * reach * (1.0 - 1e-6),
        2.0 * (center_error * row_error + MARGIN * unit**2) + centers.smallest,
        2.0 * center_error * (1.0 + 1e-6),
        3.0 * kappa,
    )  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def integer_batch_rows(typing_context: Any) -> Any:
    """Q as a compile-time constant."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, ROWS_AT_ONCE[vector_bytes()])

    return types.intp(), generate


@intrinsic  # type: ignore[untyped-decorator]
def round_row(
    typing_context: Any,
    shifted: Any,  # IN float, a row minus the origin is shifted[at : at + d]
    at: Any,  # IN intp
    n_features: Any,  # IN intp, d
    per_unit: Any,  # IN float of the same type, 1 / row unit
    rounded: Any,  # OUT (m,) int16, the row in units is rounded[to : to + d]
    to: Any,  # IN intp
) -> Any:
    """A row in whole units; of an odd number of features, one more follows, which is 0."""
    signature = types.void(shifted, types.intp, types.intp, shifted.dtype, rounded, types.intp)
    bits = shifted.dtype.bitwidth
    lanes = vector_bytes() * 8 // bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (
            builder.gep(
                array_pointer(context, builder, signature.args[i], arguments[i]), [arguments[i + 1]]
            )
            for i in (0, 4)
        )
        n_features, per_unit = arguments[2], arguments[3]
        element = context.get_value_type(shifted.dtype)

        def store_units(n_lanes: int, t: Any) -> None:
            emit = VectorBuilder(builder, element, bits, n_lanes, n_features.type)
            number = builder.fmul(emit.load(source, t), emit.splat(per_unit))
            number = emit.smaller(number, emit.constant(float(ROW_LIMIT)))
            number = emit.rounded(emit.larger(number, emit.constant(-float(ROW_LIMIT))))
            units = builder.fptosi(number, emit.int32_vector)
            narrow = builder.trunc(units, ir.VectorType(ir.IntType(16), n_lanes))
            place = builder.gep(target, [t])
            builder.store(narrow, builder.bitcast(place, narrow.type.as_pointer())).align = 2

        one = ir.Constant(n_features.type, 1)
        n_whole = builder.and_(n_features, ir.Constant(n_features.type, -lanes))
        step = ir.Constant(n_features.type, lanes)
        zero = ir.Constant(n_features.type, 0)
        with cgutils.for_range_slice(builder, zero, n_whole, step) as (t, _):
            store_units(lanes, t)
        with cgutils.for_range(builder, n_features, start=n_whole) as rest:
            store_units(1, rest.index)
        is_odd = builder.icmp_signed("==", builder.and_(n_features, one), one)
        with builder.if_then(is_odd):
            builder.store(ir.Constant(ir.IntType(16), 0), builder.gep(target, [n_features]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def least_of_integers(
    typing_context: Any,
    rows: Any,  # IN (R * 2 n_pairs,) int16, a block of rows, one after the other
    which: Any,  # IN (m,) int32; rows which[at : at + Q] are looked at
    at: Any,  # IN intp
    panels: Any,  # IN (n_panels * n_pairs * P,) int32
    starts: Any,  # IN (n_panels * P,) int32, where each accumulator starts
    panel: Any,  # IN intp, g
    n_pairs: Any,  # IN intp
    own: Any,  # IN (R,) int32, position of each row's own centre, which is left out
    scale: Any,  # IN float64
    least: Any,  # OUT float, smallest value times ``scale``: least[to : to + Q]
    position: Any,  # OUT int32, its position g * P + lane: position[to : to + Q]
    to: Any,  # IN intp
) -> Any:
    """The smallest of ``starts[j] + panels[j] . x`` in one panel, for Q rows."""
    integer = types.intp
    signature = types.void(
        rows, which, integer, panels, starts, integer, integer, own, types.float64,
        least, position, integer,
    )  # fmt: skip
    n_rows = ROWS_AT_ONCE[vector_bytes()]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> Any:
            return array_pointer(context, builder, signature.args[i], arguments[i])

        panel_v, n_pairs_v = arguments[5], arguments[6]
        emit = IntegerBuilder(builder, vector_bytes() // 4, n_pairs_v.type)
        vectors = range(PANEL_WIDTH // emit.lanes)
        numbers = listed_numbers(emit, pointer(1), arguments[2], n_rows)
        pairs = builder.bitcast(pointer(0), emit.int32.as_pointer())
        row_pointers = [builder.gep(pairs, [builder.mul(i, n_pairs_v)]) for i in numbers]
        first = builder.mul(panel_v, emit.index(PANEL_WIDTH))
        center_p = builder.gep(pointer(3), [builder.mul(first, n_pairs_v)])
        initial = [
            emit.load(pointer(4), builder.add(first, emit.index(v * emit.lanes))) for v in vectors
        ]
        totals = [[emit.register(initial[v]) for v in vectors] for _ in numbers]
        with cgutils.for_range(builder, n_pairs_v) as pair:
            offset = builder.mul(pair.index, emit.index(PANEL_WIDTH))
            centers = [
                emit.load(center_p, builder.add(offset, emit.index(v * emit.lanes)))
                for v in vectors
            ]
            for row, sums in zip(row_pointers, totals, strict=True):
                x = emit.broadcast(row, pair.index)
                for center, register in zip(centers, sums, strict=True):
                    emit.add_products(center, x, register)
        values = [[builder.load(register) for register in sums] for sums in totals]
        found = least_but_own(emit, values, pointer(7), numbers, first, ABSENT)
        several = emit.with_lanes(n_rows)
        lanes = several.tags(found, TAG_BITS)
        places = builder.add(lanes, several.splat(builder.trunc(first, emit.int32)))
        real = context.get_value_type(least.dtype)
        floats = VectorBuilder(builder, real, least.dtype.bitwidth, n_rows, n_pairs_v.type)
        scale = arguments[8]
        scale = scale if real == scale.type else builder.fptrunc(scale, real)
        numbers = builder.fmul(builder.sitofp(found, floats.vector), floats.splat(scale))
        floats.store(numbers, pointer(9), arguments[11])
        several.store(places, pointer(10), arguments[11])
        return context.get_dummy_value()

    return signature, generate
