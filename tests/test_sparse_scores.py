"""Scores of sparse rows against their NumPy twin; what is looked at twice; errors of close rows."""

import numba
import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.sparse_rows import SparseRows
from pgkmeans_sk.kernels.nearest_sparse import label_sparse
from pgkmeans_sk.kernels.points import sparse_points
from pgkmeans_sk.kernels.sparse_scores import lanes_of, n_lanes, row_scores, two_least_of_lanes
from tests import reference

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# In registers: each size of block that is left over, alone and after whole blocks.
N_VECTORS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 21)


@numba.njit
def call_row_scores(data, indices, at, count, columns, starts, scores):
    row_scores(data, indices, at, count, columns, starts, scores)


@numba.njit
def call_two_least(scores, best, second, place):
    two_least_of_lanes(scores, best, second, place)


@numba.njit
def call_n_lanes(values):
    return n_lanes(values)


@dtypes
@pytest.mark.parametrize("n_vectors", N_VECTORS)
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 70])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_scores_of_integers_are_exact(n_vectors, count, index, dtype):
    rng = np.random.default_rng([n_vectors, count])
    n_places = n_vectors * lanes_of(np.dtype(dtype))
    columns = rng.integers(-3, 4, (90, n_places)).astype(dtype)
    starts = rng.integers(-3, 4, n_places).astype(dtype)
    data = rng.integers(-3, 4, 5 + count).astype(dtype)
    indices = rng.permutation(90)[: 5 + count].astype(index)
    scores = np.full(n_places, np.nan, dtype=dtype)
    call_row_scores(data, indices, 5, count, columns.ravel(), starts, scores)
    expected = reference.row_scores(starts, columns, data[5:], indices[5:])
    np.testing.assert_array_equal(scores, expected)


@dtypes
@pytest.mark.parametrize("n_vectors", N_VECTORS)
def test_two_least_of_each_lane(n_vectors, dtype):
    n_lanes_here = lanes_of(np.dtype(dtype))
    assert call_n_lanes(np.zeros(1, dtype=dtype)) == n_lanes_here
    rng = np.random.default_rng(n_vectors)
    scores = rng.integers(-9, 9, n_vectors * n_lanes_here).astype(dtype)  # with ties
    best, second = np.empty((2, n_lanes_here), dtype=dtype)
    place = np.full(n_lanes_here, -1, dtype=np.int32)
    call_two_least(scores, best, second, place)
    by_lane = np.sort(scores.reshape(n_vectors, n_lanes_here), axis=0)
    np.testing.assert_array_equal(best, by_lane[0])
    np.testing.assert_array_equal(scores[place], best)
    np.testing.assert_array_equal(place % n_lanes_here, np.arange(n_lanes_here))
    if n_vectors > 1:
        np.testing.assert_array_equal(second, by_lane[1])


def n_looked_at_twice(X, centers):
    points, labels = sparse_points(X), np.full(X.shape[0], -1, dtype=np.int32)
    packed = SparseRows(points, np.ones(1), 0).packed(centers, 1)
    utilities = np.zeros(len(centers))
    _, n_exact = label_sparse(points, np.ones(1), 0, 0, len(labels), packed, labels, utilities)
    np.testing.assert_array_equal(labels, reference.labels(X.toarray(), centers))
    return n_exact


@dtypes
def test_second_look_only_where_it_is_needed(dtype):
    rng = np.random.default_rng(0)
    X = sparse.random(400, 3000, 0.02, "csr", dtype, random_state=0)
    centers = X[:20].toarray()
    assert n_looked_at_twice(X, centers) <= 4
    # A far centre's large error must not make others uncertain.
    assert n_looked_at_twice(X, np.vstack([centers, np.full((1, 3000), 1e6, dtype)])) <= 4
    # Twice the same centre, apart from what float32 or float64 cannot tell in a score.
    close = centers * (1 + 1e-7 * rng.standard_normal(centers.shape)).astype(dtype)
    assert n_looked_at_twice(X, np.vstack([close, centers])) >= (400 if dtype == np.float32 else 0)
    assert n_looked_at_twice(X, np.vstack([centers, centers])) == 400


@dtypes
@pytest.mark.parametrize("share", [0.0, 1e-12, 1e-7, 1e-3, 0.1, 0.3])
def test_errors_of_rows_close_to_their_centre(share, dtype):
    # A difference of norms loses them; where it is taken, what is left must be accurate.
    rng = np.random.default_rng(1)
    X = sparse.random(50, 2000, 0.02, "csr", dtype, random_state=1)
    centers = (X.toarray() * (1 + share * rng.standard_normal((50, 2000)))).astype(dtype)
    centers[:, rng.integers(0, 2000, 5)] += dtype(share)  # also where rows have no value
    found, expected = NumbaEngine(X, None).assign(centers), reference.assignment(X, centers)
    np.testing.assert_array_equal(found.sizes, expected.sizes)
    np.testing.assert_allclose(found.sq_errors, expected.sq_errors, rtol=1e-12, atol=0)


@dtypes
def test_rows_that_store_nothing_or_everything(dtype):
    X = np.zeros((6, 40), dtype=dtype)
    X[1] = X[4] = np.arange(1, 41)
    X[2, 7] = 3.0
    engine = NumbaEngine(sparse.csr_matrix(X), None)
    centers = X[[0, 1, 2]]
    found = engine.assign(centers)
    np.testing.assert_array_equal(engine.labels, [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(found.sq_errors, np.zeros(3))
    np.testing.assert_array_equal(found.centroids, centers)
    empty = NumbaEngine(sparse.csr_matrix((4, 3), dtype=dtype), None)
    np.testing.assert_array_equal(empty.assign(np.eye(3, dtype=dtype)[:2]).sizes, [4, 0])
