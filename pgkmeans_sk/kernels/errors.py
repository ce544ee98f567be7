"""A row's error vector ``x - c``: its squared length, and adding it to its cluster's sums.

Products with a direction, ``row_product``, are added up in the same way.

Sums are float64, whatever the data is, and always in one order: four sums run side by side, in the
four lanes of a vector, on every processor:

    sums[t % 4] += (x_t - c_t)^2  for t = 0, 1, ...;  the rest, t >= d - d % 4, goes to sums[0]

``add_error`` keeps the four of each cluster apart, for all of its rows, and so spares a horizontal
sum for each row; ``sq_error`` adds them up, (0 + 1) + (2 + 3). Products are rounded before they are
added (no fused multiply-add), so that the bits do not depend on the processor.
``errors_of_row`` in ``tests/reference.py`` is the same in NumPy.

``quick_sq_error`` is what it says: in the precision of the data, as wide as a register, in whatever
order; its relative error is below (d + 16) eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer, vector_bytes

LANES = 4


@intrinsic  # type: ignore[untyped-decorator]
def sq_error(
    typing_context: Any,
    values: Any,  # IN float; a row is values[at : at + d]
    at: Any,  # IN intp
    centers: Any,  # IN (K, d) float64
    label: Any,  # IN intp
    n_features: Any,  # IN intp, d
) -> Any:
    """``|x - c|^2`` of a contiguous row and its centre, in float64."""
    signature = types.float64(values, types.intp, centers, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = four_lanes(builder)
        row, center = _row_and_center(context, emit, signature, arguments)
        return sum_of_terms(emit, row, None, center, arguments[4], square_of_error)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def row_product(
    typing_context: Any,
    values: Any,  # IN float; a row is values[at : at + d]
    at: Any,  # IN intp
    vectors: Any,  # IN (K, d) float64
    label: Any,  # IN intp
    n_features: Any,  # IN intp, d
) -> Any:
    """``x . v`` of a contiguous row and one of the vectors, in float64."""
    signature = types.float64(values, types.intp, vectors, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = four_lanes(builder)
        row, center = _row_and_center(context, emit, signature, arguments)
        return sum_of_terms(emit, row, None, center, arguments[4], product)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def squared_distance(
    typing_context: Any,
    row: Any,  # IN (d,) float64
    centers: Any,  # IN (K, d) float64
    label: Any,  # IN intp
) -> Any:
    """The definition of a distance: squares added up in the order of the features."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = four_lanes(builder)
        array = context.make_array(row)(context, builder, arguments[0])
        first = builder.mul(arguments[2], array.nitems)
        center = builder.gep(array_pointer(context, builder, centers, arguments[1]), [first])
        total_r = cgutils.alloca_once_value(builder, ir.Constant(emit.element, 0.0))
        with cgutils.for_range(builder, array.nitems) as feature:
            x, c = (
                builder.load(builder.gep(values, [feature.index]))
                for values in (array.data, center)
            )
            square = square_of_error(emit, x, c)
            builder.store(builder.fadd(builder.load(total_r), square), total_r)
        return builder.load(total_r)

    return types.float64(row, centers, types.intp), generate


def four_lanes(builder: Any) -> VectorBuilder:
    """The builder for vectors of four float64."""
    return VectorBuilder(builder, ir.DoubleType(), 64, LANES, cgutils.intp_t)


def square_of_error(emit: VectorBuilder, x: Any, c: Any) -> Any:
    """``(x - c)^2``."""
    error = emit.builder.fsub(x, c)
    return emit.builder.fmul(error, error)


def product(emit: VectorBuilder, x: Any, c: Any) -> Any:
    """``x c``."""
    return emit.builder.fmul(x, c)


def sum_of_terms(
    emit: VectorBuilder,
    row: Any,  # pointer to its first value
    step: Any,  # from one value to the next; None if they lie side by side
    center: Any,  # pointer to its first value, float64
    n_features: Any,
    term: Callable[[VectorBuilder, Any, Any], Any],
) -> Any:
    """The sum of ``term(x_t, c_t)``, in four sums side by side."""
    builder = emit.builder
    total_r = emit.register(emit.zero)

    def add_whole(t: Any) -> None:
        added = term(emit, _load_row(emit, row, t, step), emit.load(center, t))
        builder.store(builder.fadd(builder.load(total_r), added), total_r)

    n_whole = _for_whole(emit, n_features, add_whole)
    numbers = [ir.Constant(emit.int32, lane) for lane in range(LANES)]
    lanes = [builder.extract_element(builder.load(total_r), number) for number in numbers]
    rest_r = cgutils.alloca_once_value(builder, lanes[0])
    with cgutils.for_range(builder, n_features, start=n_whole) as rest:
        x = _load_number(emit, row, rest.index, step)
        added = term(emit, x, builder.load(builder.gep(center, [rest.index])))
        builder.store(builder.fadd(builder.load(rest_r), added), rest_r)
    first = builder.fadd(builder.load(rest_r), lanes[1])
    return builder.fadd(first, builder.fadd(lanes[2], lanes[3]))


def add_weighted(
    emit: VectorBuilder,
    row: Any,  # as in ``sum_of_terms``
    step: Any,
    weight: Any,
    sums: Any,  # pointer to the first of d float64
    n_features: Any,
) -> None:
    """``sums[t] += weight * x_t``."""
    builder, weights = emit.builder, emit.splat(weight)

    def add_whole(t: Any) -> None:
        added = builder.fmul(weights, _load_row(emit, row, t, step))
        emit.store(builder.fadd(emit.load(sums, t), added), sums, t)

    n_whole = _for_whole(emit, n_features, add_whole)
    with cgutils.for_range(builder, n_features, start=n_whole) as rest:
        place = builder.gep(sums, [rest.index])
        added = builder.fmul(weight, _load_number(emit, row, rest.index, step))
        builder.store(builder.fadd(builder.load(place), added), place)


@intrinsic  # type: ignore[untyped-decorator]
def add_error(
    typing_context: Any,
    values: Any,  # IN float; value t of the row is values[at + t * step]
    at: Any,  # IN intp
    step: Any,  # IN intp
    side_by_side: Any,  # WORK (d,) float of the same type
    centers: Any,  # IN (K, d) float64
    label: Any,  # IN intp
    n_features: Any,  # IN intp, d
    weight: Any,  # IN float64
    sums: Any,  # INOUT (K, d) float64, += w (x - c) in row ``label``
    sq_errors: Any,  # INOUT (K, 4) float64, += w (x_t - c_t)^2, in four lanes
) -> Any:
    """Add a row to the sums of its cluster."""
    integer = types.intp
    signature = types.void(
        values, integer, integer, side_by_side, centers, integer, integer, types.float64,
        sums, sq_errors,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = four_lanes(builder)
        values, copied, centers, sums, of_cluster = (
            array_pointer(context, builder, signature.args[i], arguments[i])
            for i in (0, 3, 4, 8, 9)
        )
        step, (label, n_features, weight) = arguments[2], arguments[5:8]
        row_r = cgutils.alloca_once_value(builder, builder.gep(values, [arguments[1]]))
        with builder.if_then(builder.icmp_signed("!=", step, emit.index(1))):
            apart = builder.load(row_r)
            with cgutils.for_range(builder, n_features) as feature:
                x = builder.load(builder.gep(apart, [builder.mul(feature.index, step)]))
                builder.store(x, builder.gep(copied, [feature.index]))
            builder.store(copied, row_r)
        row = builder.load(row_r)
        weights = emit.splat(weight)
        first = builder.mul(label, n_features)
        center, sums = builder.gep(centers, [first]), builder.gep(sums, [first])
        of_cluster = builder.gep(of_cluster, [builder.mul(label, emit.index(LANES))])
        total_r = emit.register(emit.load(of_cluster, emit.index(0)))

        def add_whole(t: Any) -> None:
            error = builder.fsub(_load_row(emit, row, t, None), emit.load(center, t))
            weighted = builder.fmul(weights, error)
            emit.store(builder.fadd(emit.load(sums, t), weighted), sums, t)
            square = builder.fmul(weighted, error)
            builder.store(builder.fadd(builder.load(total_r), square), total_r)

        n_whole = _for_whole(emit, n_features, add_whole)
        emit.store(builder.load(total_r), of_cluster, emit.index(0))
        with cgutils.for_range(builder, n_features, start=n_whole) as rest:
            c = builder.load(builder.gep(center, [rest.index]))
            error = builder.fsub(_load_number(emit, row, rest.index, None), c)
            weighted = builder.fmul(weight, error)
            for place, added in (
                (builder.gep(sums, [rest.index]), weighted),
                (of_cluster, builder.fmul(weighted, error)),
            ):
                builder.store(builder.fadd(builder.load(place), added), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def quick_sq_error(
    typing_context: Any,
    values: Any,  # IN float; a row is values[at : at + d]
    at: Any,  # IN intp
    centers: Any,  # IN (K * d,) float of the same type
    label: Any,  # IN intp
    n_features: Any,  # IN intp, d
) -> Any:
    """``|x - c|^2`` of a contiguous row and its centre, in the precision of the data."""
    signature = values.dtype(values, types.intp, centers, types.intp, types.intp)
    bits = values.dtype.bitwidth
    lanes = vector_bytes() * 8 // bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        n_features = arguments[4]
        element = context.get_value_type(values.dtype)
        emit = VectorBuilder(builder, element, bits, lanes, n_features.type)
        row, center = _row_and_center(context, emit, signature, arguments)
        total_r = emit.register(emit.zero)

        def add_whole(t: Any) -> None:
            error = builder.fsub(emit.load(row, t), emit.load(center, t))
            emit.add_product(error, error, total_r)

        n_whole = _for_whole(emit, n_features, add_whole)
        total = emit.sum_of_lanes(builder.load(total_r))
        rest_r = cgutils.alloca_once_value(builder, total)
        with cgutils.for_range(builder, n_features, start=n_whole) as rest:
            x = builder.load(builder.gep(row, [rest.index]))
            error = builder.fsub(x, builder.load(builder.gep(center, [rest.index])))
            builder.store(builder.fadd(builder.load(rest_r), builder.fmul(error, error)), rest_r)
        return builder.load(rest_r)

    return signature, generate


def _row_and_center(
    context: Any, emit: VectorBuilder, signature: Any, arguments: Any
) -> tuple[Any, Any]:
    """Pointers to the row and to its centre."""
    builder = emit.builder
    values, centers = (
        array_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2)
    )
    first = builder.mul(arguments[3], arguments[4])
    return builder.gep(values, [arguments[1]]), builder.gep(centers, [first])


def _for_whole(emit: VectorBuilder, n_features: Any, add: Callable[[Any], None]) -> Any:
    """Call ``add`` with the start of each whole vector; returns where the rest begins."""
    n_whole = emit.builder.and_(n_features, emit.index(-emit.lanes))
    step = emit.index(emit.lanes)
    with cgutils.for_range_slice(emit.builder, emit.index(0), n_whole, step) as (t, _):
        add(t)
    return n_whole


def _load_row(emit: VectorBuilder, row: Any, t: Any, step: Any) -> Any:
    """Four values of a row, widened; it is aligned to its numbers only."""
    builder = emit.builder
    if step is not None:
        values = ir.Constant(emit.vector, ir.Undefined)
        for lane in range(LANES):
            x = _load_number(emit, row, builder.add(t, emit.index(lane)), step)
            values = builder.insert_element(values, x, ir.Constant(emit.int32, lane))
        return values
    loaded = emit.load(row, t)
    if loaded.type == emit.vector:
        return loaded
    loaded.align = 4
    return builder.fpext(loaded, emit.vector)


def _load_number(emit: VectorBuilder, row: Any, t: Any, step: Any) -> Any:
    """One value of a row, widened."""
    at = t if step is None else emit.builder.mul(t, step)
    x = emit.builder.load(emit.builder.gep(row, [at]))
    return x if x.type == emit.element else emit.builder.fpext(x, emit.element)
