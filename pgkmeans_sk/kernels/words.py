"""Eight bytes from any place of an array as one number, and back."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from pgkmeans_sk.kernels.vectors import array_pointer

WORD_BYTES = 8


@intrinsic
def load_word(typing_context, array, at):
    """``array[at], array[at + 1], ...`` (64 bits of them) as one uint64, the first one lowest.

    Nobody checks that they lie in the array. All processors that Numba compiles for keep numbers
    with the lowest byte first, so this is one instruction.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=1)

    return types.uint64(array, at), emit


@intrinsic
def store_word(typing_context, word, array, at):
    """Write the 64 bits of ``word`` (uint64) over ``array[at], array[at + 1], ...``; unchecked."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[1], *arguments[1:])
        builder.store(arguments[0], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, array, at), emit


@intrinsic
def prefetch(typing_context, array, at):
    """Have the byte ``array[at]`` (uint8) brought into the cache, without waiting for it.

    It need not exist.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = array_pointer(context, builder, signature.args[0], arguments[0])
        pointer = builder.gep(start, [arguments[1]])
        flag = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag]),
        )
        # To be read, rather soon again, data.
        flags = [ir.Constant(flag, value) for value in (0, 2, 1)]
        builder.call(function, [pointer, *flags])
        return context.get_dummy_value()

    return types.void(array, at), emit


def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    start = builder.gep(array_pointer(context, builder, array_type, array), [at])
    return builder.bitcast(start, ir.IntType(8 * WORD_BYTES).as_pointer())
