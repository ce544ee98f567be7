"""From codes back to rows: the words that codes name, added up over the stages.

Layout
------
A block is short, often 4 to 16 numbers: a loop over the numbers of each word would spend its time
on beginning and ending. So the innermost loop runs over the blocks of a row, and moves the same
piece of each block's word, four numbers in a vector:

    for each piece t:                                   # then the same for single numbers left over
        for each block j:
            out[j * block_size + t] (+)= books[j, codes[j], t]

Stages after the first are added in the same way. Whatever scales rows comes as a pass of its own
over a chunk that is still in cache: inside the loop it slowed down those who need no scaling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.core.extending import intrinsic

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.vectors import VectorBuilder, array_pointer

PIECE = 4
"""Numbers moved at once. Twice as many gain a little for long blocks and lose more for short."""


def _mover(is_sum: bool) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def move(
        typing_context: Any,
        source: Any,  # IN (n,) float
        source_at: Any,  # IN uintp
        target: Any,  # INOUT (m,) float
        target_at: Any,  # IN uintp
    ) -> Any:
        """Copy a piece to ``target``, or add it to what is there."""
        signature = types.void(source, types.uintp, target, types.uintp)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source_p, target_p = (
                array_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2)
            )
            element, bits = context.get_value_type(source.dtype), source.dtype.bitwidth
            emit = VectorBuilder(builder, element, bits, PIECE, arguments[1].type)
            numbers = emit.load(source_p, arguments[1])
            if is_sum:
                numbers = builder.fadd(emit.load(target_p, arguments[3]), numbers)
            emit.store(numbers, target_p, arguments[3])
            return context.get_dummy_value()

        return signature, generate

    return move


_copy_piece, _add_piece = _mover(is_sum=False), _mover(is_sum=True)


@kernel
def decode_stage(
    codes,  # IN (span,) uint8 or uint16
    code_step,  # IN from one row of codes to the next
    column,  # IN the column of the stage's first block
    books,  # IN (n_stages * n_books * n_codes * block_size,) float
    first_book,  # IN where the stage's books begin
    book_step,  # IN from one block's book to the next one's, 0 when all share one
    block_size,  # IN columns of a block; the last may have fewer
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    is_first,  # IN bool: the first stage, else one that is added to those before
    out,  # INOUT (span,) float
    out_step,  # IN from one decoded row to the next
    n_features,  # IN d
):
    """``out[i, block j] (+)= book_j[codes[i, column + j]]``."""
    size, next_book, one = np.uintp(block_size), np.uintp(book_step), np.uintp(1)
    n_whole, width = n_features // block_size, n_features % block_size
    in_pieces = block_size - block_size % PIECE
    for i in range(start, stop):
        first_code, first_out = np.uintp(i * code_step + column), np.uintp(i * out_step)
        for t in range(0, in_pieces, PIECE):
            at, word, target = first_code, np.uintp(first_book + t), first_out + np.uintp(t)
            if is_first:
                for _ in range(n_whole):
                    _copy_piece(books, word + np.uintp(codes[at]) * size, out, target)
                    at, word, target = at + one, word + next_book, target + size
            else:
                for _ in range(n_whole):
                    _add_piece(books, word + np.uintp(codes[at]) * size, out, target)
                    at, word, target = at + one, word + next_book, target + size
        for t in range(in_pieces, block_size):
            at, word, target = first_code, np.uintp(first_book + t), first_out + np.uintp(t)
            for _ in range(n_whole):
                number = books[word + np.uintp(codes[at]) * size]
                out[target] = number if is_first else out[target] + number
                at, word, target = at + one, word + next_book, target + size
        if width > 0:
            word = np.uintp(first_book + n_whole * book_step)
            word += np.uintp(codes[first_code + np.uintp(n_whole)]) * size
            target = first_out + np.uintp(n_whole * block_size)
            for t in range(np.uintp(width)):
                number = books[word + t]
                out[target + t] = number if is_first else out[target + t] + number


@kernel
def scale_rows(
    scales,  # IN (d,) float, one for each column
    factors,  # IN (n,) or (1,) float
    factor_step,  # IN 1, or 0 when one factor serves all rows
    start,  # IN first row of this chunk
    stop,  # IN one past the last
    out,  # INOUT (span,) float
    out_step,  # IN from one row to the next
):
    """``out[i, t] = (out[i, t] * scales[t]) * factors[i]``."""
    for i in range(start, stop):
        factor, first = factors[i * factor_step], np.uintp(i * out_step)
        for t in range(np.uintp(scales.size)):
            out[first + t] = out[first + t] * scales[t] * factor
