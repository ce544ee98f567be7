"""What cannot be packed or unpacked is refused before any work, by name."""

import numpy as np
import pytest

from pgkmeans_sk.codes.packing import pack, packed_bytes, unpack, unpack_rows
from tests.test_packing import random_codes


@pytest.mark.parametrize("n_bits", [0, 17, -1, 3.0, True, None])
def test_bits_out_of_range(n_bits):
    codes = np.zeros(8, dtype=np.uint8)
    calls = (
        lambda: packed_bytes(8, n_bits),
        lambda: pack(codes, n_bits),
        lambda: unpack(codes, n_bits, 1),
        lambda: unpack_rows(codes, n_bits, 1, [0]),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"Got n_bits=.*, but expected an int from 1 to 16\."):
            call()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("n_bits", [1, 3, 7])
def test_a_code_that_does_not_fit_is_named(n_bits, dtype):
    codes = np.zeros((2000, 300), dtype=dtype)
    codes[1999, 1] = 2**n_bits + 1  # a later one; the first is in a chunk before
    codes[1234, 56] = 2**n_bits
    expected = (
        rf"Got code {2**n_bits} at \(1234, 56\), but expected codes from 0 to {2**n_bits - 1}"
    )
    with pytest.raises(ValueError, match=expected):
        pack(codes, n_bits)
    codes[1234, 56] = codes[1999, 1] = 2**n_bits - 1
    pack(codes, n_bits)


@pytest.mark.parametrize("n_bits", range(1, 16))
def test_each_place_is_looked_at(n_bits):
    dtype = np.uint8 if n_bits < 8 else np.uint16
    for place in range(40):
        for high_bit in {n_bits, 8 * np.dtype(dtype).itemsize - 1}:
            codes = np.zeros(40, dtype=dtype)
            codes[place] = 2**high_bit
            with pytest.raises(ValueError, match=rf"Got code {2**high_bit} at \({place},\)"):
                pack(codes, n_bits)


def test_a_code_that_would_fit_after_being_cut_off():
    with pytest.raises(ValueError, match=r"Got code 65537 at \(1,\), but expected codes from 0 to"):
        pack(np.array([1, 65537], dtype=np.uint32), 16)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, bool, object])
def test_codes_of_another_type(dtype):
    with pytest.raises(ValueError, match=r"Got codes of dtype .*, but expected unsigned integers"):
        pack(np.ones(3, dtype=dtype), 3)


def test_too_few_or_too_many_bytes():
    packed = pack(random_codes(5, 100), 5)
    assert packed.size == 63
    with pytest.raises(ValueError, match=r"Got packed with 62 bytes, but expected at least 63 for"):
        unpack(packed[:-1], 5, 100)
    with pytest.raises(ValueError, match=r"Got packed with 63 bytes, but expected at least 64 for"):
        unpack(packed, 5, 100, start=1)
    for other in (packed[:-1], np.append(packed, packed[:1])):
        with pytest.raises(ValueError, match=r"but expected 63 for 100 codes of 5 bits\."):
            unpack(other, 5, 10, total=100)
        with pytest.raises(ValueError, match=r"but expected 63 for 100 codes of 5 bits\."):
            unpack_rows(other, 5, 10, [0], n_rows=10)
    with pytest.raises(ValueError, match=r"Got total=9, but expected an int >= 12\."):
        unpack(packed, 5, 10, 2, total=9)


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (np.zeros(8, dtype=np.int8), "dtype int8"),
        (np.zeros((8, 1), dtype=np.uint8), r"shape \(8, 1\)"),
        (np.zeros(8), "dtype float64"),
    ],
)
def test_packed_of_another_form(packed, words):
    with pytest.raises(
        ValueError, match=rf"Got packed .*{words}.*expected uint8 and one dimension"
    ):
        unpack(packed, 4, 2)
    with pytest.raises(
        ValueError, match=rf"Got packed .*{words}.*expected uint8 and one dimension"
    ):
        unpack_rows(packed, 4, 2, [0])


@pytest.mark.parametrize("row", [-1, 8, 2**40, -(2**40)])
def test_rows_out_of_range(row):
    packed = pack(random_codes(3, (8, 5)), 3)
    for n_rows in (8, None):
        with pytest.raises(
            ValueError, match=rf"Got row {row} in rows, but expected 0 <= row < 8\."
        ):
            unpack_rows(packed, 3, 5, [0, row, 7], n_rows=n_rows)


def test_large_unsigned_rows():
    packed = pack(random_codes(3, (8, 5)), 3)
    with pytest.raises(ValueError, match=rf"Got row {2**64 - 1} in rows"):
        unpack_rows(packed, 3, 5, np.array([0, 2**64 - 1], dtype=np.uint64))


@pytest.mark.parametrize("rows", [[0.0], [True], [[0]], 0, ["0"]])
def test_rows_of_another_form(rows):
    with pytest.raises(ValueError, match=r"Got rows of dtype .*, but expected integers and one"):
        unpack_rows(np.zeros(9, dtype=np.uint8), 3, 1, rows)


def test_numbers_out_of_range():
    packed = np.zeros(9, dtype=np.uint8)
    with pytest.raises(ValueError, match="Got count=-1, but expected an int >= 0"):
        unpack(packed, 3, -1)
    with pytest.raises(ValueError, match="Got start=-1, but expected an int >= 0"):
        unpack(packed, 3, 1, -1)
    with pytest.raises(ValueError, match="Got row_length=0, but expected an int >= 1"):
        unpack_rows(packed, 3, 0, [])
    with pytest.raises(ValueError, match="Got n_rows=-1, but expected an int >= 0"):
        unpack_rows(packed, 3, 1, [], n_rows=-1)
