"""Lloyd's iteration of small tables in one kernel: the bits of the pipeline."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as searched
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris, make_blobs

from pgkmeans_sk import InertiaMonitor, PGKMeans
from pgkmeans_sk.engines import numba_lloyd, small_kernels
from pgkmeans_sk.engines.chunks import medians
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.small_kernels import MOST_CHUNKS, bounds_if_small
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import _Momentum, _small_plan, lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from tests import reference
from tests.test_empty_clusters import column

IRIS = load_iris().data


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Compile the kernel when it is first wanted."""
    monkeypatch.setattr(small_kernels, "PATIENCE", 0)


def iterated(X, centers, weights=None, in_one_go=True, **parameters):
    """Everything that an iteration leaves behind, as bytes; and whether it went in one go."""
    engine, settings = NumbaEngine(X, weights), Settings(len(centers), **parameters)
    journal, found = Journal(), []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow, which the pipeline notices
        shortcut = NumbaEngine.small_lloyd if in_one_go else lambda *_: None

        def small_lloyd(*arguments):
            found.append(shortcut(*arguments))
            return found[-1]

        patch.setattr(NumbaEngine, "small_lloyd", small_lloyd)
        first = settle(engine, centers.astype(X.dtype), settings, journal)
        last, n_iter, converged = lloyd(engine, first, settings, journal)
        # The engine goes on from there.
        again = engine.assign(last.centers)
    told = (last.centers, engine.labels, last.assignment.centroids, last.assignment.sizes,
            last.assignment.sq_errors, again.centroids, engine.utilities(last.centers))  # fmt: skip
    assert last.centers.dtype == X.dtype
    assert again.n_changed == 0
    kept = (
        *(values.tobytes() for values in told), last.inertia, n_iter, converged, journal.iteration,
        journal.repairs,
    )  # fmt: skip
    return kept, bool(found) and found[0] is not None


def assert_same_bits(*arguments, goes=True, **parameters):
    kept, went = iterated(*arguments, **parameters)
    expected, _ = iterated(*arguments, in_one_go=False, **parameters)
    assert kept == expected
    assert went == goes or goes is None


both_ways = pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "momentum"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


# ------------------------------------------------------------------ as in the pipeline


@both_ways
@dtypes
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_clusters", [1, 2, 3, 8, 9, 33])
def test_digits_have_the_bits_of_the_pipeline(accelerate, dtype, order, n_clusters):
    X = np.array(load_digits().data[:700], dtype=dtype, order=order)
    assert_same_bits(X, X[:n_clusters], accelerate=accelerate)


@both_ways
@pytest.mark.parametrize("n_clusters", [64, 127, 128])
def test_as_many_clusters_as_there_may_be(accelerate, n_clusters):
    X = np.random.default_rng(0).standard_normal((600, 5))
    assert_same_bits(X, X[:n_clusters], accelerate=accelerate)


@both_ways
@dtypes
@pytest.mark.parametrize("weighting", ["none", "some zero"])
@pytest.mark.parametrize(("n_rows", "n_chunks"), [(1000, 2), (1700, 4), (2700, MOST_CHUNKS)])
def test_chunks_are_added_up_as_in_the_pipeline(accelerate, dtype, weighting, n_rows, n_chunks):
    # Rows far from zero: in another order, sums have other last bits.
    X = (3.0 + np.random.default_rng(n_rows).random((n_rows, 60))).astype(dtype)
    assert len(bounds_if_small(n_rows, 60, 80)) == n_chunks + 1
    weights = None if weighting == "none" else reference.sample_weights(n_rows)[weighting]
    assert_same_bits(X, X[-80:], weights, accelerate=accelerate, tol=0.0, goes=None)
    centers = X[:80] * 0.2 + X.mean(axis=0) * 0.8  # all of them keep rows
    assert_same_bits(X, centers, accelerate=accelerate, max_iter=9)


@both_ways
@pytest.mark.parametrize("tol", [0.0, 1e-4, 0.1, 1e6])
@pytest.mark.parametrize("max_iter", [1, 2, 3, 7, 300])
def test_tolerance_and_iterations(accelerate, tol, max_iter):
    X = np.random.default_rng(3).random((500, 2))
    assert_same_bits(X, X[:12], accelerate=accelerate, tol=tol, max_iter=max_iter)


@both_ways
@dtypes
@pytest.mark.parametrize("weighting", ["random", "some zero"])
def test_weights_count_as_in_the_pipeline(accelerate, dtype, weighting):
    X = IRIS.astype(dtype)
    weights = reference.sample_weights(len(X))[weighting]
    assert_same_bits(X, X[::15], weights, accelerate=accelerate)


@both_ways
def test_many_iterations_with_steps_that_are_taken_back(accelerate, monkeypatch):
    # Uniform rows: clusters move on for long, and momentum overshoots now and then.
    resets = []
    reset = _Momentum.reset
    monkeypatch.setattr(_Momentum, "reset", lambda momentum: (resets.append(1), reset(momentum)))
    for seed in range(5):
        X = np.random.default_rng(seed).random((1000, 2))
        assert_same_bits(X, X[:20], accelerate=accelerate, tol=0.0)
    assert accelerate == (len(resets) > 10)  # of the pipeline


@both_ways
@pytest.mark.parametrize("distance", [10.0, 1e9, 1e30])
def test_one_cluster_from_afar(accelerate, distance):
    X = np.random.default_rng(0).standard_normal((100, 3))
    assert_same_bits(X, np.full((1, 3), distance), accelerate=accelerate)


@both_ways
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e140])
def test_tiny_and_huge_numbers(accelerate, scale):
    X = scale * np.random.default_rng(0).standard_normal((200, 3))
    # Squares of the smallest vanish: all rows are equally near, and clusters are empty.
    assert_same_bits(X, X[:7], accelerate=accelerate, goes=scale > 1e-300)


@both_ways
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e18, 1e38])
def test_numbers_at_the_ends_of_float32(accelerate, scale):
    X = (scale * np.random.default_rng(0).uniform(-3, 3, (200, 3))).astype(np.float32)
    assert_same_bits(X, X[:7], accelerate=accelerate)


@both_ways
def test_each_row_a_cluster(accelerate):
    X = np.random.default_rng(0).standard_normal((40, 3))
    assert_same_bits(X, X, accelerate=accelerate)
    assert_same_bits(X, X[::-1] + 1e-3, accelerate=accelerate, goes=None)


def test_rows_that_lie_apart():
    wide = np.random.default_rng(0).standard_normal((300, 9))
    for X in (wide[:, ::2], wide[::3], wide[::-1], wide[:, 1:2]):
        assert_same_bits(X, X[:5])


def test_read_only_rows_and_weights():
    X, weights = IRIS.copy(), np.full(150, 0.5)
    X.flags.writeable = weights.flags.writeable = False
    assert_same_bits(X, X[:4], weights)


@st.composite
def problems(draw):
    """Rows with many equal ones and ties, weights with zeros, centres from anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    n_rows, n_features = draw(st.integers(1, 300)), draw(st.integers(1, 9))
    X = rng.integers(0, draw(st.sampled_from([2, 5, 1000])), (n_rows, n_features)) / 7.0
    X = X.astype(draw(st.sampled_from([np.float32, np.float64])))
    n_clusters = draw(st.integers(1, min(n_rows, 40)))
    centers = X[rng.integers(0, n_rows, n_clusters)] + draw(st.sampled_from([0.0, 0.01, 5.0]))
    weights = None
    if draw(st.booleans()):
        weights = rng.integers(0, 3, n_rows).astype(np.float64)
        weights[0] = 1.0
    return X, centers, weights


@both_ways
@given(problems(), st.sampled_from([0.0, 1e-4, 0.05]), st.sampled_from([1, 2, 5, 300]))
@searched(max_examples=150)
def test_any_problem_has_the_bits_of_the_pipeline(accelerate, problem, tol, max_iter):
    assert_same_bits(*problem, goes=None, accelerate=accelerate, tol=tol, max_iter=max_iter)


@pytest.mark.parametrize("refine", [0, 3])
@pytest.mark.parametrize("init", ["partition", "k-means++", "partition-ball"])
def test_fits_are_those_of_the_pipeline(monkeypatch, init, refine):
    X = make_blobs(400, 3, centers=12, random_state=1)[0]

    def fitted():
        model = PGKMeans(12, init=init, refine=refine, n_init=2, random_state=0).fit(X)
        return (
            model.cluster_centers_.tobytes(), model.labels_.tobytes(), model.inertia_,
            model.n_iter_, model.start_,
        )  # fmt: skip

    found = fitted()
    monkeypatch.setattr(NumbaEngine, "small_lloyd", lambda *_: None)
    assert found == fitted()


# ------------------------------------------------------------------ where it gives up


@both_ways
@dtypes
def test_a_cluster_that_loses_its_rows_is_left_to_the_pipeline(accelerate, dtype):
    # The outer means are -5 and 5: nearer to the rows of the middle centre than their mean, 0.
    X, centers = column(-5, -3.9, 3.9, 5).astype(dtype), column(-9, 0, 9)
    assert_same_bits(X, centers, accelerate=accelerate, goes=False)
    assert_same_bits(X, centers, accelerate=accelerate, max_iter=1, goes=False)
    assert_same_bits(X, centers, accelerate=accelerate, tol=1e9, goes=False)


def test_labels_and_state_are_left_as_they_are_where_it_gives_up(monkeypatch):
    engine = NumbaEngine(IRIS, None)
    state = settle(engine, IRIS[:5], Settings(5), Journal())
    labels = engine.labels
    monkeypatch.setattr(numba_lloyd, "lloyd_small", lambda *_: (-1, 3, False))
    monkeypatch.setattr(small_kernels, "lies_ready", lambda *_: True)
    plan = _small_plan(Settings(5), 1e-4)
    assert engine.small_lloyd(state, plan) is None
    np.testing.assert_array_equal(engine.labels, labels)
    assert engine.assign(state.centers).inertia == state.inertia


class Deaf:
    """A monitor that says nothing."""

    def end_iteration(self, number, centers, inertia):
        return False


def test_what_is_left_to_the_pipeline(monkeypatch):
    calls = []
    monkeypatch.setattr(NumbaEngine, "small_lloyd", lambda *_: calls.append(1))
    engine = NumbaEngine(IRIS, None)

    def n_calls(monitor=None, **parameters):
        calls.clear()
        settings = Settings(5, **parameters)
        state = settle(engine, IRIS[:5], settings, Journal())
        lloyd(engine, state, settings, Journal(), monitor)
        return len(calls)

    assert n_calls() == 1
    assert n_calls(Deaf()) == 0  # it is to hear of each iteration
    assert n_calls(log=lambda message: None) == 0
    assert n_calls(spherical=True) == 0


def test_fewer_distinct_rows_than_clusters_are_left_to_the_pipeline():
    X = np.repeat(column(0, 1, 5), 10, axis=0)
    assert_same_bits(X, column(0, 1, 5, 9), goes=False)


def test_many_chunks_are_left_to_the_pipeline():
    assert bounds_if_small(150, 4, 3).tolist() == [0, 150]
    assert bounds_if_small(150, 4, 129) is None
    assert bounds_if_small(10**6, 4, 3) is None
    engine = NumbaEngine(np.random.default_rng(0).random((60_000, 4)), None)
    state = settle(engine, engine.user_data[:5], Settings(5), Journal())
    assert engine.small_lloyd(state, _small_plan(Settings(5), 1e-4)) is None


def test_a_monitor_hears_of_each_iteration_and_changes_nothing():
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brought callbacks")
    monitor = InertiaMonitor()
    X = np.random.default_rng(0).random((300, 2))
    heard = PGKMeans(9, init=X[:9]).set_callbacks(monitor).fit(X)
    alone = PGKMeans(9, init=X[:9]).fit(X)
    assert len(monitor.records) == heard.n_iter_ == alone.n_iter_ > 1
    assert heard.inertia_ == alone.inertia_
    np.testing.assert_array_equal(heard.labels_, alone.labels_)


# ------------------------------------------------------------------ when it is compiled


def test_the_kernel_is_compiled_when_it_was_wanted_often(monkeypatch):
    monkeypatch.setattr(small_kernels, "PATIENCE", 3)
    monkeypatch.setattr(small_kernels, "_n_waited", {})
    monkeypatch.setattr(small_kernels, "lies_ready", lambda *_: False)
    found = [iterated(IRIS, IRIS[:4])[1] for _ in range(5)]
    assert found == [False, False, False, True, True]


# ------------------------------------------------------------------ the point near the rows


@dtypes
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**16))
def test_medians_are_those_of_numpy(dtype, n_rows, n_features, seed):
    X = np.random.default_rng(seed).integers(-9, 9, (n_rows, n_features)) / 7.0
    for rows in (X.astype(dtype), np.asfortranarray(X.astype(dtype)), X.astype(dtype)[::2]):
        found = medians(rows)
        np.testing.assert_array_equal(found, np.median(rows, axis=0))
        assert found.dtype == dtype
