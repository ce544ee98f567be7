"""Small steps of kernels, and the vocabulary for rows, against NumPy."""

import numba
import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk.kernels import split, steps
from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.errors import squared_distance
from pgkmeans_sk.kernels.points import (
    add_row,
    copy_row,
    dense_points,
    dot_with,
    sparse_points,
    sq_dist_to,
)
from tests import reference

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
N_FEATURES = (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33)


# ------------------------------------------------------------------ steps


@kernel
def new_vectors(like, size):
    return steps.new_vector(size, like.dtype), steps.new_vector(size, np.int32)


@dtypes
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_new_vectors_are_arrays_like_any_other(size, dtype):
    for vector, kind in zip(new_vectors(np.empty(1, dtype), size), (dtype, np.int32), strict=True):
        assert vector.dtype == kind
        assert vector.shape == (size,)
        assert vector.flags.c_contiguous
        assert vector.flags.aligned
        vector[:] = 3
        assert vector.sum() == 3 * size


def test_new_vectors_do_not_share_memory():
    held = [new_vectors(np.empty(1), 50)[0] for _ in range(20)]
    for number, vector in enumerate(held):
        vector[:] = number
    assert [vector[0] for vector in held] == list(range(20))


@numba.njit
def call_numbers(first, second, numbers):
    return steps.lesser(first, second), steps.epsilon(numbers)


@dtypes
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (-5, 3), (3, -5), (4, 4)])
def test_numbers(first, second, dtype):
    expected = min(first, second), float(np.finfo(dtype).eps)
    assert call_numbers(first, second, np.empty(1, dtype)) == expected


@numba.njit
def call_inner(first, second):
    return steps.inner(first, second)


@numba.njit
def call_clear(vector):
    steps.clear(vector)


@numba.njit
def call_swap(order, keys, first, second):
    steps.swap(order, keys, first, second)


@numba.njit
def call_weight(weights, weight_step, i):
    return steps.weight_of(weights, weight_step, i)


@pytest.mark.parametrize("n_features", N_FEATURES)
def test_a_product_is_added_up_in_order(n_features):
    first, second = np.random.default_rng(n_features).standard_normal((2, n_features))
    assert call_inner(first, second) == np.cumsum(first * second)[-1]


def test_only_what_is_to_be_cleared_is_cleared():
    table = np.ones((3, 5))
    call_clear(table[1])
    np.testing.assert_array_equal(table.sum(axis=1), [5, 0, 5])
    call_clear(table[0, :0])
    assert table[0, 0] == 1


@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize(("first", "second"), [(0, 4), (3, 1), (2, 2)])
def test_members_change_places_with_their_keys(first, second, integer):
    order, keys = np.arange(5, dtype=integer), np.arange(5.0) / 2
    call_swap(order, keys, first, second)
    expected = np.arange(5)
    expected[[first, second]] = expected[[second, first]]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(keys, expected / 2)


def test_weights_may_lie_apart_or_serve_all_rows():
    table = np.arange(24.0).reshape(6, 4)
    read_only = table[:, 1].copy()
    read_only.flags.writeable = False
    for weights in (table[:, 1], table[::-1, 2], table[:, 3].copy(), read_only):
        assert [call_weight(weights, 1, i) for i in range(6)] == weights.tolist()
    assert call_weight(np.array([0.5]), 0, 5) == 0.5


def test_kernels_of_dense_rows_are_translated_as_they_are_written():
    weights, order, keys = np.ones(1), np.arange(4, dtype=np.int32), np.arange(4.0)
    assert split.select_by_weight(weights, 0, order, keys, 0, 4, 2.0) == 2
    (signature,) = (s for s in split.select_by_weight.signatures if s[0] == numba.typeof(weights))
    library = split.select_by_weight.overloads[signature].library
    if not library._disable_inspection:  # it was not compiled by another process
        assert "optsize" in library.get_llvm_str()


# ------------------------------------------------------------------ rows


@numba.njit
def call_vocabulary(points, i, vector, norm, target, copied):
    add_row(points, i, 0.7, target)
    copy_row(points, i, copied)
    return sq_dist_to(points, i, vector, norm), dot_with(points, i, vector)


def layouts(X):
    """The same rows as they may lie in memory."""
    wide = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan, X.dtype)
    wide[::2, ::3] = X
    return {"C": X, "F": np.asfortranarray(X), "apart": wide[::2, ::3]}


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_dense_rows_have_the_same_bits_in_any_layout(n_features, dtype):
    rng = np.random.default_rng(n_features)
    X, vector = rng.standard_normal((6, n_features)).astype(dtype), rng.standard_normal(n_features)
    start = rng.standard_normal(n_features)
    for layout, rows in layouts(X).items():
        for i in (0, 5):
            target, copied = start.copy(), np.empty(n_features)
            sq_dist, product = call_vocabulary(
                dense_points(rows), np.int32(i), vector, np.nan, target, copied
            )
            lanes = reference.errors_of_row(X[i], vector)
            assert sq_dist == (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]), layout
            row = X[i].astype(np.float64)
            assert product == pytest.approx(row @ vector, rel=1e-12, abs=1e-12)
            np.testing.assert_array_equal(target, start + 0.7 * row)
            np.testing.assert_array_equal(copied, row)


@dtypes
def test_products_have_the_same_bits_in_any_layout(dtype):
    rng = np.random.default_rng(1)
    X, vector = rng.standard_normal((6, 23)).astype(dtype), rng.standard_normal(23)
    room = np.zeros(23), np.empty(23)
    found = {
        call_vocabulary(dense_points(rows), 3, vector, 0.0, *room)[1]
        for rows in layouts(X).values()
    }
    assert len(found) == 1


@dtypes
def test_sparse_rows_say_the_same(dtype):
    X = sparse.random(6, 40, 0.3, "csr", dtype, random_state=0)
    vector = np.random.default_rng(0).standard_normal(40)
    for i in range(6):
        target, copied = np.zeros(40), np.full(40, np.nan)
        sq_dist, product = call_vocabulary(
            sparse_points(X), i, vector, vector @ vector, target, copied
        )
        row = X.toarray()[i].astype(np.float64)
        np.testing.assert_allclose(sq_dist, ((row - vector) ** 2).sum())
        np.testing.assert_allclose(product, row @ vector)
        np.testing.assert_array_equal(copied, row)
        np.testing.assert_allclose(target, 0.7 * row)


@numba.njit
def call_squared_distance(row, centers, label):
    return squared_distance(row, centers, label)


@pytest.mark.parametrize("n_features", N_FEATURES)
def test_a_distance_is_added_up_in_the_order_of_the_features(n_features):
    rng = np.random.default_rng(n_features)
    row, centers = rng.standard_normal(n_features), rng.standard_normal((3, n_features))
    for label in range(3):
        expected = np.cumsum((row - centers[label]) ** 2)[-1]
        assert call_squared_distance(row, centers, label) == expected
