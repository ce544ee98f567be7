"""Bounds that spare looking at centres: they change the time of a pass, and not one bit of it."""

import dataclasses
import itertools
from functools import partial
from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.engines import dense_pass, looks, patience, pruning
from pgkmeans_sk.engines.center_order import order_centers
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels.bounds import CHUNK, LARGEST, lower_and_compare
from pgkmeans_sk.kernels.errors import add_error, quick_sq_error, row_product, sq_error
from pgkmeans_sk.kernels.panels import least_bound, least_of_panel, panel_values, rows_at_once
from pgkmeans_sk.kernels.pruned import assign_pruned
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH, has_products_of_pairs
from tests import reference
from tests.problems import PATTERNS, rows
from tests.reference import LAYOUTS
from tests.test_sweep import N_FEATURES, in_panels

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

PROBLEMS = [*reference.problems(np.float32), *reference.problems(np.float64)]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


# ------------------------------------------------------------------ the innermost loops


@numba.njit
def call_least(rows, which, at, panels, starts, panel, n_features, own, least, position):
    least_of_panel(rows, which, at, panels, starts, panel, n_features, own, least, position, 2)


@numba.njit
def call_values(rows, at, panels, starts, panel, n_features, values):
    panel_values(rows, at, panels, starts, panel, 1, n_features, values)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_panel_is_held_against_listed_rows(n_features, dtype):
    # Small integers need no rounding, with or without fused products.
    rng = np.random.default_rng(n_features)
    X = rng.integers(-3, 4, (20, n_features)).astype(dtype)
    centers = rng.integers(-3, 4, (40, n_features)).astype(dtype)
    starts = rng.integers(-3, 4, 40).astype(dtype)
    panels, padded = in_panels(centers, starts)
    n_rows = rows_at_once(np.dtype(dtype).itemsize)
    which = rng.integers(0, 20, 3 + n_rows).astype(np.int32)
    own = rng.integers(-1, 48, 20).astype(np.int32)
    least, position = np.empty(2 + n_rows, dtype), np.empty(2 + n_rows, np.int32)
    values = np.full(3 * PANEL_WIDTH, np.nan, dtype)
    for panel in range(3):
        call_least(
            X.ravel(), which, 3, panels, padded, panel, n_features, own, least, position
        )  # fmt: skip
        of_panel = slice(PANEL_WIDTH * panel, PANEL_WIDTH * (panel + 1))
        members = np.zeros((PANEL_WIDTH, n_features), dtype)
        members[: len(centers[of_panel])] = centers[of_panel]
        looked_at = X[which[3:]]
        expected = reference.least_of_panel(
            padded[of_panel], members, looked_at, own[which[3:]] - of_panel.start
        )
        np.testing.assert_array_equal(least[2:], expected[0])
        np.testing.assert_array_equal(position[2:], of_panel.start + expected[1])
        for i in range(3):
            call_values(X.ravel(), i * n_features, panels, padded, panel, n_features, values)
            plain = reference.blocked_sums(padded[of_panel], members, X[i : i + 1])
            np.testing.assert_array_equal(values[of_panel], plain[0])
            assert np.isnan(values[of_panel.stop :]).all()


@numba.njit
def call_bound(values, starts, share, norm, smallest):
    return least_bound(values, starts, share, norm, smallest)


@dtypes
def test_the_least_bound_is_that_of_numpy(dtype):
    rng = np.random.default_rng(0)
    for n_panels in (1, 2, 5):
        for _ in range(20):
            values = rng.standard_normal(n_panels * PANEL_WIDTH).astype(dtype)
            starts = rng.uniform(0, 9, len(values)).astype(dtype)
            starts[-3:] = values[-3:] = np.finfo(dtype).max / 4  # padding
            share, norm, smallest = rng.uniform(0, 1e-3), rng.uniform(0, 9), 1e-30
            wide = values.astype(np.float64), starts.astype(np.float64)
            expected = (wide[0] + (share * (norm + wide[1]) + smallest)).min()
            assert call_bound(values, starts, share, norm, smallest) == expected


@numba.njit
def call_add_error(base, at, step, copied, centers, label, weight, sums, sq_errors):
    add_error(base, at, step, copied, centers, label, copied.size, weight, sums, sq_errors)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_values_that_lie_apart_are_added_up_in_the_same_order(n_features, dtype):
    rng = np.random.default_rng(n_features)
    base, centers = rng.standard_normal(4 * n_features).astype(dtype), np.zeros((2, n_features))
    results = []
    for values, at, step in ((base, 2, 3), (base[2::3].copy(), 0, 1)):
        sums, sq_errors = np.zeros((2, n_features)), np.zeros((2, 4))
        copied = np.empty(n_features, dtype)
        call_add_error(values, at, step, copied, centers, 1, 0.7, sums, sq_errors)
        results.append((sums, sq_errors))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@numba.njit
def call_errors(x, centers, quick_centers, label, weight, sums, sq_errors):
    add_error(x, 0, 1, x, centers, label, x.size, weight, sums, sq_errors)
    quick = quick_sq_error(x, 0, quick_centers, label, x.size)
    product = row_product(x, 0, centers, label, x.size)
    return sq_error(x, 0, centers, label, x.size), quick, product


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_errors_are_added_up_in_one_order(n_features, dtype):
    rng = np.random.default_rng(n_features)
    x, centers = rng.standard_normal(n_features).astype(dtype), rng.standard_normal((3, n_features))
    centers = centers.astype(dtype).astype(np.float64)
    sums, sq_errors = rng.standard_normal((3, n_features)), np.zeros((3, 4))
    expected = sums.copy()
    expected[1] += 0.7 * (x.astype(np.float64) - centers[1])
    quick_centers = centers.astype(dtype).ravel()
    sq_dist, quick, product = call_errors(x, centers, quick_centers, 1, 0.7, sums, sq_errors)
    # Equal bits on every processor: products are rounded before they are added.
    lanes = reference.errors_of_row(x, centers[1])
    assert sq_dist == (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    np.testing.assert_array_equal(sq_errors[1], reference.errors_of_row(x, centers[1], 0.7))
    np.testing.assert_array_equal(sums, expected)
    assert (sq_errors[[0, 2]] == 0).all()
    np.testing.assert_allclose(product, x.astype(np.float64) @ centers[1], atol=1e-12)
    assert abs(quick - sq_dist) <= (n_features + 16) * np.finfo(dtype).eps * sq_dist


@numba.njit
def call_lower(lower, at, moves, move_at, limit):
    return lower_and_compare(lower, at, moves, move_at, limit)


def test_bounds_are_lowered_and_compared():
    rng = np.random.default_rng(0)
    for limit in (0, 7, 40_000, LARGEST - 1, LARGEST):
        lower = rng.integers(0, LARGEST + 1, 3 * CHUNK).astype(np.uint16)
        moves = rng.integers(0, LARGEST + 1, 2 * CHUNK).astype(np.uint16)
        moves[::3] = 0
        before = lower.copy()
        mask = call_lower(lower, CHUNK, moves, CHUNK, limit)
        lowered, failing = reference.lower_and_compare(
            before[CHUNK : 2 * CHUNK], moves[CHUNK:], limit
        )
        np.testing.assert_array_equal(lower[CHUNK : 2 * CHUNK], lowered)
        np.testing.assert_array_equal(np.delete(lower, np.s_[CHUNK : 2 * CHUNK]),
                                      np.delete(before, np.s_[CHUNK : 2 * CHUNK]))  # fmt: skip
        assert [g for g in range(CHUNK) if mask >> g & 1] == failing


# ------------------------------------------------------------------ the order of the centres


@pytest.mark.parametrize("n_centers", [1, 2, 15, 16, 17, 48, 100, 256])
@pytest.mark.parametrize("pattern", ["normal", "all rows equal", "one outlier", "duplicates"])
def test_order_has_each_centre_once(n_centers, pattern):
    order = order_centers(rows(pattern, n_centers, 5, seed=1))
    np.testing.assert_array_equal(np.sort(order), np.arange(n_centers))


def test_neighbours_share_a_panel():
    rng = np.random.default_rng(0)
    where = rng.permutation(np.repeat(np.arange(4), PANEL_WIDTH))
    centers = 100.0 * where[:, np.newaxis] + rng.standard_normal((4 * PANEL_WIDTH, 4))
    panels = where[order_centers(centers)].reshape(4, PANEL_WIDTH)
    assert (panels == panels[:, :1]).all()


# ------------------------------------------------------------------ whole passes


@pytest.fixture(params=["floats", "integers"])
def always_pruned(monkeypatch, request):
    """Bounds are kept for the smallest problems, too, however long they take."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK", "FEWEST_GROUPS", "LONG_ROWS"):
        monkeypatch.setattr(pruning, name, 0)
    monkeypatch.setattr(pruning, "has_products_of_pairs", lambda: request.param == "integers")
    monkeypatch.setattr(pruning, "MOST_IN_DOUBT", 2.0)
    monkeypatch.setattr(patience, "PATIENCE", 0)
    now = itertools.count(0, -1)  # each pass is faster than the one before
    monkeypatch.setattr(pruning, "perf_counter", lambda: next(now))
    return request.param


def drifting(centers, seed, n_steps=6):
    """Centres that move on, a little at first, then a lot; sometimes not at all."""
    rng = np.random.default_rng(seed)
    scale = np.abs(centers).max() if len(centers) else 1.0
    for step in (0.0, 1e-3, 1e-7, 0.0, 1.0, 1e-2)[:n_steps]:
        yield centers
        move = step * scale * rng.standard_normal(centers.shape)
        move[rng.random(len(centers)) < 0.5] = 0.0
        with np.errstate(over="ignore"):
            centers = np.nan_to_num(centers + move).astype(centers.dtype)


def outcomes(X, sample_weight, all_centers, prunes, n_threads=2):
    """All that passes over the centres tell, one after the other."""
    engine = NumbaEngine(X, sample_weight)
    engine._n_threads = n_threads
    if not prunes:
        engine._looks.pruning.is_for = lambda centers, is_quick: False
    for number, centers in enumerate(all_centers):
        before = engine._looks.typical_distance
        engine._found = None  # also the same centres are looked at again
        assignment = engine.assign(centers)
        if prunes and number and before > 0:
            assert engine._looks.pruning._lower is not None
        yield *dataclasses.astuple(assignment), engine.labels


@pytest.mark.usefixtures("always_pruned")
@every_problem
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_bounds_do_not_change_a_bit(problem, weighting, monkeypatch):
    sample_weight = reference.sample_weights(len(problem.X))[weighting]
    passes = list(drifting(problem.centers, seed=0))
    expected = list(outcomes(problem.X, sample_weight, passes, prunes=False))
    found = list(outcomes(problem.X, sample_weight, passes, prunes=True))
    for centers, one, other in zip(passes, found, expected, strict=True):
        np.testing.assert_array_equal(one[-1], reference.labels(problem.X, centers))
        for of_one, of_other in zip(one, other, strict=True):
            np.testing.assert_array_equal(of_one, of_other)


@pytest.mark.usefixtures("always_pruned")
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "cs" not in name])
@dtypes
def test_layout_does_not_matter(layout, dtype):
    X = np.random.default_rng(1).standard_normal((400, 6)).astype(dtype)
    passes = list(drifting(X[:70], seed=2))
    plain = list(outcomes(X, None, passes, prunes=True))
    for one, other in zip(outcomes(LAYOUTS[layout](X), None, passes, True), plain, strict=True):
        for of_one, of_other in zip(one, other, strict=True):
            np.testing.assert_array_equal(of_one, of_other)


@pytest.mark.usefixtures("always_pruned")
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([64, 10**9]),
)
def test_labels_are_the_definition_whatever_moves(pattern, n_rows, n_features, seed, dtype, memory):
    X = rows(pattern, n_rows, n_features, seed, dtype)
    n_centers = min(n_rows, 1 + seed % 90)
    engine = NumbaEngine(X, None)
    engine._looks.pruning._budget = memory * n_rows  # 64 bytes a row: several panels in a group
    for centers in drifting(X[:n_centers], seed):
        engine.assign(centers)
        np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))


@pytest.mark.usefixtures("always_pruned")
def test_bounds_hold(monkeypatch):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((500, 4)).astype(np.float32)
    engine = NumbaEngine(X, None)
    for centers in drifting(X[:100], seed=4):
        engine.assign(centers)
        kept = engine._looks.pruning
        if kept._lower is None:
            continue
        distances = np.sqrt(reference.sq_distances(X, centers)) * kept._per_unit
        distances[np.arange(500), engine.labels] = np.inf
        bounds = kept._lower.reshape(500, -1)
        for g in range(kept._n_groups):
            members = kept.order[g * PANEL_WIDTH : (g + 1) * PANEL_WIDTH]
            assert (bounds[:, g] <= distances[:, members].min(axis=1)).all()


def test_centres_at_rest_are_not_looked_at_again(always_pruned):
    X = np.random.default_rng(5).standard_normal((3000, 4)).astype(np.float32)
    centers = X[:160]
    engine = NumbaEngine(X, None)
    for _ in range(2):
        engine._found = None
        engine.assign(centers)
    pairs = []

    def counted(*arguments, kernel=None):
        result = kernel(*arguments)
        pairs.append(result[2])
        return result

    with mock.patch.object(
        dense_pass, "assign_pruned", partial(counted, kernel=dense_pass.assign_pruned)
    ):
        engine._found = None
        engine.assign(centers)
        engine.assign(centers + np.float32(1e-3))
    at_rest, after_a_small_move = pairs
    near_ties = {"floats": 0.002, "integers": 0.01}[always_pruned]
    assert at_rest < near_ties * 3000 * 10
    assert 0 < after_a_small_move < 0.1 * 3000 * 10


# ------------------------------------------------------------------ when bounds are kept


def test_an_interrupted_pass_leaves_no_half_bounds():
    kept = pruning.Pruning(1000, 4, 16_000)
    centers = np.random.default_rng(0).standard_normal((64, 4))
    for _ in range(pruning.WARM_UP):
        assert kept.bounds_for(centers, 1.0) is None
        kept.timed(centers, False, lambda: 0)
    assert kept.bounds_for(centers, 1.0) is not None

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.timed(centers, True, interrupted)
    assert kept.bounds_for(centers, 1.0) is None


def test_bounds_rest_while_they_do_not_pay(monkeypatch):
    kept = pruning.Pruning(1000, 4, 16_000)
    centers = np.random.default_rng(0).standard_normal((64, 4))
    now = iter(range(10**6))
    monkeypatch.setattr(pruning, "perf_counter", lambda: next(now))

    def passes(n, seconds):
        used = []
        for _ in range(n):
            bounds = kept.bounds_for(centers, 1.0)
            cost = seconds if bounds is not None else 5

            def work(cost=cost):
                for _ in range(cost):
                    next(now)
                return 0

            kept.timed(centers, bounds is not None, work)
            used.append(bounds is not None)
        return used

    n_first = pruning.WARM_UP + 4
    assert passes(n_first, seconds=1) == [False] * pruning.WARM_UP + [True] * 4
    # The first pass after a rest is slow in any case: the one after it is judged.
    assert passes(6, seconds=9) == [True] + [False] * 4 + [True]
    assert passes(10, seconds=9) == [True] + [False] * 8 + [True]
    assert passes(4, seconds=1) == [True] * 4


def test_memory_of_bounds_is_limited():
    mebibyte = 2**20
    for n_rows, n_features, n_centers in [(10**6, 8, 256), (10**5, 8, 65536), (10**7, 8, 4096)]:
        n_bytes = 4 * n_rows * n_features
        kept = pruning.Pruning(n_rows, n_features, n_bytes)
        n_panels = -(-n_centers // PANEL_WIDTH)
        n_groups = -(-n_panels // kept._n_group_panels(n_panels))
        width = -(-n_groups // CHUNK) * CHUNK
        if n_groups > 1:
            assert 2 * n_rows * width <= max(48 * mebibyte, n_bytes)


@pytest.mark.usefixtures("always_pruned")
@pytest.mark.parametrize("scale", [1e18, 1e19, 3e19, 1e20, 1e25, 1e30])
def test_rows_whose_squares_overflow_have_no_bounds(scale):
    # Their fast values may be anything, and what they say of one pass must not outlive it.
    rng = np.random.default_rng(8)
    X = rng.standard_normal((600, 3))
    X[::2] *= scale
    X = X.astype(np.float32)
    small = rng.standard_normal((80, 3)).astype(np.float32)
    large = (1e17 * rng.standard_normal((80, 3))).astype(np.float32)
    engine = NumbaEngine(X, None)
    for step, centers in enumerate((small, small, large, large, small, X[:80], small, large)):
        moved = centers + np.float32(0.01 * step)
        engine.assign(moved)
        np.testing.assert_array_equal(engine.labels, reference.labels(X, moved))


def test_the_kernel_is_waited_for(monkeypatch):
    """Until passes without it have taken long enough, unless it lies ready."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK", "FEWEST_GROUPS", "LONG_ROWS"):
        monkeypatch.setattr(pruning, name, 0)
    monkeypatch.setattr(patience, "PATIENCE", 3.0)
    monkeypatch.setattr(looks, "patience", patience.Patience(assign_pruned))
    now = iter(np.arange(0.0, 1000.0, 1.2))  # each pass takes 1.2 seconds
    monkeypatch.setattr(patience, "perf_counter", lambda: next(now))
    quicker = itertools.count(0, -1)  # each pass is faster than the one before
    monkeypatch.setattr(pruning, "perf_counter", lambda: next(quicker))
    monkeypatch.setattr(pruning, "MOST_IN_DOUBT", 2.0)
    is_there = []
    monkeypatch.setattr(patience, "lies_ready", lambda *arguments: bool(is_there))
    X = np.random.default_rng(8).standard_normal((300, 3))

    def passes(n):
        engine = NumbaEngine(X, None)
        for number in range(n):
            engine.assign(X[number : number + 40])
            yield engine._looks.pruning.has_bounds

    assert list(passes(6)) == [False] * 3 + [True] * 3
    monkeypatch.setattr(looks, "patience", patience.Patience(assign_pruned))
    is_there.append(True)
    assert list(passes(1)) == [has_products_of_pairs()]
