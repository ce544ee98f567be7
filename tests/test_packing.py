"""Packed codes are what np.packbits would make of their bits, and any part of them comes back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.codes import packing
from pgkmeans_sk.codes.packing import code_bits, pack, packed_bytes, unpack, unpack_rows
from pgkmeans_sk.kernels import bits
from tests import reference

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = range(1, 17)
# None, less than a group of 8, around one group, around one tile of words, several tiles.
LENGTHS = [0, 1, 7, 8, 9, 15, 16, 17, 23, 100, 255, 256, 257, 511, 512, 513, 520, 1100]


def random_codes(n_bits, shape, seed=0):
    dtype = np.uint8 if n_bits <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**n_bits, shape, dtype=dtype)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


# ------------------------------------------------------------------ by hand


def test_codes_of_three_bits_by_hand():
    # Bits, lowest first: 101 100 110 111 000 010 001 011, in bytes 10110011 01110000 10001011.
    codes = np.array([5, 1, 3, 7, 0, 2, 4, 6], dtype=np.uint8)
    packed = pack(codes, 3)
    assert packed.tolist() == [0b11001101, 0b00001110, 0b11010001]
    assert unpack(packed, 3, 8).tolist() == codes.tolist()
    assert unpack(packed, 3, 2, start=6).tolist() == [4, 6]


def test_codes_of_twelve_bits_by_hand():
    packed = pack(np.array([0xABC, 0x123, 0xF0E], dtype=np.uint16), 12)
    assert packed.tolist() == [0xBC, 0x3A, 0x12, 0x0E, 0x0F]
    assert unpack(packed, 12, 3).tolist() == [0xABC, 0x123, 0xF0E]


def test_rows_follow_one_another_without_a_gap():
    packed = pack(np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=np.uint8), 1)
    assert packed.tolist() == [0b00111101, 1]
    assert unpack_rows(packed, 1, 3, [2, 0, 0]).tolist() == [[0, 0, 1], [1, 0, 1], [1, 0, 1]]


# ------------------------------------------------------------------ the reference


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_same_bytes_as_numpy(n_bits):
    for length in LENGTHS:
        codes = random_codes(n_bits, length)
        packed = pack(codes, n_bits)
        assert packed.dtype == np.uint8
        assert packed.size == packed_bytes(length, n_bits)
        np.testing.assert_array_equal(packed, reference.packed(codes, n_bits))
        found = unpack(packed, n_bits, length, total=length)
        assert found.dtype == codes.dtype
        np.testing.assert_array_equal(found, codes)
        np.testing.assert_array_equal(found, reference.unpacked(packed, n_bits, length))


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_any_part_is_a_slice(n_bits):
    codes = random_codes(n_bits, 600)
    packed = pack(codes, n_bits)
    for start in (*range(18), 511, 512, 583, *range(590, 601)):
        for count in (0, 1, 2, 7, 8, 9, 16, 65, 600):
            part = codes[start : start + count]
            np.testing.assert_array_equal(unpack(packed, n_bits, len(part), start), part)


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_rows_are_rows(n_bits):
    all_rows = np.arange(23)
    for row_length in (1, 2, 3, 7, 8, 9, 17, 96, 600):
        codes = random_codes(n_bits, (23, row_length))
        packed = pack(codes, n_bits)
        for rows in ([], [0], [22], [5, 5, 5], all_rows, all_rows[::-1], [3, 22, 0, 3]):
            found = unpack_rows(packed, n_bits, row_length, rows, n_rows=23)
            assert found.dtype == codes.dtype
            np.testing.assert_array_equal(found, codes[np.asarray(rows, dtype=np.intp)])
            again = unpack_rows(packed, n_bits, row_length, rows)
            np.testing.assert_array_equal(again, found)


@given(st.data())
def test_round_trip(data):
    n_bits = data.draw(st.integers(1, 16))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]))
    largest = min(2**n_bits - 1, np.iinfo(dtype).max)
    codes = np.array(data.draw(st.lists(st.integers(0, largest), max_size=300)), dtype=dtype)
    packed = pack(codes, n_bits)
    np.testing.assert_array_equal(packed, reference.packed(codes, n_bits))
    start = data.draw(st.integers(0, len(codes)))
    count = data.draw(st.integers(0, len(codes) - start))
    found = unpack(packed, n_bits, count, start, total=len(codes))
    np.testing.assert_array_equal(found, codes[start : start + count])


# ------------------------------------------------------------------ several chunks


@pytest.mark.parametrize("n_bits", [1, 3, 8, 11, 16])
def test_number_of_threads_does_not_matter(n_bits, monkeypatch):
    codes = random_codes(n_bits, (5 * packing.CHUNK_CODES + 77) // 13 * 13).reshape(-1, 13)
    rows = np.random.default_rng(1).integers(0, len(codes), len(codes))
    results = []
    for n_threads in (1, 2):
        monkeypatch.setattr(packing, "effective_n_threads", lambda n=n_threads: n)
        packed = pack(codes, n_bits)
        results.append(packed.tobytes())
        np.testing.assert_array_equal(unpack(packed, n_bits, codes.size), codes.ravel())
        part = unpack(packed, n_bits, codes.size - 5, start=5)
        np.testing.assert_array_equal(part, codes.ravel()[5:])
        np.testing.assert_array_equal(unpack_rows(packed, n_bits, 13, rows), codes[rows])
    assert results[0] == results[1] == reference.packed(codes, n_bits).tobytes()


@pytest.mark.parametrize("chunk", [8, 16, 1000])
@pytest.mark.parametrize("n_bits", WIDTHS)
def test_chunks_do_not_matter(n_bits, chunk, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_CODES", chunk)
    codes = random_codes(n_bits, (1003, 3))
    packed = pack(codes, n_bits)
    np.testing.assert_array_equal(packed, reference.packed(codes, n_bits))
    np.testing.assert_array_equal(unpack(packed, n_bits, 3000, start=9), codes.ravel()[9:])
    rows = np.arange(1003)[::-1]
    np.testing.assert_array_equal(unpack_rows(packed, n_bits, 3, rows), codes[::-1])


def test_a_row_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_CODES", 8)
    codes = random_codes(5, (4, 100))
    np.testing.assert_array_equal(unpack_rows(pack(codes, 5), 5, 100, [3, 1]), codes[[3, 1]])


# ------------------------------------------------------------------ users' arrays


def unaligned(codes):
    raw = np.zeros(codes.nbytes + 1, dtype=np.uint8)
    view = raw[1:].view(codes.dtype).reshape(codes.shape)
    view[...] = codes
    return view


LAYOUTS = {
    "read-only": read_only,
    "Fortran": np.asfortranarray,
    "strided": lambda codes: np.repeat(codes, 2, axis=1)[:, ::2],
    "reversed": lambda codes: codes[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": unaligned,
    "big-endian": lambda codes: codes.astype(codes.dtype.newbyteorder(">")),
    "uint16": lambda codes: codes.astype(np.uint16),
    "uint32": lambda codes: codes.astype(np.uint32),
    "uint64": lambda codes: codes.astype(np.uint64),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("n_bits", [3, 8, 11, 16])
def test_layouts_of_codes(n_bits, layout):
    codes = random_codes(n_bits, (50, 7))
    given_codes = LAYOUTS[layout](codes)
    np.testing.assert_array_equal(pack(given_codes, n_bits), reference.packed(codes, n_bits))
    np.testing.assert_array_equal(given_codes, codes)


@pytest.mark.parametrize("n_bits", [3, 8, 11, 16])
def test_layouts_of_packed_codes(n_bits, tmp_path):
    codes = random_codes(n_bits, (50, 7))
    packed = pack(codes, n_bits)
    (tmp_path / "codes").write_bytes(packed.tobytes())
    mapped = np.memmap(tmp_path / "codes", dtype=np.uint8, mode="r")
    strided = np.repeat(packed, 2)[::2]
    shifted = np.concatenate([packed[:1], packed])[1:]
    for form in (mapped, read_only(packed), strided, shifted):
        np.testing.assert_array_equal(unpack(form, n_bits, 300, start=11), codes.ravel()[11:311])
        np.testing.assert_array_equal(unpack_rows(form, n_bits, 7, [49, 2]), codes[[49, 2]])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4), (0, 5), (5, 0)])
def test_any_shape(shape):
    codes = random_codes(5, shape)
    packed = pack(codes, 5)
    np.testing.assert_array_equal(unpack(packed, 5, codes.size, total=codes.size), codes.ravel())


@pytest.mark.parametrize("integer", [int, np.int8, np.uint8, np.int64])
def test_numbers_of_numpy_are_numbers(integer):
    codes = random_codes(11, (100, 100))
    packed = pack(codes, integer(11))
    found = unpack(packed, integer(11), integer(100), integer(90))
    np.testing.assert_array_equal(found, codes.ravel()[90:190])
    rows = unpack_rows(packed, integer(11), integer(100), [integer(99)], n_rows=integer(100))
    np.testing.assert_array_equal(rows, codes[99:])


def test_one_form_of_each_kernel():
    codes = random_codes(3, 100)
    for form in (codes, read_only(codes)):
        packed = pack(form, 3)
        for bytes_ in (packed, read_only(packed)):
            unpack(bytes_, 3, 100)
            unpack_rows(bytes_, 3, 10, [1, 2])
    assert len(bits.pack_narrow.signatures) == 1
    assert len(bits.unpack_narrow.signatures) == 1


# ------------------------------------------------------------------ nothing beyond the arrays

AT_THE_EDGE = """
import ctypes, mmap
import numpy as np
from pgkmeans_sk.codes import packing

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
keep = []

def at_the_edge(array):
    '''A copy whose last byte is the last one that may be read.'''
    n_pages = -(-array.nbytes // PAGE)
    pages = mmap.mmap(-1, (n_pages + 1) * PAGE)
    keep.append(pages)
    whole = np.frombuffer(pages, dtype=np.uint8)
    forbidden = ctypes.c_void_p(whole.ctypes.data + n_pages * PAGE)
    assert libc.mprotect(forbidden, ctypes.c_size_t(PAGE), 0) == 0
    place = whole[n_pages * PAGE - array.nbytes : n_pages * PAGE].view(array.dtype)
    place[:] = array
    return place

rng = np.random.default_rng(0)
for n_bits in range(1, 17):
    dtype = np.uint8 if n_bits <= 8 else np.uint16
    for length in (1, 7, 8, 9, 16, 63, 64, 65, 520):
        codes = at_the_edge(rng.integers(0, 2**n_bits, length, dtype=dtype))
        packed = packing.pack(codes, n_bits)
        edge = at_the_edge(np.zeros_like(packed))
        assert packing._fill_bytes(codes, n_bits, edge)
        assert (edge == packed).all()
        for start in range(min(length, 20)):
            rest = at_the_edge(np.zeros_like(codes[start:]))
            packing._fill_codes(edge, n_bits, np.array([start]), rest[np.newaxis])
            assert (rest == codes[start:]).all()
            keep.pop()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called by its name in Linux")
def test_nothing_beyond_the_arrays_is_touched():
    finished = subprocess.run(
        [sys.executable, "-c", AT_THE_EDGE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout == "done\n", finished.stderr


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("n_codes", "n_bits"),
    [
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (16, 4),
        (17, 5),
        (256, 8),
        (257, 9),
        (65535, 16),
        (65536, 16),
    ],
)
def test_code_bits(n_codes, n_bits):
    assert code_bits(n_codes) == n_bits


@pytest.mark.parametrize("n_codes", [-1, 0, 1, 65537, 2.0, True, "2", None])
def test_code_bits_out_of_range(n_codes):
    with pytest.raises(ValueError, match=r"Got n_codes=.*, but expected an int from 2 to 65536\."):
        code_bits(n_codes)


def test_packed_bytes():
    assert [packed_bytes(count, 3) for count in (0, 1, 2, 3, 8, 9)] == [0, 1, 1, 2, 3, 4]
    assert packed_bytes(10**12, 16) == 2 * 10**12
    assert packed_bytes(np.int8(100), np.int8(16)) == 200
    with pytest.raises(ValueError, match="Got count=-1, but expected an int >= 0"):
        packed_bytes(-1, 3)
