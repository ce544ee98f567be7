"""The innermost loop of k-means: one tile of points against all centres, in vector registers.

Layout
------
A *tile* holds L = W * V points, feature by feature: ``tile[t * L + l]`` is feature t of point l, so
that one vector register holds the same feature of W points. A *panel* holds J centres, feature by
feature: ``panels[(g * d + t) * J + j]`` is feature t of centre g * J + j, times -2. For each panel,
J * V accumulators start at the centres' squared norms and gather ``|c|^2 - 2 x.c`` in registers:

    for each panel g of J centres:
        accumulator[j][v] = starts[g * J + j]
        for each feature t:                       # blocks of 32: see Note [Blocked sums]
            accumulator[j][v] += panels[g, t, j] * tile[t, v]
        fold the J accumulators into best, second best and the index of the best

No horizontal operation, no n x K matrix, and best/second/index never leave the registers.
Ties keep the centre seen first, which is the one with the lowest index.

Note [Blocked sums]
~~~~~~~~~~~~~~~~~~~
Adding d products one after the other has a rounding error of d units; adding blocks of 32 and then
the blocks has one of 32 + d / 32. The narrower the error, the fewer points need the exact second
look that ``nearest.py`` gives to near ties.

``sweep_reference`` in ``tests/reference.py`` is the same in NumPy.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.core.extending import intrinsic

PANEL_WIDTH = 4
"""J, the number of centres that are swept together."""

SUM_BLOCK = 32
"""How many products are added before the sum is added to the total."""


@functools.lru_cache(maxsize=1)
def vector_bytes() -> int:
    """Bytes in a vector register of the processor that Numba compiles for."""
    if config.CPU_NAME == "generic":
        return 16
    if config.CPU_FEATURES is not None:
        enabled = {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    else:
        enabled = {name for name, present in binding.get_host_cpu_features().items() if present}
    if "avx512f" in enabled:
        return 64
    return 32 if "avx" in enabled else 16


def vectors_per_tile() -> int:
    """V, chosen so that J * V accumulators and 3 V results fit the register file.

    AVX-512 and 64-bit Arm have 32 registers, SSE and AVX have 16. Measured on AVX-512 at d = 8 and
    K = 256: (J, V) = (4, 3) 22.8 ms, (8, 2) 24 ms, (10, 2) 24.6 ms.
    """
    return 3 if vector_bytes() == 64 else 2


def tile_width(itemsize: int) -> int:
    """L, the number of points in a tile of numbers of ``itemsize`` bytes."""
    return vector_bytes() // itemsize * vectors_per_tile()


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
    panels: Any,  # IN (n_panels * d * J,) float, centres times -2
    starts: Any,  # IN (n_panels * J,) float, where each accumulator starts; +inf in padding
    n_panels: Any,  # IN intp
    n_features: Any,  # IN intp, d
    best: Any,  # OUT (L,) float
    second: Any,  # OUT (L,) float
    index: Any,  # OUT (L,) int32
) -> Any:
    """Best, second best and index of the best of ``starts[j] + panels[j] . x`` for each point."""
    signature = types.void(tile, panels, starts, types.intp, types.intp, best, second, index)
    bits = tile.dtype.bitwidth
    lanes, n_vectors = vector_bytes() * 8 // bits, vectors_per_tile()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(position: int) -> Any:
            array_type = signature.args[position]
            return context.make_array(array_type)(context, builder, arguments[position]).data

        tile_p, panels_p, starts_p = pointer(0), pointer(1), pointer(2)
        n_panels_v, n_features_v = arguments[3], arguments[4]
        emit = _Emitter(builder, context.get_value_type(tile.dtype), bits, lanes, n_features_v.type)
        vectors, centres = range(n_vectors), range(PANEL_WIDTH)

        best_r = [emit.register(emit.infinity) for _ in vectors]
        second_r = [emit.register(emit.infinity) for _ in vectors]
        index_r = [emit.register(emit.zero_index) for _ in vectors]
        total_r = [[emit.register(emit.zero) for _ in vectors] for _ in centres]
        block_r = [[emit.register(emit.zero) for _ in vectors] for _ in centres]
        every_pair = [(j, v) for j in centres for v in vectors]

        def add_products(first: Any, last: Any, panel_offset: Any, registers: Any) -> None:
            with cgutils.for_range(builder, last, start=first) as feature:
                tile_row = builder.mul(feature.index, emit.int(n_vectors * lanes))
                points = [
                    emit.load(tile_p, builder.add(tile_row, emit.int(v * lanes))) for v in vectors
                ]
                panel_row = builder.mul(feature.index, emit.int(PANEL_WIDTH))
                panel_row = builder.add(panel_offset, panel_row)
                for j in centres:
                    centre = emit.broadcast(panels_p, builder.add(panel_row, emit.int(j)))
                    for v in vectors:
                        emit.add_product(centre, points[v], registers[j][v])

        block = emit.int(SUM_BLOCK)
        with cgutils.for_range(builder, n_panels_v) as panel:
            first_centre = builder.mul(panel.index, emit.int(PANEL_WIDTH))
            panel_offset = builder.mul(first_centre, n_features_v)
            for j, v in every_pair:
                start = emit.broadcast(starts_p, builder.add(first_centre, emit.int(j)))
                builder.store(start, total_r[j][v])
            add_products(emit.int(0), emit.minimum(block, n_features_v), panel_offset, total_r)
            rest = cgutils.for_range_slice(builder, block, n_features_v, block)
            with rest as (block_start, _):
                for j, v in every_pair:
                    builder.store(emit.zero, block_r[j][v])
                block_end = emit.minimum(builder.add(block_start, block), n_features_v)
                add_products(block_start, block_end, panel_offset, block_r)
                for j, v in every_pair:
                    emit.add(block_r[j][v], total_r[j][v])
            for j in centres:
                number = emit.broadcast_index(builder.add(first_centre, emit.int(j)))
                for v in vectors:
                    emit.fold(total_r[j][v], number, best_r[v], second_r[v], index_r[v])

        for position, registers in ((5, best_r), (6, second_r), (7, index_r)):
            target = pointer(position)
            for v in vectors:
                emit.store(builder.load(registers[v]), target, emit.int(v * lanes))
        return context.get_dummy_value()

    return signature, generate


class _Emitter:
    """Writes vector instructions: the vocabulary in which ``sweep`` is told."""

    def __init__(self, builder: Any, element: Any, bits: int, lanes: int, intp: Any) -> None:
        self.builder, self.intp, self.lanes = builder, intp, lanes
        self.alignment = bits // 8
        self.vector = ir.VectorType(element, lanes)
        self.int32 = ir.IntType(32)
        self.index_vector = ir.VectorType(self.int32, lanes)
        self.zero = ir.Constant(self.vector, [0.0] * lanes)
        self.infinity = ir.Constant(self.vector, [float("inf")] * lanes)
        self.zero_index = ir.Constant(self.index_vector, [0] * lanes)
        # fmuladd, not fma: where there is no such instruction it is a product and a sum.
        self.multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.v{lanes}f{bits}",
        )

    def int(self, value: int) -> Any:
        return ir.Constant(self.intp, value)

    def minimum(self, first: Any, second: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def register(self, initial: Any) -> Any:
        """A variable; LLVM's mem2reg turns it into a register."""
        return cgutils.alloca_once_value(self.builder, initial)

    def _splat(self, scalar: Any, vector_type: Any) -> Any:
        undefined = ir.Constant(vector_type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(self.int32, 0))
        return self.builder.shuffle_vector(first, undefined, self.zero_index)

    def broadcast(self, pointer: Any, offset: Any) -> Any:
        return self._splat(self.builder.load(self.builder.gep(pointer, [offset])), self.vector)

    def broadcast_index(self, value: Any) -> Any:
        return self._splat(self.builder.trunc(value, self.int32), self.index_vector)

    def load(self, pointer: Any, offset: Any) -> Any:
        address = self.builder.gep(pointer, [offset])
        loaded = self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()))
        loaded.align = self.alignment
        return loaded

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        address = self.builder.gep(pointer, [offset])
        stored = self.builder.store(value, self.builder.bitcast(address, value.type.as_pointer()))
        stored.align = 4

    def add_product(self, first: Any, second: Any, register: Any) -> None:
        total = self.builder.call(self.multiply_add, [first, second, self.builder.load(register)])
        self.builder.store(total, register)

    def add(self, source: Any, target: Any) -> None:
        total = self.builder.fadd(self.builder.load(target), self.builder.load(source))
        self.builder.store(total, target)

    def fold(self, value_r: Any, number: Any, best_r: Any, second_r: Any, index_r: Any) -> None:
        """best, second, index <- the same after one more value; strict <, so ties stay first."""
        builder = self.builder
        value, best = builder.load(value_r), builder.load(best_r)
        second, index = builder.load(second_r), builder.load(index_r)
        better = builder.fcmp_ordered("<", value, best)
        loser = builder.select(better, best, value)
        closer = builder.fcmp_ordered("<", loser, second)
        builder.store(builder.select(closer, loser, second), second_r)
        builder.store(builder.select(better, number, index), index_r)
        builder.store(builder.select(better, value, best), best_r)
