"""One tile of points against all centres, in 16-bit integers: ``sweep.py`` once more.

The layout and why the result can be trusted are in ``integers.py``. A lane holds the sum of one
point and takes in a pair of features at a time:

    for each quad of 4 centres:
        accumulator[j][v] = starts[j]
        for each pair p:
            accumulator[j][v] += panels[p, j].low * tile[p, v].low + panels[p, j].high * ...
        least, next = the two smallest of the 4 accumulators
        fold them into best, second best and the quad of the best

Processors with the "neural network" instructions do the middle line at once; others multiply and
add a pair, and add the sum. Where there is neither, ``are_quick`` says so, and nobody asks.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.integers import ABSENT, ROW_LIMIT
from pgkmeans_sk.kernels.sweep import QUAD, vectors_per_tile
from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer, vector_bytes

_INT16, _INT32 = ir.IntType(16), ir.IntType(32)
_PAIRWISE = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd",
             64: "llvm.x86.avx512.pmaddw.d.512"}  # fmt: skip
"""Products of pairs, added, by bytes in a register."""


@functools.lru_cache(maxsize=1)
def _features() -> frozenset[str]:
    """What the processor can do that Numba compiles for."""
    if config.CPU_NAME == "generic":
        return frozenset()
    if config.CPU_FEATURES is not None:
        return frozenset(name[1:] for name in config.CPU_FEATURES.split(",") if name[:1] == "+")
    present = binding.get_host_cpu_features().items()
    return frozenset(name for name, is_present in present if is_present)


def _at_once() -> str | None:
    """The instruction that multiplies pairs and adds them to a sum, if there is one."""
    features, width = _features(), vector_bytes() * 8
    if "avx512vnni" in features and (width == 512 or "avx512vl" in features):
        return f"llvm.x86.avx512.vpdpwssd.{width}"
    return f"llvm.x86.avx512.vpdpwssd.{width}" if width < 512 and "avxvnni" in features else None


def are_quick() -> bool:
    """Whether there are instructions on pairs in registers as wide as those of floats."""
    needed = {16: "sse2", 32: "avx2", 64: "avx512bw"}[vector_bytes()]
    return needed in _features()


class _Pairs:
    """Emits instructions on vectors of 32-bit integers, or pairs of 16 bits."""

    def __init__(self, builder: Any, intp: Any) -> None:
        self.builder, self.intp = builder, intp
        self.lanes = vector_bytes() // 4
        self.ints = ir.VectorType(_INT32, self.lanes)
        self.pairs = ir.VectorType(_INT16, 2 * self.lanes)
        self._smaller, self._larger = (self._function(f"llvm.{name}.v{self.lanes}i32", 2)
                                       for name in ("smin", "smax"))  # fmt: skip

    def _function(self, name: str, n_arguments: int, argument: Any = None) -> Any:
        kind = ir.FunctionType(self.ints, [argument or self.ints] * n_arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, name)

    def index(self, value: int) -> Any:
        return ir.Constant(self.intp, value)

    def constant(self, value: int) -> Any:
        """A vector with ``value`` in every lane."""
        return ir.Constant(self.ints, [int(value)] * self.lanes)

    def register(self, initial: Any) -> Any:
        return cgutils.alloca_once_value(self.builder, initial)

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.ints, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
        return self.builder.shuffle_vector(first, undefined, self.constant(0))

    def broadcast(self, pointer: Any, offset: Any) -> Any:
        return self.splat(self.builder.load(self.builder.gep(pointer, [offset])))

    def load(self, pointer: Any, offset: Any) -> Any:
        address = self.builder.gep(pointer, [offset])
        loaded = self.builder.load(self.builder.bitcast(address, self.ints.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        address = self.builder.gep(pointer, [offset])
        address = self.builder.bitcast(address, value.type.as_pointer())
        self.builder.store(value, address).align = 4

    def smaller(self, first: Any, second: Any) -> Any:
        return self.builder.call(self._smaller, [first, second])

    def larger(self, first: Any, second: Any) -> Any:
        return self.builder.call(self._larger, [first, second])

    def add_products(self, first: Any, second: Any, register: Any) -> None:
        """``register += first.low * second.low + first.high * second.high``."""
        builder, total, at_once = self.builder, self.builder.load(register), _at_once()
        if at_once is not None:
            total = builder.call(self._function(at_once, 3), [total, first, second])
        else:
            multiply = self._function(_PAIRWISE[vector_bytes()], 2, self.pairs)
            sides = [builder.bitcast(side, self.pairs) for side in (first, second)]
            total = builder.add(total, builder.call(multiply, sides))
        builder.store(total, register)


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
        emit = _Pairs(builder, n_pairs_v.type)
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
            number = emit.splat(builder.trunc(quad.index, _INT32))
            for v in vectors:
                values = [builder.load(total_r[j][v]) for j in centres]
                _fold(emit, values, number, best_r[v], second_r[v], quad_r[v])

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


def _fold(
    emit: _Pairs, values: list[Any], number: Any, best_r: Any, second_r: Any, quad_r: Any
) -> None:
    """best, second, quad <- the same after one more quad."""
    builder = emit.builder
    a, b, c, d = values
    low, high = emit.smaller(a, b), emit.larger(a, b)
    other_low, other_high = emit.smaller(c, d), emit.larger(c, d)
    least = emit.smaller(low, other_low)
    following = emit.smaller(emit.larger(low, other_low), emit.smaller(high, other_high))
    best, second = builder.load(best_r), builder.load(second_r)
    better = builder.icmp_signed("<", least, best)
    loser = emit.larger(best, least)
    builder.store(emit.smaller(emit.smaller(second, following), loser), second_r)
    builder.store(builder.select(better, number, builder.load(quad_r)), quad_r)
    builder.store(emit.smaller(least, best), best_r)


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
        ints = ir.VectorType(_INT32, lanes)
        nearest = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(emit.vector, [emit.vector]),
            f"llvm.rint.v{lanes}f{bits}",
        )
        scale = emit.splat(arguments[2])
        most, least = emit.constant(float(ROW_LIMIT)), emit.constant(-float(ROW_LIMIT))

        def units(feature: Any, v: int) -> Any:
            place = builder.add(builder.mul(feature, emit.index(width)), emit.index(v * lanes))
            number = builder.fmul(emit.load(tile_p, place), scale)
            number = emit.larger(emit.smaller(number, most), least)
            return builder.fptosi(builder.call(nearest, [number]), ints)

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
