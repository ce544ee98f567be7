"""Rows into the layout of ``sweep.py``, features in rows and points in lanes, and back to answers.

A register holds W numbers. From W rows, W features each are loaded, moved near the origin, and the
W x W square is transposed in registers; then the registers are rows of the tile:

    for each W of the tile's rows:
        for W features t, while there are so many; then W/2, W/4, ... of the rest:
            square[i] = rows[i, t : t + W] - origin[t : t + W]
            tile[t : t + W, i] = the square, transposed;  norms[i] += its squares

Written number by number instead, a tile costs as much as a sweep over thirty centres: its narrow
stores have to reach the cache before a wide load can have them.

Note [Transposing]
~~~~~~~~~~~~~~~~~~
Log2(W) steps. Step s exchanges, between registers i and i + s, the numbers at places with bit s
against those without; each number whose place and register differ in that bit moves to where they
agree. With fewer than W features several rows lie side by side in a register first.

``tile_of`` and ``doubtful`` in ``tests/reference.py`` are the same in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.sweep import vectors_per_tile
from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer, vector_bytes


@intrinsic  # type: ignore[untyped-decorator]
def fill_tile(
    typing_context: Any,
    base: Any,  # IN (span,) float; value t of row i is base[i * row_step + t * column_step]
    row_step: Any,  # IN intp
    column_step: Any,  # IN intp
    which: Any,  # IN (m,) int64, rows which[first : first + count]
    first: Any,  # IN intp
    count: Any,  # IN intp, from 1 to L; the last row fills the lanes beyond
    origin: Any,  # IN (d,) float
    tile: Any,  # OUT (d * L,) float, of rows minus origin
    norms: Any,  # OUT (L,) float, their squared norms
) -> Any:
    """Bring rows into the layout of ``sweep``."""
    integer = types.intp
    signature = types.void(base, integer, integer, which, integer, integer, origin, tile, norms)
    bits = tile.dtype.bitwidth
    lanes, n_vectors = vector_bytes() * 8 // bits, vectors_per_tile()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base_p, which_p, origin_p, tile_p, norms_p = (
            array_pointer(context, builder, signature.args[i], arguments[i])
            for i in (0, 3, 6, 7, 8)
        )
        row_step, column_step, first, count = arguments[1], arguments[2], arguments[4], arguments[5]
        element = context.get_value_type(tile.dtype)
        emit = VectorBuilder(builder, element, bits, lanes, row_step.type)
        n_features = context.make_array(signature.args[6])(context, builder, arguments[6]).nitems
        last = builder.sub(count, emit.index(1))

        def row_at(lane: Any) -> Any:
            """Pointer to the row of a lane."""
            place = builder.add(first, emit.smaller_int(lane, last))
            number = builder.load(builder.gep(which_p, [place]))
            return builder.gep(base_p, [builder.mul(number, row_step)])

        to = _Tile(origin_p, tile_p, norms_p, n_features, n_vectors)
        is_one = builder.icmp_signed("==", column_step, emit.index(1))
        with builder.if_else(is_one) as (side_by_side, apart):
            with side_by_side:
                _fill_by_rows(emit, row_at, to)
            with apart:
                _fill_by_numbers(emit, row_at, column_step, to)
        return context.get_dummy_value()

    return signature, generate


class _Tile(NamedTuple):
    """Where rows go, and what is taken off them, in LLVM."""

    origin: Any
    tile: Any
    norms: Any
    n_features: Any
    n_vectors: int


def _fill_by_numbers(
    emit: VectorBuilder, row_at: Callable[[Any], Any], column_step: Any, to: _Tile
) -> None:
    """One number after the other."""
    builder, width = emit.builder, emit.index(emit.lanes * to.n_vectors)
    with cgutils.for_range(builder, width) as lane:
        row = row_at(lane.index)
        norm_r = emit.register(ir.Constant(emit.element, 0.0))
        with cgutils.for_range(builder, to.n_features) as feature:
            x = builder.load(builder.gep(row, [builder.mul(feature.index, column_step)]))
            x = builder.fsub(x, builder.load(builder.gep(to.origin, [feature.index])))
            place = builder.add(builder.mul(feature.index, width), lane.index)
            builder.store(x, builder.gep(to.tile, [place]))
            norm = builder.fadd(builder.load(norm_r), builder.fmul(x, x))
            builder.store(norm, norm_r)
        builder.store(builder.load(norm_r), builder.gep(to.norms, [lane.index]))


def _fill_by_rows(emit: VectorBuilder, row_at: Callable[[Any], Any], to: _Tile) -> None:
    """Squares of numbers, transposed."""
    builder, lanes, width = emit.builder, emit.lanes, emit.lanes * to.n_vectors
    with cgutils.for_range(builder, emit.index(to.n_vectors)) as vector:
        offset = builder.mul(vector.index, emit.index(lanes))
        rows = [row_at(builder.add(offset, emit.index(l))) for l in range(lanes)]
        norm_r = emit.register(emit.zero)

        def move(t: Any, n_numbers: int) -> None:
            narrow = VectorBuilder(builder, emit.element, emit.lane_int.width, n_numbers, emit.intp)
            near = narrow.load(to.origin, t)
            square = [builder.fsub(narrow.load(row, t), near) for row in rows]
            for i, values in enumerate(_transposed(emit, square, n_numbers)):
                emit.add_product(values, values, norm_r)
                place = builder.mul(builder.add(t, emit.index(i)), emit.index(width))
                emit.store(values, to.tile, builder.add(place, offset))

        whole = builder.and_(to.n_features, emit.index(-lanes))
        squares = cgutils.for_range_slice(builder, emit.index(0), whole, emit.index(lanes))
        with squares as (t, _):
            move(t, lanes)
        done, n_numbers = whole, lanes // 2
        while n_numbers:
            left = builder.and_(to.n_features, emit.index(n_numbers))
            with builder.if_then(builder.icmp_signed("!=", left, emit.index(0))):
                move(done, n_numbers)
            done, n_numbers = builder.add(done, left), n_numbers // 2
        emit.store(builder.load(norm_r), to.norms, offset)


def _transposed(emit: VectorBuilder, rows: list[Any], width: int) -> list[Any]:
    """W vectors of ``width`` numbers each as ``width`` vectors of W: Note [Transposing]."""
    builder, lanes = emit.builder, emit.lanes

    def shuffled(first: Any, second: Any, order: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(emit.int32, len(order)), order)
        return builder.shuffle_vector(first, second, mask)

    square = []
    for i in range(width):
        side_by_side = rows[i::width]
        while len(side_by_side) > 1:
            count = 2 * side_by_side[0].type.count
            pairs = zip(side_by_side[::2], side_by_side[1::2], strict=True)
            side_by_side = [shuffled(a, b, list(range(count))) for a, b in pairs]
        square.append(side_by_side[0])
    step = 1
    while step < width:
        low = [p - step + lanes if p & step else p for p in range(lanes)]
        high = [p + lanes if p & step else p + step for p in range(lanes)]
        for i in range(width):
            if not i & step:
                a, b = square[i], square[i + step]
                square[i], square[i + step] = shuffled(a, b, low), shuffled(a, b, high)
        step *= 2
    return square


@intrinsic  # type: ignore[untyped-decorator]
def doubtful(
    typing_context: Any,
    best: Any,  # IN (L,) float
    second: Any,  # IN (L,) float
    norms: Any,  # IN (L,) float
    share: Any,  # IN float of the same type
    smallest: Any,  # IN float
    largest: Any,  # IN float
) -> Any:
    """A bit for each point whose nearest centre ``best`` and ``second`` do not settle for certain.

    They do if ``second - best > share * (norm + max(best + norm, 0)) + smallest`` and
    ``norm < largest``: see Note [Error bound] of ``nearest.py``.
    """
    dtype = best.dtype
    signature = types.int64(best, second, norms, dtype, dtype, dtype)
    lanes, n_vectors = vector_bytes() * 8 // dtype.bitwidth, vectors_per_tile()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [
            array_pointer(context, builder, signature.args[i], arguments[i]) for i in range(3)
        ]
        intp = context.get_value_type(types.intp)
        element = context.get_value_type(dtype)
        emit = VectorBuilder(builder, element, dtype.bitwidth, lanes, intp)
        share, smallest, largest = (emit.splat(number) for number in arguments[3:])
        int64 = ir.IntType(64)
        found = ir.Constant(int64, 0)
        for v in range(n_vectors):
            at = emit.index(v * lanes)
            best, second, norm = (emit.load(pointer, at) for pointer in pointers)
            sq_dist = emit.larger(builder.fadd(best, norm), emit.zero)
            margin = builder.fadd(builder.fmul(share, builder.fadd(norm, sq_dist)), smallest)
            apart = builder.fcmp_ordered(">", builder.fsub(second, best), margin)
            settled = builder.and_(apart, builder.fcmp_ordered("<", norm, largest))
            bits = builder.bitcast(builder.not_(settled), ir.IntType(lanes))
            bits = builder.shl(builder.zext(bits, int64), ir.Constant(int64, v * lanes))
            found = builder.or_(found, bits)
        return found

    return signature, generate
