"""The parts of product quantization, one by one."""

import numpy as np
import pytest

from pgkmeans_sk.codes.rotation import (
    Rotation,
    any_rotation,
    mixed_pieces,
    random_hadamard,
    random_orthogonal,
)
from pgkmeans_sk.quantization.blocks import column_slices, whole_blocks
from pgkmeans_sk.quantization.importance import column_scales_of, factor_of
from pgkmeans_sk.quantization.opq import principal_rotation
from pgkmeans_sk.quantization.stages import in_order
from tests import reference_codes as reference


def test_blocks_of_columns():
    assert column_slices(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert column_slices(2, 2) == [slice(0, 2)]
    rows = np.arange(14.0).reshape(2, 7)
    np.testing.assert_array_equal(
        whole_blocks(rows, 3), [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]]
    )
    rows = np.arange(12.0).reshape(2, 6)
    assert np.shares_memory(whole_blocks(rows, 3), rows)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 8, 12, 64, 96])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hadamard_rotation(d, dtype):
    rotation = random_hadamard(d, np.random.RandomState(d))
    assert rotation.width * len(rotation.mixer) == d
    matrix = reference.rotation_matrix(rotation)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=1e-12)
    X = np.random.default_rng(0).normal(size=(5000, d)).astype(dtype)
    before = X.copy()
    turned = rotation.apply(X)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    assert turned.dtype == dtype
    np.testing.assert_allclose(turned, X.astype(float) @ matrix.T, atol=tolerance)
    np.testing.assert_allclose(rotation.undo(turned), X, atol=tolerance)
    np.testing.assert_array_equal(X, before)
    if d > 2:
        spread = rotation.apply(np.eye(d))  # one column's size goes to all
        assert np.abs(spread).max() < 0.99 or d == 3


def test_hadamard_by_hand():
    rotation = Rotation(np.ones((1, 1)), np.array([1, -1], dtype=np.int8))
    turned = rotation.apply(np.array([[3.0, 1.0]]))
    np.testing.assert_allclose(turned, np.array([[2.0, 4.0]]) / np.sqrt(2))
    assert rotation.nbytes == 8 + 1


def test_any_rotation():
    matrix = random_orthogonal(6, np.random.RandomState(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(6), atol=1e-12)
    rotation = any_rotation(matrix)
    X = np.random.default_rng(0).normal(size=(9, 6))
    np.testing.assert_allclose(rotation.apply(X), X @ matrix.T)
    np.testing.assert_allclose(rotation.undo(X), X @ matrix)


def test_products_do_not_depend_on_other_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 37)).astype(np.float32)
    matrix = rng.normal(size=(37, 37))
    whole = mixed_pieces(X, matrix)
    np.testing.assert_allclose(whole, X @ matrix, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(mixed_pieces(X[1234:1235], matrix), whole[1234:1235])
    np.testing.assert_array_equal(mixed_pieces(np.asfortranarray(X), matrix), whole)


def test_scales_of_columns():
    scales = column_scales_of(np.array([4.0, 1.0, 1.0]))
    np.testing.assert_allclose(1 / scales**2, [2.0, 0.5, 0.5])
    assert np.isfinite(column_scales_of(np.array([0.0, 1.0]))).all()


def test_factor_of_a_metric():
    A = np.random.default_rng(0).normal(size=(4, 4))
    L = factor_of(A @ A.T)
    np.testing.assert_allclose(L @ L.T, A @ A.T, atol=1e-4)
    np.testing.assert_array_equal(L, np.tril(L))
    assert np.isfinite(factor_of(np.ones((3, 3)))).all()  # of rank 1


def test_principal_directions_are_dealt_out():
    """Variances 64, 16, 4, 1 in two blocks: 64 and 1 in one, 16 and 4 in the other."""
    rows = np.random.default_rng(0).normal(size=(20_000, 4)) * [1.0, 8.0, 2.0, 4.0]
    turned = rows @ principal_rotation(rows, np.ones(20_000), 2).T
    np.testing.assert_allclose(turned.var(axis=0), [64, 1, 16, 4], rtol=0.05)


def test_code_words_in_order():
    words = np.array([[2.0, 1.0], [1.0, 5.0], [1.0, 3.0], [2.0, 1.0]])
    np.testing.assert_array_equal(in_order(words, 3), [[1, 3], [1, 5], [2, 1], [1, 3]])
