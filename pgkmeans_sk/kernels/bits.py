"""Codes of a few bits side by side without gaps, and back.

Code i occupies the bits i b to (i + 1) b - 1 of the stream, and bit 0 is the lowest bit of byte 0.
Eight codes, a group, are b bytes, so each group begins with a byte.

Several codes move at once, as fields of a 64-bit word: 8 or 16 bits apart among the codes, b in the
stream. Neighbours are joined until all fields of a word lie together, or split the other way round.
Words are read and written whole, also where fewer of their bytes matter: what is written too far is
overwritten by what follows.

A tile of words is collected, then joined or split, then written: of a loop over words without gaps
LLVM makes vector instructions. It is twice as fast as one word after the other, and as fast as a
copy in memory.

8 and 16 bits are copies, and need no kernel.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.words import WORD_BYTES, load_word, prefetch, store_word

TILE_WORDS = 64

ROWS_AHEAD = 16
"""Rows between the one that is asked for and the one that is read. Rows in any order lie where no
processor expects them; waiting for one after the other took three times as long."""
CACHE_LINE = 64

EVERY_8 = np.uint64(0x0101010101010101)
EVERY_16 = np.uint64(0x0001000100010001)
EVERY_32 = np.uint64(0x0000000100000001)


@part
def low_bits(
    n_bits,  # IN uint64, 0 to 63
):
    """A word whose lowest bits are ones."""
    return (np.uint64(1) << n_bits) - np.uint64(1)


@part
def join(
    word,  # IN uint64, fields `width` apart
    first,  # IN uint64, which bits belong to every second field, from the first one on
    width,  # IN int
    used,  # IN uint64, bits that a field uses
):
    """Move every second field down to its neighbour: half as many fields of twice the bits."""
    return (word & first) | ((word >> (np.uint64(width) - used)) & (first << used))


@part
def split(
    word,  # IN uint64, fields that are pairs, `2 width` apart
    first,  # IN uint64, which bits belong to the first one of each pair
    width,  # IN int
    used,  # IN uint64, bits that the first one uses
):
    """Move the second one of each pair up to where a field of ``width`` begins."""
    return (word & first) | ((word << (np.uint64(width) - used)) & (first << np.uint64(width)))


@kernel
def word_at(
    array,  # IN (n,) uint8 or uint16
    at,  # IN int >= 0
    n_fields,  # IN int, elements in a word
):
    """The word from element ``at`` on; zeros beyond the array."""
    if at + n_fields <= array.size:
        return load_word(array, at)
    word = np.uint64(0)
    for k in range(n_fields):
        if at + k < array.size:
            word |= np.uint64(array[at + k]) << np.uint64(64 // n_fields * k)
    return word


@kernel
def put_word(
    word,  # IN uint64
    array,  # OUT (n,) uint8 or uint16
    at,  # IN int >= 0
    n_fields,  # IN int, elements in a word
):
    """Write a word over the elements from ``at`` on, as far as the array reaches."""
    if at + n_fields <= array.size:
        store_word(word, array, at)
    else:
        for k in range(n_fields):
            if at + k < array.size:
                array[at + k] = word >> np.uint64(64 // n_fields * k)


@part
def load_words(
    array,  # IN (n,) uint8 or uint16
    at,  # IN int, where the first word begins
    step,  # IN int, elements from one word to the next
    n_fields,  # IN int, elements in a word
    shift,  # IN uint64, bits to drop from each
    words,  # OUT, words[first : first + n_words]
    first,  # IN int
    n_words,  # IN int
):
    """Collect words; zeros beyond the array."""
    if at + (n_words - 1) * step + n_fields <= array.size:
        for k in range(n_words):
            store_word(load_word(array, at + k * step) >> shift, words, first + k)
    else:
        for k in range(n_words):
            words[first + k] = word_at(array, at + k * step, n_fields) >> shift


@part
def load_shifted(
    packed,  # IN (n_bytes,) uint8
    bit,  # IN int, where the first word begins
    step,  # IN int, bytes from one word to the next
    words,  # OUT, words[first], words[first + 2], ...
    first,  # IN int
    n_words,  # IN int
):
    """Collect words that begin with any bit: their upper ones come from one byte further on."""
    at, shift = bit >> 3, np.uint64(bit & 7)
    back = np.uint64(8) - shift
    if at + (n_words - 1) * step + 1 + WORD_BYTES <= packed.size:
        for k in range(n_words):
            word = load_word(packed, at + k * step) >> shift
            word |= load_word(packed, at + k * step + 1) << back
            store_word(word, words, first + 2 * k)
    else:
        for k in range(n_words):
            word = word_at(packed, at + k * step, 8) >> shift
            word |= word_at(packed, at + k * step + 1, 8) << back
            store_word(word, words, first + 2 * k)


@part
def store_words(
    words,  # IN, words[first : first + n_words]
    first,  # IN int
    n_words,  # IN int
    array,  # OUT (n,) uint8 or uint16
    at,  # IN int, where the first word goes
    step,  # IN int, elements from one word to the next
    n_fields,  # IN int, elements in a word
):
    """Write words one after the other, as far as the array reaches."""
    if at + (n_words - 1) * step + n_fields <= array.size:
        for k in range(n_words):
            store_word(load_word(words, first + k), array, at + k * step)
    else:
        for k in range(n_words):
            put_word(words[first + k], array, at + k * step, n_fields)


@part
def ask_for_row(
    packed,  # IN (n_bytes,) uint8
    n_bits,  # IN int
    starts,  # IN (n_rows,) int64, number of the first code of each row
    i,  # IN int
):
    """Have the beginning of a row brought into the cache, if there is such a row."""
    if i < starts.size:
        at = (starts[i] * n_bits) >> 3
        prefetch(packed, at)
        prefetch(packed, at + CACHE_LINE)


@kernel
def pack_narrow(
    codes,  # IN (n,) uint8
    n_bits,  # IN int, 1 to 7
    packed,  # OUT (ceil(n * n_bits / 8),) uint8
    words,  # WORK (TILE_WORDS,) uint64
):
    """Pack codes; returns whether all of them fit (else ``packed`` means nothing)."""
    b = np.uint64(n_bits)
    first8 = EVERY_16 * low_bits(b)
    first16 = EVERY_32 * low_bits(2 * b)
    first32 = low_bits(4 * b)
    n_groups = (codes.size + 7) // 8
    seen = np.uint64(0)
    for start in range(0, n_groups, words.size):
        n_words = min(words.size, n_groups - start)
        load_words(codes, 8 * start, 8, 8, np.uint64(0), words, 0, n_words)
        for k in range(n_words):
            seen |= words[k]
            word = join(words[k], first8, 8, b)
            word = join(word, first16, 16, 2 * b)
            words[k] = join(word, first32, 32, 4 * b)
        store_words(words, 0, n_words, packed, start * n_bits, n_bits, 8)
    return seen | (EVERY_8 * low_bits(b)) == EVERY_8 * low_bits(b)


@kernel
def pack_wide(
    codes,  # IN (n,) uint16
    n_bits,  # IN int, 9 to 15
    packed,  # OUT (ceil(n * n_bits / 8),) uint8
    words,  # WORK (TILE_WORDS,) uint64
):
    """Pack codes; returns whether all of them fit (else ``packed`` means nothing)."""
    b = np.uint64(n_bits)
    first16 = EVERY_32 * low_bits(b)
    first32 = low_bits(2 * b)
    n_groups = (codes.size + 7) // 8
    seen = np.uint64(0)
    for start in range(0, n_groups, words.size // 2):
        n_here = min(words.size // 2, n_groups - start)
        load_words(codes, 8 * start, 4, 4, np.uint64(0), words, 0, 2 * n_here)
        for k in range(2 * n_here):
            seen |= words[k]
            words[k] = join(join(words[k], first16, 16, b), first32, 32, 2 * b)
        for g in range(n_here):
            low, high = words[2 * g], words[2 * g + 1]
            words[2 * g] = low | (high << (4 * b))
            words[2 * g + 1] = high >> (64 - 4 * b)
        # Both words of a group before the next one, whose first word overwrites the second's end.
        at = start * n_bits
        if at + (n_here - 1) * n_bits + 2 * WORD_BYTES <= packed.size:
            for g in range(n_here):
                store_word(words[2 * g], packed, at + g * n_bits)
                store_word(words[2 * g + 1], packed, at + g * n_bits + WORD_BYTES)
        else:
            for g in range(n_here):
                put_word(words[2 * g], packed, at + g * n_bits, 8)
                put_word(words[2 * g + 1], packed, at + g * n_bits + WORD_BYTES, 8)
    return seen | (EVERY_16 * low_bits(b)) == EVERY_16 * low_bits(b)


@kernel
def unpack_narrow(
    packed,  # IN (n_bytes,) uint8
    n_bits,  # IN int, 1 to 7
    starts,  # IN (n_rows,) int64, number of the first code of each row
    row_length,  # IN int
    codes,  # OUT (n_rows * row_length,) uint8
    words,  # WORK (TILE_WORDS,) uint64
):
    """Unpack rows of consecutive codes."""
    b = np.uint64(n_bits)
    first8 = EVERY_16 * low_bits(b)
    first16 = EVERY_32 * low_bits(2 * b)
    first32 = low_bits(4 * b)
    n_groups = (row_length + 7) // 8  # of a row; what the last one has too much is overwritten
    i = g = i_out = g_out = 0
    while i < starts.size:
        n_words = 0
        while n_words < words.size and i < starts.size:
            if g == 0:
                ask_for_row(packed, n_bits, starts, i + ROWS_AHEAD)
            n_here = min(words.size - n_words, n_groups - g)
            bit = starts[i] * n_bits
            at, shift = (bit >> 3) + g * n_bits, np.uint64(bit & 7)  # a group and it: 63 bits
            load_words(packed, at, n_bits, 8, shift, words, n_words, n_here)
            n_words += n_here
            g += n_here
            if g == n_groups:
                i, g = i + 1, 0
        for k in range(n_words):
            word = split(words[k], first32, 32, 4 * b)
            word = split(word, first16, 16, 2 * b)
            words[k] = split(word, first8, 8, b)
        done = 0
        while done < n_words:
            n_here = min(n_words - done, n_groups - g_out)
            at = i_out * row_length + 8 * g_out
            store_words(words, done, n_here, codes, at, 8, 8)
            done += n_here
            g_out += n_here
            if g_out == n_groups:
                i_out, g_out = i_out + 1, 0


@kernel
def unpack_wide(
    packed,  # IN (n_bytes,) uint8
    n_bits,  # IN int, 9 to 15
    starts,  # IN (n_rows,) int64, number of the first code of each row
    row_length,  # IN int
    codes,  # OUT (n_rows * row_length,) uint16
    words,  # WORK (TILE_WORDS,) uint64
):
    """Unpack rows of consecutive codes."""
    b = np.uint64(n_bits)
    first16 = EVERY_32 * low_bits(b)
    first32 = low_bits(2 * b)
    n_groups = (row_length + 7) // 8
    i = g = i_out = g_out = 0
    while i < starts.size:
        n_words = 0
        while n_words < words.size and i < starts.size:
            if g == 0:
                ask_for_row(packed, n_bits, starts, i + ROWS_AHEAD)
            n_here = min((words.size - n_words) // 2, n_groups - g)
            bit = (starts[i] + 8 * g) * n_bits
            load_shifted(packed, bit, n_bits, words, n_words, n_here)
            load_shifted(packed, bit + 4 * n_bits, n_bits, words, n_words + 1, n_here)
            n_words += 2 * n_here
            g += n_here
            if g == n_groups:
                i, g = i + 1, 0
        for k in range(n_words):
            words[k] = split(split(words[k], first32, 32, 2 * b), first16, 16, b)
        done = 0
        while done < n_words:
            n_here = min((n_words - done) // 2, n_groups - g_out)
            at = i_out * row_length + 8 * g_out
            store_words(words, done, 2 * n_here, codes, at, 4, 4)
            done += 2 * n_here
            g_out += n_here
            if g_out == n_groups:
                i_out, g_out = i_out + 1, 0
