"""A row's error vector ``x - c``: its squared length, and adding it to its cluster's sum.

Both are float64, whatever the data is. Four sums run side by side, in the four lanes of a vector,
on every processor and in this order:

    sums[t % 4] += (x_t - c_t)^2  for t = 0, 1, ...;  the rest, t >= d - d % 4, goes to sums[0]
    squared length = (sums[0] + sums[1]) + (sums[2] + sums[3])

Products are rounded before they are added (no fused multiply-add), so that the bits do not depend
on the processor. ``error_of_row`` in ``tests/reference.py`` is the same in NumPy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer

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
    """``|x - c|^2`` of a contiguous row and its centre."""
    signature = types.float64(values, types.intp, centers, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _emit(context, builder, signature, arguments, collects=False)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def add_error(
    typing_context: Any,
    values: Any,  # IN float; a row is values[at : at + d]
    at: Any,  # IN intp
    centers: Any,  # IN (K, d) float64
    label: Any,  # IN intp
    n_features: Any,  # IN intp, d
    weight: Any,  # IN float64
    sums: Any,  # INOUT (K, d) float64, += w (x - c) in row ``label``
) -> Any:
    """``|x - c|^2``; ``w (x - c)`` is added to the sum of the row's cluster."""
    signature = types.float64(
        values, types.intp, centers, types.intp, types.intp, types.float64, sums
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _emit(context, builder, signature, arguments, collects=True)

    return signature, generate


def _emit(context: Any, builder: Any, signature: Any, arguments: Any, collects: bool) -> Any:
    at, label, n_features = arguments[1], arguments[3], arguments[4]
    double = ir.DoubleType()
    emit = VectorBuilder(builder, double, 64, LANES, n_features.type)
    row = builder.gep(array_pointer(context, builder, signature.args[0], arguments[0]), [at])
    first = builder.mul(label, n_features)
    center = builder.gep(array_pointer(context, builder, signature.args[2], arguments[2]), [first])
    if collects:
        weight = arguments[5]
        weights = emit.splat(weight)
        pointer = array_pointer(context, builder, signature.args[6], arguments[6])
        sums = builder.gep(pointer, [first])

    total_r = emit.register(emit.zero)
    n_whole = builder.and_(n_features, emit.index(-LANES))
    with cgutils.for_range_slice(builder, emit.index(0), n_whole, emit.index(LANES)) as (t, _):
        error = builder.fsub(_widened(emit, _load_row(emit, row, t)), emit.load(center, t))
        builder.store(builder.fadd(builder.load(total_r), builder.fmul(error, error)), total_r)
        if collects:
            added = builder.fadd(emit.load(sums, t), builder.fmul(weights, error))
            emit.store(added, sums, t)
    total = builder.load(total_r)
    lane = [builder.extract_element(total, ir.Constant(emit.int32, i)) for i in range(LANES)]
    rest_r = cgutils.alloca_once_value(builder, lane[0])
    with cgutils.for_range(builder, n_features, start=n_whole) as rest:
        t = rest.index
        x = builder.load(builder.gep(row, [t]))
        if x.type != double:
            x = builder.fpext(x, double)
        error = builder.fsub(x, builder.load(builder.gep(center, [t])))
        builder.store(builder.fadd(builder.load(rest_r), builder.fmul(error, error)), rest_r)
        if collects:
            place = builder.gep(sums, [t])
            added = builder.fadd(builder.load(place), builder.fmul(weight, error))
            builder.store(added, place)
    return builder.fadd(builder.fadd(builder.load(rest_r), lane[1]), builder.fadd(lane[2], lane[3]))


def _load_row(emit: VectorBuilder, row: Any, t: Any) -> Any:
    """Four values of the row, which is aligned to its numbers only."""
    loaded = emit.load(row, t)
    loaded.align = 4 if row.type.pointee == ir.FloatType() else 8
    return loaded


def _widened(emit: VectorBuilder, vector: Any) -> Any:
    return vector if vector.type == emit.vector else emit.builder.fpext(vector, emit.vector)
