"""How kernels see the user's rows, dense or sparse, without a copy.

``sq_dist_to``, ``sq_dist_at``, ``dot_with``, ``add_row`` and ``copy_row`` are the whole vocabulary:
the dense or the sparse form is picked by the type of ``points`` when a kernel that calls them is
compiled. Most first fits are of dense rows, so their forms are written out (``vectors.py``): as
functions in Python each would be compiled on its own, and then once more in its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic
from numba.extending import overload

from pgkmeans_sk.kernels.errors import (
    add_weighted,
    four_lanes,
    product,
    square_of_error,
    sum_of_terms,
)
from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer


class DensePoints(NamedTuple):
    """Rows of a dense matrix: element (i, t) is ``base[i * row_step + t * column_step]``.

    A flat base makes C-ordered, Fortran-ordered, sliced and read-only matrices one type for Numba.
    """

    base: np.ndarray  # (span,) read-only
    row_step: int
    column_step: int
    n_features: int


class SparsePoints(NamedTuple):
    """Rows of a matrix in CSR form, each column at most once in a row."""

    data: np.ndarray  # (nnz,) read-only
    indices: np.ndarray  # (nnz,) read-only
    indptr: np.ndarray  # (n + 1,) read-only
    n_features: int


Points = DensePoints | SparsePoints


def dense_points(X: np.ndarray) -> DensePoints:
    """View ``X`` (n, d), of any strides, as a flat array and two steps."""
    n_rows, n_features = X.shape
    odd_steps = any(stride % X.itemsize for stride in X.strides) or min(X.strides) < 0
    if odd_steps or not X.flags.aligned:
        X = np.array(X, order="C")  # fields of records, reversed rows: rare, copied
    row_step, column_step = (stride // X.itemsize for stride in X.strides)
    span = 1 + (n_rows - 1) * row_step + (n_features - 1) * column_step
    base = np.lib.stride_tricks.as_strided(X, (span,), (X.itemsize,), writeable=False)
    return DensePoints(base, row_step, column_step, n_features)


def sparse_points(X: Any) -> SparsePoints:
    """View the CSR matrix ``X`` (n, d); one with repeated entries is copied to add them up."""
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    data, indices, indptr = X.data.view(), X.indices.view(), X.indptr.view()
    for part in (data, indices, indptr):
        part.flags.writeable = False
    return SparsePoints(data, indices, indptr, X.shape[1])


def _is_dense(points: Any) -> bool:
    return points.instance_class is DensePoints


class _Row(NamedTuple):
    """A dense row in LLVM."""

    first: Any  # pointer to its first value
    step: Any  # from one value to the next
    n_features: Any


def _dense_row(context: Any, builder: Any, signature: Any, arguments: Any) -> _Row:
    """The row that the first two arguments of a function below name."""
    base, row_step, column_step, n_features = (
        builder.extract_value(arguments[0], k) for k in range(4)
    )
    values = array_pointer(context, builder, signature.args[0].types[0], base)
    first = builder.gep(values, [builder.mul(arguments[1], row_step)])
    return _Row(first, column_step, n_features)


def _for_either_step(
    builder: Any, row: _Row, name: str, emit: Callable[..., Any], others: list[Any]
) -> Any:
    """What ``emit(builder, first, step, n_features, *others)`` gives; its kind is a float64.

    Emitted in place for values side by side (the step is None). Rows whose values lie apart are
    rare: for them there is one function in a kernel, which all places call.
    """
    found = cgutils.alloca_once(builder, ir.DoubleType())
    side_by_side = builder.icmp_signed("==", row.step, row.step.type(1))
    with builder.if_else(side_by_side) as (in_place, elsewhere):
        with in_place:
            builder.store(emit(builder, row.first, None, row.n_features, *others), found)
        with elsewhere:
            arguments = [row.first, row.step, row.n_features, *others]
            kinds = [argument.type for argument in arguments]
            name = f"{name}.{row.first.type.pointee}"
            function = builder.module.globals.get(name)
            if function is None:
                kind = ir.FunctionType(ir.DoubleType(), kinds)
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                function.attributes.add("optsize")
                inside = ir.IRBuilder(function.append_basic_block())
                inside.ret(emit(inside, *function.args))
            builder.store(builder.call(function, arguments), found)
    return builder.load(found)


def _sum(term: Callable[[VectorBuilder, Any, Any], Any], sparse_form: Any) -> Callable[..., Any]:
    """How to generate a sum of terms over a row and a vector, the third argument."""

    def emit(builder: Any, first: Any, step: Any, n_features: Any, vector: Any) -> Any:
        return sum_of_terms(four_lanes(builder), first, step, vector, n_features, term)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _is_dense(signature.args[0]):
            return context.compile_internal(builder, sparse_form, signature, arguments)
        row = _dense_row(context, builder, signature, arguments)
        vector = array_pointer(context, builder, signature.args[2], arguments[2])
        return _for_either_step(builder, row, f"sum.{term.__name__}", emit, [vector])

    return generate


def _sparse_sq_dist_to(points, i, vector, vector_norm):
    total = vector_norm
    for k in range(points.indptr[i], points.indptr[i + 1]):
        value = np.float64(points.data[k])
        total += value * (value - 2.0 * vector[points.indices[k]])
    return max(total, 0.0)


@intrinsic  # type: ignore[untyped-decorator]
def sq_dist_to(
    typing_context: Any,
    points: Any,  # IN Points
    i: Any,  # IN intp
    vector: Any,  # IN (d,) float64
    vector_norm: Any,  # IN float64, its squared norm
) -> Any:
    """``|x_i - vector|^2`` in float64."""
    signature = types.float64(points, types.intp, vector, types.float64)
    return signature, _sum(square_of_error, _sparse_sq_dist_to)


def _sparse_dot_with(points, i, vector):
    total = 0.0
    for k in range(points.indptr[i], points.indptr[i + 1]):
        total += points.data[k] * vector[points.indices[k]]
    return total


@intrinsic  # type: ignore[untyped-decorator]
def dot_with(
    typing_context: Any,
    points: Any,  # IN Points
    i: Any,  # IN intp
    vector: Any,  # IN (d,) float64
) -> Any:
    """``x_i . vector`` in float64."""
    signature = types.float64(points, types.intp, vector)
    return signature, _sum(product, _sparse_dot_with)


def _sparse_add_row(points, i, weight, target):
    for k in range(points.indptr[i], points.indptr[i + 1]):
        target[points.indices[k]] += weight * points.data[k]


@intrinsic  # type: ignore[untyped-decorator]
def add_row(
    typing_context: Any,
    points: Any,  # IN Points
    i: Any,  # IN intp
    weight: Any,  # IN float64
    target: Any,  # INOUT (d,) float64
) -> Any:
    """``target += weight * x_i``."""

    def emit(builder: Any, first: Any, step: Any, n_features: Any, weight: Any, sums: Any) -> Any:
        add_weighted(four_lanes(builder), first, step, weight, sums, n_features)
        return weight

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _is_dense(points):
            return context.compile_internal(builder, _sparse_add_row, signature, arguments)
        row = _dense_row(context, builder, signature, arguments)
        sums = array_pointer(context, builder, target, arguments[3])
        _for_either_step(builder, row, "add_weighted", emit, [arguments[2], sums])
        return context.get_dummy_value()

    return types.void(points, types.intp, types.float64, target), generate


def _sparse_copy_row(points, i, target):
    for t in range(points.n_features):
        target[t] = 0.0
    for k in range(points.indptr[i], points.indptr[i + 1]):
        target[points.indices[k]] = points.data[k]


@intrinsic  # type: ignore[untyped-decorator]
def copy_row(
    typing_context: Any,
    points: Any,  # IN Points
    i: Any,  # IN intp
    target: Any,  # OUT (d,) float
) -> Any:
    """``target = x_i``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _is_dense(points):
            return context.compile_internal(builder, _sparse_copy_row, signature, arguments)
        row = _dense_row(context, builder, signature, arguments)
        values = array_pointer(context, builder, target, arguments[2])
        with cgutils.for_range(builder, row.n_features) as feature:
            x = builder.load(builder.gep(row.first, [builder.mul(feature.index, row.step)]))
            x = context.cast(builder, x, points.types[0].dtype, target.dtype)
            builder.store(x, builder.gep(values, [feature.index]))
        return context.get_dummy_value()

    return types.void(points, types.intp, target), generate


def sq_dist_at(points, i, vectors, at, vector_norm):
    """``sq_dist_to`` for one of several vectors, ``vectors[at : at + d]``, not made an array."""
    raise NotImplementedError("only inside kernels")


@overload(sq_dist_at)
def _sq_dist_at(points, i, vectors, at, vector_norm):
    def dense(points, i, vectors, at, vector_norm):
        total = 0.0
        for t in range(points.n_features):
            x = np.float64(points.base[np.uintp(i * points.row_step + t * points.column_step)])
            difference = x - vectors[at + np.uintp(t)]
            total += difference * difference
        return total

    def sparse(points, i, vectors, at, vector_norm):
        total = vector_norm
        for k in range(points.indptr[i], points.indptr[i + 1]):
            value = np.float64(points.data[k])
            total += value * (value - 2.0 * vectors[at + np.uintp(points.indices[k])])
        return max(total, 0.0)

    return dense if _is_dense(points) else sparse
