"""A first look in 16-bit integers: it changes the time of a pass, and not one bit of it."""

import dataclasses

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk import PGKMeans, RowBlocks
from pgkmeans_sk.engines import coarse_choice, coarse_look, dense_pass, patience, run_labels
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels import integers as integer_kernels
from pgkmeans_sk.kernels.coarse import assign_coarse
from pgkmeans_sk.kernels.integer_sweep import round_tile, sweep_integers
from pgkmeans_sk.kernels.integers import ABSENT, ROW_LIMIT, integer_centers, typical_length
from pgkmeans_sk.kernels.nearest import pack_centers
from pgkmeans_sk.kernels.sweep import tile_width
from pgkmeans_sk.kernels.vectors import has_products_of_pairs
from pgkmeans_sk.results import SizeLimits
from tests import reference
from tests.problems import PATTERNS, rows
from tests.reference import LAYOUTS
from tests.reference_integers import integer_values, rounded_rows
from tests.test_pruned import drifting
from tests.test_sweep import N_FEATURES

pytestmark = pytest.mark.skipif(
    not has_products_of_pairs(), reason="a processor without products of pairs"
)

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
PROBLEMS = [*reference.problems(np.float32), *reference.problems(np.float64)]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def in_integers(X, centers):
    """Centres in integers for the rows ``X``, with the origin that an engine takes; or None."""
    origin = np.median(X, axis=0).astype(X.dtype)
    return integer_centers(pack_centers(centers, origin), typical_length(X, origin)), origin


# ------------------------------------------------------------------ the innermost loops


@numba.njit
def call_round(tile, n_features, per_unit, offset, rounded):
    round_tile(tile, n_features, per_unit, offset, rounded)


@numba.njit
def call_sweep(tile, panels, starts, n_pairs, best, second, index):
    sweep_integers(tile, panels, starts, n_pairs, best, second, index)


@dtypes
@pytest.mark.parametrize("n_features", N_FEATURES)
def test_rows_are_rounded_to_pairs(n_features, dtype):
    rng = np.random.default_rng(n_features)
    width, whole = tile_width(np.dtype(dtype).itemsize), tile_width(4)
    n_pairs = (n_features + 1) // 2
    rounded = np.full(n_pairs * whole, -1, dtype=np.int32)
    expected = np.empty((whole, 2 * n_pairs), dtype=np.int64)
    for offset in range(0, whole, width):
        X = 100.0 * rng.standard_normal((width, n_features)).astype(dtype)
        X[0], X[-1] = 1e9, -np.inf  # rows beyond the reach are as good as any
        call_round(X.T.ravel(), n_features, dtype(100.0), offset, rounded)
        expected[offset : offset + width, :n_features] = rounded_rows(X, 100.0)
        expected[offset : offset + width, n_features:] = 0
    found = rounded.view(np.int16).reshape(n_pairs, whole, 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(found.reshape(whole, -1), expected)


@pytest.mark.parametrize("n_features", N_FEATURES)
@pytest.mark.parametrize("n_centers", [1, 2, 4, 5, 40, 257])
def test_sweep_finds_the_two_least(n_features, n_centers):
    rng = np.random.default_rng(n_features)
    width = tile_width(4)
    X = rng.standard_normal((width, n_features)).astype(np.float32)
    centers = 0.5 * rng.standard_normal((n_centers, n_features)).astype(np.float32)
    centers[1::7] *= 1e3  # beyond the reach
    integers, origin = in_integers(X, centers)
    units = rounded_rows(X - origin, integers.per_unit)
    values = integer_values(units, integers)

    n_pairs = (n_features + 1) // 2
    pairs = np.zeros((width, 2 * n_pairs), dtype=np.int16)
    pairs[:, :n_features] = units
    tile = np.ascontiguousarray(pairs.reshape(width, n_pairs, 2).transpose(1, 0, 2))
    best, second, index = (np.empty(width, dtype=np.int32) for _ in range(3))
    call_sweep(
        tile.view(np.int32).ravel(), integers.panels, integers.starts, n_pairs, best, second, index
    )
    ordered = np.sort(np.concatenate([values, np.full((width, 1), ABSENT)], axis=1), axis=1)
    np.testing.assert_array_equal(best, ordered[:, 0])
    np.testing.assert_array_equal(second, ordered[:, 1])
    is_there = best != ABSENT
    np.testing.assert_array_equal(values[np.arange(width), index][is_there], best[is_there])


@pytest.mark.parametrize("n_features", [1, 2, 3, 8, 33, 700])
def test_nothing_overflows(n_features):
    """Rows and centres as long as the reach, in one direction and in opposite ones."""
    for direction in (np.ones(n_features), np.eye(n_features)[0]):
        unit = direction / np.sqrt(n_features if direction.all() else 1.0)
        X = np.outer([1.0, -1.0, 1 / 3, -1 / 3], unit)
        centers = X * (1 - 1e-12)
        packed = pack_centers(centers, np.zeros(n_features))
        integers = integer_centers(packed, 1.0 / integer_kernels.REACH)
        units = rounded_rows(X, integers.per_unit)
        assert np.abs(units).max() <= ROW_LIMIT
        integer_values(units, integers)  # asserts that values fit
        assert (integers.starts != ABSENT).all()


@every_problem
def test_errors_of_values_are_bounded(problem):
    """Note [Integer error]: every value is between what it may be at least and at most."""
    X, centers = problem.X, problem.centers
    integers, origin = in_integers(X, centers)
    if integers is None:
        return
    shifted = X - origin
    norms = np.einsum("it,it->i", shifted, shifted).astype(np.float64)
    is_near = norms <= integers.reach_sq
    is_there = integers.starts[: len(centers)] != ABSENT
    values = integer_values(rounded_rows(shifted, integers.per_unit), integers)
    values = values[:, : len(centers)][is_near][:, is_there].astype(np.float64)
    # From differences: expanded squares would be as rough as what they are to judge.
    exact = reference.sq_distances(X, centers)[is_near][:, is_there]
    lengths = (X.astype(np.float64) - origin)[is_near]
    halves = (exact - np.einsum("it,it->i", lengths, lengths)[:, np.newaxis]) / 2
    error = integers.error + integers.error_per_length * np.sqrt(norms[is_near])
    error = (error + integers.error_per_norm * norms[is_near])[:, np.newaxis]
    margins = integers.margins[: len(centers)][is_there]
    slack = 4.0  # of tags, on the low side
    assert (integers.value * (values - slack - error) <= halves).all()
    assert (halves <= integers.value * (values + margins + error)).all()


# ------------------------------------------------------------------ whole passes


class Always(dict):
    """Passes of every kind are quicker in integers."""

    def get(self, kind, default=None):
        return True

    def __contains__(self, kind):
        return True


@pytest.fixture
def always_coarse(monkeypatch):
    """The smallest problems are looked at in integers first, and all bounds are used."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK", "LEAST_RUN"):
        monkeypatch.setattr(coarse_choice, name, 0)
    monkeypatch.setattr(patience, "lies_ready", lambda *arguments: True)
    monkeypatch.setattr(coarse_choice, "patience", patience.Patience(assign_coarse))
    monkeypatch.setattr(coarse_choice, "_is_quicker", Always())
    monkeypatch.setattr(coarse_look, "MOST_IN_DOUBT", 2.0)


def outcomes(X, sample_weight, all_centers, coarse, n_threads=2):
    """All that passes over the centres tell, one after the other."""
    engine = NumbaEngine(X, sample_weight)
    engine._n_threads = n_threads
    if not coarse:
        engine._looks.coarse.is_for = lambda centers: False
    for centers in all_centers:
        engine._found = None  # also the same centres are looked at again
        yield *dataclasses.astuple(engine.assign(centers)), engine.labels


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for of_one, of_other in zip(one, other, strict=True):
            np.testing.assert_array_equal(of_one, of_other)


@pytest.mark.usefixtures("always_coarse")
@every_problem
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_integers_do_not_change_a_bit(problem, weighting):
    sample_weight = reference.sample_weights(len(problem.X))[weighting]
    passes = list(drifting(problem.centers, seed=0))
    found = list(outcomes(problem.X, sample_weight, passes, coarse=True))
    assert_same(found, outcomes(problem.X, sample_weight, passes, coarse=False))
    for centers, one in zip(passes, found, strict=True):
        np.testing.assert_array_equal(one[-1], reference.labels(problem.X, centers))
        nearest = NumbaEngine(problem.X, sample_weight).nearest(centers)
        np.testing.assert_array_equal(nearest, one[-1])


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "cs" not in name])
@dtypes
def test_layouts_and_threads_do_not_matter(layout, dtype, monkeypatch):
    monkeypatch.setattr("pgkmeans_sk.engines.chunks.CHUNK_WORK", 20_000)
    X = np.random.default_rng(1).standard_normal((1100, 6)).astype(dtype)
    passes = list(drifting(X[:70], seed=2))
    plain = list(outcomes(X, None, passes, coarse=True, n_threads=1))
    assert_same(outcomes(LAYOUTS[layout](X), None, passes, coarse=True), plain)


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((np.float32, scale) for scale in (1e-44, 1e-22, 1e17, 1e19)),
        *((np.float64, scale) for scale in (1e-165, 1e-130, 1e100, 1e150)),
    ],
)
def test_scales(dtype, scale):
    rng = np.random.default_rng(5)
    X = (rng.standard_normal((700, 5)) * scale).astype(dtype)
    centers = (rng.standard_normal((40, 5)) * scale).astype(dtype)
    engine = NumbaEngine(X, None)
    engine.assign(centers)
    np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))


@pytest.mark.usefixtures("always_coarse")
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
)
def test_labels_are_the_definition_whatever_moves(pattern, n_rows, n_features, seed, dtype):
    X = rows(pattern, n_rows, n_features, seed, dtype)
    engine = NumbaEngine(X, None)
    for centers in drifting(X[: min(n_rows, 1 + seed % 90)], seed):
        engine.assign(centers)
        np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("far", [False, True])
@dtypes
def test_bounds_hold(far, dtype):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((900, 4)).astype(dtype)
    start = X[:100].copy()
    if far:
        start[::9] *= 4.0
        X[::50] *= 3.0
    engine = NumbaEngine(X, None)
    for centers in drifting(start, seed=4):
        engine.assign(centers)
        of, lower = engine._looks.coarse._before
        distances = np.sqrt(reference.sq_distances(X, of))
        distances[np.arange(900), engine.labels] = np.inf
        assert (lower <= distances.min(axis=1)).all()
        assert np.median(lower) > 0.9 * np.median(distances.min(axis=1)) or centers is not start


@pytest.mark.usefixtures("always_coarse")
def test_moves_that_rounding_could_lose_add_up():
    """Bounds of float32 fall, although each move is less than half their last digit."""
    X = np.array([[5.0, 1.0], [5.0, 1.1], [5.0, -1.0], [5.0, -1.1]], dtype=np.float32)
    centers = np.array([[0.0, 1.0], [0.0, -1.0]], dtype=np.float32)
    step, own = np.float32(1e-7), np.arange(len(X))
    engine = NumbaEngine(X, None)
    for _ in range(300):
        engine.assign(centers)
        lower = engine._looks.coarse._before[1]
        distances = np.sqrt(reference.sq_distances(X, centers))
        distances[own, engine.labels] = np.inf
        assert (lower <= distances.min(axis=1)).all()
        centers = centers + np.array([step, 0.0], dtype=np.float32)


@pytest.mark.usefixtures("always_coarse")
def test_most_rows_are_settled_and_few_looked_at_again(monkeypatch):
    found = []
    kernel = dense_pass.assign_coarse

    def counted(*arguments):
        found.append(kernel(*arguments))
        return found[-1]

    monkeypatch.setattr(dense_pass, "assign_coarse", counted)
    X = np.random.default_rng(5).standard_normal((20_000, 8)).astype(np.float32)
    engine = NumbaEngine(X, None)
    for centers in (X[:160], X[:160], X[:160] + np.float32(1e-4)):
        engine._found = None
        engine.assign(centers)
    n_swept, n_doubted = (np.array(column) for column in list(zip(*found, strict=True))[2:])
    assert n_swept.sum() < 1.1 * len(X)  # once, and then near ties only
    assert 0 < n_doubted[: len(found) // 3].sum() < 0.06 * len(X)


# ------------------------------------------------------------------ when it is done


@pytest.mark.usefixtures("always_coarse")
def test_labels_set_by_size_limits_are_forgotten():
    rng = np.random.default_rng(6)
    X, centers = rng.standard_normal((400, 3)), rng.standard_normal((8, 3))
    engine, alone = NumbaEngine(X, None), NumbaEngine(X, None)
    engine.assign(centers)
    engine.assign_within(centers, SizeLimits(40.0, 60.0), None)
    moved = centers + 1e-9
    assert engine.assign(moved).inertia == alone.assign(moved).inertia
    np.testing.assert_array_equal(engine.labels, alone.labels)


@pytest.mark.usefixtures("always_coarse")
def test_an_interrupted_pass_leaves_no_bounds(monkeypatch):
    X = np.random.default_rng(7).standard_normal((500, 3))
    engine = NumbaEngine(X, None)
    engine.assign(X[:40])

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dense_pass, "assign_coarse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.assign(X[40:80])
    engine.assign(X[40:80] * 1.001)
    np.testing.assert_array_equal(engine.labels, reference.labels(X, X[40:80] * 1.001))


def test_the_kernel_is_waited_for(monkeypatch):
    """Until full passes have taken long enough, unless it lies ready."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK"):
        monkeypatch.setattr(coarse_choice, name, 0)
    monkeypatch.setattr(patience, "PATIENCE", 3.0)
    monkeypatch.setattr(coarse_choice, "patience", patience.Patience(assign_coarse))
    monkeypatch.setattr(coarse_choice, "_is_quicker", Always())
    now = iter(np.arange(0.0, 1000.0, 1.2))  # each pass takes 1.2 seconds
    monkeypatch.setattr(patience, "perf_counter", lambda: next(now))
    monkeypatch.setattr(patience, "lies_ready", lambda *arguments: False)
    calls = []
    kernel = dense_pass.assign_coarse
    monkeypatch.setattr(dense_pass, "assign_coarse", lambda *a: calls.append(1) or kernel(*a))
    X = np.random.default_rng(8).standard_normal((300, 3))
    used = []
    engine = NumbaEngine(X, None)
    for number in range(6):
        calls.clear()
        engine.assign(X[number : number + 40])
        used.append(bool(calls))
    assert used == [False, False, False, True, True, True]
    monkeypatch.setattr(coarse_choice, "patience", patience.Patience(assign_coarse))
    monkeypatch.setattr(patience, "lies_ready", lambda *arguments: True)
    calls.clear()
    NumbaEngine(X, None).assign(X[:40])
    assert calls


def test_a_kernel_that_another_process_has_compiled_is_found(monkeypatch):
    """Not in each pass, though: looking for it means reading a file."""
    for name in ("FEWEST_CENTERS", "LEAST_WORK"):
        monkeypatch.setattr(coarse_choice, name, 0)
    monkeypatch.setattr(patience, "PATIENCE", 100.0)
    monkeypatch.setattr(coarse_choice, "patience", patience.Patience(assign_coarse))
    monkeypatch.setattr(coarse_choice, "_is_quicker", Always())
    now = iter(np.arange(0.0, 1000.0, 0.4))  # each pass takes 0.4 seconds
    monkeypatch.setattr(patience, "perf_counter", lambda: next(now))
    checks = []  # at the third look it is there
    monkeypatch.setattr(
        patience, "lies_ready", lambda *arguments: checks.append(1) or len(checks) == 3
    )
    calls = []
    kernel = dense_pass.assign_coarse
    monkeypatch.setattr(dense_pass, "assign_coarse", lambda *a: calls.append(1) or kernel(*a))
    X = np.random.default_rng(8).standard_normal((300, 3))
    used = []
    engine = NumbaEngine(X, None)
    for number in range(9):
        calls.clear()
        engine.assign(X[number : number + 40])
        used.append(bool(calls))
    assert used == [False] * 6 + [True] * 3
    assert len(checks) == 3


@pytest.mark.parametrize("one_chunk", [False, True])
@pytest.mark.parametrize("coarse_is_quicker", [True, False])
def test_the_quicker_look_is_kept(coarse_is_quicker, one_chunk, monkeypatch):
    for name in ("FEWEST_CENTERS", "LEAST_WORK", "LEAST_RUN"):
        monkeypatch.setattr(coarse_choice, name, 0)
    monkeypatch.setattr(patience, "lies_ready", lambda *arguments: True)
    monkeypatch.setattr(coarse_choice, "patience", patience.Patience(assign_coarse))
    known = {}
    monkeypatch.setattr(coarse_choice, "_is_quicker", known)
    monkeypatch.setattr(coarse_choice, "_n_lost", {})
    if not one_chunk:
        monkeypatch.setattr("pgkmeans_sk.engines.chunks.CHUNK_WORK", 20_000)
    now = [0.0]
    monkeypatch.setattr(dense_pass, "perf_counter", lambda: now[0])
    calls = []

    def slow(name, seconds):
        kernel = getattr(dense_pass, name)

        def run(*arguments):
            found = kernel(*arguments)
            now[0] += seconds
            calls.append(name)
            return found

        monkeypatch.setattr(dense_pass, name, run)

    slow("assign_coarse", 1.0 if coarse_is_quicker else 2.0)
    slow("assign_dense", 1.5)
    X = np.random.default_rng(9).standard_normal((1000, 3))
    engine = NumbaEngine(X, None)
    engine._n_threads = 1
    for number in range(1 if coarse_is_quicker else coarse_choice.LOSSES):
        assert not known  # one comparison that integers have lost may have been disturbed
        calls.clear()
        engine.assign(X[number : number + 40])
        assert set(calls) == {"assign_coarse", "assign_dense"}
    engine.assign(X[:40])
    assert list(known.values()) == [coarse_is_quicker]
    np.testing.assert_array_equal(engine.labels, reference.labels(X, X[:40]))
    for each in (lambda: engine.assign(X[40:80]), lambda: engine.nearest(X[40:80])):
        calls.clear()
        each()
        assert set(calls) == {"assign_coarse" if coarse_is_quicker else "assign_dense"}
    np.testing.assert_array_equal(engine.labels, reference.labels(X, X[40:80]))


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_whole_fit_is_the_same(metric, monkeypatch):
    X = np.random.default_rng(10).standard_normal((3000, 6)).astype(np.float32)
    model = PGKMeans(40, metric=metric, random_state=0)
    coarse = model.fit(X)
    found = coarse.cluster_centers_.tobytes(), coarse.labels_.tobytes(), coarse.inertia_
    monkeypatch.setattr(coarse_choice, "LEAST_WORK", 10**18)
    full = PGKMeans(40, metric=metric, random_state=0).fit(X)
    assert found == (full.cluster_centers_.tobytes(), full.labels_.tobytes(), full.inertia_)
    np.testing.assert_array_equal(model.predict(X), model.labels_)


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_rows_in_blocks_have_the_same_bytes(compared, weighting, monkeypatch):
    if compared:
        monkeypatch.setattr(coarse_choice, "_is_quicker", {})
    monkeypatch.setattr("pgkmeans_sk.engines.chunks.CHUNK_WORK", 200_000)
    found = []
    kernel = run_labels.assign_coarse
    monkeypatch.setattr(
        run_labels, "assign_coarse", lambda *a: found.append(kernel(*a)) or found[-1]
    )
    X = np.random.default_rng(11).standard_normal((2000, 5)).astype(np.float32)
    sample_weight = reference.sample_weights(len(X))[weighting]
    blocks = RowBlocks(X, memory_limit=2**15)
    in_blocks = PGKMeans(40, random_state=0).fit(blocks, sample_weight=sample_weight)
    assert found
    assert not any(result[1] for result in found[:3])  # no near ties in these rows
    monkeypatch.setattr(coarse_choice, "LEAST_WORK", 10**18)
    full = PGKMeans(40, random_state=0).fit(X, sample_weight=sample_weight)
    for name in ("cluster_centers_", "labels_", "inertia_"):
        assert np.asarray(getattr(in_blocks, name)).tobytes() == (
            np.asarray(getattr(full, name)).tobytes()
        ), name
    np.testing.assert_array_equal(in_blocks.predict(blocks), full.predict(X))
