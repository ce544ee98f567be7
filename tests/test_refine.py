"""Below Lloyd's local optimum: rounds of moves after convergence."""

import sys
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk import PGKMeans, pg_kmeans
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.refine import refine
from pgkmeans_sk.pipeline.settings import Journal, Settings
from tests.problems import PATTERNS, blobs, n_distinct, rows, weighted_sse
from tests.test_empty_clusters import assert_state_belongs, column
from tests.test_exchange import settled

STUCK = {"init": "random", "n_init": 1, "algorithm": "lloyd", "random_state": 0}


def test_a_centre_too_many_goes_where_one_is_missing(engine):
    # Lloyd's iteration rests with two centres on the first pair and one on two others.
    X = column(-1, 1, 99, 101, 199, 201)
    opened = engine(X)
    settings = Settings(3, refine=5)
    journal = Journal()
    state, n_iter, _ = lloyd(opened, settled(opened, column(-1, 1, 150)), settings, journal)
    state, n_iter = refine(opened, state, settings, journal, n_iter)
    np.testing.assert_allclose(np.sort(state.centers[:, 0]), [0, 100, 200])
    assert state.inertia == 6
    assert_state_belongs(opened, state, X)


def test_fits_that_are_stuck_come_loose():
    X = blobs(2000, 2, 30, seed=3, spread=0.3)
    plain = PGKMeans(30, **STUCK).fit(X)
    refined = PGKMeans(30, refine=20, **STUCK).fit(X)
    assert refined.inertia_ < 0.8 * plain.inertia_
    assert refined.n_iter_ > plain.n_iter_
    assert refined.inertia_ == pytest.approx(
        weighted_sse(X, refined.cluster_centers_, refined.labels_)
    )
    np.testing.assert_array_equal(refined.predict(X), refined.labels_)


@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(1, 80),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_promises_hold(pattern, n_rows, n_features, seed, dtype, is_sparse):
    X = rows(pattern, n_rows, n_features, seed, dtype)
    data = sparse.csr_matrix(X) if is_sparse else X
    n_clusters = 1 + seed % min(n_rows, 12)
    common = {"n_clusters": n_clusters, "init": "random", "n_init": 1, "random_state": seed}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["pgkmeans_sk.pipeline.refine"], "SMALLEST_GAIN", 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = PGKMeans(**common).fit(data)
            refined = PGKMeans(refine=4, **common).fit(data)
    assert len(np.unique(refined.labels_)) == min(n_clusters, n_distinct(X))
    np.testing.assert_array_equal(refined.predict(data), refined.labels_)
    if not is_sparse:
        assert refined.inertia_ <= plain.inertia_
    assert refined.n_iter_ <= 300


def test_iterations_are_counted_on_and_limited():
    X = blobs(2000, 2, 30, seed=3, spread=0.3)
    numbers = []

    class Monitor:
        is_heard = True

        def begin_start(self, number):
            numbers.clear()

        def end_iteration(self, number, centers, inertia):
            numbers.append((number, inertia))
            return False

        def end_start(self):
            pass

    for max_iter in (3, 12, 300):
        with mock.patch("pgkmeans_sk.kmeans.CallbackMonitor") as made:
            monitor = Monitor()
            monitor.end_fit = lambda: None
            made.return_value = monitor
            fitted = PGKMeans(30, refine=20, max_iter=max_iter, **STUCK).fit(X)
        assert fitted.n_iter_ <= max_iter
        assert [number for number, _ in numbers] == list(range(1, fitted.n_iter_ + 1))
        inertias = [inertia for _, inertia in numbers]
        assert inertias == sorted(inertias, reverse=True)


def test_weights_and_function():
    X = blobs(600, 3, 12, seed=1)
    weights = np.random.default_rng(0).integers(1, 4, 600)
    one = pg_kmeans(X, 12, sample_weight=weights, refine=3, init="partition-ball")
    other = pg_kmeans(np.repeat(X, weights, axis=0), 12, refine=3, init="partition-ball")
    assert one[2] == pytest.approx(other[2], rel=1e-9)


@pytest.mark.parametrize("value", [-1, 1.5, "2", None, True])
def test_wrong_values(value):
    with pytest.raises(ValueError, match=r"refine=.*expected an int >= 0"):
        PGKMeans(2, refine=value).fit([[1.0], [2.0], [3.0]])


@pytest.mark.parametrize(
    ("parameters", "X", "start"),
    [
        ({}, np.eye(2)[[0, 1, 0, 1]], "partition-principal-error"),
        ({}, [[1.0], [2.0], [9.0]], "optimum"),
        ({"init": "random"}, np.eye(4), "random"),
        ({"init": [[0.0, 1.0], [1.0, 0.0]]}, np.eye(2), "array"),
        ({"init": lambda X, k, random_state: X[:k]}, np.eye(3), "callable"),
    ],
)
def test_start_is_told(parameters, X, start):
    assert PGKMeans(2, **parameters).fit(X).start_ == start


def test_two_trees_race_on_small_tables():
    starts = {PGKMeans(10).fit(rows("normal", 150, 4, seed)).start_ for seed in range(10)}
    assert starts == {"partition-principal-error", "partition-ball"}
