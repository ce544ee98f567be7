"""Rows from codes: against a twin that goes number by number, and what is refused."""

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.codes import lookup
from pgkmeans_sk.codes.lookup import decode_blocks
from tests import reference

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
code_dtypes = pytest.mark.parametrize("code_dtype", [np.uint8, np.uint16])


def problem(
    n=23, n_features=19, block_size=4, n_codes=7, n_stages=1, shared=False, code_dtype=np.uint8,
    seed=0,
):  # fmt: skip
    """Random codes and float32 codebooks; n_features=19 leaves a last block of 3."""
    rng = np.random.default_rng(seed)
    n_blocks = -(-n_features // block_size)
    shape = n_stages, 1 if shared else n_blocks, n_codes, block_size
    codes = rng.integers(0, n_codes, (n, n_stages * n_blocks)).astype(code_dtype)
    return codes, rng.standard_normal(shape, dtype=np.float32), n_features


def assert_decodes(codes, codebooks, n_features, dtype=np.float32, scales=None, factors=None):
    found = decode_blocks(
        codes, codebooks, n_features, out_dtype=dtype, block_scales=scales, row_factors=factors
    )
    assert found.dtype == dtype
    expected = reference.decode(codes, codebooks, n_features, dtype, scales, factors)
    np.testing.assert_array_equal(found, expected)


def test_by_hand():
    # Two blocks of 2 and 1 columns; two stages; the second book's words are padded.
    codebooks = np.array(
        [
            [[[1, 2], [3, 4]], [[5, 0], [6, 0]]],
            [[[10, 20], [30, 40]], [[50, 0], [60, 0]]],
        ],
        dtype=np.float32,
    )
    codes = np.array([[0, 1, 1, 0], [1, 1, 1, 1]], dtype=np.uint8)
    found = decode_blocks(codes, codebooks, 3)
    np.testing.assert_array_equal(found, [[31, 42, 56], [33, 44, 66]])
    scaled = decode_blocks(
        codes, codebooks, 3, block_scales=np.array([2.0, -1.0]), row_factors=np.array([1.0, 0.5])
    )
    np.testing.assert_array_equal(scaled, [[62, 84, -56], [33, 44, -33]])


@dtypes
@code_dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_stages", [1, 2, 3])
def test_random_codes(n_stages, shared, code_dtype, dtype):
    assert_decodes(*problem(n_stages=n_stages, shared=shared, code_dtype=code_dtype), dtype)


# Below a piece of four numbers, whole pieces, and what is left over; a last block of any width.
@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 20])
@pytest.mark.parametrize("n_features", [1, 13, 16])
def test_block_sizes(block_size, n_features):
    for n_stages in (1, 2):
        assert_decodes(*problem(11, n_features, block_size, n_stages=n_stages))


@dtypes
def test_scales_and_factors(dtype):
    codes, codebooks, d = problem(n_stages=2)
    rng = np.random.default_rng(1)
    scales, factors = rng.standard_normal(5), rng.standard_normal(len(codes)).astype(np.float32)
    for given_scales in (None, scales):
        for given_factors in (None, factors):
            assert_decodes(codes, codebooks, d, dtype, given_scales, given_factors)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_codebooks_are_converted(stored):
    codes, codebooks, d = problem()
    codebooks = codebooks.astype(stored)
    before = codebooks.copy()
    assert_decodes(codes, codebooks, d)
    assert_decodes(codes, codebooks, d, np.float64)
    np.testing.assert_array_equal(codebooks, before)


@pytest.mark.parametrize("layout", [name for name in reference.LAYOUTS if "csr" not in name])
def test_layouts(layout):
    codes, codebooks, d = problem(n_stages=2, code_dtype=np.uint16)
    expected = decode_blocks(codes, codebooks, d)
    arranged = reference.LAYOUTS[layout](codes.astype(np.float64)).astype(np.uint16, order="K")
    books = codebooks.reshape(-1, codebooks.shape[-1])
    books = reference.LAYOUTS[layout](books).reshape(codebooks.shape)
    np.testing.assert_array_equal(decode_blocks(arranged, books, d), expected)
    # Views of codes, not copies.
    wide = np.full((2 * len(codes), codes.shape[1] + 3), 6, dtype=np.uint16)
    for view in (wide[::2, 1:-2], wide[::-2, 2:-1], wide[1::2, : -3 or None]):
        view[:] = codes
        np.testing.assert_array_equal(decode_blocks(view, codebooks, d), expected)
    in_columns = np.asfortranarray(codes)
    in_columns.flags.writeable = False
    np.testing.assert_array_equal(decode_blocks(in_columns, codebooks, d), expected)


def test_into_rows_that_lie_apart():
    codes, codebooks, d = problem(n_stages=2)
    factors = np.linspace(1.0, 2.0, len(codes))
    room = np.full((2 * len(codes), d + 5), -1.0, dtype=np.float32)
    out = room[1::2, 2 : 2 + d]
    assert decode_blocks(codes, codebooks, d, row_factors=factors, out=out) is out
    expected = decode_blocks(codes, codebooks, d, row_factors=factors)
    np.testing.assert_array_equal(out, expected)
    out[:] = -1.0  # nothing beside it was touched
    assert (room == -1.0).all()


def test_no_rows_and_one_row():
    codes, codebooks, d = problem()
    assert decode_blocks(codes[:0], codebooks, d).shape == (0, d)
    assert_decodes(codes[:1], codebooks, d)
    assert_decodes(codes[5:6], codebooks, d, scales=np.arange(5.0))


def test_threads_and_chunks_do_not_matter(monkeypatch):
    codes, codebooks, d = problem(n=500, n_stages=2)
    expected = decode_blocks(codes, codebooks, d)
    monkeypatch.setattr(lookup, "DECODED_CHUNK", 70)
    np.testing.assert_array_equal(decode_blocks(codes, codebooks, d), expected)
    with threadpoolctl.threadpool_limits(1):
        np.testing.assert_array_equal(decode_blocks(codes, codebooks, d), expected)


@given(
    n=st.integers(1, 9),
    n_features=st.integers(1, 24),
    block_size=st.integers(1, 12),
    n_codes=st.integers(1, 256),
    n_stages=st.integers(1, 3),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(n, n_features, block_size, n_codes, n_stages, shared, seed):
    assert_decodes(*problem(n, n_features, block_size, n_codes, n_stages, shared, seed=seed))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": np.zeros((3, 5), np.int64)}, TypeError, "Got codes of dtype int64"),
        ({"codes": np.zeros((3, 5), ">u2")}, TypeError, "Got codes of dtype >u2"),
        ({"codes": np.zeros((3, 4), np.uint8)}, ValueError, r"\(3, 4\), but expected \(n, 5\)"),
        ({"codes": np.zeros(5, np.uint8)}, ValueError, r"Got codes of shape \(5,\)"),
        ({"codes": np.full((3, 5), 7, np.uint8)}, ValueError, "Got a code of 7, .* below 7"),
        ({"codebooks": np.zeros((1, 4, 7, 4))}, ValueError, "4 books, but expected 1 or 5"),
        ({"codebooks": np.zeros((5, 7, 4))}, ValueError, r"Got codebooks of shape \(5, 7, 4\)"),
        ({"codebooks": np.zeros((0, 5, 7, 4))}, ValueError, "each at least 1"),
        ({"n_features": 0}, ValueError, "n_features=0"),
        ({"out_dtype": np.float16}, TypeError, "Got out_dtype float16"),
        ({"block_scales": np.ones(4)}, ValueError, r"block_scales of shape \(4,\).*\(5,\)"),
        ({"row_factors": np.ones((3, 1))}, ValueError, r"row_factors of shape \(3, 1\)"),
        ({"out": np.zeros((3, 19))}, ValueError, "dtype float64, but expected .* float32"),
        ({"out": np.zeros((2, 19), np.float32)}, ValueError, r"Got out of shape \(2, 19\)"),
        ({"out": np.zeros((19, 3), np.float32).T}, ValueError, "Got out with strides"),
        ({"out": np.zeros((3, 19), np.float32)[::-1]}, ValueError, "Got out with strides"),
    ],
)
def test_what_is_refused(change, error, message):
    codes, codebooks, d = problem(n=3)
    arguments = {"codes": codes, "codebooks": codebooks, "n_features": d} | change
    with pytest.raises(error, match=message):
        decode_blocks(**arguments)


def test_read_only_out_is_refused():
    codes, codebooks, d = problem(n=3)
    out = np.zeros((3, d), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="Got out that is read-only"):
        decode_blocks(codes, codebooks, d, out=out)
