"""Values of a few centres in 16-bit integers: what they are, and what they are off by at most."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import dense_pass, patience, pruning
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels.integer_panels import (
    ROWS_AT_ONCE,
    integer_panels,
    least_of_integers,
    no_integers,
    round_row,
)
from pgkmeans_sk.kernels.integers import ABSENT, ROW_LIMIT
from pgkmeans_sk.kernels.nearest import pack_centers
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH, vector_bytes
from tests import reference, reference_integers
from tests.problems import PATTERNS, rows
from tests.reference_integers import rounded_rows
from tests.test_sweep import N_FEATURES

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
PROBLEMS = [*reference.problems(np.float32), *reference.problems(np.float64)]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def in_panels(X, centers, order=None):
    """Centres in integer panels for the rows ``X``, and the origin that an engine takes."""
    origin = np.median(X, axis=0).astype(X.dtype)
    lengths = np.sqrt(((X.astype(np.float64) - origin) ** 2).sum(axis=1))
    packed = pack_centers(centers, origin, order)
    return integer_panels(packed, float(np.quantile(lengths, 0.9))), origin


# ------------------------------------------------------------------ the innermost loops


@numba.njit
def call_round(shifted, at, n_features, per_unit, rounded, to):
    round_row(shifted, at, n_features, per_unit, rounded, to)


@numba.njit
def call_least(rounded, which, panels, starts, panel, n_pairs, own, scale, least, position):
    least_of_integers(
        rounded, which, 3, panels, starts, panel, n_pairs, own, scale, least, position, 2
    )


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_a_row_is_rounded(n_features, dtype):
    X = 100.0 * np.random.default_rng(n_features).standard_normal((3, n_features)).astype(dtype)
    X[2, 0], X[2, -1] = 1e9, -np.inf  # a row beyond the reach is as good as any
    even = n_features + n_features % 2
    rounded = np.full(3 * even + 1, 7, dtype=np.int16)
    for i in range(3):
        call_round(X.ravel(), i * n_features, n_features, dtype(100.0), rounded, i * even)
    found = rounded[:-1].reshape(3, even)
    np.testing.assert_array_equal(found[:, :n_features], rounded_rows(X, 100.0))
    np.testing.assert_array_equal(found[:, n_features:], 0)
    assert rounded[-1] == 7  # nothing is written behind the last row


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
@pytest.mark.parametrize("n_centers", [1, 16, 40])
def test_integers_are_held_against_listed_rows(n_features, n_centers, dtype):
    rng = np.random.default_rng(n_features)
    X = rng.standard_normal((20, n_features)).astype(dtype)
    centers = rng.standard_normal((n_centers, n_features)).astype(dtype)
    integers, origin = in_panels(X, centers, rng.permutation(n_centers).astype(np.int32))
    units = rounded_rows(X - origin, integers.per_unit)
    padded = np.zeros((20, n_features + n_features % 2), dtype=np.int16)
    padded[:, :n_features] = units
    n_rows = ROWS_AT_ONCE[vector_bytes()]
    which = rng.integers(0, 20, 3 + n_rows).astype(np.int32)
    own = rng.integers(-1, 48, 20).astype(np.int32)
    least, position = np.empty(2 + n_rows, dtype), np.empty(2 + n_rows, np.int32)
    values = integers.starts + units @ reference_integers.panel_units(integers, n_features).T
    for panel in range(-(-n_centers // PANEL_WIDTH)):
        call_least(
            padded.ravel(), which, integers.panels, integers.starts, panel, padded.shape[1] // 2,
            own, integers.scale, least, position,
        )  # fmt: skip
        first = PANEL_WIDTH * panel
        here = values[which[3:], first : first + PANEL_WIDTH]
        inside = np.abs(here).max() < 2**31  # rows beyond the reach may overflow
        assert inside or (np.abs(units) == ROW_LIMIT).any()
        if inside:
            expected = reference_integers.least_of_integers(here, own[which[3:]] - first)
            np.testing.assert_array_equal(
                least[2:], expected[0].astype(dtype) * dtype(integers.scale)
            )
            np.testing.assert_array_equal(position[2:], first + expected[1])


# ------------------------------------------------------------------ what integers stand for


@pytest.mark.parametrize("n_features", [1, 2, 7, 64, 1001])
def test_nothing_overflows(n_features):
    """Rows and centres as long as the reach, in one direction and in opposite ones."""
    for direction in (np.ones(n_features), np.eye(n_features)[0]):
        unit = direction / np.sqrt(n_features if direction.all() else 1.0)
        X = np.outer([1.0, -1.0, 1 / 3, -1 / 3], unit)
        integers = integer_panels(pack_centers(X, np.zeros(n_features)), 1.0)
        units = rounded_rows(X, integers.per_unit)
        assert np.abs(units).max() <= ROW_LIMIT
        reference_integers.panel_values(units, integers)  # asserts that values fit


@every_problem
@pytest.mark.parametrize("row_length", [0.0, 1e-3, 1.0, 1e3])
def test_values_are_lower_bounds(problem, row_length):
    """Note [Finer units]: value and row together are at most the squared distance."""
    X, centers = problem.X, problem.centers
    origin = np.median(X, axis=0).astype(X.dtype)
    integers = integer_panels(pack_centers(centers, origin), row_length)
    if integers is None:
        return
    shifted = X - origin
    norms = np.einsum("it,it->i", shifted, shifted)
    is_near = norms < X.dtype.type(integers.reach_sq)
    units = rounded_rows(shifted[is_near], integers.per_unit)
    values = reference_integers.panel_values(units, integers)[:, : len(centers)]
    error = (
        integers.error
        + integers.error_per_length * np.sqrt(norms)
        + (integers.error_per_norm * norms)
    )
    at_least = (norms - error)[is_near].astype(np.float64)
    highest = values | PANEL_WIDTH - 1  # the most that a tag makes of them
    bounds = integers.scale * highest + at_least[:, np.newaxis]
    assert (bounds <= reference.sq_distances(X, centers)[is_near]).all()


def test_values_are_close():
    """A bound that is always true would be of no use: this one is near the distance."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 384)).astype(np.float32)
    centers = rng.standard_normal((50, 384)).astype(np.float32) / 2
    integers, origin = in_panels(X, centers)
    shifted = (X - origin).astype(np.float64)
    norms = (shifted**2).sum(axis=1)
    is_near = norms < integers.reach_sq
    units = rounded_rows(X - origin, integers.per_unit)[is_near]
    values = reference_integers.panel_values(units, integers)[:, :50]
    error = integers.error + integers.error_per_length * np.sqrt(norms)
    bounds = integers.scale * values + (norms - error)[is_near, np.newaxis]
    gaps = reference.sq_distances(X, centers)[is_near] - bounds
    assert gaps.max() < 4e-3 * norms.max()


@dtypes
def test_numbers_of_any_size_are_left_to_floats(dtype):
    extremes = [1e-30, 1e30] if dtype == np.float32 else [1e-150, 1e150]
    centers = np.ones((3, 2), dtype=dtype)
    with np.errstate(all="ignore"):
        for scale in [0.0, *extremes]:
            packed = pack_centers(centers * dtype(scale), np.zeros(2, dtype=dtype))
            assert integer_panels(packed, 0.0) is None
    assert integer_panels(pack_centers(centers, np.zeros(2, dtype=dtype)), 0.0) is not None
    assert not no_integers().panels.size


def test_absent_centres_do_not_win():
    X = np.random.default_rng(0).standard_normal((5, 3))
    integers, _ = in_panels(X, X[:2])
    assert (integers.starts[2:] == ABSENT).all()
    assert (integers.starts[:2] < ABSENT).all()


# ------------------------------------------------------------------ whole passes


@pytest.fixture
def n_passes(monkeypatch):
    """How many passes had integers, and how many had none; the smallest problems have them."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK", "FEWEST_GROUPS"):
        monkeypatch.setattr(pruning, name, 0)
    monkeypatch.setattr(pruning, "has_products_of_pairs", lambda: True)
    monkeypatch.setattr(patience, "PATIENCE", 0)
    counts = {"integers": 0, "floats": 0}
    look = dense_pass.DensePass.look_at_doubts

    def counted(self, doubts, order, block_size, row_length=None):
        counts["floats" if row_length is None else "integers"] += 1
        return look(self, doubts, order, block_size, row_length)

    monkeypatch.setattr(dense_pass.DensePass, "look_at_doubts", counted)
    return counts


def test_long_rows_have_integers_from_the_first_pass_on(n_passes):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((900, pruning.LONG_ROWS)).astype(np.float32)
    engine = NumbaEngine(X, None)
    for centers in (X[:70], X[:70] * np.float32(0.9), X[100:170]):
        engine.assign(centers)
        np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))
    assert n_passes == {"integers": 3, "floats": 0}
    engine = NumbaEngine(X[:, 1:].copy(), None)
    engine.assign(X[:70, 1:])
    assert n_passes["integers"] == 3


def test_vague_integers_are_done_without(n_passes):
    # The rows lie in a lump that is small beside the reach, which two centres far away are within.
    rng = np.random.default_rng(2)
    X = rng.standard_normal((900, 80)).astype(np.float32)
    centers = X[:70].copy()
    centers[3:5] = [[1e5], [-1e5]]
    engine = NumbaEngine(X, None)
    for _ in range(3):
        engine._found = None
        engine.assign(centers)
        np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))
    assert n_passes == {"integers": 1, "floats": 1}  # the one between looked at all


def test_a_fit_is_the_same_without_integers(n_passes, monkeypatch):
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((2000, 70)) + 3.0 * rng.integers(0, 3, (2000, 1))).astype(np.float32)
    # More clusters than the kernels for small tables take.
    fitted = PGKMeans(130, init="random", n_init=1, random_state=0).fit(X)
    assert n_passes["integers"] > 2
    monkeypatch.setattr(pruning, "has_products_of_pairs", lambda: False)
    plain = PGKMeans(130, init="random", n_init=1, random_state=0).fit(X)
    np.testing.assert_array_equal(fitted.cluster_centers_, plain.cluster_centers_)
    np.testing.assert_array_equal(fitted.labels_, plain.labels_)
    assert fitted.inertia_ == plain.inertia_


@pytest.mark.usefixtures("n_passes")
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(1, 200),
    st.integers(1, 90),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
    st.floats(1e-6, 1e6),
)
def test_labels_are_the_definition(pattern, n_rows, n_features, seed, dtype, scale):
    X = (scale * rows(pattern, n_rows, n_features, seed, np.float64)).astype(dtype)
    long_rows, pruning.LONG_ROWS = pruning.LONG_ROWS, 0
    try:
        engine = NumbaEngine(X, None)
        centers = X[: 1 + seed % min(n_rows, 60)]
        for factor in (1.0, 1.0, 0.999, -0.5):
            engine.assign((centers * dtype(factor)).astype(dtype))
            np.testing.assert_array_equal(
                engine.labels, reference.labels(X, (centers * dtype(factor)).astype(dtype))
            )
    finally:
        pruning.LONG_ROWS = long_rows
