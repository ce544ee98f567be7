"""Kernels that call other kernels where these already are, instead of taking them in.

Numba links a kernel that another one calls into the caller: it is optimised and translated once
more there, which takes as long as it took by itself. A caller that is given the *address* of the
other one costs no more than its own lines. What a call by address costs at run time is a jump.

    address = address_of(kernel, *arguments like those of the calls)   # in Python
    found = call_for_two_ints(address, arguments)                      # in a kernel; a tuple

The types of the arguments have to be those of the address, to the last one: nobody checks.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import cgutils, types
from numba.core.extending import intrinsic


def address_of(kernel: Any, *arguments: Any) -> int:
    """Where the machine code of ``kernel`` for these arguments is; compiled if it is not there."""
    signature = tuple(numba.typeof(argument) for argument in arguments)
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def _caller(result: Any) -> Any:
    """An intrinsic that calls the kernel at an address, which returns a ``result``."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(typing_context: Any, address: Any, arguments: Any) -> Any:
        kinds = [types.unliteral(argument) for argument in arguments.types]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            convention = context.call_conv
            function_type = convention.get_function_type(result, kinds)
            function = builder.inttoptr(values[0], function_type.as_pointer())
            unpacked = cgutils.unpack_tuple(builder, values[1])
            status, found = convention.call_function(builder, function, result, kinds, unpacked)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return found

        return result(types.intp, types.Tuple(kinds)), generate

    return call


call_for_int = _caller(types.int64)
call_for_two_ints = _caller(types.UniTuple(types.int64, 2))
call_for_two_floats = _caller(types.UniTuple(types.float64, 2))
call_for_nothing = _caller(types.none)
