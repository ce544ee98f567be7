"""One tile of points against all centres, in vector registers: points in lanes.

Layout
------
A *tile* holds L = W * V points, feature by feature: ``tile[t * L + l]`` is feature t of point l, so
that one vector register holds the same feature of W points. Centres lie in panels of P = 16
(``panels.py``), of which J = 4, a *quad*, are taken together. J * V accumulators start at the
centres' squared norms and gather ``|c|^2 - 2 x.c`` in registers:

    for each quad of J centres:
        accumulator[j][v] = starts[j]
        for each feature t:                       # blocks of 32: Note [Blocked sums], vectors.py
            accumulator[j][v] += panels[t, j] * tile[t, v]
        least, next = the two smallest of the J accumulators     # see Note [Tags]
        fold them into best, second best and the quad of the best

No horizontal operation, no n x K matrix, and best/second/quad stay near the registers.

Note [Tags]
~~~~~~~~~~~
Which of the J centres is the least is remembered in the value itself: j replaces its lowest two
bits. Then eight minima and maxima find both values of a quad, where comparing and selecting value,
second and index one centre after the other takes twice as many instructions; at d = 8 that is as
much as all the products. A tag moves a value by up to 3 units in the last place, which the error
bound of ``nearest.py`` contains. Of equal values the order is undefined: whoever needs ties told
looks at them exactly.

``sweep`` in ``tests/reference.py`` is the same in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.vectors import (
    PANEL_WIDTH,
    VectorBuilder,
    accumulate,
    array_pointer,
    vector_bytes,
)

QUAD = 4
"""J, the number of centres that are swept together."""

QUAD_SHIFT = 2
"""log2(P / J): a panel is so many quads."""

TAG_BITS = 2
"""log2(J): bits at the end of a value that name its centre within the panel."""


def vectors_per_tile() -> int:
    """V, chosen so that J * V accumulators fit the register file beside what feeds them.

    AVX-512 and 64-bit Arm have 32 registers, SSE and AVX have 16.
    """
    return 3 if vector_bytes() == 64 else 2


def tile_width(itemsize: int) -> int:
    """L, the number of points in a tile of numbers of ``itemsize`` bytes."""
    return vector_bytes() // itemsize * vectors_per_tile()


def padding(dtype: Any) -> float:
    """Where the accumulator of a centre that does not exist starts: it never wins.

    Finite, since a tag would make an infinity not a number.
    """
    return float(np.finfo(dtype).max)


@intrinsic  # type: ignore[untyped-decorator]
def tile_points(typing_context: Any, tile: Any) -> Any:
    """``tile_width`` as a compile-time constant for the element type of ``tile``."""
    width = tile_width(tile.dtype.bitwidth // 8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, width)

    return types.intp(tile), generate


@intrinsic  # type: ignore[untyped-decorator]
def sweep(
    typing_context: Any,
    tile: Any,  # IN (d * L,) float
    panels: Any,  # IN (n_panels * d * P,) float, centres times -2
    starts: Any,  # IN (n_panels * P,) float, where each accumulator starts
    n_quads: Any,  # IN intp
    n_features: Any,  # IN intp, d
    best: Any,  # OUT (L,) float
    second: Any,  # OUT (L,) float
    index: Any,  # OUT (L,) int32
) -> Any:
    """Best, second best and index of the best of ``starts[j] + panels[j] . x`` for each point."""
    signature = types.void(tile, panels, starts, types.intp, types.intp, best, second, index)
    bits = tile.dtype.bitwidth
    largest = padding(f"f{bits // 8}")
    lanes, n_vectors = vector_bytes() * 8 // bits, vectors_per_tile()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile_p, panels_p, starts_p = (
            array_pointer(context, builder, signature.args[i], arguments[i]) for i in range(3)
        )
        n_quads_v, n_features_v = arguments[3], arguments[4]
        element = context.get_value_type(tile.dtype)
        emit = VectorBuilder(builder, element, bits, lanes, n_features_v.type)
        vectors, centres = range(n_vectors), range(QUAD)

        best_r = [emit.register(emit.constant(largest)) for _ in vectors]
        second_r = [emit.register(emit.constant(largest)) for _ in vectors]
        quad_r = [emit.register(emit.int_constant(0)) for _ in vectors]
        total_r = [[emit.register(emit.zero) for _ in vectors] for _ in centres]

        with cgutils.for_range(builder, n_quads_v) as quad:
            panel = builder.lshr(quad.index, emit.index(QUAD_SHIFT))
            within = builder.and_(quad.index, emit.index(PANEL_WIDTH // QUAD - 1))
            first = builder.mul(panel, builder.mul(n_features_v, emit.index(PANEL_WIDTH)))
            first = builder.add(first, builder.mul(within, emit.index(QUAD)))
            first_centre = builder.mul(quad.index, emit.index(QUAD))
            for j in centres:
                start = emit.broadcast(starts_p, builder.add(first_centre, emit.index(j)))
                for v in vectors:
                    builder.store(start, total_r[j][v])

            def add_products(feature: Any, registers: Any, first: Any = first) -> None:
                tile_row = builder.mul(feature, emit.index(n_vectors * lanes))
                points = [
                    emit.load(tile_p, builder.add(tile_row, emit.index(v * lanes))) for v in vectors
                ]
                place = builder.add(first, builder.mul(feature, emit.index(PANEL_WIDTH)))
                for j in centres:
                    centre = emit.broadcast(panels_p, builder.add(place, emit.index(j)))
                    for v in vectors:
                        emit.add_product(centre, points[v], registers[j][v])

            accumulate(emit, n_features_v, total_r, add_products)
            number = emit.splat(emit.resized(quad.index, emit.lane_int))
            for v in vectors:
                values = [
                    emit.tag(builder.load(total_r[j][v]), TAG_BITS, emit.int_constant(j))
                    for j in centres
                ]
                fold(emit, *two_smallest(emit, values), number, best_r[v], second_r[v], quad_r[v])

        best_p, second_p, index_p = (
            array_pointer(context, builder, signature.args[i], arguments[i]) for i in range(5, 8)
        )
        int32s = ir.VectorType(emit.int32, lanes)
        for v in vectors:
            least = builder.load(best_r[v])
            within = emit.tags(least, TAG_BITS)
            numbers = builder.add(
                builder.mul(builder.load(quad_r[v]), emit.int_constant(QUAD)), within
            )
            emit.store(least, best_p, emit.index(v * lanes))
            emit.store(builder.load(second_r[v]), second_p, emit.index(v * lanes))
            emit.store(emit.resized(numbers, int32s), index_p, emit.index(v * lanes))
        return context.get_dummy_value()

    return signature, generate


def two_smallest(emit: Any, values: list[Any]) -> tuple[Any, Any]:
    """Smallest and second smallest of four vectors, lane by lane."""
    a, b, c, d = values
    low, high = emit.smaller(a, b), emit.larger(a, b)
    other_low, other_high = emit.smaller(c, d), emit.larger(c, d)
    least = emit.smaller(low, other_low)
    following = emit.smaller(emit.larger(low, other_low), emit.smaller(high, other_high))
    return least, following


def fold(
    emit: Any, least: Any, following: Any, number: Any, best_r: Any, second_r: Any, quad_r: Any
) -> None:
    """best, second, quad <- the same after one more quad."""
    builder = emit.builder
    best, second = builder.load(best_r), builder.load(second_r)
    better = emit.less(least, best)
    loser = emit.larger(best, least)
    builder.store(emit.smaller(emit.smaller(second, following), loser), second_r)
    builder.store(builder.select(better, number, builder.load(quad_r)), quad_r)
    builder.store(emit.smaller(least, best), best_r)
