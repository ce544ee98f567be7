"""The vocabulary in which the vector kernels are told: a thin layer over LLVM's builder.

Numba's loops leave it to LLVM whether to use vector registers. The innermost loops of k-means are
written out instead, as Numba *intrinsics*: functions that emit LLVM instructions on vectors. This
file knows how wide a register is and how to say "load", "broadcast", "multiply and add".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config

PANEL_WIDTH = 16
"""P, how many centres lie side by side, feature by feature (``panels.py`` has the layout)."""

SUM_BLOCK = 32
"""How many products are added before the sum is added to the total: Note [Blocked sums]."""

_PRODUCTS_OF_PAIRS = {16: "sse2.pmadd.wd", 32: "avx2.pmadd.wd", 64: "avx512.pmaddw.d.512"}
"""LLVM's names of products of pairs, added, by bytes in a register."""

_NEEDED_FOR_PAIRS = {16: "sse2", 32: "avx2", 64: "avx512bw"}
"""The features of a processor that has them."""

_NO_NAN = ("nnan", "nsz")
"""What makes minnum and maxnum one instruction; where values may be NaN, nobody trusts them."""


@functools.lru_cache(maxsize=1)
def processor_features() -> frozenset[str]:
    """What the processor can do that Numba compiles for, by LLVM's names."""
    if config.CPU_NAME == "generic":
        return frozenset()
    if config.CPU_FEATURES is not None:
        names = config.CPU_FEATURES.split(",")
        return frozenset(name[1:] for name in names if name.startswith("+"))
    features = binding.get_host_cpu_features().items()
    return frozenset(name for name, is_present in features if is_present)


@functools.lru_cache(maxsize=1)
def vector_bytes() -> int:
    """Bytes in a vector register of that processor."""
    if "avx512f" in processor_features():
        return 64
    return 32 if "avx" in processor_features() else 16


def has_products_of_pairs() -> bool:
    """Whether there are such products in registers as wide as those of floats."""
    return _NEEDED_FOR_PAIRS[vector_bytes()] in processor_features()


def array_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """Pointer to the first element of an array argument of an intrinsic."""
    return context.make_array(array_type)(context, builder, array).data


class Lanes:
    """Emits instructions on vectors of ``lanes`` numbers of ``bits`` bits, whatever they are.

    A *register* is a variable (``alloca``): LLVM's mem2reg pass puts it into a machine register, so
    that loops need no phi nodes here.
    """

    def __init__(self, builder: Any, element: Any, bits: int, lanes: int, intp: Any) -> None:
        self.builder, self.element, self.intp, self.lanes = builder, element, intp, lanes
        self.alignment = bits // 8
        self.vector = ir.VectorType(element, lanes)
        self.int32 = ir.IntType(32)
        self.lane_int = ir.IntType(bits)
        self.int_vector = ir.VectorType(self.lane_int, lanes)
        self.int32_vector = ir.VectorType(self.int32, lanes)

    # ---------------------------------------------------------------- scalars

    def index(self, value: int) -> Any:
        """A constant for offsets and loops."""
        return ir.Constant(self.intp, value)

    def smaller_int(self, first: Any, second: Any) -> Any:
        """The smaller of two signed integers."""
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def resized(self, value: Any, to: Any) -> Any:
        """An integer, or a vector of them, in a type of the same or another width."""
        width, wanted = (getattr(kind, "element", kind).width for kind in (value.type, to))
        if width == wanted:
            return value
        return self.builder.trunc(value, to) if width > wanted else self.builder.sext(value, to)

    # ---------------------------------------------------------------- moving values

    def constant(self, value: float) -> Any:
        """A vector with ``value`` in every lane, known when code is generated."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def int_constant(self, value: int) -> Any:
        """The same with integers as wide as the numbers."""
        return ir.Constant(self.int_vector, [value] * self.lanes)

    def lane_numbers(self, first: int) -> Any:
        """Integers ``first``, ``first + 1``, ..., one a lane."""
        return ir.Constant(self.int_vector, [first + lane for lane in range(self.lanes)])

    def register(self, initial: Any) -> Any:
        """A new register that holds ``initial``."""
        return cgutils.alloca_once_value(self.builder, initial)

    def splat(self, scalar: Any) -> Any:
        """A vector with ``scalar`` in every lane."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(self.int32, 0))
        lane_zero = ir.Constant(ir.VectorType(self.int32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, lane_zero)

    def broadcast(self, pointer: Any, offset: Any) -> Any:
        """The number at ``pointer[offset]`` in every lane."""
        return self.splat(self.builder.load(self.builder.gep(pointer, [offset])))

    def load(self, pointer: Any, offset: Any) -> Any:
        """The vector that begins at ``pointer[offset]``."""
        address = self.builder.gep(pointer, [offset])
        vector = ir.VectorType(address.type.pointee, self.lanes)
        loaded = self.builder.load(self.builder.bitcast(address, vector.as_pointer()))
        loaded.align = self.alignment
        return loaded

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        """Write a vector to where ``pointer[offset]`` begins."""
        address = self.builder.gep(pointer, [offset])
        stored = self.builder.store(value, self.builder.bitcast(address, value.type.as_pointer()))
        stored.align = 4

    # ---------------------------------------------------------------- tags

    def tag(self, value: Any, n_bits: int, tags: Any) -> Any:
        """``value`` with its lowest ``n_bits`` bits replaced by the integers ``tags``."""
        bits = self.builder.bitcast(value, self.int_vector)
        kept = self.builder.and_(bits, self.int_constant(-(1 << n_bits)))
        return self.builder.bitcast(self.builder.or_(kept, tags), self.vector)

    def tags(self, value: Any, n_bits: int) -> Any:
        """The integers that ``tag`` has put into ``value``."""
        bits = self.builder.bitcast(value, self.int_vector)
        return self.builder.and_(bits, self.int_constant((1 << n_bits) - 1))


class VectorBuilder(Lanes):
    """The same for floating-point numbers, with arithmetic."""

    def __init__(self, builder: Any, element: Any, bits: int, lanes: int, intp: Any) -> None:
        super().__init__(builder, element, bits, lanes, intp)
        self.zero = self.constant(0.0)
        # fmuladd, not fma: where there is no such instruction it is a product and a sum.
        self._multiply_add = self._function("fmuladd", 3)
        self._minimum, self._maximum = self._function("minnum", 2), self._function("maxnum", 2)

    def with_lanes(self, lanes: int) -> VectorBuilder:
        """The builder for vectors of so many of the same numbers."""
        return VectorBuilder(self.builder, self.element, self.lane_int.width, lanes, self.intp)

    def _function(self, name: str, n_arguments: int) -> Any:
        """LLVM's function ``name`` on vectors like ours."""
        bits = self.lane_int.width
        function_type = ir.FunctionType(self.vector, [self.vector] * n_arguments)
        return cgutils.get_or_insert_function(
            self.builder.module, function_type, f"llvm.{name}.v{self.lanes}f{bits}"
        )

    def add_product(self, first: Any, second: Any, register: Any) -> None:
        """``register += first * second``."""
        total = self.builder.call(self._multiply_add, [first, second, self.builder.load(register)])
        self.builder.store(total, register)

    def add(self, source: Any, target: Any) -> None:
        """``target += source``, both registers."""
        total = self.builder.fadd(self.builder.load(target), self.builder.load(source))
        self.builder.store(total, target)

    def smaller(self, first: Any, second: Any) -> Any:
        """The smaller number of each lane."""
        return self.builder.call(self._minimum, [first, second], fastmath=_NO_NAN)

    def larger(self, first: Any, second: Any) -> Any:
        """The larger number of each lane."""
        return self.builder.call(self._maximum, [first, second], fastmath=_NO_NAN)

    def less(self, first: Any, second: Any) -> Any:
        """Whether the first number is the smaller one, lane by lane."""
        return self.builder.fcmp_ordered("<", first, second)

    def rounded(self, vector: Any) -> Any:
        """The nearest whole numbers, still as floating-point numbers."""
        return self.builder.call(self._function("rint", 1), [vector])

    def sum_of_lanes(self, vector: Any) -> Any:
        """The sum of a vector's numbers: halves are added until one lane is left."""
        width = self.lanes
        while width > 1:
            width //= 2
            order = [(lane + width) % self.lanes for lane in range(self.lanes)]
            mask = ir.Constant(self.int32_vector, order)
            vector = self.builder.fadd(vector, self.builder.shuffle_vector(vector, vector, mask))
        return self.builder.extract_element(vector, ir.Constant(self.int32, 0))


class IntegerBuilder(Lanes):
    """The same for integers of 32 bits, which may be pairs of 16 bits."""

    def __init__(self, builder: Any, lanes: int, intp: Any) -> None:
        super().__init__(builder, ir.IntType(32), 32, lanes, intp)
        self._pairs = ir.VectorType(ir.IntType(16), 2 * lanes)

    def with_lanes(self, lanes: int) -> IntegerBuilder:
        """The builder for vectors of so many of them."""
        return IntegerBuilder(self.builder, lanes, self.intp)

    def _function(self, name: str, argument: Any) -> Any:
        """LLVM's function ``name`` of two arguments."""
        function_type = ir.FunctionType(self.vector, [argument, argument])
        return cgutils.get_or_insert_function(self.builder.module, function_type, f"llvm.{name}")

    def add_products(self, first: Any, second: Any, register: Any) -> None:
        """``register += first.low * second.low + first.high * second.high``; a whole register."""
        builder = self.builder
        sides = [builder.bitcast(side, self._pairs) for side in (first, second)]
        if has_products_of_pairs():
            multiply = self._function(f"x86.{_PRODUCTS_OF_PAIRS[4 * self.lanes]}", self._pairs)
            products = builder.call(multiply, sides)
        else:
            wide = ir.VectorType(self.int32, 2 * self.lanes)
            apart = builder.mul(*(builder.sext(side, wide) for side in sides))
            masks = [
                ir.Constant(self.int32_vector, list(range(half, 2 * self.lanes, 2)))
                for half in (0, 1)
            ]
            products = builder.add(*(builder.shuffle_vector(apart, apart, mask) for mask in masks))
        builder.store(builder.add(builder.load(register), products), register)

    def smaller(self, first: Any, second: Any) -> Any:
        """The smaller integer of each lane."""
        function = self._function(f"smin.v{self.lanes}i32", self.vector)
        return self.builder.call(function, [first, second])

    def larger(self, first: Any, second: Any) -> Any:
        """The larger integer of each lane."""
        function = self._function(f"smax.v{self.lanes}i32", self.vector)
        return self.builder.call(function, [first, second])

    def less(self, first: Any, second: Any) -> Any:
        """Whether the first integer is the smaller one, lane by lane."""
        return self.builder.icmp_signed("<", first, second)


def accumulate(
    emit: VectorBuilder,
    n_features: Any,
    totals: list[list[Any]],
    add_products: Callable[[Any, list[list[Any]]], None],
) -> None:
    """Add the products of all features to the registers ``totals``, in blocks.

    ``add_products(t, registers)`` emits the products of feature t, added to ``registers``.

    Note [Blocked sums]
    ~~~~~~~~~~~~~~~~~~~
    Adding d products one after the other has a rounding error of d units; adding blocks of 32 and
    then the blocks has one of 32 + d / 32. The narrower the error, the fewer points need the exact
    second look that ``nearest.py`` gives to near ties.
    """
    builder, block = emit.builder, emit.index(SUM_BLOCK)
    blocks = [[emit.register(emit.zero) for _ in row] for row in totals]
    first_end = emit.smaller_int(block, n_features)
    with cgutils.for_range(builder, first_end) as feature:
        add_products(feature.index, totals)
    rest = cgutils.for_range_slice(builder, block, n_features, block)
    with rest as (start, _):
        for register in chain.from_iterable(blocks):
            builder.store(emit.zero, register)
        end = emit.smaller_int(builder.add(start, block), n_features)
        with cgutils.for_range(builder, end, start=start) as feature:
            add_products(feature.index, blocks)
        for total, register in zip(
            chain.from_iterable(totals), chain.from_iterable(blocks), strict=True
        ):
            emit.add(register, total)


def smallest_lanes(emit: Any, vectors: list[Any]) -> Any:
    """The smallest number of each of ``vectors``, side by side in one vector.

    Step by step, lanes are halved and two vectors become one: its first half is what is left of the
    first, its second half what is left of the second. There is a power of two of vectors, at most
    half as many as lanes.
    """
    builder = emit.builder
    parts, n_members, n_left = vectors, 1, emit.lanes
    while n_left > 1:
        n_left //= 2
        n_joined = min(len(parts), 2)
        width = parts[0].type.count
        low = [
            part * width + member * 2 * n_left + lane
            for part in range(n_joined)
            for member in range(n_members)
            for lane in range(n_left)
        ]
        sides = low, [lane + n_left for lane in low]
        masks = [ir.Constant(ir.VectorType(emit.int32, len(low)), side) for side in sides]
        narrow = emit.with_lanes(len(low))
        parts = [
            narrow.smaller(*(builder.shuffle_vector(first, second, mask) for mask in masks))
            for first, second in zip(
                parts[::n_joined], parts[n_joined - 1 :: n_joined], strict=True
            )
        ]
        n_members *= n_joined
    return parts[0]
