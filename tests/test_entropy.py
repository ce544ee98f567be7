"""The entropy of codes is that of their frequencies, whatever their layout, and costs no copy."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.codes import entropy
from pgkmeans_sk.codes.entropy import entropy_bits
from tests import reference


def test_by_hand():
    assert entropy_bits(np.array([0, 0, 1, 2]), 4) == 1.5
    assert entropy_bits(np.array([0, 1] * 50, dtype=np.uint8), 256) == 1.0
    assert entropy_bits(np.arange(256, dtype=np.uint8), 256) == 8.0
    # -(1/3 log2(1/3) + 2/3 log2(2/3)) = log2(3) - 2/3
    assert entropy_bits(np.array([7, 7, 2]), 8) == pytest.approx(np.log2(3) - 2 / 3, abs=1e-15)


def test_one_code_or_none_needs_nothing():
    for codes in (np.full(9, 3), np.empty(0, dtype=np.uint8)):
        found = entropy_bits(codes, 5)
        assert found == 0.0
        assert not np.signbit(found)
    np.testing.assert_array_equal(
        entropy_bits(np.empty((0, 3), dtype=np.uint8), 5, axis=0), [0] * 3
    )
    assert entropy_bits(np.empty((3, 0), dtype=np.uint8), 5, axis=0).shape == (0,)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=200))
def test_same_as_the_reference(codes):
    found = entropy_bits(np.array(codes), 12)
    assert found == pytest.approx(reference.entropy_bits(codes), abs=1e-13)
    assert 0.0 <= found <= np.log2(12) + 1e-13


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">u2"])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_columns_and_layouts(dtype, chunk, monkeypatch):
    monkeypatch.setattr(entropy, "CHUNK_CODES", chunk)
    rng = np.random.default_rng(0)
    codes = np.minimum(rng.geometric(0.3, (211, 5)) - 1, 15).astype(dtype)
    together = reference.entropy_bits(codes.ravel().tolist())
    columns = [reference.entropy_bits(column.tolist()) for column in codes.T]
    wide = np.repeat(codes, 2, axis=1)
    wide.flags.writeable = False
    for form in (codes, np.asfortranarray(codes), wide[:, ::2], codes[::-1, ::-1][::-1, ::-1]):
        assert entropy_bits(form, 16) == pytest.approx(together, abs=1e-13)
        per_column = entropy_bits(form, 16, axis=0)
        assert per_column.dtype == np.float64
        np.testing.assert_allclose(per_column, columns, atol=1e-13)


def test_memory():
    codes = np.random.default_rng(0).integers(0, 256, (400_000, 4), dtype=np.uint8)
    for axis in (None, 0):
        entropy_bits(codes, 256, axis=axis)  # compiling takes megabytes of its own
        tracemalloc.start()
        entropy_bits(codes, 256, axis=axis)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < codes.nbytes


@pytest.mark.parametrize("code", [-1, 5, 2**40])
def test_codes_out_of_range(code):
    codes = np.array([[0, 1], [code, 4]])
    for axis in (None, 0):
        with pytest.raises(ValueError, match=rf"Got code {code}, but expected codes from 0 to 4 "):
            entropy_bits(codes, 5, axis=axis)


def test_other_forms_are_refused():
    codes = np.array([0, 1])
    with pytest.raises(ValueError, match="Got codes of dtype float64, but expected integers"):
        entropy_bits(codes * 1.0, 2)
    with pytest.raises(ValueError, match="Got n_codes=0, but expected an int >= 1"):
        entropy_bits(codes, 0)
    with pytest.raises(ValueError, match="Got axis=1, but expected None or 0"):
        entropy_bits(codes, 2, axis=1)
    with pytest.raises(ValueError, match=r"Got codes of shape \(2,\), but expected \(n, m\)"):
        entropy_bits(codes, 2, axis=0)
