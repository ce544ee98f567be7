"""Codes of 1 to 16 bits side by side in bytes, without gaps, and any part of them back.

Code i occupies the bits ``i * n_bits`` to ``(i + 1) * n_bits - 1``, lowest bit first, and bit 0 is
the lowest bit of byte 0. Rows of a matrix follow one another without a gap; the bits that are left
over in the last byte are zero. So the bytes are those of ``np.packbits(..., bitorder="little")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pgkmeans_sk.kernels import bits
from pgkmeans_sk.threads import effective_n_threads, run_tasks
from pgkmeans_sk.validation import InvalidParameterError, check_integer, check_integer_between

Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint8] | NDArray[np.uint16]

MAX_BITS = 16

CHUNK_CODES = 2**18
"""Codes in a task, some 30 microseconds of work. A multiple of 8: tasks share no byte."""


def code_bits(n_codes: int) -> int:
    """Bits that a code needs.

    Parameters
    ----------
    n_codes : int
        How many different codes there are, 2 to 65536.

    Returns
    -------
    n_bits : int
        1 to 16.

    Raises
    ------
    ValueError
        If ``n_codes`` is not such a number.

    Examples
    --------
    >>> [code_bits(n_codes) for n_codes in (2, 8, 9, 256)]
    [1, 3, 4, 8]
    """
    check_integer_between("n_codes", n_codes, 2, 2**MAX_BITS)
    return (int(n_codes) - 1).bit_length()


def packed_bytes(count: int, n_bits: int) -> int:
    """Bytes that codes fill.

    Parameters
    ----------
    count : int
        How many codes.
    n_bits : int
        Bits of a code, 1 to 16.

    Returns
    -------
    n_bytes : int
        ``ceil(count * n_bits / 8)``.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> packed_bytes(3, 6)
    3
    """
    check_integer("count", count, 0)
    return -(-int(count) * _checked_bits(n_bits) // 8)


def pack(codes: NDArray[np.unsignedinteger[Any]], n_bits: int) -> Bytes:
    """Put codes side by side, without gaps.

    Parameters
    ----------
    codes : ndarray of any shape, of unsigned integers
        Numbers below ``2 ** n_bits``, taken in C order.
    n_bits : int
        Bits of a code, 1 to 16.

    Returns
    -------
    packed : ndarray of shape (packed_bytes(codes.size, n_bits),), uint8
        The bytes.

    Raises
    ------
    ValueError
        If a code does not fit, ``codes`` has another dtype, or ``n_bits`` is out of range.

    Examples
    --------
    Codes of three bits, the first one in the lowest: 5 + 8 * 1 + 64 * 3 = 205.

    >>> import numpy as np
    >>> pack(np.array([5, 1, 3], dtype=np.uint8), 3)
    array([205,   0], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.dtype.kind != "u":
        raise InvalidParameterError(
            f"Got codes of dtype {codes.dtype}, but expected unsigned integers, as "
            "codes.astype(np.uint16) has them."
        )
    n_bits = _checked_bits(n_bits)
    packed = np.empty(packed_bytes(codes.size, n_bits), dtype=np.uint8)
    flat = np.require(codes, requirements=("C", "A")).reshape(-1)
    misfits = []

    def pack_chunk(start: int, stop: int) -> None:
        first_byte = start * n_bits // 8
        room = packed[first_byte : first_byte + packed_bytes(stop - start, n_bits)]
        if not _fill_bytes(flat[start:stop], n_bits, room):
            misfits.append(start)

    _over_chunks(pack_chunk, flat.size, CHUNK_CODES)
    if misfits:
        _refuse_misfit(codes.shape, flat, n_bits, min(misfits))
    return packed


def unpack(
    packed: Bytes, n_bits: int, count: int, start: int = 0, *, total: int | None = None
) -> Codes:
    """Take consecutive codes out of packed ones.

    Parameters
    ----------
    packed : ndarray of shape (n_bytes,), uint8
        What ``pack`` made. May be read-only, or mapped from a file, of which only the bytes of
        these codes are read.
    n_bits : int
        Bits of a code, 1 to 16.
    count : int
        How many codes.
    start : int, default=0
        Number of the first one.
    total : int, default=None
        How many codes were packed. If given, there must be exactly as many bytes as these need;
        else at least as many as the codes asked for.

    Returns
    -------
    codes : ndarray of shape (count,), uint8 or uint16
        uint8 for up to 8 bits.

    Raises
    ------
    ValueError
        If there are not so many bytes, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> packed = pack(np.arange(8, dtype=np.uint8), 3)
    >>> unpack(packed, 3, count=2, start=5)
    array([5, 6], dtype=uint8)
    """
    check_integer("count", count, 0)
    check_integer("start", start, 0)
    n_bits = _checked_bits(n_bits)
    first, end = int(start), int(start) + int(count)
    packed = _check_packed(packed, n_bits, end, total)
    codes = np.empty(end - first, dtype=_code_dtype(n_bits))

    def unpack_chunk(start: int, stop: int) -> None:
        part = codes[np.newaxis, start:stop]
        _fill_codes(packed, n_bits, np.array([first + start], dtype=np.int64), part)

    _over_chunks(unpack_chunk, codes.size, CHUNK_CODES)
    return codes


def unpack_rows(
    packed: Bytes, n_bits: int, row_length: int, rows: ArrayLike, *, n_rows: int | None = None
) -> Codes:
    """Take rows out of the packed codes of a matrix.

    Parameters
    ----------
    packed : ndarray of shape (n_bytes,), uint8
        What ``pack`` made. May be read-only, or mapped from a file, of which only the bytes of
        these rows are read.
    n_bits : int
        Bits of a code, 1 to 16.
    row_length : int
        Codes in a row, at least 1.
    rows : array-like of shape (n_wanted,), integers
        Numbers of rows from 0 on, in any order, also repeatedly. Negative numbers are refused.
    n_rows : int, default=None
        Rows of the matrix. If given, there must be exactly as many bytes as these need; else it is
        the number of whole rows for which there are bytes.

    Returns
    -------
    codes : ndarray of shape (n_wanted, row_length), uint8 or uint16
        uint8 for up to 8 bits.

    Raises
    ------
    ValueError
        If there is no such row, there are not so many bytes, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> packed = pack(np.arange(12, dtype=np.uint8).reshape(4, 3), 5)
    >>> unpack_rows(packed, 5, row_length=3, rows=[2, 0])
    array([[6, 7, 8],
           [0, 1, 2]], dtype=uint8)
    """
    check_integer("row_length", row_length, 1)
    n_bits, length = _checked_bits(n_bits), int(row_length)
    if n_rows is None:
        packed = _check_packed(packed, n_bits, 0, None)
        n_rows = 8 * packed.size // (n_bits * length)
    else:
        check_integer("n_rows", n_rows, 0)
        packed = _check_packed(packed, n_bits, int(n_rows) * length, int(n_rows) * length)
    wanted = _check_rows(rows, int(n_rows))
    codes = np.empty((wanted.size, length), dtype=_code_dtype(n_bits))

    def unpack_chunk(start: int, stop: int) -> None:
        _fill_codes(packed, n_bits, wanted[start:stop] * length, codes[start:stop])

    _over_chunks(unpack_chunk, wanted.size, max(1, CHUNK_CODES // length))
    return codes


# ------------------------------------------------------------------ one chunk


def _fill_bytes(codes: NDArray[Any], n_bits: int, packed: Bytes) -> bool:
    """Pack codes (n,) into ``packed``; False if one does not fit."""
    dtype = _code_dtype(n_bits)
    if codes.dtype != dtype:
        if int(codes.max()) >> n_bits:
            return False
        codes = codes.astype(dtype)
    if n_bits == 8 * dtype.itemsize:
        packed[:] = codes.view(np.uint8)
        return True
    kernel = bits.pack_narrow if n_bits < 8 else bits.pack_wide
    return bool(kernel(_read_only(codes), n_bits, packed, _words()))


def _fill_codes(packed: Bytes, n_bits: int, starts: NDArray[np.int64], codes: NDArray[Any]) -> None:
    """Fill each row of ``codes`` (n, m) with the codes from ``starts`` (n,) on."""
    if n_bits == 8 * codes.itemsize:
        _copy_codes(packed, starts, codes)
        return
    kernel = bits.unpack_narrow if n_bits < 8 else bits.unpack_wide
    kernel(_read_only(packed), n_bits, starts, codes.shape[1], codes.reshape(-1), _words())


def _copy_codes(packed: Bytes, starts: NDArray[np.int64], codes: NDArray[Any]) -> None:
    """Fill rows of whole bytes."""
    target = codes.view(np.uint8)
    n_bytes = target.shape[1]
    if len(starts) == 1:
        at = int(starts[0]) * codes.itemsize
        target[0] = packed[at : at + n_bytes]
        return
    # Rows of one matrix: each begins at a multiple of their length.
    table = packed[: packed.size // n_bytes * n_bytes].reshape(-1, n_bytes)
    # Their numbers are checked, and "raise" would collect the rows in a buffer first.
    np.take(table, starts // codes.shape[1], axis=0, out=target, mode="clip")


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that nobody writes through: one type for Numba, whatever the user's array is."""
    view = array.view()
    view.flags.writeable = False
    return view


def _words() -> NDArray[np.uint64]:
    return np.empty(bits.TILE_WORDS, dtype=np.uint64)


def _over_chunks(task: Callable[[int, int], None], n: int, chunk: int) -> None:
    """Call ``task(start, stop)`` for each chunk of ``n`` items, on several threads."""
    n_chunks = -(-n // chunk)
    n_threads = effective_n_threads() if n_chunks > 1 else 1
    run_tasks(lambda c: task(c * chunk, min(n, (c + 1) * chunk)), n_chunks, n_threads)


# ------------------------------------------------------------------ checks


def _code_dtype(n_bits: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if n_bits <= 8 else np.uint16)


def _refuse_misfit(shape: tuple[int, ...], flat: NDArray[Any], n_bits: int, start: int) -> None:
    """Raise an error about the first code from ``start`` on that does not fit; there is one."""
    place = start + int(np.argmax(flat[start : start + CHUNK_CODES] >> n_bits != 0))
    index = tuple(int(i) for i in np.unravel_index(place, shape))
    raise ValueError(
        f"Got code {flat[place]} at {index}, but expected codes from 0 to {2**n_bits - 1} with "
        f"n_bits={n_bits}."
    )


def _checked_bits(n_bits: int) -> int:
    """``n_bits`` as an int: one of NumPy's, of 8 bits, would overflow in products."""
    check_integer_between("n_bits", n_bits, 1, MAX_BITS)
    return int(n_bits)


def _check_packed(packed: Any, n_bits: int, n_needed: int, total: int | None) -> Bytes:
    """The packed bytes; raise if they do not hold ``n_needed`` codes, or exactly ``total``."""
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise InvalidParameterError(
            f"Got packed of dtype {packed.dtype} and shape {packed.shape}, but expected uint8 and "
            "one dimension."
        )
    if total is not None:
        check_integer("total", total, n_needed)
        expected = packed_bytes(total, n_bits)
        if packed.size != expected:
            raise ValueError(
                f"Got packed with {packed.size} bytes, but expected {expected} for {total} codes "
                f"of {n_bits} bits."
            )
    elif packed.size < packed_bytes(n_needed, n_bits):
        raise ValueError(
            f"Got packed with {packed.size} bytes, but expected at least "
            f"{packed_bytes(n_needed, n_bits)} for the codes 0 to {n_needed - 1} of {n_bits} bits."
        )
    return cast(Bytes, np.ascontiguousarray(packed))


def _check_rows(rows: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    """Numbers of rows (n,); raise unless each lies in 0..n_rows - 1."""
    numbers = np.asarray(rows)
    if numbers.size == 0 and numbers.ndim == 1:
        return np.empty(0, dtype=np.int64)  # an empty list has a dtype of floats
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise InvalidParameterError(
            f"Got rows of dtype {numbers.dtype} and shape {numbers.shape}, but expected integers "
            "and one dimension."
        )
    for extreme in (numbers.min(), numbers.max()):
        if not 0 <= extreme < n_rows:
            raise ValueError(f"Got row {extreme} in rows, but expected 0 <= row < {n_rows}.")
    return numbers.astype(np.int64)
