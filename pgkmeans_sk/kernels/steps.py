"""Small steps that kernels take at every turn: working memory, a minimum, a weight, a product.

Each is a few instructions. A function of NumPy or Python that says the same is compiled by Numba on
its own, for each caller, which a first fit has to wait for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.core.extending import intrinsic
from numba.core.imputils import impl_ret_new_ref
from numba.np.arrayobj import populate_array

_LINE = 64
"""Bytes in a cache line, at whose beginning memory begins."""


@intrinsic  # type: ignore[untyped-decorator]
def as_written(
    typing_context: Any,
    rows: Any,  # IN Points, or an array
) -> Any:
    """Has the kernel that calls it translated without unrolling its loops.

    Where inner loops are vectors already, unrolling gains nothing, and takes most of LLVM's time.
    The loops over sparse rows are not.
    """
    is_sparse = isinstance(rows, types.BaseTuple) and rows.instance_class.__name__ == "SparsePoints"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not is_sparse:
            builder.function.attributes.add("optsize")
        return context.get_dummy_value()

    return types.void(rows), generate


@intrinsic  # type: ignore[untyped-decorator]
def new_vector(
    typing_context: Any,
    size: Any,  # IN intp
    dtype: Any,  # IN a NumPy type, or what ``array.dtype`` gives
) -> Any:
    """``np.empty(size, dtype)``."""
    kind = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        itemsize = context.get_constant(
            types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype))
        )
        n_bytes = builder.mul(arguments[0], itemsize)
        owner = context.nrt.meminfo_alloc_aligned(builder, n_bytes, _LINE)
        data = builder.bitcast(context.nrt.meminfo_data(builder, owner), array.data.type)
        populate_array(array, data, (arguments[0],), (itemsize,), itemsize, owner)
        return impl_ret_new_ref(context, builder, kind, array._getvalue())

    return kind(types.intp, dtype), generate


@intrinsic  # type: ignore[untyped-decorator]
def lesser(typing_context: Any, first: Any, second: Any) -> Any:
    """The smaller of two integers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return types.intp(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def epsilon(typing_context: Any, numbers: Any) -> Any:
    """From 1 to the next number of the type of ``numbers``, an array; in float64."""
    eps = float(np.finfo(f"f{numbers.dtype.bitwidth // 8}").eps)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.float64, eps)

    return types.float64(numbers), generate


@intrinsic  # type: ignore[untyped-decorator]
def swap(
    typing_context: Any,
    order: Any,  # INOUT (m,) int
    keys: Any,  # INOUT (m,) float64
    first: Any,  # IN intp
    second: Any,  # IN intp
) -> Any:
    """Exchange two members and their keys."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for kind, array in zip(signature.args[:2], arguments[:2], strict=True):
            data = context.make_array(kind)(context, builder, array).data
            places = [builder.gep(data, [place]) for place in arguments[2:]]
            values = [builder.load(place) for place in places]
            for place, value in zip(places, reversed(values), strict=True):
                builder.store(value, place)
        return context.get_dummy_value()

    return types.void(order, keys, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def clear(
    typing_context: Any,
    vector: Any,  # OUT (d,) float64
) -> Any:
    """``vector[:] = 0``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(vector)(context, builder, arguments[0])
        n_bytes = builder.mul(array.nitems, array.itemsize)
        cgutils.memset(builder, array.data, n_bytes, 0)
        return context.get_dummy_value()

    return types.void(vector), generate


@intrinsic  # type: ignore[untyped-decorator]
def inner(
    typing_context: Any,
    first: Any,  # IN (d,) float64
    second: Any,  # IN (d,) float64
) -> Any:
    """``sum_t first_t second_t``, added up in the order of t."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        zero = context.get_constant(types.float64, 0.0)
        total = cgutils.alloca_once_value(builder, zero)
        with cgutils.for_range(builder, arrays[0].nitems) as t:
            values = (builder.load(builder.gep(array.data, [t.index])) for array in arrays)
            builder.store(builder.fadd(builder.load(total), builder.fmul(*values)), total)
        return builder.load(total)

    return types.float64(first, second), generate


@intrinsic  # type: ignore[untyped-decorator]
def weight_of(
    typing_context: Any,
    weights: Any,  # IN (n,) or (1,) float64
    weight_step: Any,  # IN 1, or 0 when one weight serves all rows
    i: Any,  # IN intp
) -> Any:
    """The weight of row i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(weights)(context, builder, arguments[0])
        # Weights may lie apart.
        at = builder.mul(builder.mul(arguments[1], arguments[2]), stride_of(builder, array))
        return builder.load(cgutils.pointer_add(builder, array.data, at))

    return types.float64(weights, types.intp, types.intp), generate


def stride_of(builder: Any, array: Any) -> Any:
    """Bytes from one number of an array (n,) to the next, in LLVM."""
    return cgutils.unpack_tuple(builder, array.strides, 1)[0]
