"""The sweep over all centres against its NumPy twin, and the layout of centres."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from pgkmeans_sk.kernels.nearest import pack_centers
from pgkmeans_sk.kernels.sweep import padding, sweep, tile_points, tile_width
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH, SUM_BLOCK, vector_bytes
from tests import reference

ROOT = Path(__file__).resolve().parents[1]

# Below, at and above one and two blocks of sums.
N_FEATURES = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 70)
# Below, at and above whole quads and panels.
N_CENTERS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 40)

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@numba.njit
def call_sweep(tile, panels, starts, n_quads, n_features, best, second, index):
    sweep(tile, panels, starts, n_quads, n_features, best, second, index)


@numba.njit
def call_tile_points(tile):
    return tile_points(tile)


def in_panels(panels, starts):
    """Centres (K, d) and their starts as the kernels read them."""
    n_centers, n_features = panels.shape
    n_panels = -(-n_centers // PANEL_WIDTH)
    padded = np.zeros((n_panels * PANEL_WIDTH, n_features), dtype=panels.dtype)
    padded[:n_centers] = panels
    padded_starts = np.full(n_panels * PANEL_WIDTH, padding(panels.dtype), dtype=panels.dtype)
    padded_starts[:n_centers] = starts
    by_panel = padded.reshape(n_panels, PANEL_WIDTH, n_features).transpose(0, 2, 1)
    return np.ascontiguousarray(by_panel).ravel(), padded_starts


def swept(points, panels, starts):
    """Best, second and index by the kernel, and the same by the twin."""
    n_centers, n_features = panels.shape
    best, second = np.full((2, len(points)), np.nan, dtype=points.dtype)
    index = np.full(len(points), -1, dtype=np.int32)
    tile = np.ascontiguousarray(points.T).ravel()
    n_quads = -(-n_centers // 4)
    call_sweep(tile, *in_panels(panels, starts), n_quads, n_features, best, second, index)
    return (best, second, index), reference.sweep(starts, panels, points)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
@pytest.mark.parametrize("n_centers", N_CENTERS)
def test_sums_of_integers_are_exact(n_features, n_centers, dtype):
    # Small integers need no rounding, with or without fused products, and tie all the time.
    rng = np.random.default_rng([n_features, n_centers])
    points = rng.integers(-3, 4, (tile_width(np.dtype(dtype).itemsize), n_features)).astype(dtype)
    panels = rng.integers(-3, 4, (n_centers, n_features)).astype(dtype)
    starts = rng.integers(-3, 4, n_centers).astype(dtype)
    (best, second, index), twin = swept(points, panels, starts)
    np.testing.assert_array_equal(best, twin[0])
    np.testing.assert_array_equal(second < 1e30, n_centers > 1)  # else padding, tagged or not
    np.testing.assert_array_equal(np.minimum(second, 1e30), np.minimum(twin[1], 1e30))
    values = starts + points @ panels.T
    np.testing.assert_array_equal(values[np.arange(len(points)), index], values.min(axis=1))
    tags = 4 * np.finfo(dtype).eps * np.abs(values).max()
    assert (np.abs(best - values.min(axis=1)) <= tags).all()


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
    bound = (min(n_features, SUM_BLOCK) + -(-n_features // SUM_BLOCK) + 2 + 8) * eps * largest
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
def test_padding_never_wins(n_centers, dtype):
    # Padding consists of zeros: without its start at the largest number it would beat all these.
    points = np.ones((tile_width(np.dtype(dtype).itemsize), 3), dtype=dtype)
    (best, second, index), _ = swept(
        points, np.ones((n_centers, 3), dtype=dtype), np.full(n_centers, 1e30, dtype=dtype)
    )
    assert (index < n_centers).all()
    assert (best < 1e31).all()
    assert ((second < 1e31) == (n_centers > 1)).all()


@dtypes
def test_width_of_a_tile_is_known_to_kernels(dtype):
    assert vector_bytes() in (16, 32, 64)
    width = tile_width(np.dtype(dtype).itemsize)
    assert width % (vector_bytes() // np.dtype(dtype).itemsize) == 0
    assert call_tile_points(np.zeros(1, dtype=dtype)) == width


@dtypes
@pytest.mark.parametrize("n_centers", N_CENTERS)
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_centers_hold_the_shifted_centers(n_centers, dtype, ordered):
    rng = np.random.default_rng(n_centers)
    centers = rng.integers(-9, 9, (n_centers, 6)).astype(dtype)
    origin = rng.integers(-9, 9, 6).astype(dtype)
    order = None if ordered else rng.permutation(n_centers).astype(np.int32)
    packed = pack_centers(centers, origin, order)
    places = np.arange(n_centers) if ordered else order
    panels = packed.panels.reshape(-1, 6, PANEL_WIDTH).transpose(0, 2, 1).reshape(-1, 6)
    np.testing.assert_array_equal(panels[:n_centers], -2 * (centers - origin)[places])
    np.testing.assert_array_equal(panels[n_centers:], 0)
    np.testing.assert_array_equal(packed.rows, centers)
    np.testing.assert_array_equal(packed.order[:n_centers], places)
    np.testing.assert_array_equal(packed.order[n_centers:], -1)
    norms = ((centers - origin).astype(np.float64) ** 2).sum(axis=1)[places]
    np.testing.assert_array_less(packed.starts[:n_centers], norms + (norms == 0))
    np.testing.assert_allclose(packed.starts[:n_centers], norms, rtol=1e-4)
    np.testing.assert_array_equal(packed.starts[n_centers:], padding(dtype))


# Not the processor of this machine, so Numba finds nothing in its cache on a first run and compiles
# the kernels for both precisions: that takes a few seconds for each width.
OTHER_WIDTHS = {
    16: {"NUMBA_CPU_NAME": "generic"},
    32: {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"},
}

LABELS_IN_A_NARROW_WORLD = """
import numpy as np
from pgkmeans_sk.engines import coarse_choice, dense_pass, open_engine, patience, pruning
from pgkmeans_sk.kernels.vectors import has_products_of_pairs
from pgkmeans_sk.kernels.vectors import vector_bytes
from tests import reference
pruning.FEWEST_CENTERS = pruning.LEAST_WORK = pruning.FEWEST_GROUPS = 0
pruning.LONG_ROWS, pruning.FIRST_REST, n_pruned = 0, 0, [0, 0]
pruning.has_products_of_pairs = lambda: True  # made of other instructions, where there are none
pruning.MOST_IN_DOUBT = 2.0
coarse_choice.FEWEST_CENTERS = coarse_choice.LEAST_WORK = patience.PATIENCE = 0
look, n_coarse = dense_pass.DensePass.look_coarsely, 0

def counted(*arguments):
    global n_coarse
    n_coarse += 1
    look(*arguments)

dense_pass.DensePass.look_coarsely = counted
dense_pass.DensePass.compare_looks = lambda *arguments: counted(*arguments) or True
for dtype in (np.float32, np.float64):
    for problem in reference.problems(dtype):
        expected = reference.labels(problem.X, problem.centers)
        engine = open_engine("numba", problem.X, None)
        np.testing.assert_array_equal(engine.nearest(problem.centers), expected)
        for vague in (False, True):
            engine = open_engine("numba", problem.X, None)
            engine._looks.pruning._are_integers_vague = vague
            for _ in range(3):
                engine._found = None
                engine.assign(problem.centers)
                np.testing.assert_array_equal(engine.labels, expected)
                n_pruned[vague] += engine._looks.pruning._lower is not None
assert min(n_pruned) > 20
assert (n_coarse > 20) == has_products_of_pairs()
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
        timeout=900,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == width  # otherwise the test tested nothing
