"""One tile of points against all centres, in 16-bit integers: ``sweep.py`` once more.

The layout and why the result can be trusted are in ``integers.py``. A lane holds the sum of one
point and takes in a pair of features at a time:

    for each quad of 4 centres:
        accumulator[j][v] = starts[j]
        for each pair p:
            accumulator[j][v] += panels[p, j].low * tile[p, v].low + panels[p, j].high * ...
        least, next = the two smallest of the 4 accumulators
        fold them into best, second best and the quad of the best

Where the processor has an instruction that does the middle line at once, LLVM takes it; others
multiply and add a pair, and add the sum. Where there is neither, ``has_products_of_pairs`` says so,
and nobody asks.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.integers import ABSENT, ROW_LIMIT
from pgkmeans_sk.kernels.sweep import QUAD, fold, two_smallest, vectors_per_tile
from pgkmeans_sk.kernels.vectors import (
    IntegerBuilder,
    VectorBuilder,
    array_pointer,
    vector_bytes,
)


@intrinsic  # type: ignore[untyped-decorator]
def sweep_integers(
    typing_context: Any,
    tile: Any,  # IN (n_pairs * L,) int32
    panels: Any,  # IN (n_quads * n_pairs * 4,) int32
    starts: Any,  # IN (n_quads * 4,) int32, where each accumulator starts
    n_pairs: Any,  # IN intp
    best: Any,  # OUT (L,) int32
    second: Any,  # OUT (L,) int32
    index: Any,  # OUT (L,) int32
) -> Any:
    """Best, second best and index of the best of ``starts[j] + panels[j] . x`` for each point."""
    signature = types.void(tile, panels, starts, types.intp, best, second, index)
    n_vectors = vectors_per_tile()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile_p, panels_p, starts_p, best_p, second_p, index_p = (
            array_pointer(context, builder, signature.args[i], arguments[i])
            for i in (0, 1, 2, 4, 5, 6)
        )
        n_pairs_v = arguments[3]
        emit = IntegerBuilder(builder, vector_bytes() // 4, n_pairs_v.type)
        vectors, centres = range(n_vectors), range(QUAD)
        n_starts = context.make_array(signature.args[2])(context, builder, arguments[2]).nitems
        n_quads = builder.sdiv(n_starts, emit.index(QUAD))

        best_r = [emit.register(emit.constant(ABSENT)) for _ in vectors]
        second_r = [emit.register(emit.constant(ABSENT)) for _ in vectors]
        quad_r = [emit.register(emit.constant(0)) for _ in vectors]
        total_r = [[emit.register(emit.constant(0)) for _ in vectors] for _ in centres]

        with cgutils.for_range(builder, n_quads) as quad:
            first = builder.mul(quad.index, emit.index(QUAD))
            for j in centres:
                start = emit.broadcast(starts_p, builder.add(first, emit.index(j)))
                for v in vectors:
                    builder.store(start, total_r[j][v])
            first = builder.mul(first, n_pairs_v)
            with cgutils.for_range(builder, n_pairs_v) as pair:
                row = builder.mul(pair.index, emit.index(n_vectors * emit.lanes))
                points = [
                    emit.load(tile_p, builder.add(row, emit.index(v * emit.lanes))) for v in vectors
                ]
                place = builder.add(first, builder.mul(pair.index, emit.index(QUAD)))
                for j in centres:
                    centre = emit.broadcast(panels_p, builder.add(place, emit.index(j)))
                    for v in vectors:
                        emit.add_products(points[v], centre, total_r[j][v])
            number = emit.splat(emit.resized(quad.index, emit.int32))
            for v in vectors:
                values = [builder.load(total_r[j][v]) for j in centres]
                fold(emit, *two_smallest(emit, values), number, best_r[v], second_r[v], quad_r[v])

        for v in vectors:
            at = emit.index(v * emit.lanes)
            least = builder.load(best_r[v])
            within = builder.and_(least, emit.constant(QUAD - 1))
            numbers = builder.mul(builder.load(quad_r[v]), emit.constant(QUAD))
            emit.store(least, best_p, at)
            emit.store(builder.load(second_r[v]), second_p, at)
            emit.store(builder.add(numbers, within), index_p, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def round_tile(
    typing_context: Any,
    tile: Any,  # IN (d * L,) float, as ``sweep.py`` takes it
    n_features: Any,  # IN intp, d
    per_unit: Any,  # IN float of the same type, 1 / row unit
    offset: Any,  # IN intp, the place of its first point
    rounded: Any,  # OUT (n_pairs * L',) int32; L' points, of which L are written
) -> Any:
    """Bring a tile of numbers into the layout of ``sweep_integers``."""
    signature = types.void(tile, types.intp, tile.dtype, types.intp, rounded)
    bits = tile.dtype.bitwidth
    lanes, n_vectors = vector_bytes() * 8 // bits, vectors_per_tile()
    width, rounded_width = lanes * n_vectors, vector_bytes() // 4 * n_vectors

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile_p, rounded_p = (
            array_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 4)
        )
        n_features_v, offset_v = arguments[1], arguments[3]
        emit = VectorBuilder(
            builder, context.get_value_type(tile.dtype), bits, lanes, n_features_v.type
        )
        ints = emit.int32_vector
        scale = emit.splat(arguments[2])
        most, least = emit.constant(float(ROW_LIMIT)), emit.constant(-float(ROW_LIMIT))

        def units(feature: Any, v: int) -> Any:
            place = builder.add(builder.mul(feature, emit.index(width)), emit.index(v * lanes))
            number = builder.fmul(emit.load(tile_p, place), scale)
            number = emit.larger(emit.smaller(number, most), least)
            return builder.fptosi(emit.rounded(number), ints)

        def store(low: Any, pair: Any, v: int) -> None:
            place = builder.add(builder.mul(pair, emit.index(rounded_width)), offset_v)
            emit.store(low, rounded_p, builder.add(place, emit.index(v * lanes)))

        low_half = ir.Constant(ints, [0xFFFF] * lanes)
        half = ir.Constant(ints, [16] * lanes)
        n_whole = builder.lshr(n_features_v, emit.index(1))
        with cgutils.for_range(builder, n_whole) as pair:
            feature = builder.mul(pair.index, emit.index(2))
            for v in range(n_vectors):
                low = builder.and_(units(feature, v), low_half)
                high = builder.shl(units(builder.add(feature, emit.index(1)), v), half)
                store(builder.or_(low, high), pair.index, v)
        is_odd = builder.and_(n_features_v, emit.index(1))
        with builder.if_then(builder.icmp_signed("!=", is_odd, emit.index(0))):
            last = builder.sub(n_features_v, emit.index(1))
            for v in range(n_vectors):
                store(builder.and_(units(last, v), low_half), n_whole, v)
        return context.get_dummy_value()

    return signature, generate
