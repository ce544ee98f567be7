"""The global optimum on a line: kernels/exact_1d.py, kernels/line_atoms.py, line_optimum.py."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import line_optimum
from pgkmeans_sk.engines.line_optimum import optimal_centers, optimal_cuts
from pgkmeans_sk.kernels import exact_1d, line_atoms
from tests import reference
from tests.problems import PATTERNS

FEW_BINS = 8
"""So few that bins are used on small problems, too."""
ALL_AT_ONCE = line_optimum.MIN_BINS


def line_of(x, w=None):
    return line_optimum._sorted_line(np.asarray(x), w)


def assert_optimal(line, n_clusters, errors=None, min_bins=ALL_AT_ONCE):
    """The cuts are a clustering into K, and none has less error."""
    if errors is None:
        errors = reference.line_errors(line.values, line.weights)
    cuts = optimal_cuts(line, n_clusters, min_bins)
    assert len(cuts) == n_clusters + 1
    assert cuts[0] == 0
    assert cuts[-1] == len(line.values)
    assert (np.diff(cuts) > 0).all()
    least = reference.line_optimum(errors, n_clusters)
    # 106 bits: of the second moment of all values, which weigh up to 1e32 times the optimum.
    rounding = 1e-30 * line.weights.sum() / line.scale / line.scale
    assert errors[cuts[:-1], cuts[1:]].sum() <= least * (1.0 + 1e-10) + rounding
    return cuts


def some_clusters(n_values):
    counts = {1, 2, 3, 5, 8, 16, n_values // 2, n_values - 2, n_values - 1, n_values}
    return sorted(k for k in counts if 1 <= k <= n_values)


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("x", "w", "n_clusters", "centers"),
    [
        ([5.0], None, 1, [5]),
        ([1.0, 3.0], None, 1, [2]),
        ([1.0, 3.0], None, 2, [1, 3]),
        ([10.0, 0.0, 11.0, 1.0], None, 2, [0.5, 10.5]),
        ([0.0, 1.0, 2.0, 10.0], None, 3, [0.5, 2, 10]),  # or 0 | 1.5 | 10: a tie
        ([0.0, 4.0, 6.0, 10.0], None, 3, [0, 5, 10]),
        ([0.0, 4.0, 6.0, 10.0], [1.0, 9.0, 9.0, 1.0], 2, [3.6, 6.4]),
        ([0.0, 4.0, 6.0, 10.0], [9.0, 1.0, 1.0, 9.0], 2, [0.4, 9.6]),
        ([0.0, 1.0, 3.0, 7.0], [1.0, 1.0, 0.0, 1.0], 2, [0.5, 7]),  # a row of weight 0
        ([2.0, 2.0, -0.0, 0.0, 5.0, 2.0], None, 3, [0, 2, 5]),
        ([1e6, 1e6 + 1, 1e6 + 5, 1e6 + 6], None, 2, [1e6 + 0.5, 1e6 + 5.5]),
        # A value alone on one side is worth a cluster; Lloyd from evenly spread centres misses it.
        ([*range(10), 1000.0], None, 2, [4.5, 1000]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_hand(x, w, n_clusters, centers, dtype):
    weights = None if w is None else np.array(w)
    found = optimal_centers(np.array(x, dtype=dtype), weights, n_clusters)
    assert found.dtype == np.float64
    if n_clusters == 3 and len(x) == 4 and x[1] == 1.0:
        assert found.tolist() in ([0.5, 2, 10], [0, 1.5, 10])
    else:
        np.testing.assert_allclose(found, centers, rtol=1e-15)


def test_fewer_values_than_clusters():
    x = np.array([3.0, 1.0, 3.0, 1.0])
    assert optimal_centers(x, None, 3) is None
    assert optimal_centers(x, np.array([1.0, 0.0, 1.0, 0.0]), 2) is None
    np.testing.assert_array_equal(optimal_centers(x, None, 2), [1, 3])


# ------------------------------------------------------------------ against the plain method


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_clustering_is_better(pattern, dtype):
    for seed, n_rows in enumerate((2, 3, 7, 20, 60, 130)):
        rng = np.random.default_rng(seed)
        x = PATTERNS[pattern](rng, n_rows, 1)[:, 0].astype(dtype)
        some_zero = rng.integers(0, 3, n_rows).astype(np.float64)
        some_zero[0] = 1.0
        for w in (None, rng.uniform(0.1, 5.0, n_rows), np.exp(3 * rng.normal(size=n_rows))):
            assert_all_optimal(x, w)
        assert_all_optimal(x, some_zero)


def assert_all_optimal(x, w):
    line = line_of(x, w)
    errors = reference.line_errors(line.values, line.weights)
    for n_clusters in some_clusters(len(line.values)):
        for min_bins in (FEW_BINS, ALL_AT_ONCE):
            assert_optimal(line, n_clusters, errors, min_bins)


HARD_LINES = {
    "even grid": np.arange(120.0),
    "two grids": np.concatenate([np.arange(50.0), 200.0 + 2 * np.arange(50)]),
    "squares": np.arange(100.0) ** 2,
    "powers": 1.5 ** np.arange(-60, 60),
    "Cantor": np.array([sum((i >> b & 1) * 3.0**b for b in range(7)) for i in range(128)]),
    "neighbouring floats": np.nextafter(1.0, 2.0) + np.arange(100) * 2.0**-52,
    "near the smallest": np.arange(1, 80) * 5e-324,
    "near the largest": 1e150 * np.linspace(-1, 1, 90) ** 3,
    "far blobs": np.concatenate([1e-6 * np.arange(40) ** 1.5, 1e6 + np.arange(40) ** 1.5]),
}


@pytest.mark.parametrize("name", HARD_LINES)
def test_hard_lines(name):
    line = line_of(HARD_LINES[name])
    errors = reference.line_errors(line.values, line.weights)
    for n_clusters in range(1, len(line.values) + 1, 1 + len(line.values) // 20):
        for min_bins in (1, FEW_BINS, ALL_AT_ONCE):
            assert_optimal(line, n_clusters, errors, min_bins)


WEIGHT = st.floats(1e-3, 1e3)
LINES = st.one_of(
    st.lists(st.tuples(st.integers(-40, 40), WEIGHT), min_size=1, max_size=60),
    st.lists(st.tuples(st.floats(-1e3, 1e3), WEIGHT), min_size=1, max_size=60),
    st.lists(st.tuples(st.floats(-(2.0**40), 2.0**40, width=32), WEIGHT), min_size=1, max_size=40),
)


@given(LINES, st.integers(1, 60), st.sampled_from([1, FEW_BINS, ALL_AT_ONCE]))
def test_any_line(pairs, n_clusters, min_bins):
    x, w = np.array(pairs, dtype=np.float64).T
    line = line_of(x, w)
    n_clusters = min(n_clusters, len(line.values))
    assert_optimal(line, n_clusters, min_bins=min_bins)


def test_another_library_finds_the_same():
    kmeans1d = pytest.importorskip("kmeans1d")
    for seed in range(220):
        rng = np.random.default_rng(seed)
        pattern = list(PATTERNS.values())[seed % len(PATTERNS)]
        x = pattern(rng, int(rng.integers(1, 400)), 1)[:, 0]
        n_clusters = int(rng.integers(1, min(len(np.unique(x)), 40) + 1))
        theirs = np.array(kmeans1d.cluster(x, n_clusters).centroids)
        for min_bins in (FEW_BINS, ALL_AT_ONCE):
            ours = optimal_centers(x, None, n_clusters, min_bins)
            rounding = 1e-14 * (x**2).sum()  # its prefix sums are plain float64
            assert sse(x, ours) <= sse(x, theirs) * (1 + 1e-9) + 1e-300
            assert sse(x, theirs) <= sse(x, ours) * (1 + 1e-9) + rounding + 1e-300


def sse(x, centers, w=None):
    distances = (np.asarray(x, dtype=np.float64)[:, np.newaxis] - centers) ** 2
    return reference.ones_if_none(w, len(x)) @ distances.min(axis=1)


# ------------------------------------------------------------------ what cannot matter


@pytest.mark.parametrize("min_bins", [FEW_BINS, ALL_AT_ONCE])
def test_weights_are_repetitions(min_bins):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=300).round(2), rng.integers(0, 4, 300)
        weighted = optimal_centers(x, w.astype(float), 7, min_bins)
        repeated = optimal_centers(np.repeat(x, w), None, 7, min_bins)
        np.testing.assert_allclose(weighted, repeated, rtol=1e-12)


def test_order_scale_side_and_dtype_do_not_matter():
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000).astype(np.float32)
    w = rng.uniform(0.5, 2.0, 3000)
    for weights in (None, w):
        centers = optimal_centers(x, weights, 12, 128)
        order = rng.permutation(3000)
        shuffled = None if weights is None else weights[order]
        np.testing.assert_array_equal(optimal_centers(x[order], shuffled, 12, 128), centers)
        np.testing.assert_array_equal(optimal_centers(x.astype(float), weights, 12, 128), centers)
        np.testing.assert_allclose(optimal_centers(-x, weights, 12)[::-1], -centers, rtol=1e-12)
        for scale in (2.0**-100, 2.0**100):
            scaled = optimal_centers(x * np.float32(scale), weights, 12, 128)
            np.testing.assert_array_equal(scaled, centers * scale)
        for factor in (1e-290, 1e290, 1e-310):
            heavier = np.full(3000, factor) if weights is None else weights * factor
            np.testing.assert_allclose(optimal_centers(x, heavier, 12), centers, rtol=1e-9)


def test_arguments_are_not_written():
    x, w = np.array([3.0, 1.0, 2.0, 1.0]), np.array([1.0, 2.0, 0.0, 1.0])
    x.flags.writeable = w.flags.writeable = False
    optimal_centers(x, None, 2)
    np.testing.assert_allclose(optimal_centers(x, w, 2), [1, 3])


# ------------------------------------------------------------------ bins and windows


def windows_of(line, n_clusters, n_bins):
    """Windows after bins of all values, or None, and how many bins there were."""
    everything = np.array([[1, len(line.values) - 1]])
    atoms = line_optimum._binned(line, everything, n_bins)
    if len(atoms) <= n_clusters:
        return None, len(atoms)
    path = line_optimum.solve(atoms, n_clusters)
    return line_optimum.possible_windows(atoms, path), len(atoms)


@pytest.mark.parametrize("pattern", [*PATTERNS, *HARD_LINES])
def test_windows_hold_the_cuts_of_the_optimum(pattern):
    n_narrow = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        if pattern in HARD_LINES:
            x = HARD_LINES[pattern] + 0.0
        else:
            x = PATTERNS[pattern](rng, 600, 1)[:, 0]
        line = line_of(x, rng.uniform(0.5, 2.0, len(x)) if seed % 2 else None)
        for n_clusters in (2, 3, 7):
            if len(line.values) <= n_clusters:
                continue
            cuts = optimal_cuts(line, n_clusters)[1:-1]
            for n_bins in (12, 50, 200):
                windows, n_atoms = windows_of(line, n_clusters, n_bins)
                assert n_atoms <= 2 * n_bins + 3
                if windows is None:
                    continue
                assert (windows[:, 0] <= windows[:, 1]).all()
                assert (windows[1:, 0] > windows[:-1, 1] + 1).all()
                inside = (windows[:, 0] <= cuts[:, None]) & (cuts[:, None] <= windows[:, 1])
                assert inside.any(axis=1).all()
                n_narrow += (np.diff(windows) + 1).sum() < len(line.values) / 2
    if pattern in ("normal", "Cauchy", "log-normal", "one outlier", "two far blobs", "offset 1e6"):
        assert n_narrow > 6


@given(LINES, st.integers(2, 12), st.integers(3, 30))
def test_any_windows_hold_an_optimum(pairs, n_clusters, n_bins):
    x, w = np.array(pairs, dtype=np.float64).T
    line = line_of(x, w)
    if len(line.values) <= n_clusters:
        return
    windows, _ = windows_of(line, n_clusters, n_bins)
    if windows is None:
        return
    # Optima may tie: one of them has to be left if cuts outside of the windows are forbidden.
    errors = reference.line_errors(line.values, line.weights)
    least = reference.line_optimum(errors, n_clusters)
    places = np.concatenate([[0], *(np.arange(a, b + 1) for a, b in windows), [len(line.values)]])
    left = reference.line_optimum(errors[np.ix_(places, places)], n_clusters)
    assert left <= least * (1 + 1e-9) + 1e-25 * line.weights.sum() / line.scale / line.scale


@pytest.fixture
def work(monkeypatch):
    """Atoms and comparisons of each search for cheapest paths."""
    done = []

    def find_paths(*arguments, original=exact_1d.find_paths):
        n_comparisons = original(*arguments)
        done.append((arguments[1].size, n_comparisons))
        return n_comparisons

    monkeypatch.setattr(exact_1d, "find_paths", find_paths)
    return done


@pytest.mark.parametrize("pattern", ["normal", "Cauchy", "log-normal", "one outlier"])
def test_windows_save_most_of_the_work(pattern, work):
    x = PATTERNS[pattern](np.random.default_rng(0), 1_000_000, 1)[:, 0]
    centers = optimal_centers(x, None, 16)
    assert len(centers) == 16
    assert max(n_atoms for n_atoms, _ in work) < 3 * line_optimum.MIN_BINS
    assert sum(n_comparisons for _, n_comparisons in work) < 1_000_000  # K m is 16 million


def test_the_number_of_clusters_costs_little(work):
    x = np.random.default_rng(0).normal(size=50_000)
    for n_clusters in (10, 1000, 20_000, 49_990):
        work.clear()
        assert len(optimal_centers(x, None, n_clusters)) == n_clusters
        assert sum(n_comparisons for _, n_comparisons in work) < 150 * len(x)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_windows_it_is_exact_too(pattern, monkeypatch):
    monkeypatch.setattr(line_optimum, "possible_windows", lambda atoms, path: None)
    x = PATTERNS[pattern](np.random.default_rng(5), 200, 1)[:, 0]
    line = line_of(x)
    errors = reference.line_errors(line.values, line.weights)
    for n_clusters in (2, 5, 9):
        if n_clusters <= len(line.values):
            assert_optimal(line, n_clusters, errors, FEW_BINS)


def test_bins_that_exclude_nothing_become_finer(work):
    x = np.random.default_rng(0).normal(size=4000)
    line = line_of(x)
    n_clusters = 64  # 16 bins a cluster cannot tell where a cut lies
    cuts = optimal_cuts(line, n_clusters, FEW_BINS)
    assert work[0][0] < 2100
    assert work[-1][0] == 4000
    np.testing.assert_array_equal(cuts, optimal_cuts(line, n_clusters))


@pytest.mark.parametrize(
    ("n_values", "n_clusters", "affordable"),
    [(10, 10, True), (2**22, 10**6, True), (10**9, 16, True), (10**8, 10**4, False)],
)
def test_what_is_affordable(n_values, n_clusters, affordable):
    assert line_optimum.is_affordable(n_values, n_clusters) == affordable


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(line_optimum, "MAX_ATOMS", 1000)
    x = np.random.default_rng(0).normal(size=(5000, 1))
    assert optimal_centers(x[:, 0], None, 100) is None  # by the estimate
    assert optimal_centers(x[:, 0], None, 11) is None  # bins exclude too little
    assert optimal_centers(x[:, 0], None, 3, 100) is not None
    estimator = PGKMeans(100, n_init=2, random_state=0).fit(x)  # the partition tree, then
    assert len(np.unique(estimator.labels_)) == 100


# ------------------------------------------------------------------ kernels


def test_equal_values_are_merged():
    values = np.array([-1.0, -0.0, 0.0, 0.0, 2.0, 2.0], dtype=np.float32)
    totals = np.empty(6)
    assert line_atoms.collapse(values, np.arange(1.0, 7.0), 1, totals) == 3
    np.testing.assert_array_equal(values[:3], [-1, 0, 2])
    np.testing.assert_array_equal(totals[:3], [1, 9, 11])
    values = np.array([1.0, 1.0, 4.0])
    assert line_atoms.collapse(values, np.ones(1), 0, totals) == 2
    np.testing.assert_array_equal(totals[:2], [2, 1])


def bins(values, windows, limit, capacity=100):
    values = np.asarray(values, dtype=np.float64)
    edges, solid = np.full(capacity, -1, dtype=np.int64), np.zeros(capacity, dtype=bool)
    n = line_atoms.cut_into_bins(
        values, np.ones(len(values)), 1.0, np.array(windows), limit, edges, solid
    )
    return n if n < 0 else (edges[: n + 1].tolist(), solid[:n].tolist())


def test_bins_by_hand():
    line = [0, 1, 2, 3, 10, 11, 12, 13]
    every = list(range(9))
    assert bins(line, [[1, 7]], -1.0) == (every, [True] + 6 * [False] + [True])
    # 1, 2 weigh 2, are 1 wide and reach from 0 to 3; 3 would reach to 10.
    assert bins(line, [[1, 7]], 6.0) == ([0, 1, 3, 4, 5, 7, 8], [True] + 4 * [False] + [True])
    assert bins(line, [[1, 7]], np.inf) == ([0, 1, 7, 8], [True, False, True])
    # Outside of the windows there is no edge.
    assert bins(line, [[2, 2], [5, 6]], -1.0) == ([0, 2, 5, 6, 8], [True, True, False, True])
    assert bins(line, [[1, 7]], -1.0, capacity=9) == (every, [True] + 6 * [False] + [True])
    assert bins(line, [[1, 7]], -1.0, capacity=8) == -1


def test_atoms_by_hand():
    line = line_of([10.0, 11.0, 13.0, 20.0], np.array([1.0, 2.0, 1.0, 4.0]))
    assert (line.origin, line.scale) == (10.0, 1 / 16)
    atoms = line.atoms(np.array([0, 3, 4]), np.array([False, True]))
    w, s = 1 / 8, 1 / 16  # the largest weight and value are brought below 1
    np.testing.assert_allclose(atoms.weights, [4 * w, 4 * w])
    np.testing.assert_allclose(atoms.means, [1.25 * s, 10 * s])
    np.testing.assert_allclose(atoms.scatters, [4.75 * w * s**2, 0])
    np.testing.assert_allclose(atoms.deviations, [(1.25 + 2 * 0.25 + 1.75) / 2 * w * s, 0])
    np.testing.assert_allclose(line.centers(np.array([0, 3, 4])), [11.25, 20.0])


def test_errors_of_clusters_have_all_digits():
    rng = np.random.default_rng(0)
    # One blob far away, another far narrower than the distance, weights of all sizes.
    y = np.sort(np.concatenate([rng.normal(size=20) * 1e-7, 1.0 + 1e-7 * rng.random(20)]))
    w = np.exp(5 * rng.normal(size=40))
    prefixes = np.empty((41, 6))
    exact_1d.sum_prefixes(w, y, prefixes)
    for i in range(40):
        for j in range(i + 1, 41):
            weights = [Fraction(v) for v in w[i:j]]
            values = [Fraction(v) for v in y[i:j]]
            mean = sum(a * b for a, b in zip(weights, values, strict=True)) / sum(weights)
            exact = sum(a * (b - mean) ** 2 for a, b in zip(weights, values, strict=True))
            found = exact_1d.cluster_error(w, y, prefixes, i, j)
            assert found == pytest.approx(float(exact), rel=1e-13, abs=1e-31 * w.sum())
