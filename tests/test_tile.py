"""Rows in the layout of the sweep, and which of its answers are certain, against NumPy twins."""

import numba
import numpy as np
import pytest

from pgkmeans_sk.kernels.nearest import DOUBT_SHARE, pack_centers
from pgkmeans_sk.kernels.points import dense_points
from pgkmeans_sk.kernels.sweep import tile_width
from pgkmeans_sk.kernels.tile import doubtful, fill_tile
from tests import reference

# Below, at and above one and two registers of either type, on any processor.
N_FEATURES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47)

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@numba.njit
def call_fill(base, steps, which, first, count, origin, tile, norms):
    fill_tile(base, steps[0], steps[1], which, first, count, origin, tile, norms)


@numba.njit
def call_doubtful(best, second, norms, share, smallest, largest):
    return doubtful(best, second, norms, share, smallest, largest)


def filled(X, which, first, count, origin):
    """Tile (d, L) and squared norms (L,) by the kernel; numbers around them stay as they are."""
    width, n_features = tile_width(X.itemsize), X.shape[1]
    guarded, guarded_norms = (
        np.full(n_features * width + 64, np.nan, X.dtype),
        np.full(width + 64, np.nan, X.dtype),
    )
    points = dense_points(X)
    call_fill(
        points.base, points[1:3], which, first, count, origin,
        guarded[32:-32], guarded_norms[32:-32],
    )  # fmt: skip
    for guarded_array in (guarded, guarded_norms):
        assert np.isnan(guarded_array[:32]).all()
        assert np.isnan(guarded_array[-32:]).all()
    return guarded[32:-32].reshape(n_features, width), guarded_norms[32:-32]


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
@pytest.mark.parametrize("spare_columns", [0, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_tile_holds_the_rows_in_its_columns(n_features, spare_columns, order, dtype):
    rng = np.random.default_rng(n_features)
    width = tile_width(np.dtype(dtype).itemsize)
    # integers: their squares are added up without rounding
    table = rng.integers(-50, 50, (4 * width, n_features + spare_columns)).astype(dtype)
    X = np.array(table, order=order)[:, :n_features]
    origin = rng.integers(-9, 9, n_features).astype(dtype)
    for which, first, count in (
        (np.arange(4 * width), width, width),
        (rng.permutation(4 * width), 2, width),
        (rng.permutation(4 * width), 5, 1),
        (np.arange(4 * width)[::2], 3, width - 1),
    ):
        expected = reference.tile_of(X, which[first : first + count], origin, width)
        tile, norms = filled(X, which.astype(np.int64), first, count, origin)
        np.testing.assert_array_equal(tile, expected)
        np.testing.assert_array_equal(norms, (expected**2).sum(axis=0))


@dtypes
def test_norms_are_added_up_feature_by_feature(dtype):
    rng = np.random.default_rng(0)
    width = tile_width(np.dtype(dtype).itemsize)
    X = rng.standard_normal((width, 37)).astype(dtype)
    _, norms = filled(X, np.arange(width), 0, width, np.zeros(37, dtype))
    expected = (X.astype(np.longdouble) ** 2).sum(axis=1)
    assert (np.abs(norms - expected) <= 37 * np.finfo(dtype).eps * expected).all()


@dtypes
def test_doubts_are_told_row_by_row(dtype):
    rng = np.random.default_rng(0)
    width = tile_width(np.dtype(dtype).itemsize)
    n_doubts = 0
    for _ in range(200):
        norms = rng.uniform(0, 4, width).astype(dtype)
        best = (rng.uniform(-0.2, 1, width) * norms).astype(dtype) - norms / 2
        second = best + rng.choice([0.0, 0.01, 0.5, 3.0], width).astype(dtype)
        norms[rng.integers(width)] = rng.choice([np.inf, np.nan, 100.0, 1.0])
        share, smallest, largest = dtype(0.1), dtype(0.001), dtype(50.0)
        bits = call_doubtful(best, second, norms, share, smallest, largest)
        expected = reference.doubtful(best, second, norms, share, smallest, largest)
        assert [bool(bits >> lane & 1) for lane in range(width)] == expected.tolist()
        assert bits >> width == 0
        n_doubts += expected.sum()
    assert 100 < n_doubts < 200 * width - 100


@dtypes
def test_what_the_first_look_settles_the_sharper_bound_settles_too(dtype):
    # Note [Error bound]: for points and centres anywhere, near and far from the origin.
    rng = np.random.default_rng(0)
    width = tile_width(np.dtype(dtype).itemsize)
    n_close = 0
    for scale in (1e-3, 1.0, 1e3):
        for _ in range(100):
            n_features = int(rng.integers(1, 20))
            points = rng.standard_normal((width, n_features)).astype(dtype)
            centers = (points + scale * rng.standard_normal((width, n_features))).astype(dtype)
            packed = pack_centers(centers, np.zeros(n_features, dtype))
            starts = packed.starts[:width].astype(np.float64)
            norms = (points.astype(np.float64) ** 2).sum(axis=1)
            best = starts - 2 * (points.astype(np.float64) * centers).sum(axis=1)
            sharper = 2 * packed.kappa * (norms + starts) + packed.smallest
            share = DOUBT_SHARE * packed.kappa
            first_look = share * (norms + np.maximum(best + norms, 0)) + 2 * packed.smallest
            assert (first_look >= sharper).all()
            n_close += (first_look < 4 * sharper).sum()
    assert n_close > 100  # it is no wider than it has to be
