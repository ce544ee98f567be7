"""One sparse row against all centres, in vector registers: centres in lanes.

Layout
------
``columns[t * S + j]`` is feature t of centre j, times -2: what a stored value is multiplied with
lies side by side. S, a multiple of the W lanes of a register, is the number of places; places
beyond the last centre hold zeros. Up to eight registers of centres are taken at once:

    accumulator[v] = starts[v * W + lane]                      # the centres' squared norms
    for each stored value x of the row, in column t:           # blocks of 32, as in sweep.py
        accumulator[v] += columns[t * S + v * W + lane] * x    # one number for all lanes

``two_least_of_lanes`` then finds the least of these values, where it is, and the second least.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.sweep import padding
from pgkmeans_sk.kernels.vectors import VectorBuilder, accumulate, array_pointer, vector_bytes

MOST_VECTORS = 8
"""Registers of centres at once: as many multiply-adds as have to be on their way."""


def lanes_of(dtype: Any) -> int:
    """W, for numbers of a NumPy ``dtype``."""
    return vector_bytes() // int(dtype.itemsize)


@intrinsic  # type: ignore[untyped-decorator]
def n_lanes(typing_context: Any, values: Any) -> Any:
    """``lanes_of`` as a compile-time constant for the element type of ``values``."""
    number = vector_bytes() * 8 // values.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, number)

    return types.intp(values), generate


@intrinsic  # type: ignore[untyped-decorator]
def row_scores(
    typing_context: Any,
    data: Any,  # IN float; the row's values are data[at : at + count]
    indices: Any,  # IN int32 or int64, their columns
    at: Any,  # IN intp
    count: Any,  # IN intp
    columns: Any,  # IN (d * S,) float of the same type, centres times -2
    starts: Any,  # IN (S,) float, where each accumulator starts
    scores: Any,  # OUT (S,) float
) -> Any:
    """All ``starts[j] + columns[:, j] . x``."""
    signature = types.void(data, indices, types.intp, types.intp, columns, starts, scores)
    bits = data.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> Any:
            return array_pointer(context, builder, signature.args[i], arguments[i])

        at, count = arguments[2:4]
        lanes = vector_bytes() * 8 // bits
        element = context.get_value_type(data.dtype)
        emit = VectorBuilder(builder, element, bits, lanes, count.type)
        values, numbers = (builder.gep(pointer(i), [at]) for i in (0, 1))
        columns, starts, scores = pointer(4), pointer(5), pointer(6)
        shape = context.make_array(signature.args[5])(context, builder, arguments[5]).shape
        n_places = builder.extract_value(shape, 0)

        def add_block(first: Any, n_vectors: int) -> None:
            places = [builder.add(first, emit.index(v * lanes)) for v in range(n_vectors)]
            totals = [emit.register(emit.load(starts, place)) for place in places]

            def add_products(k: Any, registers: list[list[Any]]) -> None:
                column = builder.load(builder.gep(numbers, [k]))
                column = emit.resized(column, emit.intp)
                here = builder.gep(columns, [builder.mul(column, n_places)])
                x = emit.broadcast(values, k)
                for place, register in zip(places, registers[0], strict=True):
                    emit.add_product(emit.load(here, place), x, register)

            accumulate(emit, count, [totals], add_products)
            for place, total in zip(places, totals, strict=True):
                emit.store(builder.load(total), scores, place)

        step = MOST_VECTORS * lanes
        n_whole = builder.and_(n_places, emit.index(-step))
        with cgutils.for_range_slice(builder, emit.index(0), n_whole, emit.index(step)) as (j, _):
            add_block(j, MOST_VECTORS)
        n_vectors = MOST_VECTORS // 2
        while n_vectors:
            size = n_vectors * lanes
            is_left = builder.icmp_signed(
                "!=", builder.and_(n_places, emit.index(size)), emit.index(0)
            )
            with builder.if_then(is_left):
                add_block(builder.and_(n_places, emit.index(-2 * size)), n_vectors)
            n_vectors //= 2
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def two_least_of_lanes(
    typing_context: Any,
    scores: Any,  # IN (S,) float
    best: Any,  # OUT (W,) float, least value of each lane
    second: Any,  # OUT (W,) float, second least value of each lane
    place: Any,  # OUT (W,) int32, where the least one is
) -> Any:
    """The two least of ``scores[lane], scores[lane + W], ...``."""
    signature = types.void(scores, best, second, place)
    bits = scores.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [
            array_pointer(context, builder, kind, argument)
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        shape = context.make_array(signature.args[0])(context, builder, arguments[0]).shape
        n_places = builder.extract_value(shape, 0)
        lanes = vector_bytes() * 8 // bits
        element = context.get_value_type(scores.dtype)
        emit = VectorBuilder(builder, element, bits, lanes, n_places.type)
        most = emit.constant(padding(f"f{bits // 8}"))
        best_r, second_r = emit.register(most), emit.register(most)
        place_r = emit.register(emit.lane_numbers(0))
        here_r = emit.register(emit.lane_numbers(0))
        step = emit.index(lanes)
        with cgutils.for_range_slice(builder, emit.index(0), n_places, step) as (j, _):
            value, best, here = emit.load(pointers[0], j), builder.load(best_r), here_r
            is_less = builder.fcmp_ordered("<", value, best)
            numbers = builder.load(here)
            builder.store(builder.select(is_less, numbers, builder.load(place_r)), place_r)
            builder.store(builder.add(numbers, emit.int_constant(lanes)), here)
            other = emit.larger(value, best)
            builder.store(emit.smaller(builder.load(second_r), other), second_r)
            builder.store(emit.smaller(value, best), best_r)
        emit.store(builder.load(best_r), pointers[1], emit.index(0))
        emit.store(builder.load(second_r), pointers[2], emit.index(0))
        places = emit.resized(builder.load(place_r), emit.int32_vector)
        emit.store(places, pointers[3], emit.index(0))
        return context.get_dummy_value()

    return signature, generate
