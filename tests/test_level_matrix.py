"""LevelMatrix: codes are the nearest levels, packed without gaps at any width; known bytes."""

import numpy as np
import pytest

from pgkmeans_sk.codes.level_layout import LevelLayout
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.size import file_bytes, matrix_bytes
from tests.golden.make import shared
from tests.reference_levels import packed_bits, quantize

DTYPES = (np.float16, np.float32, np.float64)


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_by_hand():
    """Levels 0, 1, 2, 3 for the first three values; 0 and 3 for the others."""
    values = np.array([[0.0, 1.4, 3.0], [1.6, 1.4, 2.0]], np.float32)
    matrix = LevelMatrix.from_values(values, [2, 1], group_size=3)
    assert matrix.codes().tolist() == [[0, 1, 3], [1, 0, 1]]
    assert matrix.decode().tolist() == [[0.0, 1.0, 3.0], [3.0, 0.0, 3.0]]
    assert matrix.packed.tolist() == [0b101, 0b110100]  # one bit each, then two
    assert matrix.packed_widths.tolist() == [0b01]
    assert matrix.nbytes == 2 + 8 + 1
    assert matrix.bits_per_weight == 8 * 11 / 6
    lost = np.sqrt(0.4**2 + 1.4**2 + 1.4**2 + 1.0)
    assert matrix.relative_error == pytest.approx(lost / np.linalg.norm(values))
    assert "LevelMatrix(2 x 3 float32, 11 bytes" in repr(matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("range_size", "group_size"), [(77, 8), (11, 11), (7, 5), (16, 77), (1, 1)]
)
def test_against_the_reference(dtype, range_size, group_size):
    values = normal((7, 11), dtype)
    rng = np.random.default_rng(1)
    widths = rng.integers(1, 17, -(-77 // group_size))
    matrix = LevelMatrix.from_values(values, widths, range_size=range_size, group_size=group_size)
    starts = range(0, 77, range_size)
    parts = [values.reshape(-1)[start : start + range_size] for start in starts]
    ranges = np.array([[part.min(), part.max()] for part in parts])
    np.testing.assert_array_equal(matrix.ranges, ranges)
    codes, decoded = quantize(values, widths, ranges, range_size, group_size, dtype)
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.decode(), decoded)
    assert matrix.decode().dtype == dtype
    np.testing.assert_array_equal(matrix.decode([3, 0, 3]), decoded[[3, 0, 3]])
    np.testing.assert_array_equal(matrix.widths(), widths)
    bits = "".join(f"{byte:08b}"[::-1] for byte in matrix.packed)
    assert bits == packed_bits(codes, widths, group_size)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_round_trips(bits, dtype, tmp_path):
    """All codes of the width, the greatest included, alone and beside another one."""
    pytest.importorskip("safetensors")
    codes = np.arange(2**bits).astype(np.uint16)
    ranges = np.array([[-1.5, 2.0]], dtype)
    beside = np.append(codes, np.uint16(1))
    for given, widths in ((codes, bits), (beside, [bits, 16 if bits < 16 else 15])):
        saved = LevelMatrix.from_codes(
            given[np.newaxis],
            widths,
            ranges,
            range_size=given.size,
            group_size=codes.size,
            dtype=dtype,
        )
        saved.save(tmp_path / "file")
        loaded = LevelMatrix.load(tmp_path / "file")
        assert loaded.layout == saved.layout
        for name, array in saved.parts().items():
            np.testing.assert_array_equal(loaded.parts()[name], array)
        np.testing.assert_array_equal(loaded.codes(), given[np.newaxis])
        np.testing.assert_array_equal(loaded.decode(), saved.decode())
        assert saved.packed.nbytes == -(-codes.size * bits // 8) + 2 * (given is beside)


def test_the_error_is_at_most_half_a_step():
    values = normal((40, 50))
    for bits in range(1, 17):
        matrix = LevelMatrix.from_values(values, bits)
        step = (values.max() - values.min()) / (2**bits - 1)
        assert np.abs(matrix.decode() - values).max() <= 0.5 * step * (1 + 1e-5) + 1e-6


def test_entropy_is_that_of_each_width():
    codes = np.array([[0, 1, 0, 1, 0, 1, 2, 3]], np.uint8)
    matrix = LevelMatrix.from_codes(
        codes, [1, 2], np.array([[0, 1.0]]), range_size=8, group_size=4, dtype=np.float64
    )
    assert matrix.entropy == 0.5 * 1.0 + 0.5 * 2.0


def test_constant_values_and_clipped_ones():
    matrix = LevelMatrix.from_values(np.full((2, 3), 0.7, np.float32), 4)
    assert matrix.decode().tolist() == np.full((2, 3), 0.7, np.float32).tolist()
    ranges = np.array([[-1.0, 1.0]], np.float32)
    clipped = LevelMatrix.from_values(np.array([[-5.0, 0.2, 5.0]], np.float32), 1, ranges=ranges)
    assert clipped.decode().tolist() == [[-1.0, 1.0, 1.0]]


def test_ranges_of_fewer_digits():
    values = normal((8, 16))
    matrix = LevelMatrix.from_values(values, 8, range_size=16, range_dtype=np.float16)
    assert matrix.ranges.dtype == np.float16
    assert matrix.nbytes == 8 * 16 + 8 * 4
    assert matrix.relative_error < 0.01


def test_bytes_are_known_before():
    matrix = LevelMatrix.from_values(normal((9, 13)), [3] * 7 + [5] * 4 + [6] * 4, group_size=8)
    n_last = 9 * 13 - 14 * 8
    codes = 7 * 8 * 3 // 8 + 4 * 8 * 5 // 8 + -(-(3 * 8 + n_last) * 6 // 8)
    assert matrix_bytes(matrix.layout) == {"codes": codes, "ranges": 8, "widths": 4}
    assert matrix.nbytes == codes + 8 + 4


def test_values_that_are_refused():
    values = normal((4, 6))
    for changes, message in (
        ({"widths": 0}, "widths=0"),
        ({"widths": 17}, "widths=17"),
        ({"widths": [3, 3]}, r"widths of shape \(2,\).*each of 1 groups"),
        ({"widths": 2.5}, "dtype float64"),
        ({"values": values[0]}, r"shape \(6,\), but expected a matrix"),
        ({"values": np.where(values > 1, np.nan, values)}, "not finite in float32"),
        ({"values": values * 1e6, "range_dtype": np.float16}, "not finite in float16"),
        ({"group_size": 25}, "group_size=25, but expected at most the 24"),
    ):
        with pytest.raises(ValueError, match=message):
            LevelMatrix.from_values(**{"values": values, "widths": 3, **changes})
    with pytest.raises(ValueError, match="Got code 4"):
        LevelMatrix.from_codes(
            np.full((1, 4), 4, np.uint8),
            2,
            np.zeros((1, 2)),
            range_size=4,
            group_size=4,
            dtype=np.float32,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"range_size": 25}, "range_size=25, but expected at most the 24"),
        ({"group_size": 0}, "group_size=0"),
        ({"widths": ()}, r"widths of \[\] bits"),
        ({"widths": ((4, 12), (3, 12))}, r"widths of \[4, 3\] bits.*ascending"),
        ({"widths": ((17, 24),)}, "from 1 to 16"),
        ({"widths": ((3, 23),)}, "expected those of 24 values in 3 groups"),
        ({"widths": ((1, 8), (2, 8), (3, 4), (4, 4))}, "24 values in 3 groups"),
        ({"widths": ((True, 24),)}, "bits of a width=True"),
        ({"dtype": "BF16"}, "dtype='BF16'"),
        ({"range_dtype": "U8"}, "range_dtype='U8'"),
    ],
)
def test_layouts_that_are_refused(changes, message):
    fields = {"n_rows": 4, "n_features": 6, "range_size": 6, "group_size": 8}
    with pytest.raises(ValueError, match=message):
        LevelLayout(**{**fields, "widths": ((3, 24),), **changes})


def test_each_kind_says_that_a_file_is_of_the_other(tmp_path):
    pytest.importorskip("safetensors")
    LevelMatrix.from_values(normal((4, 6)), 3).save(tmp_path / "levels")
    shared().save(tmp_path / "codes")
    with pytest.raises(ValueError, match="levels: got a LevelMatrix, but expected a CompressedM"):
        CompressedMatrix.load(tmp_path / "levels")
    with pytest.raises(ValueError, match="codes: got a CompressedMatrix, but expected a LevelM"):
        LevelMatrix.load(tmp_path / "codes")


def test_a_file_has_as_many_bytes_as_was_said(tmp_path):
    pytest.importorskip("safetensors")
    from pgkmeans_sk.codes.description import CompressedDescription

    matrix = LevelMatrix.from_values(normal((9, 13)), [3, 5, 2] * 5, group_size=8)
    matrix.save(tmp_path / "file")
    described = CompressedDescription(shape=(9, 13), dtype="F32", layout=matrix.layout)
    total = sum(file_bytes({"matrix": described}).values())
    assert (tmp_path / "file").stat().st_size == total
