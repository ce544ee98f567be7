"""Lower bounds on distances in 16 bits: which groups of centres a row has to look at again.

For each row and each group of centres there is a number l, in units of u: every centre of the group
but the row's own is at least l u away. When centres move, the triangle inequality lowers l by the
longest move of the group. As long as the row's own centre is nearer than l u, nothing in the group
can be the nearest (Elkan 2003; groups after Ding et al. 2015, "Yinyang k-means").

Rounding always goes to the safe side: bounds are rounded down, moves and own distances up. 65535
means "that or more". 16 bits are enough: a bound that is off by a unit costs a look, not a label.

Groups come in chunks of 16, which fill one or two vector registers: a chunk is lowered, stored and
compared in a few instructions. ``lower_and_compare`` in ``tests/reference.py`` is its NumPy twin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.compile import part
from pgkmeans_sk.kernels.vectors import array_pointer

CHUNK = 16
"""Groups that are looked at together."""

LARGEST = 65535
"""The largest bound; what it stands for may be larger."""


class GroupBounds(NamedTuple):
    """Lower bounds of all rows, and what is needed to bring them up to date."""

    lower: np.ndarray  # (n * G,) uint16; G is a multiple of CHUNK
    moves: np.ndarray  # (G,) uint16, longest move of each group since the last pass, rounded up
    position: np.ndarray  # (K,) int32, where each centre lies in the panels
    n_groups: int  # groups that exist, of G
    group_panels: int  # panels in a group
    per_unit: float  # 1 / u
    tiny: float  # squared distances below it may have vanished


def no_bounds() -> GroupBounds:
    """Bounds of no rows."""
    nothing = np.empty(0, dtype=np.uint16)
    return GroupBounds(nothing, nothing, np.empty(0, dtype=np.int32), 0, 0, 0.0, 0.0)


@intrinsic  # type: ignore[untyped-decorator]
def lower_and_compare(
    typing_context: Any,
    lower: Any,  # INOUT uint16, bounds of a chunk: lower[at : at + 16]
    at: Any,  # IN intp
    moves: Any,  # IN uint16, moves[move_at : move_at + 16]
    move_at: Any,  # IN intp
    limit: Any,  # IN intp, the row's own distance in units
) -> Any:
    """Lower bounds by moves; bit g of the result tells that bound g is at most ``limit``."""
    signature = types.intp(lower, types.intp, moves, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), CHUNK)

        def place(i: int) -> Any:
            pointer = array_pointer(context, builder, signature.args[i], arguments[i])
            return builder.bitcast(builder.gep(pointer, [arguments[i + 1]]), vector.as_pointer())

        def load(pointer: Any) -> Any:
            loaded = builder.load(pointer)
            loaded.align = 2
            return loaded

        subtract = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector, vector]), f"llvm.usub.sat.v{CHUNK}i16"
        )
        bounds = place(0)
        lowered = builder.call(subtract, [load(bounds), load(place(2))])
        builder.store(lowered, bounds).align = 2
        limits = ir.Constant(vector, ir.Undefined)
        number = builder.trunc(arguments[4], ir.IntType(16))
        limits = builder.insert_element(limits, number, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), CHUNK), [0] * CHUNK)
        limits = builder.shuffle_vector(limits, limits, zeros)
        failing = builder.icmp_unsigned("<=", lowered, limits)
        return builder.zext(builder.bitcast(failing, ir.IntType(CHUNK)), arguments[4].type)

    return signature, generate


@part
def rounded_down(
    sq_dist,  # IN float64, squared distance, not more than the true one; may be negative
    per_unit,  # IN float64, 1 / u
):
    """A bound, in units, from a squared distance."""
    if not sq_dist > 0.0:
        return 0
    units = np.sqrt(sq_dist) * per_unit * (1.0 - 1e-12)
    return int(units) if units < LARGEST else LARGEST
