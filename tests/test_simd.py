"""The vector kernel against its NumPy twin, and its layout of centres against a plain one."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from pgkmeans_sk.kernels.nearest import pack_centers
from pgkmeans_sk.kernels.simd import (
    PANEL_WIDTH,
    SUM_BLOCK,
    sweep,
    tile_points,
    tile_width,
    vector_bytes,
)
from tests import reference

ROOT = Path(__file__).resolve().parents[1]

# Below, at and above one and two blocks of sums.
N_FEATURES = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 70)
# Below, at and above whole panels.
N_CENTERS = (1, 2, 3, 4, 5, 8, 13, 40)

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@numba.njit
def call_sweep(tile, panels, starts, n_panels, n_features, best, second, index):
    sweep(tile, panels, starts, n_panels, n_features, best, second, index)


@numba.njit
def call_tile_points(tile):
    return tile_points(tile)


def arguments(points, panels, starts):
    """What ``sweep`` takes, for points (L, d), panels (K, d) and starts (K,)."""
    n_centers, n_features = panels.shape
    n_panels = -(-n_centers // PANEL_WIDTH)
    padded = np.zeros((n_panels * PANEL_WIDTH, n_features), dtype=points.dtype)
    padded[:n_centers] = panels
    padded_starts = np.full(n_panels * PANEL_WIDTH, np.inf, dtype=points.dtype)
    padded_starts[:n_centers] = starts
    by_panel = padded.reshape(n_panels, PANEL_WIDTH, n_features).transpose(0, 2, 1)
    tile = np.ascontiguousarray(points.T).ravel()
    return tile, np.ascontiguousarray(by_panel).ravel(), padded_starts, n_panels, n_features


def swept(points, panels, starts):
    """Best, second and index by the kernel, and the same by the twin."""
    given = arguments(points, panels, starts)
    best, second = np.full((2, len(points)), np.nan, dtype=points.dtype)
    index = np.full(len(points), -1, dtype=np.int32)
    call_sweep(*given, best, second, index)
    return (best, second, index), reference.sweep(*given, PANEL_WIDTH, SUM_BLOCK)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
@pytest.mark.parametrize("n_centers", N_CENTERS)
def test_sums_of_integers_are_exact(n_features, n_centers, dtype):
    # Small integers need no rounding, with or without fused products, and tie all the time.
    rng = np.random.default_rng([n_features, n_centers])
    points = rng.integers(-3, 4, (tile_width(np.dtype(dtype).itemsize), n_features)).astype(dtype)
    panels = rng.integers(-3, 4, (n_centers, n_features)).astype(dtype)
    starts = rng.integers(-3, 4, n_centers).astype(dtype)
    found, twin = swept(points, panels, starts)
    values = np.column_stack([starts + points @ panels.T, np.full(len(points), np.inf)])
    plain = *np.sort(values, axis=1)[:, :2].T, values.argmin(axis=1)
    for by_kernel, by_twin, by_definition in zip(found, twin, plain, strict=True):
        np.testing.assert_array_equal(by_kernel, by_twin)
        np.testing.assert_array_equal(by_kernel, by_definition)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_rounding_stays_below_the_bound(n_features, dtype):
    rng = np.random.default_rng(n_features)
    points = rng.standard_normal((tile_width(np.dtype(dtype).itemsize), n_features)).astype(dtype)
    panels = (-2 * rng.standard_normal((11, n_features))).astype(dtype)
    starts = ((panels / 2) ** 2).sum(axis=1)
    # Note [Error bound] of nearest.py, without the shift that happens before.
    largest = (points**2).sum(axis=1) + starts.max()
    eps = np.finfo(dtype).eps
    bound = (min(n_features, SUM_BLOCK) + -(-n_features // SUM_BLOCK) + 2) * eps * largest
    (best, second, index), twin = swept(points, panels, starts)
    # longdouble: exact enough to judge float64
    exact = starts + points.astype(np.longdouble) @ panels.astype(np.longdouble).T
    two_least = np.sort(exact, axis=1)[:, :2].T
    for by_kernel, by_twin, true in zip((best, second), twin[:2], two_least, strict=True):
        assert (np.abs(by_kernel - true) <= bound).all()
        assert (np.abs(by_kernel - by_twin) <= 2 * bound).all()
    assert (exact[np.arange(len(points)), index] - two_least[0] <= 2 * bound).all()


@dtypes
@pytest.mark.parametrize("n_centers", N_CENTERS)
def test_ties_keep_the_lowest_index(n_centers, dtype):
    points = np.ones((tile_width(np.dtype(dtype).itemsize), 5), dtype=dtype)
    panels, starts = np.zeros((n_centers, 5), dtype=dtype), np.full(n_centers, 3, dtype=dtype)
    for equal_from in range(n_centers):
        starts[:equal_from] = 4
        (best, second, index), _ = swept(points, panels, starts)
        assert (index == equal_from).all()
        assert (best == 3).all()
        last = equal_from == n_centers - 1
        assert (second == (3 if not last else 4 if n_centers > 1 else np.inf)).all()


@dtypes
@pytest.mark.parametrize("n_centers", N_CENTERS)
def test_padding_never_wins(n_centers, dtype):
    # Padding consists of zeros: without its start at infinity it would beat all these.
    points = np.ones((tile_width(np.dtype(dtype).itemsize), 3), dtype=dtype)
    (best, second, index), _ = swept(
        points, np.ones((n_centers, 3), dtype=dtype), np.full(n_centers, 1e30, dtype=dtype)
    )
    assert (index == 0).all()
    assert np.isfinite(best).all()
    assert (np.isfinite(second) == (n_centers > 1)).all()


@dtypes
def test_width_of_a_tile_is_known_to_kernels(dtype):
    assert vector_bytes() in (16, 32, 64)
    width = tile_width(np.dtype(dtype).itemsize)
    assert width % (vector_bytes() // np.dtype(dtype).itemsize) == 0
    assert call_tile_points(np.zeros(1, dtype=dtype)) == width


@dtypes
@pytest.mark.parametrize("n_centers", N_CENTERS)
def test_packed_centers_hold_the_shifted_centers(n_centers, dtype):
    rng = np.random.default_rng(n_centers)
    centers = rng.integers(-9, 9, (n_centers, 6)).astype(dtype)
    origin = rng.integers(-9, 9, 6).astype(dtype)
    packed = pack_centers(centers, origin)
    panels = packed.panels.reshape(-1, 6, PANEL_WIDTH).transpose(0, 2, 1).reshape(-1, 6)
    np.testing.assert_array_equal(panels[:n_centers], -2 * (centers - origin))
    np.testing.assert_array_equal(panels[n_centers:], 0)
    np.testing.assert_array_equal(packed.rows, centers)
    np.testing.assert_array_equal(packed.columns, centers.T)
    norms = ((centers - origin).astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_array_less(packed.starts[:n_centers], norms + (norms == 0))
    np.testing.assert_allclose(packed.starts[:n_centers], norms, rtol=1e-4)
    np.testing.assert_array_equal(packed.starts[n_centers:], np.inf)


# Not the processor of this machine, so Numba finds nothing in its cache on a first run and compiles
# the kernels for both precisions: that takes a few seconds for each width.
OTHER_WIDTHS = {
    16: {"NUMBA_CPU_NAME": "generic"},
    32: {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"},
}

LABELS_IN_A_NARROW_WORLD = """
import numpy as np
from pgkmeans_sk.engines import open_engine
from pgkmeans_sk.kernels.simd import vector_bytes
from tests import reference
for dtype in (np.float32, np.float64):
    for problem in reference.problems(dtype):
        labels = open_engine("numba", problem.X, None).nearest(problem.centers)
        np.testing.assert_array_equal(labels, reference.labels(problem.X, problem.centers))
print(vector_bytes())
"""


@pytest.mark.parametrize("width", OTHER_WIDTHS)
def test_labels_are_the_same_with_narrower_vectors(width):
    if width == 32 and (platform.machine() not in ("x86_64", "AMD64") or vector_bytes() < 32):
        pytest.skip("this processor cannot run code for Haswell")
    finished = subprocess.run(
        [sys.executable, "-c", LABELS_IN_A_NARROW_WORLD],
        cwd=ROOT,
        env={**os.environ, **OTHER_WIDTHS[width]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == width  # otherwise the test tested nothing
