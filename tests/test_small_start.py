"""The start of small tables in one kernel: the bits of the pipeline; and calls by address."""

import warnings

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris, make_blobs

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import small_kernels
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.numba_start import bounds_for_start
from pgkmeans_sk.kernels import small_slots as module
from pgkmeans_sk.kernels.compile import kernel, lies_ready
from pgkmeans_sk.kernels.linked import (
    address_of,
    call_for_nothing,
    call_for_two_floats,
    call_for_two_ints,
)
from pgkmeans_sk.pipeline import starts
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.exchange import rebalance
from pgkmeans_sk.pipeline.partition import partition
from pgkmeans_sk.pipeline.settings import Journal, Settings

PLAN = starts.small_plan(starts.DEFAULT_RULE)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Compile the kernel when it is first wanted."""
    monkeypatch.setattr(small_kernels, "PATIENCE", 0)


def fitted(X, n_clusters, weights=None):
    """Everything a fit tells, as bytes."""
    model = PGKMeans(n_clusters, random_state=0).fit(X, sample_weight=weights)
    return (
        model.cluster_centers_.tobytes(),
        model.labels_.tobytes(),
        model.inertia_,
        model.n_iter_,
        model.start_,
        model.repair_log_,
    )


@pytest.fixture
def long_way(monkeypatch):
    """Fit without the kernel."""

    def fit(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(NumbaEngine, "small_start", lambda *_: None)
            return fitted(*arguments)

    return fit


# ------------------------------------------------------------------ as in the pipeline


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_clusters", [1, 2, 3, 4, 8, 33, 128])
def test_digits_have_the_bits_of_the_pipeline(long_way, dtype, order, n_clusters):
    X = np.array(load_digits().data[:700], dtype=dtype, order=order)
    assert fitted(X, n_clusters) == long_way(X, n_clusters)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_rows", "n_chunks"), [(1000, 2), (1700, 4), (2700, 6)])
def test_chunks_are_added_up_as_in_the_pipeline(long_way, dtype, n_rows, n_chunks):
    X = (3.0 + np.random.default_rng(n_rows).random((n_rows, 60))).astype(dtype)
    assert len(bounds_for_start(n_rows, 60, 80)) == n_chunks + 1
    weights = np.random.default_rng(1).integers(0, 4, n_rows).astype(np.float64)
    assert fitted(X, 80) == long_way(X, 80)
    assert fitted(X, 80, weights) == long_way(X, 80, weights)


@pytest.mark.parametrize("n_clusters", [3, 10, 40])
def test_weights_count_as_in_the_pipeline(long_way, n_clusters):
    X = load_iris().data
    weights = np.random.default_rng(0).integers(0, 4, len(X)).astype(np.float64)
    assert fitted(X, n_clusters, weights) == long_way(X, n_clusters, weights)


def test_a_read_only_table_and_weights(long_way):
    X, weights = load_iris().data.copy(), np.full(150, 0.5)
    X.flags.writeable = weights.flags.writeable = False
    assert fitted(X, 5, weights) == long_way(X, 5, weights)


def test_weights_that_lie_apart(long_way):
    # Validation puts weights side by side; an engine may be given others.
    X, wide = load_iris().data, np.random.default_rng(0).random((150, 3))
    for weights in (wide[:, 1], wide[:, 1].copy()):
        found = NumbaEngine(X, weights).small_start(6, PLAN)
        assert found.inertia == NumbaEngine(X, wide[:, 1].copy()).assign(found.centers).inertia
    weights = wide[::-1, 1]
    found = NumbaEngine(X[::-1], weights).small_start(6, PLAN)
    alike = NumbaEngine(X[::-1].copy(), weights.copy())
    assert found.inertia == alike.assign(found.centers).inertia


@given(
    n_rows=st.integers(5, 300),
    n_features=st.integers(1, 9),
    n_clusters=st.integers(1, 40),
    n_values=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 2**16),
    is_weighted=st.booleans(),
)
@settings(max_examples=60)
def test_any_table_has_the_bits_of_the_pipeline(
    n_rows, n_features, n_clusters, n_values, seed, is_weighted
):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, n_values, (n_rows, n_features)) / 7.0  # many rows twice, many ties
    weights = rng.integers(0, 3, n_rows).astype(np.float64) if is_weighted else None
    if is_weighted:
        weights[0] = 1.0
    n_clusters = min(n_clusters, n_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NumbaEngine, "small_start", lambda *_: None)
        expected = _ignoring_warnings(X, n_clusters, weights)
    assert _ignoring_warnings(X, n_clusters, weights) == expected


def _ignoring_warnings(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fitted(*arguments)


def test_the_kernel_is_what_runs():
    # Or else the tests above would compare the pipeline with itself.
    found = NumbaEngine(load_iris().data, None).small_start(8, PLAN)
    assert found.centers.shape == (8, 4)
    alone = NumbaEngine(load_iris().data, None).assign(found.centers)
    assert found.inertia == pytest.approx(alone.inertia)


# ------------------------------------------------------------------ when it is compiled


def test_the_kernel_is_compiled_when_it_was_wanted_often(monkeypatch):
    monkeypatch.setattr(small_kernels, "PATIENCE", 3)
    monkeypatch.setattr(small_kernels, "_n_waited", {})
    monkeypatch.setattr(small_kernels, "lies_ready", lambda *_: False)
    engine = NumbaEngine(load_iris().data, None)
    found = [engine.small_start(8, PLAN) is not None for _ in range(5)]
    assert found == [False, False, False, True, True]


def test_a_kernel_that_lies_ready_is_used_at_once(monkeypatch):
    NumbaEngine(load_iris().data, None).small_start(8, PLAN)  # it is there now
    monkeypatch.setattr(small_kernels, "PATIENCE", 3)
    monkeypatch.setattr(small_kernels, "_n_waited", {})
    assert NumbaEngine(load_iris().data, None).small_start(8, PLAN) is not None


def test_what_lies_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def double(x):
        return 2 * x

    compiled, again = kernel(double), kernel(double)
    assert not lies_ready(compiled, 1.5)
    compiled(1.5)
    for known in (compiled, again):  # in memory, and on disk
        assert lies_ready(known, 1.5)
        assert not lies_ready(known, 1)


# ------------------------------------------------------------------ where it gives up


def test_rows_too_much_alike_are_left_to_the_pipeline():
    X = np.repeat(np.arange(4.0), 30)[:, np.newaxis] * np.ones(3)
    engine = NumbaEngine(X, None)
    assert engine.small_start(4, PLAN) is not None
    assert engine.small_start(5, PLAN) is None


def test_labels_are_left_as_they_are():
    engine = NumbaEngine(load_iris().data, None)
    before = engine.assign(engine.user_data[:2])
    labels = engine.labels
    engine.small_start(8, PLAN)
    np.testing.assert_array_equal(engine.labels, labels)
    assert engine.assign(engine.user_data[:2]).inertia == before.inertia


@pytest.mark.parametrize(
    ("shape", "n_clusters", "small"),
    [((150, 4), 3, True), ((150, 4), 1, False), ((500, 2), 129, False), ((10**6, 64), 8, False)],
)
def test_which_tables_are_small(shape, n_clusters, small):
    assert (bounds_for_start(*shape, n_clusters) is not None) == small


def test_directions_are_left_to_the_pipeline(monkeypatch):
    monkeypatch.setattr(NumbaEngine, "small_start", None)  # would raise
    PGKMeans(3, metric="cosine").fit(load_iris().data)


def test_race_is_won_by_the_better_tree():
    X = load_iris().data
    journal = Journal()
    state = starts._race(NumbaEngine(X, None), Settings(8), journal)
    each = [
        NumbaEngine(X, None).small_start(8, starts.small_plan(rule)).inertia
        for rule in (starts.DEFAULT_RULE, starts.RIVAL_RULE)
    ]
    assert state.inertia == pytest.approx(min(each))
    assert journal.start == ["partition-principal-error", "partition-ball"][int(np.argmin(each))]


def test_an_empty_leaf_is_left_to_the_pipeline_and_the_rest_is_not():
    engine, plan = NumbaEngine(load_iris().data, None), starts.small_plan(starts.RIVAL_RULE)
    found = engine.small_start(32, plan)
    assert found.inertia is None
    np.testing.assert_array_equal(found.centers, partition(engine, 32, starts.RIVAL_RULE))
    journal = Journal()
    state = settle(engine, found.centers, Settings(32), journal)
    assert journal.repairs
    mended = engine.small_start(32, plan, state.centers)
    expected, _ = rebalance(engine, state, Settings(32), Journal(), starts.SAMPLE_ROUNDS)
    assert mended.inertia == expected.inertia < state.inertia
    np.testing.assert_array_equal(mended.centers, expected.centers)
    grown = starts._grow(engine, starts.RIVAL_RULE, Settings(32), judged=True)
    assert grown.centers.tobytes() == expected.centers.tobytes()
    assert grown.repairs == journal.repairs


@pytest.mark.parametrize("in_one_go", [False, True])
@pytest.mark.parametrize(("spread", "is_settled"), [(0.5, True), (8.0, False)])
def test_no_race_where_the_first_tree_is_hardly_to_be_improved(
    monkeypatch, in_one_go, spread, is_settled
):
    X = make_blobs(300, 8, centers=6, cluster_std=spread, random_state=0)[0]
    if not in_one_go:
        monkeypatch.setattr(NumbaEngine, "small_start", lambda *_: None)
    grown, grow = [], starts._grow

    def spy(*arguments):
        grown.append(grow(*arguments))
        return grown[-1]

    monkeypatch.setattr(starts, "_grow", spy)
    starts._race(NumbaEngine(X, None), Settings(6), Journal())
    assert len(grown) == (1 if is_settled else 2)
    assert grown[0].is_settled == is_settled


# ------------------------------------------------------------------ sums as NumPy has them


@numba.njit
def sum_of_many(values):
    return module.sum_of_many(values)


@pytest.mark.parametrize("n", [*range(1, 20), 63, 64, 65, 127, 128])
def test_sums_are_those_of_numpy(n):
    values = np.random.default_rng(n).standard_normal(n) ** 9
    assert numba.njit(lambda x: module.sum_of(x))(values) == values.sum()


@pytest.mark.parametrize("n", [1, 7, 8, 128, 129, 136, 137, 255, 256, 257, 1000, 4096, 8192, 9999])
def test_long_sums_are_those_of_numpy(n):
    values = np.random.default_rng(n).standard_normal(n) ** 9
    assert sum_of_many(values) == values.sum()
    assert sum_of_many(values.reshape(-1, 1).copy().ravel()) == values.reshape(-1, 1).sum()


def test_order_falls_and_keeps_equals():
    values = np.array([1.0, 3.0, 3.0, -2.0, 5.0, 1.0])
    order = np.empty(6, dtype=np.int64)
    numba.njit(lambda x, o: module.sort_falling(x, o))(values, order)
    assert order.tolist() == np.argsort(-values, kind="stable").tolist()


# ------------------------------------------------------------------ calls by address


@kernel
def two_ints(values, factor):
    return np.int64(values[0]) * factor, factor


@kernel
def two_floats(values):
    return values[0], values[1]


@kernel
def fill(values, number):
    for i in range(values.size):
        values[i] = number


@kernel
def refuse(values, number):
    if number < 0:
        raise ValueError("negative")


@numba.njit
def call_all(addresses, values):
    found = call_for_two_ints(addresses[0], (values, np.int64(3)))
    call_for_nothing(addresses[1], (values[1:], 7.0))
    return found, call_for_two_floats(addresses[2], (values,))


@numba.njit
def call_refuse(address, values, number):
    call_for_nothing(address, (values, number))
    return number


def test_kernels_are_called_by_address():
    values = np.array([5.0, 1.0, 2.0])
    addresses = address_of(two_ints, values, 3), address_of(fill, values[1:], 7.0)
    addresses += (address_of(two_floats, values),)
    assert call_all(addresses, values) == ((15, 3), (5.0, 7.0))
    assert values.tolist() == [5.0, 7.0, 7.0]


def test_errors_come_back():
    values = np.zeros(1)
    address = address_of(refuse, values, 1)
    assert call_refuse(address, values, 1) == 1
    with pytest.raises(ValueError, match="negative"):
        call_refuse(address, values, -1)


def test_an_address_stays_the_same():
    values = np.zeros(3)
    assert address_of(fill, values, 1.0) == address_of(fill, values, 2.0) != 0
