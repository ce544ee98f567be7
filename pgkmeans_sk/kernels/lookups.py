"""Sums of numbers that codes name in tables, in vector registers: queries in lanes.

Layout
------
A row of codes names one number in the table of each column; its score is their sum. One query at a
time, each number is a load and an addition of its own. Here the tables of L queries are
interleaved, ``packed[(c * n_codes + code) * L + l]`` for query l, so that a code, read once, adds a
vector. R rows are taken together, since an addition takes several cycles to finish:

    for each column c:
        for each row r of R:
            total[r] += packed[c, codes[r, c]]                   # L numbers
    score[r] = base[r] + factor[r] * total[r]
    is any lane of score[r] below the limit of its query?        # one bit a row

The bits make the selection cheap: for nearly all rows nothing else is looked at.

Numbers are added in the order of the columns, in the precision of the tables, and products and sums
are rounded one by one: ``lookup_scores`` in ``tests/reference.py`` gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer, vector_bytes

ROWS = 4
"""R: at 3 or 4 cycles an addition, and up to 2 loads of vectors a cycle."""


def lanes_of(itemsize: int) -> int:
    """L, how many queries with tables of numbers of ``itemsize`` bytes are scored together."""
    return vector_bytes() // itemsize


@intrinsic  # type: ignore[untyped-decorator]
def n_lanes(typing_context: Any, tables: Any) -> Any:
    """``lanes_of`` as a compile-time constant for the element type of ``tables``."""
    number = lanes_of(tables.dtype.bitwidth // 8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, number)

    return types.intp(tables), generate


def _scorer(lanes_of_item: Callable[[int], int]) -> Any:
    """The intrinsic that scores R rows for as many queries as ``lanes_of_item(itemsize)``."""

    @intrinsic  # type: ignore[untyped-decorator]
    def score(
        typing_context: Any,
        packed: Any,  # IN (at + n_columns * n_codes * L,) float
        at: Any,  # IN intp, where the tables begin
        codes: Any,  # IN (span,) uint8 or uint16
        code_step: Any,  # IN intp, from one row of codes to the next
        first: Any,  # IN intp, the first of R rows
        last: Any,  # IN intp, the last row there is; it stands in for those beyond
        n_columns: Any,  # IN intp
        n_codes: Any,  # IN intp
        base: Any,  # IN (n,) or (1,) float
        base_step: Any,  # IN intp, 1, or 0 when one number serves all rows
        factor: Any,  # IN (n,) or (1,) float
        factor_step: Any,  # IN intp, likewise
        limits: Any,  # IN (L,) float
        scores: Any,  # OUT (R * L,) float
    ) -> Any:
        """Bits that tell whether row ``first + r`` has a score below the limit of its query."""
        signature = types.intp(
            packed, types.intp, codes, types.intp, types.intp, types.intp, types.intp, types.intp,
            base, types.intp, factor, types.intp, limits, scores,
        )  # fmt: skip
        bits = packed.dtype.bitwidth
        lanes = lanes_of_item(bits // 8)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            packed_p, codes_p, base_p, factor_p, limits_p, scores_p = (
                array_pointer(context, builder, kind, value)
                for kind, value in zip(signature.args, arguments, strict=True)
                if isinstance(kind, types.Array)
            )
            (
                at_v,
                code_step_v,
                first_v,
                last_v,
                n_columns_v,
                n_codes_v,
                base_step_v,
                factor_step_v,
            ) = (
                value
                for kind, value in zip(signature.args, arguments, strict=True)
                if not isinstance(kind, types.Array)
            )
            element, intp = context.get_value_type(packed.dtype), at_v.type
            emit = VectorBuilder(builder, element, bits, lanes, intp)
            rows = [
                emit.smaller_int(builder.add(first_v, emit.index(r)), last_v) for r in range(ROWS)
            ]
            starts = [builder.mul(row, code_step_v) for row in rows]
            totals = [emit.register(emit.zero) for _ in rows]
            with cgutils.for_range(builder, n_columns_v) as column:
                table = builder.mul(column.index, n_codes_v)
                for start, total in zip(starts, totals, strict=True):
                    place = builder.gep(codes_p, [builder.add(start, column.index)])
                    code = builder.zext(builder.load(place), intp)
                    entry = builder.mul(builder.add(table, code), emit.index(lanes))
                    numbers = emit.load(packed_p, builder.add(at_v, entry))
                    builder.store(builder.fadd(builder.load(total), numbers), total)

            limit, hits, mask = emit.load(limits_p, emit.index(0)), emit.index(0), ir.IntType(lanes)
            for r, (row, total) in enumerate(zip(rows, totals, strict=True)):
                scale = emit.broadcast(factor_p, builder.mul(row, factor_step_v))
                shift = emit.broadcast(base_p, builder.mul(row, base_step_v))
                found = builder.fadd(shift, builder.fmul(scale, builder.load(total)))
                emit.store(found, scores_p, emit.index(r * lanes))
                below = builder.bitcast(builder.fcmp_ordered("<", found, limit), mask)
                is_any = builder.icmp_unsigned("!=", below, ir.Constant(mask, 0))
                bit = builder.shl(builder.zext(is_any, intp), emit.index(r))
                hits = builder.or_(hits, bit)
            return hits

        return signature, generate

    return score


score_together = _scorer(lanes_of)
"""R rows for L queries."""

score_alone = _scorer(lambda itemsize: 1)
"""R rows for one query: L = 1, and its tables are read where they are."""
